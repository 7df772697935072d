"""How --check finds a picture that has been swapped for another one of the same size and time."""

import hashlib
import os

import numpy as np

from support.progress import with_progress
from support.tars import contents, tar_of

NO_MARK = 0  # of a picture that an earlier version has embedded, or that could not be read
PIECE = 65_536  # bytes that are read at the start, in the middle and at the end of a file


def marks_of(paths):
    """Return (n,) uint64, the `mark_of` each picture."""
    return np.array([mark_of(path) for path in paths], np.uint64)


def mark_of(path):
    """Return a number that is another one for another picture: a hash of three pieces of its file.

    A whole photo takes longer to read than to be embedded, and of two photos all but the first bytes differ.
    """
    try:
        if tar_of(path):
            pieces = [contents(path)]
        else:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                pieces = []
                for place in sorted({0, max(0, size // 2), max(0, size - PIECE)}):
                    file.seek(place)
                    pieces.append(file.read(PIECE))
    except OSError:
        return NO_MARK
    digest = hashlib.blake2b(b"".join(pieces), digest_size=8).digest()
    return int.from_bytes(digest) or 1


def pictures_that_changed(entries, known, root):
    """Return the names of pictures whose files are others than those that were embedded.

    entries: {name: `search.index.Entry`}; known: the `Index` that their rows are in; root: the folder of the names. A
    picture whose mark is not known, or that can no longer be read, counts as changed.
    """
    changed = []
    readable = [(name, entry.row) for name, entry in entries.items() if entry.row is not None]
    for name, row in with_progress(readable, "checking pictures", "pictures"):
        mark = mark_of(root / name)
        if mark == NO_MARK or mark != int(known.marks[row]):
            changed.append(name)
    return changed
