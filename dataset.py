"""From a captions file to batches: the way of one photo and its captions.

    python dataset.py DIR        # what is remarkable about a dataset, and report.png, without training

    captions.txt ─ read_captions ─> table (image, caption, path) ─ load_splits ─> train / dev / test
    one photo    ─ read_square ─> (S, S, 3) uint8 ─ train_transform ─> (S, S, 3) uint8 ┐
    one caption  ─ tokenize ────> token ids                                            ┴ collate ─> Batch

Pixels stay uint8 until they reach the model, which normalises them on its own device: a quarter of the bytes to
move, and one place that knows the mean and the standard deviation that a tower was trained with.
"""

import support  # noqa: F401 - first of all, because it keeps the libraries quiet
from config import Config, DatasetConfig, parse
from support.errors import UserError, one_line_errors, shown

if __name__ == "__main__":
    FLAGS = parse(DatasetConfig)  # before torch is imported, so that --help and a mistyped flag answer at once

import hashlib
import random
import shlex
from collections import defaultdict
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, DistributedSampler

from support.caption_tables import read_text
from support.captions import read_dataset
from support.data_report import (
    add_shard_faults,
    open_photos,
    refuse_if_all_missing,
    refuse_if_mostly_unusable,
    refuse_if_too_few,
    report_lines,
    report_on,
)
from support.doctor import findings
from support.drawn import is_drawn
from support.hub import loading
from support.images import lines_on_links, read_image
from support.kept_splits import as_held_out
from support.plots import draw_data_report
from support.process import from_first_process, is_first_process, process_count, process_number, usable_cores
from support.source import as_source
from support.stream import ShardStream
from support.tars import dataset_folder, is_sharded, tar_of
from support.workers import Loader, SharedNumber

cv2.setNumThreads(0)  # the loader's workers are the parallelism; threads inside each would fight over the cores

SPLIT_FILES = {
    "train": "Flickr_8k.trainImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}

# ---------------------------------------------------------------- captions


def read_captions(data_dir):
    """Read the captions of a dataset into a table, a row each, in file order.

    Columns: image, the photo's name; caption; path, where the photo lies; original, the name of the first photo that is
    equal byte for byte, where that is known, and else its own.
    A dataset is a folder with captions in one of many forms (support/captions.py), or a captions file in it; or a
    pattern of shards, "shards/train-{00000..00099}.tar" (data/README.md); or a `support.source.Source`, which is such a
    path with --image-dir and the names of columns. So it is with every `data_dir` here and below. Raises UserError,
    with file and line for a row that cannot be used.
    """
    return table_of(read_dataset(data_dir))


def table_of(captions):
    """Return `support.captions.Captions` as the table that `read_captions` describes."""
    rows = [(row.image, row.caption, captions.paths[row.image], row.image) for row in captions.rows]
    # As objects: a column of another kind holds no names that are not UTF-8. `load_usable_splits` looks into the files,
    # and knows which photos are equal.
    return pd.DataFrame(rows, columns=["image", "caption", "path", "original"], dtype=object)


# ---------------------------------------------------------------- splits


def split_images(data_dir, captions, split_seed=0, held_out=None):
    """Divide the photos of `support.captions.Captions` into splits: a dict of lists of names, {"train": [...], ...}.

    Follows the lists `Flickr_8k.{train,dev,test}Images.txt` where the folder has any, or else what the captions
    themselves say; an image that these leave out is in no split. Where nothing is said, splits are drawn; or they are
    those of a run, `held_out`, as `support.kept_splits` reads them.
    """
    lists = split_lists(data_dir)
    if lists:
        splits = {}
        for split, path in lists.items():
            lines = [line.strip() for line in read_text(path)]
            splits[split] = [captions.true_name(line) for line in lines if line]
        return splits

    if any(row.split for row in captions.rows):
        splits = {split: {} for split in SPLIT_FILES}  # a dict of names, each once, in order
        for row in captions.rows:
            if row.split:
                splits[row.split][row.image] = None
        splits = {split: list(images) for split, images in splits.items()}
        if captions.lacks_dev:
            splits |= dev_from_train(splits["train"], split_seed, held_out)
        return splits
    images = [image for image in captions.paths if image not in captions.missing]
    return draw_splits(images, split_seed) if held_out is None else as_held_out(images, held_out)


def split_lists(data_dir):
    """Return the files that list the photos of the splits of a dataset folder: {split: path}, of those there are."""
    data_dir = as_source(data_dir).data_dir
    if is_sharded(data_dir):
        return {}
    lists = {split: dataset_folder(data_dir) / file for split, file in SPLIT_FILES.items()}
    return {split: path for split, path in lists.items() if path.is_file()}


def draw_splits(images, split_seed=0):
    """Draw a tenth of some images as dev and a tenth as test; returns lists as `split_images` does.

    *By image*: were it by caption, a photo's other captions would leak into training. Images are ordered by a hash of
    their name: the order of the file does not matter, but adding or removing photos moves a few at the borders.
    """

    def hash_of(name):
        return hashlib.sha256(f"{split_seed}/{name}".encode()).digest()

    order = sorted(set(images), key=hash_of)
    tenth = max(1, len(order) // 10)
    return {"train": order[2 * tenth :], "dev": order[:tenth], "test": order[tenth : 2 * tenth]}


def dev_from_train(images, split_seed, held_out):
    """Return the images of train as train and dev: those that a run has held out, or else a tenth, drawn."""
    if held_out is None:
        drawn = draw_splits(images, split_seed)
        return {"train": drawn["train"] + drawn["test"], "dev": drawn["dev"]}
    parts = as_held_out(images, {"dev": held_out.get("dev", [])})
    return {"train": parts["train"], "dev": parts["dev"]}


def load_splits(data_dir, split_seed=0, held_out=None):
    """Return the captions table of each split that exists: {"train": table, "dev": table, "test": table}.

    A photo that is listed in train and also in dev or test is kept out of train: evaluation stays honest. held_out: as
    for `split_images`.
    """
    captions = read_dataset(data_dir)
    return tables_of_splits(captions, split_images(data_dir, captions, split_seed, held_out))


def tables_of_splits(captions, splits):
    """Return the captions table of each split, without photos that are missing; splits: as of `split_images`."""
    names = {split: set(images) - captions.missing for split, images in splits.items()}
    held_out = names.get("dev", set()) | names.get("test", set())
    names["train"] = names.get("train", set()) - held_out
    table = table_of(captions)
    return {split: rows_of_images(table, images) for split, images in names.items()}


def rows_of_images(table, images):
    """Return the rows of a captions table that belong to some images, numbered anew."""
    return table[table["image"].isin(images)].reset_index(drop=True)


def split_table(data_dir, split, split_seed=0, held_out=None):
    """Return the captions table of one split; raises UserError where the dataset has no such split, or no photo of it.

    held_out: as for `split_images`.
    """
    captions = read_dataset(data_dir)
    names = split_images(data_dir, captions, split_seed, held_out)
    splits = tables_of_splits(captions, names)
    if split in splits and len(splits[split]):
        return splits[split]
    data_dir = as_source(data_dir).data_dir
    elsewhere = f"say --data-dir {shlex.quote(str(data_dir))} --image-dir DIR"
    refuse_if_all_missing(split, names, captions, data_dir, held_out, elsewhere)
    others = " or ".join(f"--split {name}" for name, table in splits.items() if len(table))
    where = f"{split}-*.tar beside it" if is_sharded(data_dir) else SPLIT_FILES[split]
    raise UserError(f"{data_dir} has no {split} photos (none in {where}): type {others or 'another --data-dir'}")


def load_usable_splits(data_dir, split_seed=0, open_train_photos=True, held_out=None):
    """Return the tables of `load_splits` without photos that are missing or unreadable, and a `DataReport` on it.

    Raises UserError where too few photos are left to train with. Without `open_train_photos` those of train are not
    looked into: a stream of shards skips bad photos as it meets them. held_out: as for `split_images`.
    """
    captions = read_dataset(data_dir)
    names = split_images(data_dir, captions, split_seed, held_out)
    splits = tables_of_splits(captions, names)
    report = None
    if is_first_process():
        report = report_on_dataset(data_dir, captions, names, open_train_photos)
    report = from_first_process(report)

    data_dir = as_source(data_dir).data_dir
    names_of_split = {split: set(table["image"]) for split, table in splits.items()}
    refuse_if_mostly_unusable(report, names_of_split, captions, data_dir)
    first_copy = {name: names[0] for names in report.duplicates for name in names}
    for split, names in names_of_split.items():
        splits[split] = rows_of_images(splits[split], names - report.unusable)
        splits[split]["original"] = [first_copy.get(name, name) for name in splits[split]["image"]]
    report.lines = [captions.description(), *lines_on_links(captions.links), *report_lines(report, splits, data_dir)]
    refuse_if_too_few(splits, report.lines, data_dir)
    return splits, report


def inspect_dataset(data_dir, split_seed=0, open_train_photos=True):
    """Look at every list, and into every photo that is in a split, once; returns a `DataReport`."""
    captions = read_dataset(data_dir)
    return report_on_dataset(data_dir, captions, split_images(data_dir, captions, split_seed), open_train_photos)


def report_on_dataset(data_dir, captions, splits, open_train_photos):
    """Return a `DataReport` on the lists as they are written, with photos that `load_splits` leaves out."""
    report = report_on(captions, splits)
    report.dev_is_drawn = captions.lacks_dev and not split_lists(data_dir)
    to_open = {name for names in splits.values() for name in names} & (captions.paths.keys() - captions.missing)
    if not open_train_photos:
        to_open -= set(splits.get("train", []))
    open_photos(report, {name: Path(captions.paths[name]) for name in to_open}, splits)
    add_shard_faults(report, as_source(data_dir).data_dir)
    return report


# ---------------------------------------------------------------- a photo


def read_square(path, size, content=None):
    """Decode a picture file, or its bytes `content`, squeezed into a square: (S, S, 3) uint8.

    The whole of it: a centre crop would cut away things that the captions speak of. Raises OSError as `read_image`.
    """
    image = read_image(path, 2 * size, content)  # enough to resize well, and large photos decode faster
    shrinks = size < max(image.shape[:2])
    try:
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    except cv2.error as error:
        raise OSError(f"{path}: {error.err}") from None


def train_transform(size, crop_scale=1.0, flip=False):
    """Return the albumentations pipeline for training: (S, S, 3) uint8 -> (S, S, 3) uint8, cropped and mirrored.

    A crop keeps at least `crop_scale` of the area: what the captions speak of should stay in the picture.
    """
    steps = []
    if crop_scale < 1:
        steps.append(A.RandomResizedCrop(size=(size, size), scale=(crop_scale, 1.0), ratio=(0.9, 1.1)))
    if flip:
        steps.append(A.HorizontalFlip(p=0.5))
    transform = A.Compose(steps)
    # Crop and flip draw from `py_random`, which `CaptionDataset` seeds anew for each photo.
    transform.set_random_state(random_generator=np.random.default_rng(0), py_random=random.Random(0))
    return transform


class Photos(Dataset):
    """Pictures by their row: (row, (S, S, 3) uint8 pixels, None), or (row, None, OSError) for a file that is damaged.

    paths: where they lie. decoded: a `support.kept.DecodedPhotos`, which has their pixels already.
    """

    def __init__(self, paths, size, decoded=None):
        self.paths = list(paths)
        self.size = size
        self.decoded = decoded

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        try:
            return row, self.pixels(row), None
        except OSError as error:
            return row, None, error

    def pixels(self, row, content=None):
        """Return a picture as (S, S, 3) uint8; `content` is the bytes of its file, where they are known."""
        if self.decoded is not None:
            return self.decoded[row]
        return read_square(self.paths[row], self.size, content)


def paths_of(table):
    """Return the paths of the photos of a captions table, in the order in which they first appear."""
    return [Path(path) for path in table.drop_duplicates("image")["path"]]


# ---------------------------------------------------------------- a caption


def tokenize(tokenizer, texts, max_tokens):
    """Return the token ids of each text, start and end tokens included, cut at max_tokens: a list of lists."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_tokens, verbose=False)
    return encoded["input_ids"]


def pad(token_ids, pad_id):
    """Stack token ids, padded only to the longest of these texts: (B, T) int64 ids and (B, T) int64 mask."""
    longest = max(len(ids) for ids in token_ids)
    input_ids = torch.full((len(token_ids), longest), pad_id)
    attention_mask = torch.zeros(len(token_ids), longest, dtype=torch.int64)
    for row, ids in enumerate(token_ids):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
    return input_ids, attention_mask


# ---------------------------------------------------------------- pairs for training


class Precomputed(NamedTuple):
    """What is there already of a captions table, and need not be computed again. None: not there."""

    decoded: object = None  # support.kept.DecodedPhotos: the pixels of its N photos
    image_features: torch.Tensor | None = None  # (N, F), what a frozen image tower makes of its photos
    text_features: torch.Tensor | None = None  # (M, F), what a frozen text tower makes of its captions


NOTHING_KNOWN = Precomputed()


class Batch(NamedTuple):
    """B photos, each with K of its captions.

    Features stand in for pixels, or tokens, where a tower is frozen, as both are while the heads learn alone.
    """

    photo_rows: torch.Tensor  # (B,) which photos of the split these are, to name them where something goes wrong
    photo_ids: torch.Tensor  # (B,) equal where photos are equal byte for byte: the loss must not tell them apart
    caption_ids: torch.Tensor  # (B, K) equal where captions are equal
    pixels: torch.Tensor | None  # (B, 3, S, S) uint8
    input_ids: torch.Tensor | None  # (B, K, T)
    attention_mask: torch.Tensor | None  # (B, K, T), 1 for tokens and 0 for padding
    image_features: torch.Tensor | None  # (B, F)
    text_features: torch.Tensor | None  # (B, K, F)

    def to(self, device):
        """Return the batch on a device."""
        return Batch(*(None if part is None else part.to(device, non_blocking=True) for part in self))

    def in_parts(self, photo_count):
        """Return the batch in parts of so many photos, the last one of fewer."""
        parts = []
        for start in range(0, len(self.photo_rows), photo_count):
            rows = slice(start, start + photo_count)
            parts.append(Batch(*(None if part is None else part[rows] for part in self)))
        return parts


class Item(NamedTuple):
    """One photo and K of its captions, as an epoch shows them."""

    photo_row: int  # of the photo in its split
    caption_rows: list  # of its K captions there
    image: np.ndarray | torch.Tensor  # (S, S, 3) uint8 pixels, or (F,) features
    texts: list | torch.Tensor  # K lists of token ids, or (K, F) features


def captions_of_photos(table):
    """Return for each photo, in the order in which they first appear, the rows of its captions: a list of lists."""
    rows = defaultdict(list)
    for row, name in enumerate(table["image"]):
        rows[name].append(row)
    return list(rows.values())


def originals_of(table):
    """Return for each photo, in the order in which they first appear, the name of the first that is equal to it."""
    return table.drop_duplicates("image")["original"]


def numbers_of_equals(values):
    """Return (N,) numbers, the same one for equal values."""
    number_of = {}
    return torch.tensor([number_of.setdefault(value, len(number_of)) for value in values])


@lru_cache(maxsize=1)
def epoch_draws(seed, epoch, count):
    """Return two random numbers below 2**32 for each photo of an epoch, for its captions and its crop: (N, 2).

    All at once, and kept, for each item of the epoch asks for its two.
    """
    return np.random.default_rng((seed, epoch)).integers(2**32, size=(count, 2))


class CaptionDataset(Dataset):
    """Training pairs: one item a photo, with K of its captions, `captions_per_photo`, drawn anew each epoch.

    The photo is embedded once for all of them, and is never twice in a batch, where its other captions would be taken
    for negatives. In the loss the captions number k of all photos meet each other; the draw says which is number k.
    Captions and crop are drawn from (seed, epoch, row) alone: the same for any number of workers, and after a resume.
    """

    def __init__(
        self,
        table,
        tokenizer,
        transform,
        size,
        max_tokens,
        seed=0,
        known=NOTHING_KNOWN,
        captions_per_photo=1,
    ):
        # Photos are numbered in the order in which the table first names them, captions by their row in the table.
        self.photos = Photos(paths_of(table), size, known.decoded)
        self.rows_of_photo = captions_of_photos(table)
        usual_count = int(np.median([len(rows) for rows in self.rows_of_photo]))
        self.captions_per_photo = min(captions_per_photo, max(1, usual_count))
        self.token_ids = tokenize(tokenizer, table["caption"], max_tokens)
        self.pad_id = tokenizer.pad_token_id or 0  # some tokenizers have none; the mask hides it in any case
        self.photo_ids = numbers_of_equals(originals_of(table))  # (N,)
        self.caption_ids = numbers_of_equals(map(tuple, self.token_ids))  # (M,) equal for the tower, cut as they are
        self.transform = transform
        self.known = known
        self.seed = seed
        self.shared_epoch = SharedNumber()  # set by `start_epoch`, and read by workers that live from epoch to epoch

    def __len__(self):
        return len(self.photos)

    @property
    def epoch(self):
        """The number of the epoch whose items these are."""
        return self.shared_epoch.value

    @epoch.setter
    def epoch(self, number):
        self.shared_epoch.value = number

    @property
    def is_streamed(self):
        """Whether the photos lie in shards, and have to be read from there."""
        return self.known.image_features is None and tar_of(self.photos.paths[0]) is not None

    def __getitem__(self, photo_row):
        return self.item(photo_row)

    def item(self, photo_row, content=None):
        """Return the `Item` of a photo in this epoch. `content` is its bytes, where they stream by in a shard."""
        caption_draw, crop_draw = epoch_draws(self.seed, self.epoch, len(self))[photo_row]
        caption_rows = self.drawn_captions(photo_row, caption_draw)

        if self.known.image_features is not None:
            image = self.known.image_features[photo_row]
        else:
            pixels = self.photos.pixels(photo_row, content)  # (S, S, 3); damaged photos were left out before
            self.transform.py_random.seed(int(crop_draw))  # crops and flips are drawn from it: alike in any worker
            image = self.transform(image=pixels)["image"]

        if self.known.text_features is not None:
            texts = self.known.text_features[caption_rows]
        else:
            texts = [self.token_ids[row] for row in caption_rows]
        return Item(photo_row, caption_rows, image, texts)

    def drawn_captions(self, photo_row, draw):
        """Return the rows of K captions of a photo: the one that a random number names, and those that follow it.

        After the last one comes the first, so a photo with fewer than K shows some of them twice.
        """
        rows = self.rows_of_photo[photo_row]
        return [rows[(draw + place) % len(rows)] for place in range(self.captions_per_photo)]

    def make_largest_batch(self, photo_count):
        """Return a `Batch` of so many photos that takes as much memory as any: blank photos, the longest captions."""
        image = np.zeros((self.photos.size, self.photos.size, 3), np.uint8)
        texts = [max(self.token_ids, key=len)] * self.captions_per_photo
        if self.known.image_features is not None:
            image = self.known.image_features[0]
        if self.known.text_features is not None:
            texts = self.known.text_features[[0] * self.captions_per_photo]
        return self.collate([Item(0, [0] * self.captions_per_photo, image, texts)] * photo_count)

    def collate(self, items):
        """Stack items into a `Batch`."""
        photo_rows, caption_rows, images, texts = zip(*items, strict=True)
        photo_rows = torch.tensor(photo_rows)  # (B,)
        caption_rows = torch.tensor(caption_rows)  # (B, K)
        pixels = input_ids = attention_mask = image_features = text_features = None
        if self.known.image_features is None:
            # (B, S, S, 3) -> (B, 3, S, S): in this memory order, torch's channels_last, convolutions are fastest
            pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        else:
            image_features = torch.stack(images)  # (B, F)
        if self.known.text_features is None:
            input_ids, attention_mask = pad(list(chain.from_iterable(texts)), self.pad_id)  # (B * K, T) each
            input_ids = input_ids.unflatten(0, (len(items), -1))  # (B, K, T)
            attention_mask = attention_mask.unflatten(0, (len(items), -1))
        else:
            text_features = torch.stack(texts)  # (B, K, F)
        photo_ids = self.photo_ids[photo_rows]
        caption_ids = self.caption_ids[caption_rows]
        return Batch(
            photo_rows, photo_ids, caption_ids, pixels, input_ids, attention_mask, image_features, text_features
        )


def training_loader(pairs, batch_size, workers=0, pin_memory=False, epoch_shards=0):
    """Return a shuffling loader of `Batch`es over a CaptionDataset; call `start_epoch` before each pass.

    `batch_size` counts the photos of all processes together: each loads its part. The last, smaller batch is dropped:
    its loss is on another scale, since fewer negatives make it easier. Photos in shards are streamed, `epoch_shards`
    of them an epoch, unless their features are known.
    """
    processes = process_count()
    refuse_unequal_shares(batch_size)
    if len(pairs) < processes:
        raise UserError(f"{len(pairs)} training photos are too few for {processes} processes")

    workers = min(workers, usable_cores())
    options = {
        "collate_fn": pairs.collate,
        "drop_last": True,
        "pin_memory": pin_memory,
        "keep_workers": True,  # from epoch to epoch
    }
    if pairs.is_streamed:
        stream = ShardStream(pairs, batch_size, workers, epoch_shards)
        return Loader(stream, stream.batch_size, stream.workers, **options)
    order = DistributedSampler(pairs, processes, process_number(), seed=pairs.seed, drop_last=True)
    photos_at_once = min(batch_size, len(pairs)) // processes  # of so few photos that no batch is whole, one batch
    return Loader(pairs, photos_at_once, workers, sampler=order, **options)


def refuse_unequal_shares(batch_size):
    """Raise UserError where the processes cannot share a batch alike."""
    processes = process_count()
    if batch_size % processes:
        raise UserError(
            f"--batch-size {batch_size} is shared by {processes} processes: give a multiple of {processes}"
        )


def start_epoch(loader, epoch):
    """Fix all that is random in an epoch, by the seed and its number alone: order, captions, crops, dropout.

    So it does not matter for an epoch whether the run was stopped before it and resumed.
    """
    loader.dataset.epoch = epoch  # in memory that the loader's workers share
    if isinstance(loader.sampler, DistributedSampler):  # a stream of shards orders itself
        loader.sampler.set_epoch(epoch)
    # dropout differs between processes
    torch.manual_seed(loader.dataset.seed + 1_000_003 * epoch + process_number())
    # One number is thrown away, as it always was: runs that were begun before go on to the same figures.
    torch.empty((), dtype=torch.int64).random_()


# ---------------------------------------------------------------- pictures for evaluation and search


def collate_pictures(items):
    """Return pixels (B, 3, S, S) uint8 of the readable pictures, their rows, and {row: OSError} of the others."""
    squares = []
    rows = []
    faults = {}
    for row, pixels, error in items:
        if error is None:
            squares.append(pixels)
            rows.append(row)
        else:
            faults[row] = error
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) if squares else None
    return pixels, rows, faults


def image_loader(paths, size, batch_size, workers=0, decoded=None, keep_workers=False):
    """Return a loader over picture files, or this process's part of them.

    keep_workers: from pass to pass, where there are several.
    """
    pictures = Photos(paths, size, decoded)
    mine = range(process_number(), len(pictures), process_count())
    workers = min(workers, usable_cores())
    if decoded is not None:
        workers = 0  # rows of a file need no processes to fetch them
    return Loader(
        pictures, batch_size, workers, sampler=mine, collate_fn=collate_pictures, keep_workers=keep_workers
    )


# ---------------------------------------------------------------- the command


def main(flags):
    folder = dataset_folder(flags.source.data_dir).resolve()
    if flags.output.exists() and flags.output.resolve().is_relative_to(folder / "Images"):
        raise UserError(f"--output {flags.output} is a photo of the dataset: name another file")
    is_ours = flags.output.name == DatasetConfig.output.name or is_drawn(flags.output)
    if flags.output.is_file() and not is_ours:
        raise UserError(f"--output {flags.output} is there, and was not drawn here: name another file, or delete it")
    splits, report = load_usable_splits(flags.source, flags.split_seed)
    table = splits["train"]
    tokenizer, max_tokens = tokenizer_called(flags.text_encoder, table["caption"], flags.max_tokens)
    is_scratch = flags.text_encoder == "scratch"
    told = findings(table, report, tokenizer, is_scratch, max_tokens, flags.batch_size, flags.image_size)
    print("\n".join(map(shown, report.lines + told)))

    # Nine photos as the model would be shown them: squeezed, cropped and mirrored, with captions as their tokens say.
    transform = train_transform(flags.image_size, Config.crop_scale, Config.flip)
    pairs = CaptionDataset(table, tokenizer, transform, flags.image_size, max_tokens)
    shown_pairs = []
    for row in np.random.default_rng(0).permutation(len(pairs))[:9]:
        item = pairs.item(row)
        shown_pairs.append((item.image, tokenizer.decode(item.texts[0], skip_special_tokens=True)))
    lengths = [len(ids) for ids in pairs.token_ids]
    try:
        draw_data_report(shown_pairs, lengths, report.sizes, table["caption"], flags.output)
    except OSError as error:
        raise UserError(f"--output {flags.output} cannot be written: {error}") from None
    print(f"wrote {flags.output}")


def tokenizer_called(name, captions, max_tokens):
    """Return the tokenizer of a text tower, or for "scratch" one of some captions' words, and how many tokens it reads.

    The tower reads at most `max_tokens`, and may be made for fewer, as `models.TextEncoder` heeds too.
    """
    # Here, and not above: a loader's worker, which imports this file, is not to wait for them.
    from transformers import AutoTokenizer

    from support.wordpiece import train_tokenizer

    if name == "scratch":
        return train_tokenizer(captions, max_tokens), max_tokens
    with loading("text", name, pretrained=True):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return tokenizer, min(max_tokens, tokenizer.model_max_length)


if __name__ == "__main__":
    with one_line_errors():
        main(FLAGS)
