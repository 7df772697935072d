"""A contact sheet: pictures in rows under a heading, each with a line or two beneath it.

Drawn with Pillow, because matplotlib takes longer to import than a prompt takes to be answered. The letters are those
of DejaVu, which comes with matplotlib; where it lacks some, those of a font of this machine.
"""

import functools
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from support.drawn import save_picture
from support.images import read_image

MARGIN = 16  # pixels, here and below
GAP = 12  # between two pictures
HEADING_SIZE = 20
LABEL_SIZE = 14
NAME_SIZE = 11
LINE_HEIGHT = 1.3  # of the size of its letters
MOST_HEADING_LINES = 3

SYSTEM_FONTS = {
    "linux": ["/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"],
    "darwin": ["/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"],
    "win32": ["C:/Windows/Fonts"],
}


@dataclass(frozen=True)
class Tile:
    """A picture of a contact sheet, with a line of text and a smaller one beneath it."""

    picture: Image.Image
    label: str
    name: str = ""
    colour: str = "#222222"  # of the label


def draw_sheet(sections, columns, side, path):
    """Draw sections one below the other into a picture file; arguments as for `sheet_of`."""
    save_sheet(sheet_of(sections, columns, side), path)


def save_sheet(sheet, path):
    """Write a contact sheet into a picture file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(sheet, path)


def sheet_of(sections, columns, side):
    """Return sections, one below the other, as a picture: [(heading, [`Tile`, …]), …].

    columns: the tiles of a row; side: pixels of the square that each picture is fitted into.
    """
    rows = []  # of the whole sheet: headings and rows of tiles, as pictures that are pasted one below the other
    width = columns * (side + GAP) - GAP
    for heading, tiles in sections:
        rows.append(heading_row(heading, width))
        for start in range(0, len(tiles), columns):
            rows.append(tile_row(tiles[start : start + columns], width, side))

    height = sum(row.height for row in rows)
    sheet = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), "white")
    top = MARGIN
    for row in rows:
        sheet.paste(row, (MARGIN, top))
        top += row.height
    return sheet


def heading_row(heading, width):
    """Return the picture of a heading, in the middle of at most three lines."""
    font = font_for(heading, HEADING_SIZE)
    lines = wrapped(heading, font, width)
    line_height = round(LINE_HEIGHT * HEADING_SIZE)
    row = Image.new("RGB", (width, len(lines) * line_height + GAP), "white")
    draw = ImageDraw.Draw(row)
    for number, line in enumerate(lines):
        draw.text((width / 2, number * line_height), line, "#222222", font, anchor="ma")
    return row


def tile_row(tiles, width, side):
    """Return the picture of one row of tiles, which stand on one line."""
    pictures = [ImageOps.contain(tile.picture, (side, side)) for tile in tiles]
    ground = max(picture.height for picture in pictures)
    label_top = ground + 3
    name_top = label_top + round(LINE_HEIGHT * LABEL_SIZE)
    bottom = name_top
    if any(tile.name for tile in tiles):
        bottom += round(LINE_HEIGHT * NAME_SIZE)

    row = Image.new("RGB", (width, bottom + GAP), "white")
    draw = ImageDraw.Draw(row)
    for column, (tile, picture) in enumerate(zip(tiles, pictures, strict=True)):
        left = column * (side + GAP)
        middle = left + side // 2
        row.paste(picture, (middle - picture.width // 2, ground - picture.height))
        font = font_for(tile.label, LABEL_SIZE)
        draw.text((middle, label_top), cut(tile.label, font, side), tile.colour, font, anchor="ma")
        font = font_for(tile.name, NAME_SIZE)
        draw.text((middle, name_top), cut(tile.name, font, side), "#666666", font, anchor="ma")
    return row


def thumbnail(file, side, read=None):
    """Return a picture of at most `side` pixels a side; a grey one where its file is gone or damaged by now.

    read: a function of the file that returns what to show in place of it, (H, W, 3) uint8.
    """
    try:
        pixels = read(file) if read else read_image(file, shrink_to=side)
    except OSError:
        return Image.new("RGB", (side, side), "lightgrey")
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    return picture


# ---------------------------------------------------------------- text


def wrapped(text, font, width):
    """Return text as lines that are no wider than so many pixels, at most three; what is left out becomes "…"."""
    lines = [""]
    for word in drawable(text).split():
        if len(lines) > MOST_HEADING_LINES:
            break
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:  # a word that is wider than a line, or a script without spaces
            if len(lines) > MOST_HEADING_LINES and lines[-1]:
                break
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > MOST_HEADING_LINES:
        rest = " ".join(lines[MOST_HEADING_LINES - 1 :])
        lines[MOST_HEADING_LINES - 1 :] = [cut(rest, font, width)]
    return lines


def cut(text, font, width):
    """Return as much of a text as so many pixels hold, with "…" in place of the rest."""
    text = drawable(text)
    if font.getlength(text) <= width:
        return text
    fits, too_long = 0, len(text)  # letters
    while too_long - fits > 1:
        half = (fits + too_long) // 2
        if font.getlength(f"{text[:half]}…") <= width:
            fits = half
        else:
            too_long = half
    return f"{text[:fits].rstrip()}…"


def drawable(text):
    """Return text without what no font draws: half characters of names that are not UTF-8, and line ends."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def font_for(text, size):
    """Return DejaVu, or else the first font of this machine that has all letters of a text."""
    dejavu = load_font(dejavu_path(), size)
    letters = set(drawable(text))
    if has_letters(dejavu, letters):
        return dejavu
    for path in system_fonts():
        try:
            font = load_font(path, size)
        except OSError:  # one of fixed size, or no font at all
            continue
        if has_letters(font, letters):
            return font
    return dejavu  # which shows boxes for what it lacks


@functools.cache
def load_font(path, size):
    return ImageFont.truetype(str(path), size)


def dejavu_path():
    """Return where the font lies that comes with matplotlib, which is not imported for it."""
    package = importlib.util.find_spec("matplotlib").submodule_search_locations[0]
    return Path(package) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


@functools.cache
def system_fonts():
    """Return the font files of this machine."""
    paths = []
    for folder in SYSTEM_FONTS.get(sys.platform, []):
        folder = os.path.expanduser(folder)
        if os.path.isdir(folder):  # nor one that may not be looked into
            paths += sorted(Path(folder).rglob("*.[ot]t[fc]"))
    return paths


def has_letters(font, letters):
    """Return whether a font has a shape of its own for each of some letters."""
    return all(letter.isspace() or shape(font, letter) != shape(font, "\U0010ffff") for letter in letters)


@functools.cache
def shape(font, letter):
    """Return what a font draws for a letter; a box or the like, always the same, for one that it lacks."""
    return bytes(font.getmask(letter))
