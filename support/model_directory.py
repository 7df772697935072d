"""A model directory: all that a model is, as JSON and safetensors; nothing in it is code, and nothing is missing.

    config.json          the settings of the run
    model.safetensors    the weights of both towers and heads, and the logit scale
    image_encoder/       config.json, in timm's own form, from which `local-dir:` rebuilds the architecture
    text_encoder/        config.json and the tokenizer, as `AutoModel` and `AutoTokenizer` read them
    everyday.json        prompts that a search compares with, of a model that is not of English
    caption_bank.safetensors    embeddings of captions, by which a search knows hubs; not in models of earlier versions
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from support.files import write_json
from support.hubs import read_bank, write_bank
from support.prompts import read_everyday_prompts, write_everyday_prompts
from support.strangers import Building, check_answers, check_files, check_sizes, one_line_for

ELSEWHERE = ("architecture", "url", "hf_hub_id", "file", "source")  # where timm's weights came from, not what they are


def write_model(model, directory):
    """Write a `models.CLIP` into a directory, which is made where it is not there."""
    directory = Path(directory)
    write_all_but_weights(model, directory)
    save_file(tensors_of(model), directory / "model.safetensors", metadata={"format": "pt"})
    if model.caption_bank is not None:
        write_bank(directory, model.caption_bank.numpy())


def tensors_of(model):
    """Return the tensors of a model, {name: tensor}, as safetensors takes them: each with memory of its own."""
    tensors = {}
    places = set()
    for name, tensor in model.state_dict().items():
        is_tied = tensor.numel() > 0 and tensor.data_ptr() in places  # as T5's table of words is to its encoder's
        places.add(tensor.data_ptr())
        tensors[name] = tensor.clone() if is_tied else tensor.contiguous()
    return tensors


def write_all_but_weights(model, directory):
    """Write what a model is built from: its settings, its towers' architecture and its tokenizer."""
    image_folder = directory / "image_encoder"
    text_folder = directory / "text_encoder"
    image_folder.mkdir(parents=True, exist_ok=True)
    text_folder.mkdir(exist_ok=True)
    model.config.save(directory / "config.json")

    image_tower = model.image_encoder
    known = image_tower.backbone.pretrained_cfg
    about = {
        "architecture": known["architecture"],
        "num_features": image_tower.backbone.num_features,
        "model_args": image_tower.model_args,
        "pretrained_cfg": {key: value for key, value in known.items() if key not in ELSEWHERE},
    }
    write_json(image_folder / "config.json", about)
    write_everyday_prompts(directory, model.everyday_prompts)
    model.text_encoder.backbone.config.save_pretrained(text_folder)
    model.text_encoder.tokenizer.save_pretrained(text_folder)


def prove_loadable(model, folder, load_config, build):
    """Raise UserError unless the directory of a model would give that model again; asked before it is trained.

    All but its weights is written into a scratch folder inside `folder`, and a model is built of that, without memory
    for its weights. It must have the same tensors, and read captions as the same tokens. Draws no random number.
    """
    with tempfile.TemporaryDirectory(prefix=".", suffix=".new", dir=folder) as scratch:
        directory = Path(scratch).resolve()
        with one_line_for("what would be saved of these towers"), torch.random.fork_rng():
            write_all_but_weights(model, directory)
            (directory / "model.safetensors").touch()
            check_files(directory)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(directory / "text_encoder")
            captions = ["a dog", "Two people sit near the beach ."]
            if tokenizer(captions)["input_ids"] != model.text_encoder.tokenizer(captions)["input_ids"]:
                raise ValueError("its tokenizer, saved and loaded again, reads other tokens")
            with Building(directory), torch.device("meta"):
                skeleton = build(directory, load_config(directory / "config.json"), tokenizer)
            built = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
            own = {name: tensor.shape for name, tensor in model.state_dict().items()}
            differing = sorted(name for name in built.keys() | own.keys() if built.get(name) != own.get(name))
            if differing:
                raise ValueError(f"{len(differing)} tensors would be others, such as {differing[0]}")


def read_model(directory, load_config, build):
    """Return the model in a directory, on the CPU and in eval mode; raises UserError for whatever is wrong with it.

    load_config: reads a config.json. build: makes a model of random weights from (directory, config, tokenizer).
    Reads nothing outside the directory.
    """
    directory = Path(directory).resolve()  # a relative name such as "best" could be taken for one on the hub
    with one_line_for(directory):
        config, weights = load_config(directory / "config.json"), directory / "model.safetensors"
        check_files(directory)
        # not AutoTokenizer, which takes any class of the library that tokenizer_config.json names
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory / "text_encoder")
        check_sizes(weights, lambda: build(directory, config, tokenizer))
        with Building(weights):
            model = build(directory, config, tokenizer)
        model.load_state_dict(load_file(weights))
        check_answers(model.eval(), weights)
        model.everyday_prompts = read_everyday_prompts(directory)
        bank = read_bank(directory, config.embedding_dim)
        model.caption_bank = None if bank is None else torch.from_numpy(bank)
        return model
