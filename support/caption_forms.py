"""Captions in JSON, JSON lines, Parquet and pairs of files; and how the forms are told apart.

A reader yields (place, image, caption, split), as those in support/caption_tables.py do.
"""

import functools
import hashlib
import json
import os
import re
from pathlib import PurePosixPath

import numpy as np

from support.caption_tables import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    JUDGEMENT_LINE,
    TOKEN_LINE,
    columns_of,
    read_text,
    split_called,
    table_rows,
    token_rows,
)
from support.errors import UserError, shortened
from support.files import write_file
from support.interruptions import is_full
from support.picture_kinds import IMAGE_SUFFIXES, PILLOW_SUFFIXES

PARQUET = "Parquet"
PAIRS = "pairs of a photo and a text file"
JUDGEMENTS = "judgements of captions"  # no captions; Flickr8k has two such files
SPLIT_IN_A_NAME = re.compile(r"(?<![a-z])(train|restval|validation|valid|val|dev|test)(?![a-z])")
WRONG_SHAPE = (KeyError, TypeError, AttributeError, IndexError)  # what a file of another shape raises


def recognise(path, source, unpacked):
    """Return what a file holds, in words, and a function that reads it; (None, None) if these are no captions.

    Told by the content. unpacked: the folder for photos that lie in the file itself. Raises UserError for a file that
    cannot be read, or whose columns could mean two things.
    """
    if path.suffix.lower() == ".parquet":
        return PARQUET, functools.partial(parquet_rows, path, source, unpacked)
    lines = read_text(path)
    first = next((line for line in lines if line.strip()), "")
    if JUDGEMENT_LINE.match(first):
        return JUDGEMENTS, None
    if TOKEN_LINE.match(first):
        return "tokens, a line like name#0<TAB>caption", functools.partial(token_rows, lines, path)
    if path.suffix.lower() == ".json" and not holds_an_object(first):
        return recognise_json(json_of("".join(lines), path), path, source)
    if first.lstrip().startswith("{"):
        keys_of(json_of(first, path, lines.index(first) + 1), source, f"{path} line {lines.index(first) + 1}")
        return "JSON lines", functools.partial(json_line_rows, lines, path, source)
    columns = columns_of(lines, path, source)
    if columns is not None:
        return columns.in_words(), functools.partial(table_rows, lines, path, columns)
    return None, None


def split_in_name(path):
    """Return the split that the name of a captions file speaks of, or that its folder is called, or None."""
    found = SPLIT_IN_A_NAME.search(path.name.lower())
    return split_called(found[1] if found else path.parent.name)


# ---------------------------------------------------------------- JSON


def json_of(text, path, line=None):
    """Return what a text holds as JSON; raises UserError with the line where it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {line or error.lineno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise UserError(f"{path}: not JSON that could hold captions: {shortened(error)}") from None


def holds_an_object(line):
    """Return whether a line of a file is a whole JSON object of one photo, as in JSON lines."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    names_of_one = IMAGE_COLUMNS - {"images"}
    return isinstance(value, dict) and any(key.lower() in names_of_one for key in value)


def recognise_json(value, path, source):
    """Return what the value in a .json file is, in words, and a function that reads it; (None, None) for anything else.

    A list is of objects as in JSON lines; an object without "images" may be {photo: caption or captions}.
    """
    if isinstance(value, list) and value and isinstance(value[0], dict):
        entries = [(f"entry {number}", entry) for number, entry in enumerate(value, start=1)]
        keys_of(value[0], source, f"{path} entry 1")  # raises where these are no captions
        return "a JSON list", functools.partial(entry_rows, entries, path, source)
    if not isinstance(value, dict):
        return None, None
    if isinstance(value.get("images"), list) and isinstance(value.get("annotations"), list):
        return "COCO's JSON", functools.partial(coco_rows, value, path)
    if value.get("images") and isinstance(value["images"], list) and "annotations" not in value:
        return "Karpathy's JSON", functools.partial(karpathy_rows, value, path)
    if value and all(is_picture_name(name) for name in value):
        entries = [(f"entry {name!r}", {"image": name, "caption": value[name]}) for name in value]
        return "a JSON object of photos", functools.partial(entry_rows, entries, path, source)
    return None, None


def is_picture_name(name):
    """Return whether a name ends as the names of pictures do."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def karpathy_rows(value, path):
    """Yield the captions of the JSON files in which A. Karpathy gave Flickr8k, Flickr30k and COCO splits."""
    for number, image in enumerate(value["images"], start=1):
        try:
            name = image["filename"]
            if image.get("filepath"):
                name = f"{image['filepath']}/{name}"
            for sentence in image["sentences"]:
                yield f"image {number}", name, sentence["raw"], split_called(image.get("split"))
        except WRONG_SHAPE:
            raise UserError(f"{path} image {number}: expected filename, split and sentences with raw") from None


def coco_rows(value, path):
    """Yield the captions of COCO's captions_train2017.json and the like."""
    try:
        names = {image["id"]: image["file_name"] for image in value["images"]}
    except WRONG_SHAPE:
        raise UserError(f"{path}: expected id and file_name in each of its images") from None
    for number, annotation in enumerate(value["annotations"], start=1):
        try:
            yield f"annotation {number}", names[annotation["image_id"]], annotation["caption"], None
        except WRONG_SHAPE:
            raise UserError(f"{path} annotation {number}: expected caption, and the image_id of an image") from None


def json_line_rows(lines, path, source):
    """Yield the captions of JSON lines, an object a line."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            entry = json_of(line, path, number)
            yield from entry_rows([(f"line {number}", entry)], path, source)


def entry_rows(entries, path, source):
    """Yield the captions of objects that name a photo and have one or several captions: [(place, object)].

    Names are relative to the folder of the file, as in the image folders of the library `datasets`.
    """
    for place, entry in entries:
        if not isinstance(entry, dict):
            raise UserError(f"{path} {place}: expected an object that names an image and its caption")
        image_key, caption_key = keys_of(entry, source, f"{path} {place}")
        captions = entry[caption_key]
        if not isinstance(captions, list):
            captions = [captions]
        for caption in captions:
            yield place, entry[image_key], caption, split_called(entry.get("split"))


def keys_of(entry, source, where):
    """Return the keys of an object under which the photo's name and its captions are."""
    image_key = one_key(entry, "image", source.image_column, IMAGE_COLUMNS, where)
    caption_key = one_key(entry, "caption", source.caption_column, CAPTION_COLUMNS, where)
    return image_key, caption_key


def one_key(entry, what, flag, known, where):
    """Return the key of an object that a flag names, or the only one of a known name."""
    if flag is not None and flag in entry:
        return flag
    keys = [key for key in entry if key.lower() in known]
    if flag is not None or len(keys) != 1:
        named = ", ".join(entry) or "nothing"
        raise UserError(f"{where}: which of its keys is the {what}? It has {named[:200]}: say --{what}-column NAME")
    return keys[0]


# ---------------------------------------------------------------- Parquet


def parquet_rows(path, source, unpacked):
    """Yield the captions of a table that holds the photos, too, as data sets on the hub do; photos go into a folder.

    A photo is {"bytes": …, "path": …}, as the library `datasets` writes it, or the name of a file. Several columns
    caption_0, caption_1, … are read as one. Photos that lie there already are not written again.
    """
    table = read_parquet(path)
    image_column = parquet_column(table, "image", source.image_column, IMAGE_COLUMNS, path)
    caption_columns = [name for name in table.columns if re.fullmatch(r"(caption|sentence|text)_?\d+", name.lower())]
    if not caption_columns or source.caption_column:
        caption_columns = [parquet_column(table, "caption", source.caption_column, CAPTION_COLUMNS, path)]

    for number, row in enumerate(table.to_dict("records")):
        name = row[image_column]
        if isinstance(name, dict) and name.get("bytes"):
            name = put_photo(row[image_column], unpacked, f"{path.resolve().parent.name}/{path.stem}/{number:06}")
        for column in caption_columns:
            for caption in captions_in(row[column]):
                yield f"row {number + 1}", name, caption, split_called(row.get("split"))


def captions_in(cell):
    """Return the captions in a cell of a Parquet table: one, or an array of texts or of {"raw": text}."""
    if isinstance(cell, str):
        return [cell]
    if not isinstance(cell, list | np.ndarray):
        return []  # an empty cell
    return [part.get("raw") if isinstance(part, dict) else part for part in cell]


def read_parquet(path):
    """Return a Parquet file as a pandas table; raises UserError where it is none, or its library is missing."""
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except ImportError:
        raise UserError(f'{path}: to read Parquet, type pip install -e ".[parquet]"') from None
    except Exception as error:  # what damaged bytes make of it is the library's affair
        raise UserError(f"{path} cannot be read as Parquet: {error}") from None


def parquet_column(table, what, flag, known, path):
    """Return the name of a column that a flag names, or the only one of a known name."""
    names = list(map(str, table.columns))
    if flag is None:
        columns = [name for name in names if name.lower() in known]
    else:
        columns = [name for name in names if name == flag]
    if len(columns) != 1:
        raise UserError(f"{path}: which of its columns is the {what}? It has {', '.join(names)[:200]}: say "
                        f"--{what}-column NAME")  # fmt: skip
    return columns[0]


def put_photo(photo, folder, name):
    """Write a photo, {"bytes": …, "path": …}, into a folder, unless it is there; returns its whole name.

    It ends in a hash of the bytes: the file of another picture, of an earlier table, is not taken for it. Raises
    UserError where it cannot be written.
    """
    ending = PurePosixPath(photo.get("path") or "").suffix.lower()
    if ending not in IMAGE_SUFFIXES:
        ending = ".jpg"  # a label: whoever decodes it looks at the bytes
    name = f"{name}-{hashlib.sha256(photo['bytes']).hexdigest()[:12]}{ending}"
    if os.path.isfile(folder / name):
        return name
    try:
        write_file(folder / name, photo["bytes"])
    except OSError as error:
        if is_full(error):  # which is said in its own words
            raise
        raise UserError(
            f"the photos of a Parquet file cannot be put beside it, nor where XDG_CACHE_HOME says ({error}): type "
            "XDG_CACHE_HOME=DIR before the command"
        ) from None
    return name


# ---------------------------------------------------------------- pairs of files


def picture_text_pairs(folder):
    """Return the pairs of photo.jpg and photo.txt in a folder and those in it: [(photo, text file)], in order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    pictures.sort(key=lambda path: path.suffix.lower() in PILLOW_SUFFIXES)  # beside photo.nef, photo.jpg is taken
    picture_called = {path.with_suffix(""): path for path in pictures}
    pairs = []
    for text in files:
        photo = picture_called.get(text.with_suffix(""))
        if photo and text.suffix.lower() == ".txt":
            pairs.append((photo, text))
    return pairs


def pair_rows(pairs, folder):
    """Yield the captions of pairs of files, a line each; a photo is called by its path in the folder."""
    for photo, text in pairs:
        for number, line in enumerate(read_text(text), start=1):
            yield f"line {number}", photo.relative_to(folder).as_posix(), line, None
