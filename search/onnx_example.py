"""Rank pictures against a prompt with the two exported towers, without torch.

    pip install numpy onnxruntime opencv-python-headless pillow tokenizers
    python example.py "a dog running through water" photo1.jpg photo2.jpg
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

if len(sys.argv) < 3:
    sys.exit(__doc__)
here, (prompt, *files) = Path(__file__).parent, sys.argv[1:]
text, image = (onnxruntime.InferenceSession(here / f"{tower}.onnx") for tower in ("text", "image"))

tokenizer = Tokenizer.from_file(str(here / "tokenizer.json"))
tokenizer.enable_truncation(json.loads((here / "text.json").read_text())["max_tokens"])
tokens = tokenizer.encode(prompt)
ids, mask = np.array([tokens.ids]), np.array([tokens.attention_mask])  # (1, T), (1, T)
wanted = text.run(None, {"input_ids": ids, "attention_mask": mask})[0][0]  # (D,), unit length

size, scores = image.get_inputs()[0].shape[-1], {}
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
    how = cv2.INTER_AREA if size < max(pixels.shape[:2]) else cv2.INTER_LINEAR
    pixels = cv2.resize(pixels, (size, size), interpolation=how).transpose(2, 0, 1)[None]  # (1, 3, S, S) uint8
    scores[file] = image.run(None, {"pixels": pixels})[0][0] @ wanted  # cosine

for file in sorted(scores, key=scores.get, reverse=True):
    print(f"{scores[file]:.3f}  {file}")
