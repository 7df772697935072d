"""The two forms of a captions file, read line by line; whatever is wrong is named by file and line.

    captions.txt         CSV with the header image,caption        photo.jpg,A dog runs through the water .
    Flickr8k.token.txt   name, number, tab, caption               photo.jpg#0	A dog runs through the water .
"""

import csv
from io import StringIO

from support.errors import UserError


def read_text(path):
    """Return a UTF-8 file as a list of lines with their ends; a byte-order mark, as spreadsheets write, is dropped."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} line {line}: not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8, which "
            "spreadsheets call CSV UTF-8"
        ) from None
    return StringIO(text, newline="").readlines()


def csv_rows(lines, path):
    """Yield (line number, image, caption) from the lines of a CSV file with the header `image,caption`."""
    reader = csv.reader(lines, strict=True)
    line = 1
    try:
        header = next(reader, [])
        if [name.strip().lower() for name in header] != ["image", "caption"]:
            raise UserError(f"{path} line 1: the header must be image,caption, not {','.join(header)[:60]!r}")

        line = reader.line_num + 1
        for row in reader:
            if reader.line_num > line:  # one stray quote swallows all rows up to the next one
                raise UserError(f"{path} line {line}: a quote opens here and closes only in line {reader.line_num}")
            if len(row) == 1:
                raise UserError(f"{path} line {line}: no comma between image and caption: {row[0][:60]!r}")
            if row:
                image, *caption = row
                yield line, image.strip(), ",".join(caption)  # a comma without quotes is still caption
            line = reader.line_num + 1
    except csv.Error as error:
        fault = "a quote opens here and never closes" if "end of data" in str(error) else error
        raise UserError(f"{path} line {line}: {fault}; inside quotes, write a quote twice") from None


def token_rows(lines, path):
    """Yield (line number, image, caption) from `name#0<TAB>caption` lines."""
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        name, tab, caption = text.rstrip("\r\n").partition("\t")
        if not tab or "#" not in name:
            raise UserError(f"{path} line {line}: expected name#0<TAB>caption, not {text.strip()[:60]!r}")
        image, _, _ = name.rpartition("#")
        yield line, image.strip(), caption
