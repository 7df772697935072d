"""Captions that are to be ranked against a picture, from whatever file holds some."""

import re

from support.captions import csv_rows, read_text, token_rows
from support.errors import UserError


def read_caption_list(path):
    """Return the captions of a file, each once: a dataset's captions file, or a plain text with a caption a line."""
    if not path.is_file():
        raise UserError(f"--captions {path} is not a file: name a captions.txt, or a text file with a caption a line")
    lines = read_text(path)
    first = lines[0] if lines else ""
    columns = [name.strip(' "\r\n') for name in first.lower().split(",")]
    if len(columns) > 1 and "caption" in columns:
        lines = [caption for _, _, caption in csv_rows(lines, path)]
    elif re.match(r"[^\t]+#\d+\t", first):
        lines = [caption for _, _, caption in token_rows(lines, path)]

    stripped = [line.strip() for line in lines]
    captions = list(dict.fromkeys(line for line in stripped if line))
    if not captions:
        raise UserError(f"--captions {path} holds no captions")
    return captions
