"""Pictures: where they lie, and their pixels, whatever they hold.

Which names are pictures stands in support/picture_kinds.py. Imports no torch, as nothing does that a prompt to an
embedded gallery needs: torch alone takes seconds.

What bounds the size of a picture is the memory that decoding it takes, not its size on paper: a photo of 200 megapixels
is a JPEG, and a JPEG is reduced while it is decoded.
"""

import contextlib
import functools
import os
import threading
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from support.camera_raw import read_raw
from support.picture_kinds import HEIF, IMAGE_SUFFIXES, is_raw, is_there, unread_kind, unread_reason
from support.tars import contents, tar_of

# A small file can unpack to more than the memory holds. This is what decoding one picture may take: enough for 200
# megapixels of the JPEGs that take most, progressive ones in full colour, and little beside torch and a model.
MOST_MEMORY = 1_300_000_000  # bytes
# Peaks that were measured, bytes a pixel: what the decoder holds, the decoded picture, and what is made of it below.
# libwebp holds three pictures beside the one that it returns; of all others none takes more than PNG and TIFF can.
BYTES_PER_PIXEL = {"JPEG": 10, "AVIF": 16, "WEBP": 20}
BYTES_PER_PIXEL_OF_OTHERS = 13

MOST_PIXELS = 100_000_000  # of a picture on paper, wherever Pillow opens one; here a JPEG may have more
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses it at twice this …
warnings.filterwarnings("ignore", module=r"PIL\.")  # … and would warn of half as many, as of each damaged tag

LARGE = 16_000_000  # pixels from which a picture is reduced before anything else is done with it
MUCH_MEMORY = 200_000_000  # bytes; what takes more is decoded one at a time, of all threads of a process
ONE_AT_A_TIME = threading.Lock()

ORIENTATION = 0x0112  # in EXIF
START_OF_JPEG = b"\xff\xd8\xff"


# ---------------------------------------------------------------- where pictures lie


def picture_files(folder):
    """Return the paths of the picture files of a folder and the folders in it, sorted; hidden ones are left alone."""
    return [Path(folder) / name for name in picture_names(folder)]


def picture_names(folder):
    """Return what `picture_files` returns as names below the folder, with slashes: text is faster than paths are."""
    names, _ = pictures_and_links(folder)
    return names


def pictures_and_links(folder):
    """Return the `picture_names` of a folder, and the links to folders in it, which are not followed: [path as text].

    They may lead anywhere, also back to where one came from, and what a page shows is to lie in the folder named.
    """
    suffixes = tuple(IMAGE_SUFFIXES)
    names = []
    links = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = [os.path.join(parent, name) for name in folders]
        links += [path for path in inside if os.path.islink(path)]
        below = os.path.relpath(parent, folder).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        names += [prefix + name for name in files if name.lower().endswith(suffixes) and not name.startswith(".")]
    names.sort(key=lambda name: name.replace("/", "\0"))  # as paths are ordered: all of a folder stays together
    return names, sorted(links)


def lines_on_links(links):
    """Return a line for people about links to folders that were not followed; none where there are none."""
    if not links:
        return []
    named = ", ".join(links[:3]) + (f" and {len(links) - 3:,} more" if len(links) > 3 else "")
    return [f"links to folders are not followed: {named}; to have what is there, name the folder itself, or copy it"]


# ---------------------------------------------------------------- a picture file -> pixels


def read_image(path, shrink_to=None, content=None):
    """Decode a picture file to an (H, W, 3) uint8 RGB array, upright (EXIF orientation applied).

    `content` is the file's bytes, where they are known. `shrink_to` lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its
    size, and a very large picture of another format be reduced, as long as both sides keep that many pixels. Without
    it, too, a JPEG that would take more than `MOST_MEMORY` is reduced until it does not.
    Of camera RAW it is the preview in the file. Transparency becomes white; 16 or more bits a pixel become 8. Raises
    the OSError of a file that cannot be opened, and one without `errno` where the content is damaged, truncated (OpenCV
    would return it half grey), no picture, of a kind that nothing installed reads, or too large for the memory.
    """
    try:
        if content is None and tar_of(path):
            content = contents(path)
        if content is None and os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise ValueError("not a file")
        with open(path, "rb") if content is None else BytesIO(content) as file:
            return decode(path, file, content, shrink_to)
    except UnidentifiedImageError:
        kind = unread_kind(path)
        if kind is not None:
            raise OSError(f"{path}: {unread_reason(kind)}") from None
        raise OSError(f"{path}: not a picture") from None
    except Image.DecompressionBombError:
        raise OSError(f"{path}: its pixels are more than {MOST_PIXELS:,}: save it smaller, or as JPEG") from None
    except Exception as error:  # on damaged bytes the decoders raise nearly anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise OSError(f"{path}: {error}") from None


def decode(path, file, content, shrink_to):
    """Return the pixels of an open picture file; see `read_image`."""
    start = file.read(64)
    file.seek(0)
    if start.startswith(START_OF_JPEG):
        image, memory = open_jpeg(file, shrink_to)
    elif is_raw(path):
        image, memory = open_raw(path, content, shrink_to)
    else:
        image, memory = open_other(file, start)

    # One name for each step, so that what is not needed any more is freed.
    with ONE_AT_A_TIME if memory > MUCH_MEMORY else contextlib.nullcontext():
        ImageOps.exif_transpose(image, in_place=True)
        image = with_eight_bits(image)
        if shrink_to and image.width * image.height > LARGE and min(image.size) > shrink_to:
            image = image.reduce(min(image.size) // shrink_to)
        if image.has_transparency_data:
            image = on_white(image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        return np.array(image)  # a copy: Pillow's own bytes are read-only


# ---------------------------------------------------------------- opened, and not yet decoded


def open_jpeg(file, shrink_to):
    """Return the Pillow image of a JPEG, set to be decoded at a part of its size, and the bytes that this takes.

    Of several pictures in the file (MPO) it is the first.
    """
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        image = JpegImageFile(file)  # not Image.open, which goes by the size on paper
    except SyntaxError:
        raise UnidentifiedImageError from None
    refuse_without_pixels(image)

    width, height = image.size
    coefficients = bytes_of_coefficients(image, file)
    scale = 1
    memory = coefficients + BYTES_PER_PIXEL["JPEG"] * width * height
    while scale < 8:
        stays_large_enough = shrink_to and min(width, height) >= 2 * scale * shrink_to
        if not stays_large_enough and memory <= MOST_MEMORY:
            break
        scale *= 2
        memory = coefficients + BYTES_PER_PIXEL["JPEG"] * width * height // scale**2
    if memory > MOST_MEMORY:
        raise ValueError(too_large(width, height))
    if scale > 1:
        image.draft("RGB", (width // scale, height // scale))
    return image, memory


def bytes_of_coefficients(image, file):
    """Return the bytes of the coefficients of a whole JPEG that libjpeg holds at once, whatever the size it decodes at.

    It does so where they arrive in several passes, as in progressive JPEG. Otherwise they come from top to bottom, and
    it holds a few lines.
    """
    width, height = image.size
    at_most = 2 * 4 * width * height  # two bytes each, of four colours
    if at_most <= MUCH_MEMORY or comes_in_one_pass(file):
        return 0
    samplings = [(across, down) for _, across, down, _ in image.layer]
    most_across = max(across for across, _ in samplings)
    most_down = max(down for _, down in samplings)
    samples = sum(across * down for across, down in samplings) / max(1, most_across * most_down)  # 1.5 a pixel in 4:2:0
    return int(2 * samples * width * height)


def comes_in_one_pass(file):
    """Return whether the first scan of a JPEG holds all of it; False for a header that is not as usual."""
    file.seek(len(START_OF_JPEG) - 1)
    colours = 0
    while True:
        mark, kind = file.read(1), file.read(1)
        size = int.from_bytes(file.read(2), "big") - 2
        is_usual = mark == b"\xff" and b"\xc0" <= kind <= b"\xfe" and not b"\xd0" <= kind <= b"\xd9"
        if not is_usual or size < 1:
            return False
        segment = file.read(size)
        if kind in (b"\xc0", b"\xc1") and size >= 6:  # a frame that is sequential, in Huffman's code
            colours = segment[5]
        elif kind == b"\xda":  # a scan
            return segment[0] == colours


def open_raw(path, content, shrink_to):
    """Return the Pillow image of what camera RAW holds, and the bytes that decoding it takes."""
    if unread_kind(path) is not None:
        raise UnidentifiedImageError
    photo = read_raw(path, content)
    if photo.jpeg is not None:
        image, memory = open_jpeg(BytesIO(photo.jpeg), shrink_to)
    else:
        image = Image.fromarray(photo.pixels)
        memory = BYTES_PER_PIXEL_OF_OTHERS * image.width * image.height
    exif = image.getexif()
    if ORIENTATION not in exif:
        exif[ORIENTATION] = photo.orientation
    return image, memory


def open_header(file):
    """Return the Pillow image of an open picture file, of which only the header is to be read, of whatever size it is.

    Raises nearly anything for what is no such file; camera RAW is read where it is built like TIFF, as most of it is.
    """
    from PIL.JpegImagePlugin import JpegImageFile

    start = file.read(64)
    file.seek(0)
    if start.startswith(START_OF_JPEG):
        return JpegImageFile(file)  # not Image.open, which goes by the size on paper
    return Image.open(file, formats=formats_of(start))


def open_other(file, start):
    """Return the Pillow image of a picture whose file begins so, and the bytes that decoding it takes."""
    image = Image.open(file, formats=formats_of(start))
    refuse_without_pixels(image)
    bytes_per_pixel = BYTES_PER_PIXEL.get(image.format, BYTES_PER_PIXEL_OF_OTHERS)
    memory = bytes_per_pixel * image.width * image.height
    if memory > MOST_MEMORY:
        raise ValueError(too_large(image.width, image.height))
    return image, memory


@functools.cache
def formats():
    """Return the formats that pictures are read in, whatever their names say.

    Pillow knows more of them, and has another program run for one (EPS). AVIF is not in every build. It looks at the
    first four without loading its readers of all the others.
    """
    names = ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"]
    return [*names, "AVIF"] if features.check("avif") else names


def formats_of(start):
    """Return the formats that a file is read in which begins with these bytes, 64 or so."""
    return heif_formats() if is_heif(start) else formats()


def heif_formats():
    """Return the formats that a HEIF file is read in: its reader is loaded when the first such file is met."""
    if not is_there(HEIF):
        return formats()
    load_heif()
    return ["HEIF"]


@functools.cache
def load_heif():
    """Let Pillow open HEIF. Such a picture comes upright, and its EXIF is changed to say so."""
    import pillow_heif

    pillow_heif.register_heif_opener()


def is_heif(start):
    """Return whether a file that begins so may be HEIF; AVIF, which Pillow reads, is of the same family."""
    return start[4:8] == b"ftyp" and b"avif" not in start and b"avis" not in start


def refuse_without_pixels(image):
    """Raise ValueError for a picture of no width or height."""
    if min(image.size) < 1:
        raise ValueError("it has no pixels")


def too_large(width, height):
    """Return why a picture is not decoded."""
    most = f"{MOST_MEMORY / 1e9:.1f} GB"
    return f"its {width:,} x {height:,} pixels take more than {most} of memory to decode: save it smaller"


# ---------------------------------------------------------------- every kind of pixels -> RGB


def with_eight_bits(image):
    """Return a picture as 8 bits a colour, in a mode that can be reduced; its largest value becomes white."""
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to white
        numbers = np.array(image, dtype=np.float32)
        np.nan_to_num(numbers, copy=False, posinf=0)
        np.clip(numbers, 0, None, out=numbers)
        numbers /= max(numbers.max(), 1e-9)
        numbers *= 255
        return Image.fromarray(numbers.astype(np.uint8))
    if image.has_transparency_data:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    return image.convert("RGB") if image.mode in ("1", "P") else image


def on_white(image):
    """Return an RGBA picture as it looks on white."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image)
