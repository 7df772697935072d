"""Towers as ONNX files: for prompts that need not wait for torch, and for other programs.

Torch takes seconds to import; so this imports none until something is exported.
"""

import contextlib
import copy
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np

from config import UserError
from data.files import replacing, user_cache, write_file

FORMAT = 2  # of a text tower that is kept: raise it when what is written changes
EXAMPLE = Path(__file__).with_name("onnx_example.py")  # how to use exported towers; it goes with them
PROMPT_ENCODERS = 4  # models whose text tower is kept ready; of more, the one used longest ago goes


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
        parts = [self.tokens(texts[start : start + 128]) for start in range(0, len(texts), 128)]  # for little memory
        return np.concatenate([self.session.run(None, {"input_ids": input_ids, "attention_mask": mask})[0]
                               for input_ids, mask in parts])


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


def export_model(model, folder):
    """Write both towers as ONNX with the tokenizer and an example into a new folder; returns `onnx_difference`.

    Raises UserError where that cannot be; then nothing is left.
    """
    try:
        with replacing(folder) as new:
            export_onnx(model, new)
            shutil.copyfile(EXAMPLE, new / "example.py")
            return onnx_difference(model, new)
    except (OSError, UserError) as error:
        raise UserError(f"{folder} cannot be written: {error}") from None
    except Exception as error:  # the exporter has its own for each thing that it does not know
        reason = f"{type(error).__name__} {' '.join(str(error).split())}"[:200]
        raise UserError(f"{folder} cannot be written, for torch cannot write these towers as ONNX: {reason}") from None


def onnx_difference(model, folder):
    """Return by how much the embeddings of exported towers differ from those of the model, at most; it is on the CPU.

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
