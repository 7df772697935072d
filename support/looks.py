"""How photos look from afar: by this near-duplicates are told, such as a photo saved again, smaller or brighter.

Imports no torch; `search/near_duplicates.py` makes the same of many pictures at once with it.
"""

from io import BytesIO

import numpy as np
from PIL import Image

ALIKE = 0.97  # cosine of two looks; of 25 million pairs of different photos none reached it, of 0.95 nine did
FIELDS = 8  # a side
LOOK_WIDTH = 3 * FIELDS**2
ROWS_AT_ONCE = 1024


def look_of_picture(pixels):
    """Return (192,) float16, the look of an (H, W, 3) uint8 picture: the colours of 8 x 8 fields, unit length."""
    fields = Image.fromarray(pixels).resize((FIELDS, FIELDS), Image.Resampling.BOX)
    colours = np.asarray(fields, np.float32).reshape(-1, 3).T  # (3, 64)
    differences = colours - colours.mean(axis=1, keepdims=True)  # brightness and tint of the whole do not matter
    length = max(np.linalg.norm(differences), 1e-6)  # a picture of one colour has no look
    return (differences / length).astype(np.float16).ravel()


def most_alike(looks, others):
    """Return for each of n looks (n, 192) the cosine (n,) and the row (n,) of the most alike of others (m, 192)."""
    cosines = []
    rows = []
    others = others.astype(np.float32)
    for start in range(0, len(looks), ROWS_AT_ONCE):
        products = looks[start : start + ROWS_AT_ONCE].astype(np.float32) @ others.T  # (b, m)
        cosines.append(products.max(axis=1))
        rows.append(products.argmax(axis=1))
    return np.concatenate(cosines), np.concatenate(rows)


def size_of_picture(content):
    """Return (width, height) that the header of a picture file names, from its bytes; None for camera RAW."""
    try:
        with Image.open(BytesIO(content)) as image:
            return image.size
    except (OSError, Image.DecompressionBombError):  # what is read all the same, but not by Pillow alone
        return None
