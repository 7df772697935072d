"""Write a dataset folder as shards: tars of some thousand photos each, for more data than one folder holds.

    pip install -e ".[scale]"
    python data/make_shards.py data/flickr8k shards --photos 1000  # a dataset folder -> shards/train-00000.tar, …
    python train.py --data-dir "shards/train-{00000..00005}.tar"   # the quotes keep the shell from expanding it

What is in a shard is told in support/tars.py; training reads them from front to end by support/stream.py.
"""

import math
import random
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.errors import UserError, expect_ctrl_c, one_line_errors

if __name__ == "__main__":
    expect_ctrl_c()  # while the libraries load, too

import numpy as np
import tyro
from PIL import Image

from dataset import inspect_dataset, load_splits, paths_of, split_images
from support.captions import read_dataset
from support.command_line import read_flags
from support.data_report import refuse_if_all_missing, refuse_if_too_few, report_lines
from support.images import read_image
from support.picture_kinds import is_raw
from support.progress import with_progress
from support.source import Source
from support.tars import PICTURES, is_sharded


def write_shards(
    data_dir: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    photos: int = 1000,
    seed: int = 0,
    split_seed: int = 0,
    image_dir: Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> None:
    """Write a dataset folder (data/README.md) as shards: train-00000.tar, …, dev-00000.tar, …, test-00000.tar, …

    Args:
        data_dir: the dataset folder to read; it is left as it is.
        out: the folder to make; it must not exist yet, and appears when everything is in it.
        photos: how many a shard holds at most; 100 MB to 1 GB a shard read well.
        seed: shuffles the train photos, so that each shard is a fair sample of them.
        split_seed: draws dev and test where the folder has no split lists, as in training.
        image_dir: the folder of the photos, where it is not found in the dataset folder.
        image_column: in a table of captions, the column that names the photo.
        caption_column: and the one that holds the caption.
    """
    if is_sharded(data_dir):
        raise UserError(f"{data_dir} is sharded already: name a dataset folder")
    if photos < 1:
        raise UserError(f"--photos {photos} cannot be: it must be at least 1")
    if out.exists():
        raise UserError(f"{out} exists already, and nothing in it is overwritten: name a folder that does not")
    source = Source(data_dir, image_dir, image_column, caption_column)
    splits = load_splits(source, split_seed)
    if not len(splits["train"]):  # said here, before the photos of the other splits are looked into
        captions = read_dataset(source)
        refuse_if_all_missing("train", split_images(source, captions, split_seed), captions, data_dir)
    report = inspect_dataset(source, split_seed)
    for split, table in splits.items():
        splits[split] = table[~table["image"].isin(report.unusable)]
    refuse_if_too_few(splits, report_lines(report, splits, data_dir), data_dir, {"train": 1})
    for name in report.missing:
        print(f"left out: {name} (missing)")
    for name, reason in report.unreadable.items():
        print(f"left out: {name} ({reason})")

    out.parent.mkdir(parents=True, exist_ok=True)
    counts = {}  # shards of each split
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folder = Path(scratch) / "shards"
        folder.mkdir()
        for split, table in splits.items():
            captions = table.groupby("path", sort=False)["caption"].apply(list)
            paths = paths_of(table)
            if split == "train":
                random.Random(seed).shuffle(paths)
            samples = [(path, captions[str(path)]) for path in paths]
            counts[split] = write_split(folder, split, samples, photos)
        folder.rename(out)  # in one step, so an interrupted run leaves no half of the shards

    print(f"{out} is ready: " + ", ".join(f"{count:,} shards of {split}" for split, count in counts.items()))
    train = counts.get("train")
    if train:
        pattern = f"train-{{00000..{train - 1:05}}}.tar" if train > 1 else "train-00000.tar"
        print(f'next: python train.py --data-dir "{out / pattern}"')


def write_split(folder, split, samples, photos):
    """Write the (photo file, captions) samples of a split, about equally many a tar; returns how many tars."""
    if not samples:
        return 0
    shards = math.ceil(len(samples) / photos)
    parts = np.array_split(np.arange(len(samples)), shards)
    for number, places in enumerate(with_progress(parts, f"writing {split}", "shards")):
        write_tar(folder / f"{split}-{number:05}.tar", [(f"{place:06}", *samples[place]) for place in places])
    return shards


def jpeg_of_raw(photo):
    """Return camera RAW as the bytes of a JPEG: a tenth of the size, and no name is needed to tell what it is."""
    file = BytesIO()
    Image.fromarray(read_image(photo)).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_tar(path, samples):
    """Write (key, photo file, captions) samples as a tar; the same samples give the same bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, photo, captions in samples:
            suffix = photo.suffix.lower().removeprefix(".")
            if suffix not in PICTURES:
                suffix = "jpg"  # a label: whoever decodes it looks at the bytes
            picture = jpeg_of_raw(photo) if is_raw(photo) else photo.read_bytes()
            text = "".join(" ".join(caption.split()) + "\n" for caption in captions)
            for name, content in ((f"{key}.{suffix}", picture), (f"{key}.txt", text.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, BytesIO(content))


if __name__ == "__main__":
    with one_line_errors():
        read_flags(write_shards)
