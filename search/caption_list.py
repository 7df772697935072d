"""Captions that are to be ranked against a picture, from whatever file holds some."""

from support.caption_forms import PARQUET, recognise
from support.caption_tables import read_text
from support.errors import UserError
from support.source import Source


def read_caption_list(path):
    """Return the captions of a file, each once: a dataset's captions file, or a plain text with a caption a line."""
    if not path.is_file():
        raise UserError(f"--captions {path} is not a file: name a captions file, or a text file with a caption a line")
    form, rows_of = recognise(path, Source(path), unpacked=None)
    if form == PARQUET:
        raise UserError(f"--captions {path}: Parquet is not read here: name a table as text, or one caption a line")
    if rows_of is None:
        captions = read_text(path)
    else:
        captions = [caption for _, _, caption, _ in rows_of()]

    stripped = [caption.strip() for caption in captions]
    captions = list(dict.fromkeys(caption for caption in stripped if caption))
    if not captions:
        raise UserError(f"--captions {path} holds no captions")
    return captions
