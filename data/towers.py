"""Models on disk and on the Hugging Face hub; and towers as ONNX files, for prompts and for other programs.

A text tower that is kept as ONNX answers a prompt without torch, which takes seconds to import; so this imports none.
"""

import contextlib
import copy
import json
import os
import re
import shutil
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from config import UserError
from data.files import user_cache, write_file

FORMAT = 2  # of a text tower that is kept: raise it when what is written changes
EXAMPLE = Path(__file__).with_name("onnx_example.py")  # how to use exported towers; it goes with them
PROMPT_ENCODERS = 4  # models whose text tower is kept ready; of more, the one used longest ago goes


@contextlib.contextmanager
def loading(tower, name, pretrained):
    """Turn whatever the libraries raise while they load a tower into one line that says what to type instead."""
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()  # it would report each of a dozen retries
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # no network, no such name, no weights, damaged file: each library has its own errors
        reason = " ".join(str(error).split())[:240]
        takes = {"image": "a timm name (timm.list_models() lists them) or local-dir:PATH",
                 "text": "a hub name, or a folder with config.json, safetensors and tokenizer"}[tower]
        hint = pretrained * ("; pretrained weights come from the Hugging Face hub, once: connect, or name a folder, or "
                             "type --no-pretrained for random weights")
        raise UserError(f"the {tower} tower {name!r} cannot be loaded: {reason} ({type(error).__name__}). "
                        f"--{tower}-encoder takes {takes}{hint}") from None


# ---------------------------------------------------------------- the Hugging Face hub


def model_folder(name, revision=None, token=None):
    """Return the folder of a model: `name` itself, or of "OWNER/NAME" or "hf-hub:OWNER/NAME" its copy from the hub.

    Only JSON, text and safetensors are fetched, no code and nothing pickled, and only what is not there yet. Raises
    UserError where that cannot be.
    """
    from huggingface_hub import snapshot_download

    folder, place = Path(name), str(name).removeprefix("hf-hub:")
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        try:
            folder = Path(snapshot_download(place, revision=revision, token=token,
                                            allow_patterns=["*.json", "*.txt", "*.md", "*.safetensors"]))
        except Exception as error:  # no network, no such model, not allowed: each has an error of its own
            reason = " ".join(str(error).split())[:240]
            raise UserError(f"{name} is no folder here, nor can the Hugging Face hub give it: {reason}") from None
    return folder


def upload(model, repo_id, private=None, token=None, message=None):
    """Upload a model to the Hugging Face hub, without the paths of this machine; returns the address of the commit."""
    from huggingface_hub import HfApi

    def named(value):  # a path tells about its owner, and nobody else has it
        place = Path(str(value).removeprefix("local-dir:"))
        return type(value)(place.name) if isinstance(value, (str, Path)) and place.is_absolute() else value

    try:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            replace(model.config, **{name: named(value) for name, value in vars(model.config).items()}).save(
                Path(folder) / "config.json")
            known = model.card and model.card.is_file()
            card = model.card.read_text(encoding="utf-8") if known else model_card(model.config, {})
            write_file(Path(folder) / "README.md", card.replace("OWNER/NAME", repo_id))
            api = HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))
    except Exception as error:  # as in model_folder
        reason = " ".join(str(error).split())[:240]
        raise UserError(f"{repo_id} cannot be written on the Hugging Face hub: {reason}; sign in with: hf auth login"
                        ) from None


def model_card(config, reports):
    """Return the text of a model card: what the model is made of, its recall, how to use it.

    reports: {split: what `evaluate.report_of` returns}; empty where nothing has been measured.
    """
    from huggingface_hub import EvalResult, ModelCardData

    image, text, data = (Path(str(part)).name for part in (config.image_encoder, config.text_encoder, config.data_dir))
    title, results, rows = f"CLIP of {image} and {text}, trained on {data}", [], []
    for split, report in reports.items():
        for direction in ("text_to_image", "image_to_text"):
            words, figures = direction.replace("_", " "), report[direction]
            rows.append(f"| {split}, {report['images']:,} photos, {report['captions']:,} captions | {words} | "
                        + " | ".join(f"{value:.1f}" for value in figures.values()) + " |")
            results += [EvalResult(task_type="image-text-retrieval", dataset_type=data, dataset_name=data,
                                   dataset_split=split, metric_type="recall", metric_name=f"{words} {key}",
                                   metric_value=round(value, 2)) for key, value in figures.items() if key[:2] == "R@"]
    data_card = ModelCardData(model_name=title, pipeline_tag="zero-shot-image-classification",
                              tags=["clip", "image-text-retrieval"], eval_results=results or None)
    table = ["| split | direction | R@1 | R@5 | R@10 | median rank |", "|---|---|---|---|---|---|", *rows]
    return "\n".join([
        "---", data_card.to_yaml(), "---", "", f"# {title}", "",
        f"Two towers, {image} for images of {config.image_size} pixels and {text} for texts, whose projections meet in "
        f"{config.embedding_dim} dimensions, trained with the `{config.loss}` loss for {config.epochs} epochs.", "",
        *(["Recall in percent: how often the right photo is among the first for a caption, and one of a photo's "
           "captions for the photo. Ties count against the model.", "", *table, ""] if rows else []),
        "```", 'python inference.py --checkpoint hf-hub:OWNER/NAME --query "people sitting near the beach"', "```", "",
        "```python", ">>> from models import CLIP", '>>> model = CLIP.from_pretrained("OWNER/NAME")', "```", ""])


# ---------------------------------------------------------------- ONNX


class PromptEncoder:
    """A text tower with its head as an ONNX file, and its tokenizer: texts -> (Q, D) unit-length float32.

    folder: as written by `export_onnx`. Gives what `CLIP.encode_text` gives in float32, to 1e-5.
    """

    def __init__(self, folder):
        import onnxruntime
        from tokenizers import Tokenizer

        about = json.loads((folder / "text.json").read_text(encoding="utf-8"))
        self.max_tokens, self.pad_id = about["max_tokens"], about["pad_id"]
        self.tokenizer, self.whole = (Tokenizer.from_file(str(folder / "tokenizer.json")) for _ in range(2))
        self.tokenizer.enable_truncation(self.max_tokens)
        self.tokenizer.enable_padding(pad_id=self.pad_id)  # set once, so that threads can share the two
        self.whole.no_truncation()
        self.whole.no_padding()
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_prepacking", "1")  # it costs more than one prompt gains
        self.session = onnxruntime.InferenceSession(folder / "text.onnx", options, providers=["CPUExecutionProvider"])

    def tokens(self, texts):
        """Return token ids (Q, T) and mask (Q, T), int64, of texts; cut where they are too long."""
        encoded = self.tokenizer.encode_batch(list(texts))
        return np.array([text.ids for text in encoded]), np.array([text.attention_mask for text in encoded])

    def __call__(self, texts):
        return self.session.run(None, dict(zip(("input_ids", "attention_mask"), self.tokens(texts), strict=True)))[0]


def remarks(tokenizer, max_tokens, prompt):
    """Return what a person should know about a prompt: that it is too long, or of words the model does not know.

    tokenizer: one that cuts nothing.
    """
    token_ids, lines = tokenizer.encode(prompt).ids, []
    if (more := len(token_ids) - max_tokens) > 0:
        lines.append(f"the prompt is too long: its last {more} tokens are not looked at")
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    if set(token_ids) <= special:  # the unknown token is one of these
        lines.append("the text tower knows none of these words: the ranking means nothing")
    return lines


def export_onnx(model, folder, towers=("text", "image")):
    """Write towers with their heads as ONNX files, TOWER.onnx and TOWER.onnx.data; with text also its tokenizer.

    text: input_ids (Q, T) and attention_mask (Q, T), int64 -> embeddings (Q, D). image: pixels (B, 3, S, S) uint8, the
    whole picture squeezed into the square -> embeddings (B, D). Raises whatever torch's exporter raises where it cannot
    follow an architecture.
    """
    import torch

    class Tower(torch.nn.Module):
        def __init__(self, model, encode):
            super().__init__()
            self.model, self.encode = model, getattr(model, encode)

        def forward(self, *inputs):
            return self.encode(*inputs)

    model, any_number, size = copy.deepcopy(model).cpu().eval(), torch.export.Dim.DYNAMIC, model.config.image_size
    model.text_encoder.forward = model.text_encoder.pooled  # sorting by length is for many captions
    token_ids = torch.tensor([[1, 2, 3, 4, 5], [2, 1, 3, 0, 0]])
    examples = {"text": {"input_ids": token_ids, "attention_mask": (token_ids > 0).long()},
                "image": {"pixels": torch.zeros(2, 3, size, size, dtype=torch.uint8)}}
    for tower in towers:
        inputs = examples[tower]
        shapes = {axis: any_number for axis in ((0, 1) if tower == "text" else (0,))}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, about its own insides
            # weights in a file of their own are mapped rather than read, which halves the time of a prompt
            torch.onnx.export(Tower(model, f"encode_{tower}").eval(), tuple(inputs.values()), folder / f"{tower}.onnx",
                              dynamo=True, verbose=False, external_data=True, input_names=list(inputs),
                              output_names=["embeddings"], dynamic_shapes=((shapes,) * len(inputs),))
    if "text" in towers:
        tower = model.text_encoder
        tower.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        write_file(folder / "text.json", json.dumps({"max_tokens": tower.max_tokens, "pad_id": tower.pad_id}))


def onnx_difference(model, folder):
    """Return by how much the embeddings of exported towers differ from those of the model, at most.

    Both see noise, flat colours and texts of several lengths. Raises UserError if it is more than 1e-4.
    """
    import onnxruntime
    import torch

    from dataset import pad, tokenize

    size, tower = model.config.image_size, model.text_encoder
    pixels = torch.randint(256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[2:] = torch.tensor([30, 220]).view(2, 1, 1, 1)
    texts = ["a dog", "people sitting near the beach", "A man climbs a rock, and another one looks up! " * 20]
    input_ids, mask = pad(tokenize(tower.tokenizer, texts, tower.max_tokens), tower.pad_id)
    with torch.inference_mode():
        expected = [model.encode_image(pixels).numpy(), model.encode_text(input_ids, mask).numpy()]
    image = onnxruntime.InferenceSession(folder / "image.onnx", providers=["CPUExecutionProvider"])
    found = [image.run(None, {"pixels": pixels.numpy()})[0], PromptEncoder(folder)(texts)]
    difference = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    if not difference <= 1e-4:
        raise UserError(f"the towers as ONNX differ from the model by {difference:.1e}: nothing was written")
    return difference


def encoder_folder(model_hash):
    """Return where the text tower of a model is kept ready for prompts: in the user's cache, where only he writes."""
    return user_cache() / f"text-{FORMAT}-{model_hash[:32]}"


def open_encoder(model_hash):
    """Return the `PromptEncoder` that is kept of a model, or None; one that is damaged is thrown away."""
    folder = encoder_folder(model_hash)
    if not (folder / "text.onnx").is_file():
        return None
    try:
        with contextlib.suppress(PermissionError):
            os.utime(folder)  # used just now
        return PromptEncoder(folder)
    except Exception:  # onnxruntime and tokenizers have their own for each fault
        shutil.rmtree(folder, ignore_errors=True)
        return None


def keep_encoder(model, model_hash):
    """Keep the text tower of a model ready for the next prompt; returns why that is not possible, or None."""
    import torch

    from dataset import pad, tokenize

    folder, prompts, reason = encoder_folder(model_hash), ["A DOG runs through the water", "sunset"], None
    if folder.exists():  # also where it was tried in vain
        return None
    tower, device = model.text_encoder, model.logit_scale.device
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            (new := Path(scratch) / "text").mkdir()
            try:
                export_onnx(model, new, ["text"])
                input_ids, mask = pad(tokenize(tower.tokenizer, prompts, tower.max_tokens), tower.pad_id)
                with torch.inference_mode():
                    expected = model.encode_text(input_ids.to(device), mask.to(device)).cpu().numpy()
                if (error := np.abs(PromptEncoder(new)(prompts) - expected).max()) > 1e-5:
                    raise ValueError(f"it differs by {error:.1e}")
            except (OSError, MemoryError):  # of this moment, not of the model
                raise
            except Exception as error:  # the exporter has its own for each thing that it does not know
                reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
                (new / "text.onnx").unlink(missing_ok=True)
            new.rename(folder)
        kept = sorted((os.stat(old).st_mtime, old) for old in folder.parent.glob("text-*"))
        for _, old in kept[:-PROMPT_ENCODERS]:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, MemoryError) as error:
        return None if (folder / "text.onnx").is_file() else str(error)  # another process may have been first
    return reason
