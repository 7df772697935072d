"""Towers as ONNX files: for prompts that need not wait for torch, and for other programs.

Torch takes seconds to import; so this imports none until something is exported.
"""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from support.files import user_cache

FORMAT = 2  # of a text tower that is kept: raise it when what is written changes
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

    from search.export import export_onnx

    folder, prompts, reason = encoder_folder(model_hash), ["A DOG runs through the water", "sunset"], None
    if folder.exists():  # also where it was tried in vain
        return None
    device = model.device
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            (new := Path(scratch) / "text").mkdir()
            try:
                export_onnx(model, new, ["text"])
                input_ids, mask = model.text_encoder.tokens_of(prompts)
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
