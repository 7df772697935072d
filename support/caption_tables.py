"""Captions in tables of text: CSV and its kin, Flickr30k's bars, Flickr8k's tokens.

A reader yields (place, image, caption, split) for each caption: the place, such as "line 7", is for error messages,
and the split is None where the table names none.
"""

import csv
import re
from io import StringIO
from typing import NamedTuple

from support.errors import UserError

# What these columns are called in the tables that people have; the order says nothing.
IMAGE_COLUMNS = {
    "image", "images", "image_name", "image_file", "image_path", "img", "img_path", "photo", "picture",
    "file", "filename", "file_name", "filepath", "file_path", "path",
}  # fmt: skip
CAPTION_COLUMNS = {"caption", "captions", "comment", "text", "title", "sentence", "description"}
SPLIT_COLUMNS = {"split"}
DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
SPLIT_NAMES = {
    "train": "train", "training": "train", "restval": "train",
    "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev",
    "test": "test", "testing": "test",
}  # fmt: skip

TOKEN_LINE = re.compile(r"[^\t]+#\d+\t")  # photo.jpg#0<TAB>A dog runs
JUDGEMENT_LINE = re.compile(r"[^\t]+\t[^\t]+#\d+\t[\d.]")  # Flickr8k's experts: photo, caption, how well they fit


def read_text(path):
    """Return a file of text as a list of lines with their ends: UTF-8, or UTF-16 that begins with a byte-order mark.

    Spreadsheets write such marks. Raises UserError with the line for any other encoding.
    """
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} line {line}: not {encoding.removesuffix('-sig').upper()} text ({error.reason} at byte "
            f"{error.start}): save it as UTF-8, which spreadsheets call CSV UTF-8"
        ) from None
    return StringIO(text, newline="").readlines()


def split_called(name):
    """Return train, dev or test for what captions call a split, such as "val", or None."""
    return SPLIT_NAMES.get(str(name).strip().lower())


# ---------------------------------------------------------------- CSV, TSV, semicolons, bars


class Columns(NamedTuple):
    """How a table is laid out."""

    delimiter: str
    header: list  # the names of the columns
    image: int  # the place of the column that names the photo
    caption: int
    split: int | None

    def in_words(self):
        """Return what a person calls such a table."""
        if self.delimiter == "|":
            return "Flickr30k's results"
        kind = {",": "CSV", "\t": "TSV", ";": "CSV with semicolons"}[self.delimiter]
        return f"{kind} with the columns {self.header[self.image]} and {self.header[self.caption]}"


def columns_of(lines, path, source):
    """Return the `Columns` of a table, as its header says; None where it does not name both an image and a caption.

    Raises UserError where two columns could be meant, and no flag says which.
    """
    first = header_line(lines)
    if first is None:
        return None
    for delimiter in DELIMITERS:
        header = [name.strip().strip('"') for name in lines[first].strip("\r\n").split(delimiter)]
        if len(header) < 2:
            continue
        where = f"{path} line {first + 1}"
        image = one_column(header, "image", source.image_column, IMAGE_COLUMNS, where)
        caption = one_column(header, "caption", source.caption_column, CAPTION_COLUMNS, where)
        split = one_column(header, "split", None, SPLIT_COLUMNS, where)
        if image is not None and caption is not None:
            return Columns(delimiter, header, image, caption, split)
    return None


def one_column(header, what, flag, known, where):
    """Return the place of a column in a header: the one that a flag names, or the only one of a known name, or None."""
    if flag is not None:
        return header.index(flag) if flag in header else None
    places = [place for place, name in enumerate(header) if name.lower() in known]
    if len(places) > 1:
        names = " and ".join(repr(header[place]) for place in places)
        raise UserError(f"{where}: {names} could both be the {what}: say which with --{what}-column NAME")
    return places[0] if places else None


def header_line(lines):
    """Return the number of the line that holds the header, from 0; some spreadsheets write "sep=;" above it."""
    for number, line in enumerate(lines[:2]):
        if line.strip() and not line.lower().startswith("sep="):
            return number
    return None


def table_rows(lines, path, columns):
    """Yield the captions of a table with a header."""
    first = header_line(lines)
    if columns.delimiter == "|":
        yield from bar_rows(lines, path, columns, first + 1)
        return

    caption_is_last = columns.caption == len(columns.header) - 1
    reader = csv.reader(lines[first:], delimiter=columns.delimiter, strict=True)
    line = first + 1  # counted from 1
    try:
        next(reader)  # the header
        line = first + reader.line_num + 1
        for row in reader:
            if first + reader.line_num > line:  # one stray quote swallows all rows up to the next one
                end = first + reader.line_num
                raise UserError(f"{path} line {line}: a quote opens here and closes only in line {end}")
            if row:
                mark = DELIMITERS[columns.delimiter]
                refuse_short_row(row, columns, f"{path} line {line}", mark)
                caption = row[columns.caption]
                if caption_is_last:  # a comma without quotes is still caption
                    caption = columns.delimiter.join(row[columns.caption :])
                elif len(row) != len(columns.header):
                    raise UserError(
                        f"{path} line {line}: {len(row)} columns, and the header has {len(columns.header)}: put a "
                        f"caption that holds a {mark} into quotes"
                    )
                split = None if columns.split is None else split_called(row[columns.split])
                yield f"line {line}", row[columns.image].strip(), caption, split
            line = first + reader.line_num + 1
    except csv.Error as error:
        fault = "a quote opens here and never closes" if "end of data" in str(error) else error
        raise UserError(f"{path} line {line}: {fault}; inside quotes, write a quote twice") from None


def refuse_short_row(row, columns, where, mark):
    """Raise UserError for a row that ends before its image or its caption."""
    if len(row) == 1:
        raise UserError(f"{where}: no {mark} between image and caption: {row[0][:60]!r}")
    if len(row) <= max(columns.image, columns.caption):
        raise UserError(f"{where}: {len(row)} columns, and the header has {len(columns.header)}: {row[0]!r:.60}")


def bar_rows(lines, path, columns, first):
    """Yield the captions of lines like `photo.jpg| 0| A dog runs`, whose quotes mean nothing.

    One line of Flickr30k's own file lacks the second bar: `photo.jpg| 4   A dog runs`.
    """
    for number, text in enumerate(lines[first:], start=first + 1):
        parts = [part.strip() for part in text.split("|", maxsplit=len(columns.header) - 1)]
        if len(parts) == 2 and len(columns.header) == 3 and (found := re.match(r"\d+\s+(.+)", parts[1])):
            parts = [parts[0], "", found[1]]
        if parts == [""]:
            continue
        refuse_short_row(parts, columns, f"{path} line {number}", "bar")
        split = None if columns.split is None else split_called(parts[columns.split])
        yield f"line {number}", parts[columns.image], parts[columns.caption], split


# ---------------------------------------------------------------- Flickr8k's tokens


def token_rows(lines, path):
    """Yield the captions of `name#0<TAB>caption` lines."""
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        name, tab, caption = text.rstrip("\r\n").partition("\t")
        if not tab or "#" not in name:
            raise UserError(f"{path} line {number}: expected name#0<TAB>caption, not {text.strip()[:60]!r}")
        image, _, _ = name.rpartition("#")
        yield f"line {number}", image.strip(), caption, None
