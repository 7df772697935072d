"""Pictures that this program draws carry a mark, so that a search in a gallery that they lie in leaves them out.

The mark is a comment in the file's own form: it outlives another name and a copy, and nobody sees it in the picture.
"""

import os
from pathlib import Path

from PIL import Image, PngImagePlugin

MARK = "drawn by clip-flickr8k, and no photo"
SOFTWARE = 0x0131  # in EXIF
LOOKED_AT = 4096  # bytes at the beginning of a file, where PNG and JPEG have it, and at its end, where WebP does
DRAWN = "it was drawn by this program"  # why an index has no embedding of such a picture


def save_picture(picture, path, **options):
    """Save a Pillow image in the form that its name asks for, with the mark. options: further ones of its `save`."""
    suffix = Path(path).suffix.lower()
    marked = {}
    if suffix == ".png":
        marked["pnginfo"] = PngImagePlugin.PngInfo()
        marked["pnginfo"].add_text("Software", MARK)
        marked["compress_level"] = 1  # a little larger, and written in a quarter of the time
    elif suffix in (".jpg", ".jpeg"):
        marked["comment"] = MARK
    elif suffix == ".webp":
        marked["exif"] = Image.Exif()
        marked["exif"][SOFTWARE] = MARK
    picture.save(path, **marked, **options)


def save_figure(figure, path, dpi):
    """Save a figure of matplotlib in the form that its name asks for, with the mark."""
    suffix = Path(path).suffix.lower()
    if suffix in (".jpg", ".jpeg"):
        figure.savefig(path, dpi=dpi, pil_kwargs={"comment": MARK})
    else:
        figure.savefig(path, dpi=dpi, metadata={"Creator" if suffix == ".pdf" else "Software": MARK})


def is_drawn(path):
    """Return whether a file carries the mark; reads a few thousand bytes of it."""
    if not os.path.isfile(path):  # a pipe would be waited for
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(LOOKED_AT)
            if start[8:12] != b"WEBP":
                return MARK.encode() in start
            size = file.seek(0, 2)
            file.seek(max(0, size - LOOKED_AT))
            return MARK.encode() in file.read()
    except OSError:  # whoever decodes it says why
        return False
