"""What is not as it should be in a dataset, found before training and told to people."""

import glob
import hashlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np

from support.errors import UserError
from support.images import open_header, read_image
from support.looks import ALIKE, look_of_picture, most_alike
from support.picture_kinds import skipped_lines
from support.process import usable_cores
from support.progress import with_progress
from support.tars import contents, is_sharded, shard_faults

LOOKED_AT = 500  # train photos that are compared with all others
MOST_ALIKE = 0.3  # of the train photos that may have one that looks the same
MOST_UNUSABLE = 0.5  # of the photos, of all or of a split, that may be missing or unreadable
NAMED = 5  # photos of each kind that are named; they are all counted
IMAGE_DIR = "say --image-dir DIR"  # where photos are that are not found
TO_TRAIN = {"train": 2, "dev": 1}  # usable photos that training needs at least


@dataclass
class DataReport:
    """Names of photos, by what is wrong with them."""

    missing: list = field(default_factory=list)  # in the captions, but not in the folder
    renamed: list = field(default_factory=list)  # "a.JPG is a.jpg"
    unreadable: dict = field(default_factory=dict)  # name: reason
    without_captions: list = field(default_factory=list)  # listed in a split, in a shard, or without a text
    in_no_split: list = field(default_factory=list)
    in_two_splits: list = field(default_factory=list)
    duplicates: list = field(default_factory=list)  # lists of names, equal byte for byte
    leaks: list = field(default_factory=list)  # (name in dev or test, name in train) that look the same
    alike: float = 0.0  # part of the train photos that have one that looks the same among them
    dev_is_drawn: bool = False  # for the captions name train and no dev
    sizes: Counter = field(default_factory=Counter)  # {(width, height): photos}
    lines: list = field(default_factory=list)  # for people, of all this

    @property
    def unusable(self):
        """The names of the photos that are left out."""
        return {*self.missing, *self.unreadable}


def report_on(captions, splits):
    """Return a `DataReport` of names alone; `open_photos` looks into the files.

    captions: `support.captions.Captions`. splits: {split: [name]}.
    """
    captioned = set(captions.paths)
    there = captioned - captions.missing
    listed = [name for names in splits.values() for name in names]
    return DataReport(
        missing=sorted(captions.missing),
        renamed=sorted(f"{written} is {name}" for written, name in captions.renamed.items()),
        without_captions=sorted((set(listed) - captioned) | set(captions.uncaptioned)),
        in_no_split=sorted(there - set(listed)),
        in_two_splits=sorted(name for name, count in Counter(listed).items() if count > 1),
    )


def open_photos(report, paths, splits):
    """Open photos, {name: path}, on all cores and at an eighth of their size, and add to a report what is seen."""
    copies = defaultdict(list)  # hash of the bytes: names
    looks = {}

    def open_photo(name):
        try:
            content = contents(paths[name])
            pixels = read_image(paths[name], shrink_to=32, content=content)
            looks[name] = look_of_picture(pixels)
            size = size_of_picture(content)
            if size is not None:
                report.sizes[size] += 1
            copies[hashlib.sha256(content).digest()].append(name)
        except OSError as error:
            report.unreadable[name] = str(error)

    with ThreadPoolExecutor(usable_cores()) as pool:
        opened = pool.map(open_photo, paths)
        for _ in with_progress(opened, "checking photos", "photos", len(paths)):
            pass
    report.unreadable = dict(sorted(report.unreadable.items()))
    report.duplicates = sorted(sorted(names) for names in copies.values() if len(names) > 1)
    compare_looks(report, looks, splits)


def size_of_picture(content):
    """Return (width, height) that the header of a picture file names, from its bytes; None where Pillow cannot tell."""
    try:
        return open_header(BytesIO(content)).size
    except Exception:  # some camera RAW, which is read all the same
        return None


def compare_looks(report, looks, splits):
    """Add to a report which photos look the same, by their {name: look}."""
    held_out = [name for split in ("dev", "test") for name in splits.get(split, ()) if name in looks]
    not_trained = set(held_out)
    trained = [name for name in splits.get("train", ()) if name in looks and name not in not_trained]
    if len(trained) < 2 or not held_out:
        return
    looks_of_train = np.stack([looks[name] for name in trained])  # (N, 192)

    cosines, rows = most_alike(np.stack([looks[name] for name in held_out]), looks_of_train)
    equal = {name for names in report.duplicates for name in names}  # these are told already
    for name, cosine, row in zip(held_out, cosines, rows, strict=True):
        if cosine >= ALIKE and not {name, trained[row]} <= equal:
            report.leaks.append((name, trained[row]))

    some = np.arange(min(LOOKED_AT, len(trained)))
    cosines, _ = most_alike(looks_of_train[some], looks_of_train, some)
    report.alike = float((cosines >= ALIKE).mean())


def add_shard_faults(report, data_dir):
    """Add to a report what only the tables of contents of shards tell: halves of samples, tars that are cut off."""
    if is_sharded(data_dir):
        report.missing, report.without_captions, cut_off = shard_faults(data_dir)
        report.unreadable |= cut_off


def refuse_if_mostly_unusable(report, names_of_split, captions, data_dir):
    """Raise UserError if more than half of all photos, or of those of a split, are missing or unreadable."""
    everything = captions.missing.union(*names_of_split.values())
    for part, names in {**names_of_split, "all splits": everything}.items():
        bad = sorted(names & report.unusable)
        if len(bad) > MOST_UNUSABLE * len(names):
            raise UserError(
                f"{data_dir}: of {len(names):,} photos in {part}, {len(bad):,} are missing or unreadable "
                f"({some_of(bad)}), more than {MOST_UNUSABLE:.0%}: {what_to_do(bad[0], captions)}"
            )


def refuse_if_all_missing(split, splits, captions, data_dir, held_out=None, remedy=IMAGE_DIR):
    """Raise UserError, which names a path that was looked for, if all photos of a dataset or of a split are missing.

    splits: {split: [name]}, where drawn ones have no missing photos. held_out: the same of a run, which may have them.
    remedy: what can be typed where the photos lie elsewhere.
    """
    names = splits.get(split) or (held_out or {}).get(split, [])
    everything = set(captions.paths)
    of_split = everything & set(names)
    for part, wanted in (("", everything), (f" in {split}", of_split)):
        if wanted and wanted <= captions.missing:
            bad = sorted(wanted)
            raise UserError(
                f"{data_dir}: all {len(bad):,} photos{part} are missing ({some_of(bad)}): "
                f"{what_to_do(bad[0], captions, remedy)}"
            )


def what_to_do(name, captions, remedy=IMAGE_DIR):
    """Return what should be looked at, because of a photo that cannot be used.

    remedy: what can be typed where the photos lie elsewhere.
    """
    path = Path(captions.paths[name])
    with_ending = sorted(path.parent.glob(f"{glob.escape(path.name)}.*"))
    if name in captions.missing and with_ending:
        return f"the captions speak of {name!r}, and the photo is called {with_ending[0].name!r}: write whole names"
    if name in captions.missing:
        return f"{name} was looked for as {path}: put the photos there, or {remedy}"
    return "are these the photos that the captions speak of?"


def refuse_if_too_few(splits, lines, data_dir, needed=TO_TRAIN):
    """Raise UserError, which repeats the lines of the report, unless splits have enough usable photos.

    needed: how many, {split: photos}.
    """
    for split, least in needed.items():
        if split in splits and splits[split]["image"].nunique() >= least:
            continue
        hint = f"list some in Flickr_8k.{split}Images.txt or, without lists, add photos, or try --split-seed N"
        if is_sharded(data_dir):
            hint = f"put some into {split}-00000.tar beside it"
        told = "; ".join(line.strip() for line in lines)
        raise UserError(f"{data_dir} needs at least {least} usable photos in {split}: {hint}. {told}")


def report_lines(report, splits, data_dir):
    """Return lines for people: how much data there is, and what is not as it should be.

    splits: the table of each split, without the photos that are left out.
    """
    split_of = {name: split for split, table in splits.items() for name in table["image"]}
    leaks = [f"{name} ({split_of.get(name)}) and {other} (train)" for name, other in report.leaks]
    copies = [" = ".join(f"{name} ({split_of[name]})" for name in names) for names in report.duplicates]
    captions = sum(len(table) for table in splits.values())
    counts = ", ".join(f"{split} {table['image'].nunique():,}" for split, table in splits.items())
    lines = [f"{data_dir}: {captions:,} captions; photos: {counts}"]
    if report.dev_is_drawn:
        lines.append("  the captions name no dev photos: a tenth of train is dev, drawn by --split-seed")
    if len(report.sizes) == 1:
        ((width, height),) = report.sizes
        lines[0] += f", all of {width} x {height} pixels"
    for what, photos, words in (
        ("missing, left out", report.missing, report.missing),
        ("unreadable, left out", report.unreadable, skipped_lines(report.unreadable)),
        ("named otherwise than their file, taken all the same", report.renamed, report.renamed),
        ("without captions, not used", report.without_captions, report.without_captions),
        ("in no split, not used", report.in_no_split, report.in_no_split),
        ("in two splits, not trained on", report.in_two_splits, report.in_two_splits),
        ("the same photo byte for byte", copies, copies),
    ):
        if photos:
            lines.append(f"  {what}: {len(photos):,} ({some_of(words)})")
    if leaks:
        lines.append(
            f"  look the same in train and outside it, which flatters recall: {len(leaks):,} ({some_of(leaks)}): list "
            f"both in one split, in {data_dir}/Flickr_8k.trainImages.txt and so on"
        )
    if report.alike > MOST_ALIKE:
        lines.append(
            f"  look alike: {report.alike:.0%} of the train photos have one that looks the same, as frames of a video "
            "do: which of them is the right one is chance; leave copies out"
        )
    dev = splits["dev"]["image"].nunique() if "dev" in splits else 0
    if 0 < dev < 20:
        lines.append(f"  dev has only {dev} photos: its recall means little, and picks the best epoch by chance")
    return lines


def some_of(names):
    """Return the first few names as text, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
