"""When pictures were taken: by what the camera has noted in them, or else by the time of their file."""

from io import BytesIO
from typing import NamedTuple

import numpy as np

from support.dates import moment_of_file, noted_moment
from support.images import open_header
from support.process import is_first_process
from support.progress import with_progress
from support.tars import contents, tar_of

# In an index, in place of a moment; both are no numbers to compare with.
NO_DATE = np.nan  # the picture carries none
NOT_READ = -np.inf  # an earlier version has embedded the picture, without a look at its date

NOTES_OF_EXPOSURE = 0x8769  # the part of EXIF that holds the next two
TAKEN = 0x9003  # DateTimeOriginal
DIGITIZED = 0x9004  # DateTimeDigitized
CHANGED = 0x0132  # DateTime


class Taken(NamedTuple):
    """When the N pictures of a gallery were taken."""

    moments: np.ndarray  # (N,) float64, in the seconds of support/dates.py
    by_file: np.ndarray  # (N,) bool, whether it is the time of the file: the picture carries no date


def when_taken(folders, indexes):
    """Return the `Taken` of pictures, folder after folder.

    folders: [`search.pictures.Pictures`]; indexes: the `Index` of each, which gets the dates that it lacks and is
    kept.
    """
    moments = []
    by_file = []
    for pictures, index in zip(folders, indexes, strict=True):
        readable = [(name, stamp) for name, stamp, reason in index.files if reason is None]
        if np.isneginf(index.taken).any():
            read_missing(pictures, index, [name for name, _ in readable])
        noted = np.array(index.taken)
        without = np.flatnonzero(np.isnan(noted))
        for row in without:
            noted[row] = moment_of_file(readable[row][1])
        moments.append(noted)
        by_file.append(np.isnan(index.taken))
    return Taken(np.concatenate(moments), np.concatenate(by_file))


def read_missing(pictures, index, names):
    """Read the dates that an index lacks, from the headers of the pictures, and keep them in it."""
    rows = np.flatnonzero(np.isneginf(index.taken))
    taken = np.array(index.taken)
    for row in with_progress(rows, "reading dates", "pictures"):
        taken[row] = noted_date(pictures.root / names[row])
    index.taken = taken
    if is_first_process():
        pictures.index_file.save(index)


def noted_dates(paths):
    """Return (n,) float64, the `noted_date` of each picture."""
    return np.array([noted_date(path) for path in paths], np.float64)


def noted_date(path):
    """Return when a picture was taken by what the camera has noted, in seconds, or NO_DATE. Reads its header only."""
    try:
        with BytesIO(contents(path)) if tar_of(path) else open(path, "rb") as file:
            image = open_header(file)
            # Of a PNG without EXIF Pillow would decode all pixels, to see whether it comes after them.
            if "exif" not in image.info and image.format != "TIFF":
                return NO_DATE
            exif = image.getexif()
            exposure = exif.get_ifd(NOTES_OF_EXPOSURE)
            noted = [exposure.get(TAKEN), exposure.get(DIGITIZED), exif.get(CHANGED)]
    except Exception:  # on damaged bytes Pillow raises nearly anything
        return NO_DATE
    for words in noted:
        moment = noted_moment(words)
        if moment is not None:
            return moment
    return NO_DATE
