"""Both towers as ONNX files, for other programs."""

import copy
import json
import shutil
import warnings
from pathlib import Path

import numpy as np

from search.onnx_text import PromptEncoder
from support.errors import UserError
from support.files import replacing, write_file

EXAMPLE = Path(__file__).with_name("onnx_example.py")  # how to use exported towers; it goes with them


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

    size = model.config.image_size
    pixels = torch.randint(256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[2:] = torch.tensor([30, 220]).view(2, 1, 1, 1)
    texts = ["a dog", "people sitting near the beach", "A man climbs a rock, and another one looks up! " * 20]
    input_ids, mask = model.text_encoder.tokens_of(texts)
    with torch.inference_mode():
        expected = [model.encode_image(pixels).numpy(), model.encode_text(input_ids, mask).numpy()]
    image = onnxruntime.InferenceSession(folder / "image.onnx", providers=["CPUExecutionProvider"])
    found = [image.run(None, {"pixels": pixels.numpy()})[0], PromptEncoder(folder).embed(texts)]
    difference = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    if not difference <= 1e-4:
        raise UserError(f"the towers as ONNX differ from the model by {difference:.1e}: nothing was written")
    return difference
