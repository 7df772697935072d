"""What is not as it should be in a dataset, found before training and told to people."""

import glob
import hashlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from support.errors import UserError
from support.images import read_image
from support.picture_kinds import skipped_lines
from support.process import usable_cores
from support.progress import with_progress
from support.tars import contents, is_sharded, shard_faults

MOST_UNUSABLE = 0.5  # of the photos, of all or of a split, that may be missing or unreadable
NAMED = 5  # photos of each kind that are named; they are all counted


@dataclass
class DataReport:
    """Names of photos, by what is wrong with them."""

    missing: list = field(default_factory=list)  # in the captions, but not in the folder
    unreadable: dict = field(default_factory=dict)  # name: reason
    without_captions: list = field(default_factory=list)  # listed in a split, or lying in a shard
    in_no_split: list = field(default_factory=list)
    in_two_splits: list = field(default_factory=list)
    duplicates: list = field(default_factory=list)  # lists of names, equal byte for byte

    @property
    def unusable(self):
        """The names of the photos that are left out."""
        return {*self.missing, *self.unreadable}


def report_on(captioned, there, splits):
    """Return a `DataReport` of names alone; `open_photos` looks into the files.

    captioned: the names in the captions. there: those of them whose file exists. splits: {split: [name]}.
    """
    listed = [name for names in splits.values() for name in names]
    return DataReport(
        missing=sorted(captioned - there),
        without_captions=sorted(set(listed) - captioned),
        in_no_split=sorted(there - set(listed)),
        in_two_splits=sorted(name for name, count in Counter(listed).items() if count > 1),
    )


def open_photos(report, paths):
    """Open photos, {name: path}, on all cores and at an eighth of their size, and add to a report what is wrong."""
    copies = defaultdict(list)  # hash of the bytes: names

    def open_photo(name):
        try:
            content = contents(paths[name])
            read_image(paths[name], shrink_to=32, content=content)
            copies[hashlib.sha256(content).digest()].append(name)
        except OSError as error:
            report.unreadable[name] = str(error)

    with ThreadPoolExecutor(usable_cores()) as pool:
        opened = pool.map(open_photo, paths)
        for _ in with_progress(opened, "checking photos", "photos", len(paths)):
            pass
    report.unreadable = dict(sorted(report.unreadable.items()))
    report.duplicates = sorted(sorted(names) for names in copies.values() if len(names) > 1)


def add_shard_faults(report, data_dir):
    """Add to a report what only the tables of contents of shards tell: halves of samples, tars that are cut off."""
    if is_sharded(data_dir):
        report.missing, report.without_captions, cut_off = shard_faults(data_dir)
        report.unreadable |= cut_off


def refuse_if_mostly_unusable(report, names_of_split, data_dir):
    """Raise UserError if more than half of all photos, or of those of a split, are missing or unreadable."""
    everything = set(report.missing).union(*names_of_split.values())
    for part, names in {**names_of_split, "all splits": everything}.items():
        bad = sorted(names & report.unusable)
        if len(bad) > MOST_UNUSABLE * len(names):
            refuse_without_images(report, data_dir)
            raise UserError(
                f"{data_dir}: of {len(names):,} photos in {part}, {len(bad):,} are missing or unreadable "
                f"({some_of(bad)}), more than {MOST_UNUSABLE:.0%}: look whether Images/ is whole, and is the one that "
                "captions.txt speaks of"
            )


def refuse_without_images(report, data_dir):
    """Raise UserError if photos are missing for one of two reasons that many folders have."""
    folder = Path(data_dir) / "Images"
    if is_sharded(data_dir):
        return
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: put the photos there (the capital letter counts)")
    for name in report.missing:
        found = sorted(folder.glob(f"{glob.escape(name)}.*"))
        if found:
            raise UserError(
                f"{data_dir}: the captions speak of {name!r}, and the photo is called {found[0].name!r}: write names "
                "with their ending"
            )


def refuse_if_too_few(splits, lines, data_dir):
    """Raise UserError, which repeats the lines of the report, unless train and dev have enough usable photos."""
    for split, least in (("train", 2), ("dev", 1)):
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
    copies = [" = ".join(f"{name} ({split_of[name]})" for name in names) for names in report.duplicates]
    captions = sum(len(table) for table in splits.values())
    counts = ", ".join(f"{split} {table['image'].nunique():,}" for split, table in splits.items())
    lines = [f"{data_dir}: {captions:,} captions; photos: {counts}"]
    for what, photos, words in (
        ("missing, left out", report.missing, report.missing),
        ("unreadable, left out", report.unreadable, skipped_lines(report.unreadable)),
        ("listed, but without captions", report.without_captions, report.without_captions),
        ("in no split, not used", report.in_no_split, report.in_no_split),
        ("in two splits, not trained on", report.in_two_splits, report.in_two_splits),
        ("the same photo byte for byte", copies, copies),
    ):
        if photos:
            lines.append(f"  {what}: {len(photos):,} ({some_of(words)})")
    dev = splits["dev"]["image"].nunique() if "dev" in splits else 0
    if 0 < dev < 20:
        lines.append(f"  dev has only {dev} photos: its recall means little, and picks the best epoch by chance")
    return lines


def some_of(names):
    """Return the first few names as text, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
