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


def export_model(model, folder):
    """Write both towers as ONNX with the tokenizer and an example into a new folder; returns `onnx_difference`.

    Raises UserError where that cannot be, and then leaves nothing.
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
        expected_images = model.encode_image(pixels).numpy()  # (4, D)
        expected_texts = model.encode_text(input_ids, mask).numpy()  # (3, D)

    image_tower = onnxruntime.InferenceSession(folder / "image.onnx", providers=["CPUExecutionProvider"])
    (images,) = image_tower.run(None, {"pixels": pixels.numpy()})
    texts = PromptEncoder(folder).embed(texts)
    difference = float(max(np.abs(images - expected_images).max(), np.abs(texts - expected_texts).max()))
    if not difference <= 1e-4:  # nor where it is no number
        raise UserError(f"the towers as ONNX differ from the model by {difference:.1e}: nothing was written")
    return difference


def export_onnx(model, folder, towers=("text", "image")):
    """Write towers with their heads as ONNX files, TOWER.onnx and TOWER.onnx.data; with text also its tokenizer.

    text: input_ids (Q, T) and attention_mask (Q, T), int64 -> embeddings (Q, D). image: pixels (B, 3, S, S) uint8, the
    whole picture squeezed into the square -> embeddings (B, D). Raises whatever torch's exporter raises where it cannot
    follow an architecture.
    """
    import torch

    model = copy.deepcopy(model).cpu().eval()
    if "text" in towers:
        token_ids = torch.tensor([[1, 2, 3, 4, 5], [2, 1, 3, 0, 0]])
        inputs = {"input_ids": token_ids, "attention_mask": (token_ids > 0).long()}
        write_onnx(model, "encode_text", inputs, (0, 1), folder / "text.onnx")
        tower = model.text_encoder
        tower.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        write_file(folder / "text.json", json.dumps({"max_tokens": tower.max_tokens, "pad_id": tower.pad_id}))
    if "image" in towers:
        size = model.config.image_size
        inputs = {"pixels": torch.zeros(2, 3, size, size, dtype=torch.uint8)}
        write_onnx(model, "encode_image", inputs, (0,), folder / "image.onnx")


def write_onnx(model, method, inputs, free_axes, path):
    """Write a method of a model as an ONNX file.

    inputs: {name: tensor} to follow it with; free_axes: those of them that may have any length.
    """
    import torch

    class Tower(torch.nn.Module):
        """What torch exports is a module with a `forward`."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *inputs):
            return getattr(self.model, method)(*inputs)

    shape = {axis: torch.export.Dim.DYNAMIC for axis in free_axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about its own insides
        torch.onnx.export(
            Tower().eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=["embeddings"],
            dynamic_shapes=(tuple(shape for _ in inputs),),
            dynamo=True,
            verbose=False,
            external_data=True,  # weights in a file of their own are mapped, not read: half the time of a prompt
        )
