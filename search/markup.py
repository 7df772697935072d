"""Words and pictures as HTML, for the page in the browser and for results in a file."""

import base64
import html
import io

import numpy as np
from PIL import Image

from support.images import read_image

SIDE = 512  # pixels of the longer side of a picture in a page


def sendable(words):
    """Return words without half characters, such as in names that are not UTF-8: they cannot be sent."""
    return str(words).encode(errors="replace").decode().strip()


def escaped(words):
    """Return words as HTML shows them, whatever they hold."""
    return html.escape(sendable(words))


def jpeg(pixels):
    """Return an (H, W, 3) uint8 picture as the bytes of a JPEG file of at most SIDE pixels a side."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def reduced_jpeg(file):
    """Return a picture file as the bytes of a small JPEG file; raises OSError where it cannot be read."""
    return jpeg(read_image(file, shrink_to=SIDE))


def grey_jpeg():
    """Return what is shown in place of a picture whose file is gone or damaged by now."""
    return jpeg(np.full((SIDE, SIDE, 3), 200, np.uint8))


def data_url(content):
    """Return the bytes of a JPEG file as an address that holds them."""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
