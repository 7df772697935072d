"""Which photos a run has held out, kept in its last/: photos that come or go later do not turn trained ones into dev.

Only where splits are drawn does it matter: those that the data itself names are followed.
"""

import json

from support.errors import UserError
from support.files import read_json

SPLITS_FILE = "splits.json"
HELD_OUT = ("dev", "test")


def held_out_names(splits):
    """Return the names of the photos of dev and test of {split: captions table}: {"dev": [name], "test": [name]}."""
    return {split: sorted(set(splits[split]["image"])) for split in HELD_OUT if split in splits}


def write_held_out(folder, names):
    """Write the names of the photos that a run holds out into its last/ folder."""
    (folder / SPLITS_FILE).write_text(json.dumps(names, indent=0) + "\n", encoding="utf-8")


def read_held_out(folder):
    """Return what `write_held_out` has written, or None in the run of an earlier version, which has no such file."""
    path = folder / SPLITS_FILE
    if not path.is_file():
        return None
    names = read_json(path)
    for split, of_split in names.items():
        if split not in HELD_OUT or not isinstance(of_split, list) or not all(isinstance(one, str) for one in of_split):
            raise UserError(f"{path} must hold lists of photos for dev and test: delete it, and splits are drawn anew")
    return names


def held_out_of_model(directory):
    """Return what the run of a model directory, such as runs/NAME/best, holds out; None where nothing is kept of it."""
    return read_held_out(directory.parent / "last")


def as_held_out(images, names):
    """Return the splits of some images, a dict of lists, where dev and test have those of these names and no others.

    Whatever is new is trained on.
    """
    splits = {}
    for split in HELD_OUT:
        its_names = set(names.get(split, ()))
        splits[split] = [image for image in images if image in its_names]
    held_out = {*splits["dev"], *splits["test"]}
    return {"train": [image for image in images if image not in held_out], **splits}
