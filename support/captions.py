"""The forms in which captions lie about, read into rows; whatever is wrong is named by file and line.

    captions.txt         CSV with the header image,caption        photo.jpg,A dog runs through the water .
    Flickr8k.token.txt   name, number, tab, caption               photo.jpg#0	A dog runs through the water .
    shards               tars of KEY.jpg and KEY.txt              support/tars.py
"""

import csv
from io import StringIO
from pathlib import Path, PurePath

from support.errors import UserError
from support.tars import is_sharded, shard_captions

MADE_BY = {"data/flickr8k": "python data/download_flickr8k.py", "data/sample": "python data/sample_scenes.py"}


def caption_rows(data_dir):
    """Return the [(image, caption)] of a dataset folder, or of a pattern of shards, in their order.

    Every caption is text: "None" and "NA" too. Rows with an empty caption are left out. Raises UserError with file and
    line for a row that cannot be used.
    """
    data_dir = Path(data_dir)
    if is_sharded(data_dir):
        return shard_captions(data_dir)

    path, rows_of = captions_file(data_dir)
    rows = []
    for line, image, caption in rows_of(read_text(path), path):
        if not is_inside_folder(image):
            raise UserError(f"{path} line {line}: {image!r} must be a file name inside {data_dir / 'Images'}")
        if caption.strip():
            rows.append((image, caption.strip()))
    if not rows:
        raise UserError(f"{path} holds no captions")
    return rows


def captions_file(data_dir):
    """Return the captions file of a dataset folder and the function that reads its lines."""
    if not data_dir.is_dir():
        maker = MADE_BY.get(data_dir.as_posix())
        hint = f"type {maker}" if maker else "see data/README.md"
        raise UserError(f"there is no dataset folder {data_dir}: {hint}, or name another with --data-dir DIR")
    for name, rows_of in (("captions.txt", csv_rows), ("Flickr8k.token.txt", token_rows)):
        if (data_dir / name).is_file():
            return data_dir / name, rows_of
    raise UserError(f"{data_dir} has no captions.txt (CSV, header image,caption) and no Flickr8k.token.txt")


def is_inside_folder(name):
    """Return whether a name from a captions file leads to a file inside Images/, and nowhere else."""
    path = PurePath(name)
    return bool(name) and not path.anchor and ".." not in path.parts and "\0" not in name


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
