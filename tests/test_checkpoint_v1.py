"""A model directory of version 1 lies here for ever: every later version loads it, and it answers the same.

    python tests/test_checkpoint_v1.py tests/model_v1     # how it was made, once; do not make it again
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

MODEL = Path(__file__).parent / "model_v1"
PROMPT = "Two dogs run near the water, \N{DOG FACE}!"
EMBEDDINGS = {
    "image": [0.01596, 0.05481, 0.02924, 0.64954, -0.03369, 0.06326, -0.04303, -0.03531,
              -0.36344, -0.03196, -0.43347, -0.21828, 0.40954, -0.13437, 0.09855, -0.04015],
    "text": [-0.2659, -0.18093, 0.1512, -0.36786, -0.1417, 0.20424, -0.23286, 0.45,
             0.03678, 0.34513, -0.04912, -0.08471, 0.05213, -0.5283, -0.08625, 0.02367],
}


def picture():
    """A picture that is the same for ever: (1, 3, 32, 32) uint8."""
    return torch.arange(3 * 32 * 32).mul(37).remainder(251).to(torch.uint8).view(1, 3, 32, 32)


def embeddings(model):
    from dataset import pad, tokenize

    tower = model.text_encoder
    with torch.inference_mode():
        return {"image": model.encode_image(picture())[0].numpy(),
                "text": model.encode_text(*pad(tokenize(tower.tokenizer, [PROMPT], tower.max_tokens), 0))[0].numpy()}


def make(directory):
    """A convolutional tower with BatchNorm and a DistilBERT, of 100,000 random weights together."""
    from conftest import save_image_tower

    from config import PRESETS
    from models import CLIP

    captions = [f"{who} {does} near the {where} ." for who in ("A dog", "Two dogs", "People", "A child")
                for does in ("runs", "run", "sit", "plays") for where in ("water", "beach", "trees")]
    with tempfile.TemporaryDirectory() as folder:
        save_image_tower(Path(folder), channels=[8, 16, 16, 32])
        model = CLIP.from_config(replace(
            PRESETS["sample"], image_encoder=f"local-dir:{folder}", image_size=32, scratch_layers=1, scratch_width=64,
            embedding_dim=16, max_tokens=32), captions)
    model.config = replace(model.config, image_encoder="test_resnet")
    for name, buffer in model.named_buffers():
        if "running" in name:
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    model.eval().save_pretrained(directory)
    for tower, numbers in embeddings(model).items():
        print(tower, [round(float(number), 5) for number in numbers])


@pytest.fixture(scope="module")
def model():
    from models import CLIP

    return CLIP.from_pretrained(MODEL)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_model_directory_of_version_1_answers_as_on_its_first_day(model, tower):
    assert np.abs(embeddings(model)[tower] - EMBEDDINGS[tower]).max() < 1e-4


def test_a_model_directory_of_version_1_is_written_again_as_it_was(model, tmp_path):
    """A later version may write more files, but all of these, with the same tensors."""
    model.save_pretrained(tmp_path)
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")} >= {
        path.relative_to(MODEL) for path in MODEL.rglob("*.*")}
    now, then = (load_file(folder / "model.safetensors") for folder in (tmp_path, MODEL))
    assert now.keys() == then.keys() and all(torch.equal(now[name], then[name]) for name in then)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    make(Path(sys.argv[1]))
