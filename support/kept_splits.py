"""Which photos a run has held out, kept in its last/: photos that come or go later do not turn trained ones into dev.

Only where splits are drawn does it matter: those that the data itself names are followed.
"""

import json

from support.errors import UserError
from support.files import value_in_json

SPLITS_FILE = "splits.json"
HELD_OUT = ("dev", "test")


def held_out_names(splits, earlier=None):
    """Return the names of the photos of dev and test of {split: captions table}: {"dev": [name], "test": [name]}.

    earlier: those of a run that goes on. Its photos that are gone are among them, and held out again if they return.
    """
    gone = gone_photos(splits, earlier)
    names = {split: set(splits[split]["image"]) for split in HELD_OUT if split in splits}
    return {split: sorted(of_split | gone.get(split, set())) for split, of_split in names.items()}


def gone_photos(splits, earlier):
    """Return the names of photos that a run held out and that are in no split any more: {split: set of names}."""
    there = {name for table in splits.values() for name in table["image"]}
    return {split: set(names) - there for split, names in (earlier or {}).items()}


def lines_on_gone_photos(splits, earlier):
    """Return what a run that goes on should say of the photos that it held out and that are gone."""
    compared = {"dev": "earlier epochs", "test": "this run before"}
    lines = []
    for split, gone in gone_photos(splits, earlier).items():
        if gone:
            lines.append(
                f"{split}: {len(gone):,} of the {len(earlier[split]):,} photos that this run held out are gone, or can "
                f"no longer be read, so its recall does not compare with that of {compared[split]}"
            )
    return lines


def write_held_out(folder, names):
    """Write the names of the photos that a run holds out into its last/ folder."""
    (folder / SPLITS_FILE).write_text(json.dumps(names, indent=0) + "\n", encoding="utf-8")


def read_held_out(folder):
    """Return what `write_held_out` has written; None in the run of an earlier version, which has no such file, or null.

    Unlike a settings file it may be of any size, for it is as long as dev and test are: of three million names it has a
    hundred megabytes. That is safe: it is read from the run's own last/, never from a model of the hub, it takes memory
    in proportion to its size, less than the captions of those photos take, and nothing that stands in it is run.
    """
    path = folder / SPLITS_FILE
    if not path.is_file():
        return None
    names = value_in_json(path)
    if names is None:
        return None
    if not isinstance(names, dict):
        raise UserError(f"{path} must hold a JSON object: delete it, and splits are drawn anew")
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
