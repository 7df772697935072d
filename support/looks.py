"""How photos look from afar: by this near-duplicates are recognised, such as a photo saved again, smaller or brighter.

Imports no torch; `search/near_duplicates.py` makes the same of many pictures at once with it.
"""

import numpy as np
from PIL import Image

ALIKE = 0.97  # cosine of two looks; of 25 million pairs of different photos none reached it, and 12 reached 0.95
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


def most_alike(looks, others, rows_of_looks=None):
    """Return for each of n looks (n, 192) the cosine (n,) and the row (n,) of the most alike of others (m, 192).

    rows_of_looks: (n,) the rows that they have among the others, where they are some of these: no look is its own like.
    """
    looks = looks.astype(np.float32)
    numbers = np.arange(len(looks))
    best_cosines = np.full(len(looks), -np.inf, np.float32)
    best_rows = np.zeros(len(looks), np.int64)
    for start in range(0, len(others), ROWS_AT_ONCE):
        cosines = looks @ others[start : start + ROWS_AT_ONCE].astype(np.float32).T  # (n, b)
        if rows_of_looks is not None:
            here = (rows_of_looks >= start) & (rows_of_looks < start + ROWS_AT_ONCE)
            cosines[numbers[here], rows_of_looks[here] - start] = -np.inf
        rows = cosines.argmax(axis=1)
        cosines = cosines[numbers, rows]
        better = cosines > best_cosines
        best_cosines[better] = cosines[better]
        best_rows[better] = start + rows[better]
    return best_cosines, best_rows
