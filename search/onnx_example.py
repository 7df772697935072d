"""Rank pictures against a prompt with the two exported towers, without torch.

    pip install numpy onnxruntime opencv-python-headless pillow tokenizers
    python example.py "a dog running through water" photo1.jpg photo2.jpg
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime, which otherwise writes down who you are

import cv2
import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

if len(sys.argv) < 3:
    sys.exit(__doc__)
prompt = sys.argv[1]
files = sys.argv[2:]
here = Path(__file__).parent
text_tower = onnxruntime.InferenceSession(here / "text.onnx")
image_tower = onnxruntime.InferenceSession(here / "image.onnx")
size = image_tower.get_inputs()[0].shape[-1]

tokenizer = Tokenizer.from_file(str(here / "tokenizer.json"))
tokenizer.enable_truncation(json.loads((here / "text.json").read_text())["max_tokens"])
tokens = tokenizer.encode(prompt)
inputs = {"input_ids": np.array([tokens.ids]), "attention_mask": np.array([tokens.attention_mask])}  # (1, T) each
prompt_embedding = text_tower.run(None, inputs)[0][0]  # (D,), unit length

scores = {}
for file in files:
    try:
        picture = Image.open(file)
        picture.draft("RGB", (2 * size, 2 * size))  # a large JPEG need not be decoded in full
        picture = ImageOps.exif_transpose(picture).convert("RGBA")
    except OSError as error:
        print(f"skipped: {error}", file=sys.stderr)
        continue
    white = Image.new("RGBA", picture.size, "white")  # behind what is transparent
    pixels = np.asarray(Image.alpha_composite(white, picture).convert("RGB"))  # (H, W, 3)
    shrinks = size < max(pixels.shape[:2])
    pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    batch = pixels.transpose(2, 0, 1)[None]  # (1, 3, S, S) uint8
    image_embedding = image_tower.run(None, {"pixels": batch})[0][0]  # (D,), unit length
    scores[file] = image_embedding @ prompt_embedding  # cosine

for file in sorted(scores, key=scores.get, reverse=True):
    print(f"{scores[file]:.3f}  {file}")
