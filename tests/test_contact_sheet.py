"""support/contact_sheet.py: lines of text by hand, where pictures stand, and letters that a font lacks."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from support import contact_sheet
from support.contact_sheet import GAP, MARGIN, Tile, cut, draw_sheet, drawable, font_for, wrapped

TEN_A_LETTER = SimpleNamespace(getlength=lambda text: 10 * len(text))


@pytest.mark.parametrize("text, lines", [
    ("one two", ["one two"]),
    ("one two three", ["one two", "three"]),
    ("abcdefghijklm", ["abcdefghij", "klm"]),  # wider than a line
    ("a bcdefghijklm", ["a", "bcdefghij" "k", "lm"]),
    ("line\nend\t and  more", ["line end", "and more"]),
    ("aaaaaaaaa bbbbbbbbb ccccccccc ddddddddd", ["aaaaaaaaa", "bbbbbbbbb", "ccccccccc…"]),
    ("", [""]),
])
def test_a_heading_of_ten_letters_a_line(text, lines):
    assert wrapped(text, TEN_A_LETTER, 100) == lines


def test_a_name_is_cut_where_there_is_no_room_for_it():
    assert cut("0123456789", TEN_A_LETTER, 100) == "0123456789"
    assert cut("0123456789a", TEN_A_LETTER, 100) == "012345678…"
    assert drawable("caf\udce9 of\nold") == "caf? of old"  # a name that is not UTF-8


def test_each_picture_stands_in_its_place(tmp_path):
    red, blue = Image.new("RGB", (10, 10), (255, 0, 0)), Image.new("RGB", (20, 10), (0, 0, 255))
    draw_sheet([("first", [Tile(red, "1"), Tile(blue, "2"), Tile(blue, "3")]), ("second", [Tile(red, "4")])], 2, 40,
               tmp_path / "new" / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    assert pixels.shape[1] == 2 * MARGIN + 40 + GAP + 40
    is_red, is_blue = ((pixels == colour).all(axis=2) for colour in ((255, 0, 0), (0, 0, 255)))
    assert is_red.sum() == 2 * 40 * 40 and is_blue.sum() == 2 * 40 * 20  # enlarged to the square, and in proportion
    assert set(np.nonzero(is_red)[1]) == set(range(MARGIN, MARGIN + 40))  # both in the first column
    rows_of_red, rows_of_blue = np.nonzero(is_red.any(axis=1))[0], np.nonzero(is_blue.any(axis=1))[0]
    assert rows_of_red.min() + 20 == rows_of_blue.min()  # a row stands on one line
    assert rows_of_blue.max() < rows_of_red.max() - 40  # the second section follows
    assert (pixels[:MARGIN] == 255).all()


def test_letters_that_dejavu_lacks_are_those_of_a_font_that_has_them(tmp_path, monkeypatch):
    pen = TTGlyphPen(None)
    for place in ((0, 0), (0, 900), (900, 900), (900, 0)):
        (pen.moveTo if place == (0, 0) else pen.lineTo)(place)
    pen.closePath()
    font = FontBuilder(1000)
    font.setupGlyphOrder([".notdef", "uni96EA"])
    font.setupCharacterMap({ord("雪"): "uni96EA"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "uni96EA": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "uni96EA": (1000, 0)})
    font.setupHorizontalHeader(ascent=900, descent=0)
    font.setupNameTable({"familyName": "Snow", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "snow.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(contact_sheet, "system_fonts", lambda: [tmp_path / "broken.ttf", tmp_path / "snow.ttf"])
    assert font_for("雪", 20).getname()[0] == "Snow"
    assert font_for("snow, Schnee, нежный, χιόνι", 20).getname()[0] == "DejaVu Sans"
    assert font_for("雪 and ሰላም", 20).getname()[0] == "DejaVu Sans"  # no font has both: boxes


def test_a_sheet_is_drawn_without_matplotlib(tmp_path):
    lines = ("import sys\nfrom pathlib import Path\nfrom PIL import Image\nfrom support.contact_sheet import *\n"
             f"draw_sheet([('a', [Tile(Image.new('RGB', (9, 9)), 'b')])], 3, 50, Path({str(tmp_path)!r}, 's.png'))\n"
             "print([name for name in ('matplotlib', 'torch', 'cv2') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
