"""Shards: tars of photos and captions (data/tars.py), for more data than one folder holds. Made here, and streamed.

    pip install -e ".[scale]"
    python data/shards.py data/flickr8k shards --photos 1000       # a dataset folder -> shards/train-00000.tar, …
    python train.py --data-dir "shards/train-{00000..00005}.tar"   # the quotes keep the shell from expanding it

Training reads shards from front to end: `ShardPairs`.
"""

import functools
import itertools
import math
import posixpath
import random
import sys
import tarfile
import tempfile
from collections import Counter
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.distributed as dist
import tyro
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from config import UserError, one_line_errors, ranks
from data.tars import PICTURES, is_sharded, library, parts_of, tar_of

SHUFFLED = 1000  # photos, still compressed, among which a worker draws the next one: some 100 MB
TOLD = 5  # bad samples that a worker names; it counts all of them

# ---------------------------------------------------------------- reading them in training


class ShardPairs(IterableDataset):
    """The pairs of a `dataset.CaptionDataset` whose photos lie in shards, in the order in which these stream by.

    pairs: the CaptionDataset; an item is what it would give for that photo, of bytes that come from the stream.
    batch_size: pairs of all processes together. epoch_shards: how many shards an epoch shows; 0: all of them.

    The photos of an epoch, shard after shard in a shuffled order, are cut into equal stretches, one for each process,
    and these into whole batches for its workers. So all processes make the same number of steps, without which they
    would wait for each other for ever; no photo is shown twice, unless shards
    differ so much in size that an epoch of small ones must begin again; and only shards at a cut are read by two. A
    worker reads from front to end and draws from the `SHUFFLED` photos that it has read last.

    All is drawn from (seed, epoch) and which worker of how many it is. Epoch e shows the shards from (e - 1) * K to
    e * K of an endless row, all shards in one order after another; so what a checkpoint says of its epoch also says
    which shards come next, and a resumed run goes on with them. Nothing else need be saved.
    """

    def __init__(self, pairs, batch_size, workers=0, epoch_shards=0):
        self.pairs, self.seed, self.epoch = pairs, pairs.seed, 0
        self.row_of, self.photos_in = {}, Counter()  # {tar/key: row}, {tar: photos}
        for row, path in enumerate(pairs.photos.paths):
            tar = tar_of(path)
            self.row_of[str(tar / parts_of(path.relative_to(tar).as_posix())[1])] = row
            self.photos_in[tar] += 1
        world, self.shown = ranks()[1], min(epoch_shards or len(self.photos_in), len(self.photos_in))
        photos = len(pairs) * self.shown // len(self.photos_in)  # of an average epoch: all epochs have as many steps
        self.batch_size = min(batch_size, photos) // world
        if not self.batch_size:
            raise UserError(f"{photos} training photos an epoch are too few for {world} processes")
        self.steps = photos // world // self.batch_size
        self.workers = min(workers, self.steps)
        # bad samples that each worker has met: in this epoch, and ever. Its own slot, so none waits for another
        self.skipped = torch.zeros(2, max(1, self.workers), dtype=torch.long).share_memory_()

    def __len__(self):
        return self.steps * self.batch_size

    def shards_of_epoch(self):
        """Return the shards that all processes together show in this epoch, in order."""
        shards, first = sorted(self.photos_in), (self.epoch - 1) * self.shown
        row, lap = [], 0
        while len(row) < first + self.shown:
            order = [shards[place] for place in np.random.default_rng((self.seed, lap)).permutation(len(shards))]
            begun = row[len(row) - len(row) % self.shown :]  # by an epoch that this lap ends: not twice in it
            row += sorted(order, key=lambda shard: shard in begun)
            lap += 1
        return row[first : first + self.shown]

    def stretch(self, worker, workers):
        """Return [(shard, first, end)]: the photos, counted in each shard, that a worker of this process shows."""
        shards = self.shards_of_epoch()
        # the row of photos is a ring that begins anywhere, so each has its turn to be left over from the last batch
        begin = np.random.default_rng((self.seed, self.epoch)).integers(sum(self.photos_in[shard] for shard in shards))
        batches = (ranks()[0] * self.steps + share * self.steps // workers for share in (worker, worker + 1))
        start, end = (int(begin) + number * self.batch_size for number in batches)
        reads, place = [], 0
        for shard in itertools.cycle(shards):
            if place >= end or start == end:
                return reads
            if place + self.photos_in[shard] > start:
                reads.append((shard, max(0, start - place), min(self.photos_in[shard], end - place)))
            place += self.photos_in[shard]

    def __iter__(self):
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        reads = self.stretch(worker, workers)
        self.pairs.epoch, self.skipped[0, worker] = self.epoch, 0
        left = sum(end - first for _, first, end in reads)
        for lap in itertools.count():  # a second lap makes up for bad samples, which are counted in the first
            say = (lambda reason: None) if lap else functools.partial(self.skip, worker)
            rng, before = random.Random(f"{self.seed} {self.epoch} {ranks()[0]} {worker} {lap}"), left
            shuffled = library("webdataset").shuffle(SHUFFLED, initial=SHUFFLED, rng=rng)
            for row, photo in shuffled(self.stream(reads, say)):
                if not left:
                    return
                try:
                    item = row, self.pairs.pixels(row, photo)
                except OSError as error:
                    say(error)
                    continue
                yield item
                left -= 1
            if not left:
                return
            if left == before:
                named = ", ".join(str(shard) for shard, _, _ in reads)
                raise UserError(f"no photo of {named} can be read: leave it out of --data-dir")

    def collate(self, items):
        """Return the batch of (row, pixels) items, as the CaptionDataset makes it."""
        rows, photos = zip(*items, strict=True)
        return self.pairs.batch(list(rows), photos)

    def stream(self, reads, say):
        """Yield (row, bytes of the photo) of a `stretch`; say what is wrong with a shard, if anything."""
        tars = library("webdataset").tariterators
        for shard, first, end in reads:
            place, faults = 0, []
            noted = {"handler": lambda error, faults=faults: not faults.append(error)}  # True: go on
            try:
                file = shard.open("rb")  # not by webdataset, for which a name is a URL, and `pipe:` a command
            except OSError as error:
                say(error)
                continue
            with file:
                files = tars.tar_file_expander([{"url": str(shard), "stream": file}], **noted)
                for sample in tars.group_by_keys(files, **noted):
                    row = self.row_of.get(str(shard / posixpath.normpath(sample["__key__"]).lstrip("/")))
                    if row is None:
                        continue  # what lacks a half was reported before the run
                    photo = sample.get(parts_of(self.pairs.photos.paths[row].name)[2])  # the one of this path
                    if photo is None:
                        continue
                    if first <= place < end:
                        yield row, photo
                    place += 1
                    if place == end < self.photos_in[shard]:
                        break  # the rest is another worker's
            if faults:
                say(f"{shard}: {faults[0]}")

    def skip(self, worker, reason):
        """Count what is wrong with a sample, and name the first few."""
        self.skipped[:, worker] += 1
        if self.skipped[1, worker] <= TOLD:
            print(f"skipped: {reason}", file=sys.stderr, flush=True)


def skipped_samples(loader, device):
    """Return {"skipped": bad samples of this epoch in all processes together}, or {} where no shards are read."""
    if not isinstance(loader.dataset, ShardPairs):
        return {}
    count = loader.dataset.skipped[0].sum().to(device)
    if ranks()[1] > 1:
        dist.all_reduce(count)
    return {"skipped": int(count)}


# ---------------------------------------------------------------- making them


def write_shards(
    data_dir: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    photos: int = 1000,
    seed: int = 0,
    split_seed: int = 0,
) -> None:
    """Write a dataset folder (data/README.md) as shards: train-00000.tar, …, dev-00000.tar, …, test-00000.tar, …

    Args:
        data_dir: the dataset folder to read; it is left as it is.
        out: the folder to make; it must not exist yet, and appears when everything is in it.
        photos: how many a shard holds at most; 100 MB to 1 GB a shard read well.
        seed: shuffles the train photos, so that each shard is a fair sample of them.
        split_seed: draws dev and test where the folder has no split lists, as in training.
    """
    from dataset import image_path, inspect_dataset, load_splits  # here, because dataset.py reads shards by this file

    if is_sharded(data_dir):
        raise UserError(f"{data_dir} is sharded already: name a dataset folder")
    if photos < 1:
        raise UserError(f"--photos {photos} cannot be: it must be at least 1")
    if out.exists():
        raise UserError(f"{out} exists already, and nothing in it is overwritten: name a folder that does not")
    splits, faults = load_splits(data_dir, split_seed), inspect_dataset(data_dir, split_seed)
    bad = dict.fromkeys(faults["missing"], "missing") | faults["unreadable"]
    for name, reason in bad.items():
        print(f"left out: {name} ({reason})")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folder, made = Path(scratch) / "shards", {}
        folder.mkdir()
        for split, table in splits.items():
            captions = table[~table["image"].isin(bad)].groupby("image", sort=False)["caption"].apply(list)
            names = list(captions.index)
            if split == "train":
                random.Random(seed).shuffle(names)
            parts = np.array_split(np.arange(len(names)), math.ceil(len(names) / photos)) if names else []
            made[split] = len(parts)
            numbered = tqdm(enumerate(parts), f"writing {split} shards", len(parts), leave=False, disable=None)
            for number, part in numbered:
                samples = ((f"{place:06}", image_path(data_dir, names[place]), captions[names[place]])
                           for place in part)
                write_tar(folder / f"{split}-{number:05}.tar", samples)
        folder.rename(out)  # in one step, so an interrupted run leaves no half of the shards
    print(f"{out} is ready: " + ", ".join(f"{count:,} shards of {split}" for split, count in made.items()))
    if made.get("train"):
        pattern = f"train-{{00000..{made['train'] - 1:05}}}.tar" if made["train"] > 1 else "train-00000.tar"
        print(f'next: python train.py --data-dir "{out / pattern}"')


def write_tar(path, samples):
    """Write (key, photo file, captions) samples as a tar; the same samples give the same bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, photo, captions in samples:
            suffix = photo.suffix.lower().removeprefix(".")
            suffix = suffix if suffix in PICTURES else "jpg"  # a label: whoever decodes it looks at the bytes
            text = "".join(" ".join(caption.split()) + "\n" for caption in captions)
            for name, content in ((f"{key}.{suffix}", photo.read_bytes()), (f"{key}.txt", text.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, BytesIO(content))


if __name__ == "__main__":
    with one_line_errors():
        tyro.cli(write_shards)
