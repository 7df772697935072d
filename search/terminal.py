"""The result of a search in the terminal itself, where that can show pictures."""

import os
import sys

FULL_WIDTH = "100%"


def why_no_pictures():
    """Return why this terminal cannot show pictures, as a line, or None where it can. It is asked only if it is one."""
    if not (sys.stdout.isatty() and sys.stdin.isatty()) or os.environ.get("TERM") in (None, "", "dumb"):
        return "--show draws in a terminal, and this is none"
    try:
        from textual_image import renderable  # asks the terminal what it can show, once
    except ImportError:
        return '--show needs the library textual-image: type pip install -e ".[show]"'
    if renderable.Image not in (renderable.SixelImage, renderable.TGPImage):
        return "--show: this terminal shows no pictures; kitty, iTerm2, WezTerm, foot and others that know sixel do"
    return None


def show_in_terminal(picture):
    """Draw a PIL picture in the terminal, as wide as that is; `why_no_pictures` must have returned None."""
    from rich.console import Console
    from textual_image.renderable import Image

    Console().print(Image(picture, width=FULL_WIDTH))
