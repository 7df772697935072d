"""Pictures: which files are some, and their pixels, whatever they hold.

Imports no torch, as nothing does that a prompt to an embedded gallery needs: torch alone takes seconds.
"""

import functools
import os
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from support.tars import contents, tar_of

READABLE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
# Pillow cannot read the last; such files are listed as skipped instead of being passed over in silence.
IMAGE_SUFFIXES = READABLE_SUFFIXES | {".heic"}
MOST_PIXELS = 100_000_000  # of a picture: a small file can unpack to more than the memory holds
LARGE = 16_000_000  # pixels from which a picture is reduced before anything else is done with it
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # wherever a picture is opened Pillow refuses it at twice this …
warnings.filterwarnings("ignore", module=r"PIL\.")  # … and would warn of half as many, as of each damaged tag


def picture_files(folder):
    """Return the paths of the picture files of a folder and the folders in it, sorted; hidden ones are left alone."""
    return [Path(folder) / name for name in picture_names(folder)]


def picture_names(folder):
    """Return what `picture_files` returns as names below the folder, with slashes: text is faster than paths are."""
    suffixes = tuple(IMAGE_SUFFIXES)
    names = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(parent, folder).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        names += [prefix + name for name in files if name.lower().endswith(suffixes) and not name.startswith(".")]
    names.sort(key=lambda name: name.replace("/", "\0"))  # as paths are ordered: all of a folder stays together
    return names


@functools.cache
def formats():
    """Return the formats that pictures are read in, whatever their names say.

    Pillow knows more of them, and has another program run for one (EPS). AVIF is not in every build. It looks at the
    first four without loading its readers of all the others.
    """
    names = ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"]
    return [*names, "AVIF"] if features.check("avif") else names


def read_image(path, shrink_to=None, content=None):
    """Decode a picture file to an (H, W, 3) uint8 RGB array, upright (EXIF orientation applied).

    `content` is the file's bytes, where they are known. `shrink_to` lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its
    size, and a very large picture of another format be reduced, as long as both sides keep that many pixels.
    Transparency becomes white; 16 or more bits a pixel become 8. Raises the OSError of a file that cannot be opened,
    and one without `errno` where the content is damaged, truncated (OpenCV would return it half grey), no picture, or
    of more than 100 million pixels.
    """
    try:
        if content is None and tar_of(path):
            content = contents(path)
        if content is None and os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise ValueError("not a file")
        with Image.open(path if content is None else BytesIO(content), formats=formats()) as image:
            if min(image.size) < 1:
                raise ValueError("it has no pixels")
            if shrink_to:
                image.draft("RGB", (shrink_to, shrink_to))
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith(("I", "F")):  # Pillow would clip these to white
                pixels = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0)
                image = Image.fromarray(np.uint8(255 * (pixels / max(pixels.max(), 1e-9)).clip(0, 1)))
            elif image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            if image.mode != "RGB":
                image = image.convert("RGB")
            if shrink_to and image.width * image.height > LARGE and min(image.size) > shrink_to:
                image = image.reduce(min(image.size) // shrink_to)  # before it is copied into an array
            return np.array(image)  # a copy: Pillow's own bytes are read-only
    except UnidentifiedImageError:
        if str(path).lower().endswith(".heic"):
            raise OSError(f"{path}: HEIC cannot be read here: save it as JPEG") from None
        raise OSError(f"{path}: not a picture") from None
    except Image.DecompressionBombError:
        raise OSError(f"{path}: its pixels are more than {MOST_PIXELS:,}") from None
    except Exception as error:  # on damaged bytes the decoders raise nearly anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise OSError(f"{path}: {error}") from None
