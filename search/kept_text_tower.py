"""The text towers of the models used last, kept as ONNX files in the user's cache: ready for a prompt at once."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from search.export import export_onnx
from search.onnx_text import PromptEncoder
from support.files import user_cache

KEPT_FORMAT = 2  # raise it when what is written changes
MOST_KEPT = 4  # models whose text tower is kept; of more, the one used longest ago goes


def text_tower_folder(model_hash):
    """Return where the text tower of a model is kept: in the user's cache, where only he writes."""
    return user_cache() / f"text-{KEPT_FORMAT}-{model_hash[:32]}"


def open_text_tower(model_hash):
    """Return the `PromptEncoder` that is kept of a model, or None; one that is damaged is thrown away."""
    folder = text_tower_folder(model_hash)
    if not os.path.isfile(folder / "text.onnx"):
        return None
    try:
        with contextlib.suppress(OSError):  # where it can be read, and not written
            os.utime(folder)  # used just now
        return PromptEncoder(folder)
    except MemoryError:  # of this moment
        return None
    except Exception:  # onnxruntime and tokenizers have their own for each fault
        shutil.rmtree(folder, ignore_errors=True)
        return None


def keep_text_tower(model, model_hash):
    """Keep the text tower of a model for the next prompt; returns why that is not possible, or None.

    Where a model's tower cannot be kept at all, that is said once: None where it was tried in vain before.
    """
    folder = text_tower_folder(model_hash)
    if os.path.exists(folder):  # also where it was tried in vain
        return None
    reason = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            new = Path(scratch) / "text"
            new.mkdir()
            try:
                write_and_compare(model, new)
            except (OSError, MemoryError):  # of this moment, not of the model
                raise
            except Exception as error:  # the exporter has its own for each thing that it does not know
                reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
                (new / "text.onnx").unlink(missing_ok=True)  # the empty folder says: tried in vain
            new.rename(folder)
        remove_all_but_the_newest(folder.parent)
    except (OSError, MemoryError) as error:
        another_process_was_first = os.path.isfile(folder / "text.onnx")
        return None if another_process_was_first else str(error)
    return reason


def write_and_compare(model, folder):
    """Write the text tower of a model, and raise ValueError if it gives other embeddings than the model."""
    import torch

    export_onnx(model, folder, ["text"])
    prompts = ["A DOG runs through the water", "sunset"]
    input_ids, attention_mask = model.text_encoder.tokens_of(prompts)
    with torch.inference_mode():
        expected = model.encode_text(input_ids.to(model.device), attention_mask.to(model.device))
    difference = np.abs(PromptEncoder(folder).embed(prompts) - expected.cpu().numpy()).max()
    if difference > 1e-5:
        raise ValueError(f"it differs by {difference:.1e}")


def remove_all_but_the_newest(cache):
    """Remove kept text towers, those used longest ago, until there are `MOST_KEPT`."""
    by_age = sorted(cache.glob("text-*"), key=lambda folder: folder.stat().st_mtime)
    for folder in by_age[:-MOST_KEPT]:
        shutil.rmtree(folder, ignore_errors=True)
