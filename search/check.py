"""Which pictures of a gallery no longer look as they did when they were embedded."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from support.images import read_image
from support.looks import ALIKE, look_of_picture
from support.process import usable_cores
from support.progress import with_progress

ENOUGH = 64  # pixels a side to tell by: of a JPEG little has to be decoded for that


def pictures_that_changed(entries, known, root):
    """Return the names of pictures that look otherwise than their index says, though size and time are the same.

    entries: {name: `search.index.Entry`}; known: the `Index` that their rows are in; root: the folder of the names.
    What can no longer be read has changed, too.
    """
    readable = [name for name, entry in entries.items() if entry.row is not None]

    def has_changed(name):
        try:
            pixels = read_image(os.path.join(root, name), shrink_to=ENOUGH)
        except OSError:
            return True
        look = look_of_picture(pixels).astype(np.float32)
        return float(look @ known.looks[entries[name].row].astype(np.float32)) < ALIKE

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = with_progress(pool.map(has_changed, readable), "looking at pictures again", "pictures", len(readable))
        return [name for name, changed in zip(readable, found, strict=True) if changed]
