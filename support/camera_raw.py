"""Camera RAW: the preview that the camera has put into the file, or the picture made of its sensor's values.

Read by LibRaw, through the optional `rawpy`.
"""

import functools
import io
import os
from typing import NamedTuple

import numpy as np

LEAST_PREVIEW = 256  # pixels of the shorter side: below it, a preview is a stamp for the camera's own screen
MOST_SENSOR_PIXELS = 200_000_000  # that are developed at half size: some 4 bytes each were measured, so 0.8 GB
EXIF_ORIENTATION = {0: 1, 3: 3, 5: 8, 6: 6}  # of LibRaw's `flip`


class RawPhoto(NamedTuple):
    """What was found in a RAW file: the bytes of a JPEG, or pixels (H, W, 3) uint8."""

    jpeg: bytes | None
    pixels: np.ndarray | None
    orientation: int  # as EXIF counts it, for a JPEG that does not tell its own


@functools.cache
def library():
    """Return `rawpy`, imported when the first RAW file is met: that takes a tenth of a second."""
    # It brings a copy of OpenMP of its own, whose threads do not survive a fork: a loader's worker that developed a
    # photo would wait for them for ever. With one thread there is nothing to wait for.
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        import rawpy
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads
    return rawpy


def read_raw(path, content=None):
    """Return the `RawPhoto` of a RAW file, or of its bytes `content`; raises ValueError where there is none in it."""
    rawpy = library()
    try:
        with rawpy.RawPy() as raw:
            if content is None and is_utf8(path):
                raw.open_file(str(path))  # LibRaw reads only what it needs: a preview is a tenth of the file
            else:
                raw.open_buffer(io.BytesIO(contents_of(path, content)))
            return preview(raw) or developed(raw)
    except rawpy.LibRawFileUnsupportedError:
        raise ValueError("not a picture") from None
    except rawpy.LibRawError as error:
        words = error.args[0]
        raise ValueError(words.decode(errors="replace") if isinstance(words, bytes) else words) from None


def is_utf8(path):
    """Return whether LibRaw can be given a path: it takes it as UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def contents_of(path, content):
    """Return the bytes of a RAW file."""
    if content is not None:
        return content
    with open(path, "rb") as file:
        return file.read()


def preview(raw):
    """Return the largest preview in an open RAW file as a `RawPhoto`; None where there is none of any use."""
    rawpy = library()
    try:
        found = raw.extract_thumb()
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
        return None
    orientation = EXIF_ORIENTATION.get(raw.sizes.flip, 1)
    if found.format == rawpy.ThumbFormat.JPEG:
        photo = RawPhoto(found.data, None, orientation)
        height, width = jpeg_size(found.data)
    else:
        photo = RawPhoto(None, found.data, orientation)
        height, width = found.data.shape[:2]
    return photo if min(height, width) >= LEAST_PREVIEW else None


def jpeg_size(content):
    """Return (height, width) of a JPEG; (0, 0) where it is none."""
    from PIL import JpegImagePlugin

    try:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(content))
    except (SyntaxError, OSError):
        return 0, 0
    return image.height, image.width


def developed(raw):
    """Return the `RawPhoto` that LibRaw makes of the sensor's values, at half their size and upright."""
    sizes = raw.sizes
    if sizes.raw_width * sizes.raw_height > MOST_SENSOR_PIXELS:
        raise ValueError(f"its sensor has more than {MOST_SENSOR_PIXELS:,} pixels, and it holds no preview")
    pixels = raw.postprocess(half_size=True, use_camera_wb=True, output_bps=8)  # (H, W, 3)
    return RawPhoto(None, pixels, orientation=1)
