"""Model directories from strangers: nothing in one is run, downloaded, or believed before it was checked.

    settings ─ built on torch's meta device, which takes no memory ─> names and shapes ┐ only where they agree are the
    model.safetensors ─ its header ─────────────────────────────────> names and shapes ┘ weights read, the model built

Whatever is wrong ends in one `UserError` that names the directory. Weights are safetensors and settings JSON: neither
can hold code, and the code that settings may refer to (`auto_map`) is not fetched.
"""

import contextlib
import warnings
from math import prod
from pathlib import Path

import timm
import torch
from huggingface_hub import constants
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import logging

from support.errors import UserError
from support.files import read_json

PARTS = ("config.json", "model.safetensors", "image_encoder/config.json", "text_encoder/config.json",
         "text_encoder/tokenizer.json")
MOST_TOKENIZER = 100_000_000  # bytes of a tokenizer.json
MOST_WHOLE = 2**22  # that a setting of a tower may be: no width, depth or vocabulary is larger
MOST_NUMBERS = 2**28  # in one tensor of a model, or in all its tables, that its weights file does not hold: 1 GB
FLOATS = ("F64", "F32", "F16", "BF16")  # in a safetensors header; all become float32


@contextlib.contextmanager
def one_line_for(directory):
    """Turn whatever the libraries raise while they load a directory into one line, and keep them off the network."""
    logging.set_verbosity_error()
    online, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are then refused
            yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # the tokenizers library panics with what is no Exception
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{directory} cannot be loaded as a model: {reason} ({type(error).__name__})") from None
    finally:
        constants.HF_HUB_OFFLINE = online


def check_files(directory):
    """Raise UserError unless all parts of a model directory are there and of reasonable size."""
    for part in PARTS:
        if not (directory / part).is_file():
            raise UserError(f"{directory} is not a whole model directory: {part} is missing")
    for path in [directory / "image_encoder" / "config.json", *sorted((directory / "text_encoder").glob("*.json"))]:
        if path.name == "tokenizer.json":  # the library reads it, and refuses what is nested deeply
            if (size := path.stat().st_size) > MOST_TOKENIZER:
                raise UserError(f"{path} cannot be read: its {size:,} bytes are more than {MOST_TOKENIZER:,}")
        elif (most := largest(read_json(path))) > MOST_WHOLE and path.name == "config.json":
            raise UserError(f"{path} cannot be: it asks for {most:.3g} of something, and {MOST_WHOLE:,} are the most")


def largest(setting):
    """Return the largest whole number in a JSON value; those of a list, such as the depths of stages, add up."""
    if isinstance(setting, dict):
        return max(map(largest, setting.values()), default=0)
    if isinstance(setting, list):
        return sum(map(largest, setting))
    return abs(setting) if isinstance(setting, int) else 0


class Building(TorchDispatchMode):
    """Sees each operation while a model is built, whose weights will be read: none is drawn at random, which is slow.

    operations, numbers: the most that may be done, and that a tensor may hold. A stranger's settings may ask for a
    model without end, or for one larger than any memory.
    """

    def __init__(self, weights, operations=float("inf"), numbers=float("inf")):
        super().__init__()
        self.weights, self.operations, self.numbers = weights, operations, numbers

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default):
            return arguments[0]
        result = function(*arguments, **(named or {}))
        self.operations -= 1
        tensors = result if isinstance(result, tuple | list) else [result]
        if self.operations < 0 or any(
                isinstance(tensor, torch.Tensor) and tensor.numel() > self.numbers for tensor in tensors):
            raise UserError(f"{self.weights} is far too small for the model that the settings beside it ask for")
        return result


def check_sizes(weights, build):
    """Raise UserError unless what `build` makes has the tensors that a safetensors file holds; takes no memory."""
    try:
        with safe_open(weights, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            held = {name: (part.get_shape(), part.get_dtype() in FLOATS) for name, part in slices.items()}
    except Exception as error:  # safetensors has its own
        raise UserError(f"{weights} cannot be read: {error}") from None
    numbers = MOST_NUMBERS + sum(prod(shape) for shape, _ in held.values())
    # building and a first pass take up to 15 operations a tensor in any of timm's families
    with Building(weights, 40 * len(held) + 3_000, numbers), torch.device("meta"):
        skeleton = build()
    asked = {name: (list(tensor.shape), tensor.is_floating_point()) for name, tensor in skeleton.state_dict().items()}
    for name in sorted(held.keys() | asked.keys(), key=lambda name: (name in held and name in asked, name)):
        if held.get(name) != asked.get(name):
            file, settings = (f"{kinds[name][0]} of {'float' if kinds[name][1] else 'another type'}"[:80]
                              if name in kinds else "missing" for kinds in (held, asked))
            raise UserError(f"{weights} does not fit the settings beside it: {name[:80]} is {file} in the file, and "
                            f"{settings} by the settings")
    if sum(buffer.numel() for buffer in skeleton.buffers()) > numbers:
        raise UserError(f"{weights} is far too small for the tables that the settings beside it ask for")


def check_answers(model, weights):
    """Raise UserError unless weights, and the embeddings of a blank picture and the longest prompt, are finite."""
    for name, tensor in model.state_dict().items():
        if not tensor.sum().isfinite():  # a sum takes a tenth of the time that looking at each number does
            raise UserError(f"{weights} is no model: {name} holds numbers that are not finite")
    tower = model.text_encoder
    input_ids, mask = tower.tokens_of(["a dog", "\N{DOG FACE} \u72ac zzyzx"])
    # and the highest token, as often as can be: all others have their places in the tables too
    highest = max(*tower.tokenizer.get_vocab().values(), tower.pad_id)
    longest = torch.full((1, tower.max_tokens), highest)
    blank = torch.zeros(1, 3, model.config.image_size, model.config.image_size, dtype=torch.uint8)
    with torch.no_grad():  # inference_mode would mark tables that some towers keep from their first pass
        answers = [
            model.encode_text(input_ids, mask),
            model.encode_text(longest, torch.ones_like(longest)),
            model.encode_image(blank),
        ]
    if not all(answer.isfinite().all() for answer in answers):
        raise UserError(f"{weights} is no model: what it makes of a picture or a prompt is not finite")


def refuse_several_models(architecture):
    """Return the settings of a text tower unless they hold those of further models, which may name files to load."""
    if held := [name for name in architecture.sub_configs if getattr(architecture, name, None) is not None]:
        raise ValueError(f"{type(architecture).__name__} is not a model of text alone: it holds {' and '.join(held)}")
    return architecture


def check_image_weights(folder):
    """Raise an error unless timm would load safetensors from a folder: it also takes pickled files."""
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder} has no model.safetensors, and other files are not read")


def timm_model_args(name):
    """Return the constructor arguments that a timm `config.json` adds to its architecture, such as a padding type."""
    source, _, place = name.partition(":")
    if source == "local-dir":
        return read_json(Path(place) / "config.json").get("model_args") or {}
    return timm.models.load_model_config_from_hf(place)[2] or {} if source == "hf-hub" else {}
