"""From a captions file to batches: table, splits, checks, transforms, loader.

    captions.txt ─ read_captions ─> table (image, caption) ─ split_images ─> train / dev / test
    one photo    ─ read_square ─> (S, S, 3) uint8 ─ train_transform ─> (S, S, 3) uint8 ┐
    one caption  ─ tokenizer ───> token ids                                            ┴ collate ─> (B, 3, S, S), (B, T)

Pixels stay uint8 until they reach the model, which normalises them on its own device: a quarter of the bytes to
move, and one place that knows the tower's mean and standard deviation.
"""

import csv
import functools
import hashlib
import os
import random
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from itertools import zip_longest
from pathlib import Path, PurePath

# Before the import, or albumentations asks its server for news, and tokenizers warns about each worker process.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from config import UserError, ranks
from data.files import read_image
from data.runs import leave_quietly
from data.shards import ShardPairs
from data.tars import contents, exists, is_sharded, shard_captions, shard_faults, split_of, tar_of

CORES = os.cpu_count() or 1
cv2.setNumThreads(0)  # the loader's workers are the parallelism; threads inside each would fight over the cores
SPLIT_FILES = {split: f"Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test")}

# ---------------------------------------------------------------- captions and splits


def read_captions(data_dir):
    """Read the captions of a dataset folder into a table with the columns image and caption, in file order.

    Reads Kaggle's `captions.txt` (CSV with the header `image,caption`) or else the original `Flickr8k.token.txt`
    (`name#0<TAB>caption`), both UTF-8. Every caption is text: "None" and "NA" too, and commas need no quotes.
    Raises UserError with file and line for a row that cannot be used; rows with an empty caption are left out.
    Here and below, `data_dir` may also be a pattern of shards, "shards/train-{00000..00099}.tar" (data/shards.py).
    """
    if is_sharded(data_dir := Path(data_dir)):
        return pd.DataFrame(shard_captions(data_dir), columns=["image", "caption"])
    if not data_dir.is_dir():
        makers = {"data/flickr8k": "python data/download_flickr8k.py", "data/sample": "python data/sample_scenes.py"}
        hint = f"type {makers[data_dir.as_posix()]}" if data_dir.as_posix() in makers else "see data/README.md"
        raise UserError(f"there is no dataset folder {data_dir}: {hint}, or name another with --data-dir DIR")
    if (path := data_dir / "captions.txt").is_file():
        rows_of = csv_rows
    elif (path := data_dir / "Flickr8k.token.txt").is_file():
        rows_of = token_rows
    else:
        raise UserError(f"{data_dir} has no captions.txt (CSV, header image,caption) and no Flickr8k.token.txt")
    rows = []
    for line, image, caption in rows_of(read_text(path), path):
        if not image or PurePath(image).anchor or ".." in PurePath(image).parts or "\0" in image:
            raise UserError(f"{path} line {line}: {image!r} must be a file name inside {data_dir / 'Images'}")
        if caption.strip():
            rows.append((image, caption.strip()))
    if not rows:
        raise UserError(f"{path} holds no captions")
    return pd.DataFrame(rows, columns=["image", "caption"])


def read_text(path):
    """Return a UTF-8 file as a list of lines with their ends; a byte-order mark, as spreadsheets write, is dropped."""
    content = path.read_bytes()
    try:
        return StringIO(content.decode("utf-8-sig"), newline="").readlines()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line}: not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8, "
                        "which spreadsheets call CSV UTF-8") from None


def csv_rows(lines, path):
    """Yield (line number, image, caption) from the lines of a CSV file with the header `image,caption`."""
    reader, line = csv.reader(lines, strict=True), 1
    try:
        header = next(reader, [])
        if [name.strip().lower() for name in header] != ["image", "caption"]:
            raise UserError(f"{path} line 1: the header must be image,caption, not {','.join(header)[:60]!r}")
        line = reader.line_num + 1
        for row in reader:
            if reader.line_num > line:  # one stray quote swallows all rows up to the next one
                raise UserError(f"{path} line {line}: a quote opens here and closes only in line {reader.line_num}")
            if len(row) == 1:
                raise UserError(f"{path} line {line}: no comma between image and caption: {row[0][:60]!r}")
            if row:
                yield line, row[0].strip(), ",".join(row[1:])  # a comma without quotes is still caption
            line = reader.line_num + 1
    except csv.Error as error:
        fault = "a quote opens here and never closes" if "end of data" in str(error) else error
        raise UserError(f"{path} line {line}: {fault}; inside quotes, write a quote twice") from None


def token_rows(lines, path):
    """Yield (line number, image, caption) from `name#0<TAB>caption` lines."""
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        name, tab, caption = text.rstrip("\r\n").partition("\t")
        if not tab or "#" not in name:
            raise UserError(f"{path} line {line}: expected name#0<TAB>caption, not {text.strip()[:60]!r}")
        yield line, name.rpartition("#")[0].strip(), caption


def split_images(data_dir, images, split_seed=0):
    """Divide image names into splits: a dict of lists with the keys train, dev, test (those that exist).

    Follows the lists `Flickr_8k.{train,dev,test}Images.txt` where the folder has any; an image in none of them is in
    no split. Without lists, a tenth is dev and a tenth test, drawn *by image*: were it by caption, a photo's other
    captions would leak into training. Images are ordered by a hash of their name: the order of the file does not
    matter, but adding or removing photos moves a few of the others at the borders.
    """
    if is_sharded(data_dir):
        return {split: [name for name in images if split_of(name) == split] for split in SPLIT_FILES}
    if has_split_lists(data_dir):
        lists = {split: path for split, name in SPLIT_FILES.items() if (path := Path(data_dir) / name).is_file()}
        return {split: list(filter(None, map(str.strip, read_text(path)))) for split, path in lists.items()}
    order = sorted(set(images), key=lambda name: hashlib.sha256(f"{split_seed}/{name}".encode()).digest())
    share = max(1, len(order) // 10)
    return {"train": order[2 * share :], "dev": order[:share], "test": order[share : 2 * share]}


def has_split_lists(data_dir):
    """Return whether a dataset folder says itself which photos are in which split."""
    return is_sharded(data_dir) or any((Path(data_dir) / name).is_file() for name in SPLIT_FILES.values())


def load_splits(data_dir, split_seed=0):
    """Return the captions table of each split that exists: {"train": table, "dev": table, "test": table}.

    A photo that is listed in train and also in dev or test is kept out of train: evaluation stays honest.
    """
    table = read_captions(data_dir)
    there = [name for name in table["image"].unique() if exists(image_path(data_dir, name))]
    names = {split: set(images) for split, images in split_images(data_dir, there, split_seed).items()}
    names["train"] = names.get("train", set()) - names.get("dev", set()) - names.get("test", set())
    return {split: table[table["image"].isin(images)].reset_index(drop=True) for split, images in names.items()}


def split_table(data_dir, split, split_seed=0):
    """Return the captions table of one split; raises UserError where the dataset has no such split."""
    splits = load_splits(data_dir, split_seed)
    if splits.get(split) is None or splits[split].empty:
        there = " or ".join(f"--split {name}" for name, table in splits.items() if not table.empty)
        names = f"{split}-*.tar beside it" if is_sharded(data_dir) else SPLIT_FILES[split]
        raise UserError(f"{data_dir} has no {split} photos (none in {names}): type {there or 'another --data-dir'}")
    return splits[split]


def image_path(data_dir, name):
    """Return where the photo `name` of a dataset folder lies."""
    return Path(data_dir).parent / name if is_sharded(data_dir) else Path(data_dir) / "Images" / name


def inspect_dataset(data_dir, split_seed=0, train_photos=True):
    """Look at every list and every photo once, before training. Returns a dictionary of what is not as it should be:

    "missing": [name], "unreadable": {name: reason}, "duplicates": [[name, name, …]] (equal byte for byte),
    "in two splits": [name], "in no split": [name], "without captions": [name] (listed, but in no row).
    Photos, unless `train_photos` is off those of train too, are decoded on all cores at an eighth of their size.
    """
    names = set(read_captions(data_dir)["image"])
    there = {name for name in names if exists(image_path(data_dir, name))}
    splits = {split: set(images) for split, images in split_images(data_dir, there, split_seed).items()}
    listed, same = [name for images in splits.values() for name in images], defaultdict(list)
    report = {
        "missing": sorted(names - there), "unreadable": {},
        "in two splits": sorted(name for name, count in Counter(listed).items() if count > 1),
        "in no split": sorted(there - set(listed)),
        "without captions": sorted(set(listed) - names), **(shard_faults(data_dir) if is_sharded(data_dir) else {}),
    }

    def look(name):
        path = image_path(data_dir, name)
        try:
            read_image(path, 32, content := contents(path))
            same[hashlib.sha256(content).digest()].append(name)
        except OSError as error:
            report["unreadable"][name] = str(error)

    images = there & set(listed) - (set() if train_photos else splits.get("train", set()))
    with ThreadPoolExecutor(CORES) as pool:
        list(tqdm(pool.map(look, images), "checking photos", len(images), leave=False, disable=None))
    report["unreadable"] = dict(sorted(report["unreadable"].items()))
    return {**report, "duplicates": sorted(sorted(copies) for copies in same.values() if len(copies) > 1)}


# ---------------------------------------------------------------- pixels


def read_square(path, size, content=None):
    """Decode a picture file as `read_image` does, squeezed into a square: (S, S, 3) uint8."""
    # the whole of it: a centre crop would cut away things that the captions speak of
    image = read_image(path, 2 * size, content)  # enough to resize well, and large photos decode faster
    shrinks = size < max(image.shape[:2])
    try:
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    except cv2.error as error:
        raise OSError(f"{path}: {error.err}") from None


@functools.cache
def memory_map(path, size):
    """Return the (N, S, S, 3) uint8 array of a file, not read but mapped: shared by all processes of the machine."""
    return np.asarray(np.memmap(path, np.uint8, "r")).reshape(-1, size, size, 3)


def train_transform(size, crop_scale=1.0, flip=False):
    """Return the albumentations pipeline for training: (S, S, 3) uint8 -> (S, S, 3) uint8, cropped and mirrored."""
    # a crop keeps at least `crop_scale` of the area: what the captions speak of should stay in the picture
    crop = A.RandomResizedCrop(size=(size, size), scale=(crop_scale, 1.0), ratio=(0.9, 1.1))
    transform = A.Compose([crop] * (crop_scale < 1) + [A.HorizontalFlip(p=0.5)] * flip)
    transform.set_random_state(np.random.default_rng(0), random.Random(0))  # crop and flip use the latter
    return transform


# ---------------------------------------------------------------- text


def train_tokenizer(captions, max_tokens, vocabulary_size=8192):
    """Train a lower-casing WordPiece vocabulary on captions, for a text tower that starts from scratch."""
    special, normalizer = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], normalizers.BertNormalizer(lowercase=True)

    def wordpiece(vocabulary):
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
        return tokenizer

    # The trainer numbers the pieces "##x" in an order of chance, and breaks ties by it. Named beforehand, as special
    # tokens, they always have the same numbers; a second tokenizer takes them over without treating them as special.
    pieces = sorted(f"##{letter}" for letter in set(normalizer.normalize_str("".join(captions))) if letter.strip())
    trained = wordpiece({})
    trained.train_from_iterator(captions, trainers.WordPieceTrainer(
        vocab_size=vocabulary_size, special_tokens=special + pieces, show_progress=False))
    tokenizer = wordpiece(trained.get_vocab())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_tokens, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")


def tokenize(tokenizer, texts, max_tokens):
    """Return the token ids of each text, start and end tokens included, cut at max_tokens: a list of lists."""
    return tokenizer(list(texts), truncation=True, max_length=max_tokens, verbose=False)["input_ids"]


def pad(token_ids, pad_id):
    """Stack token ids, padded only to the longest of these texts: (B, T) int64 ids and (B, T) int64 mask."""
    input_ids = torch.tensor([*zip_longest(*token_ids, fillvalue=pad_id)]).T.contiguous()
    return input_ids, (torch.arange(input_ids.shape[1]) < torch.tensor([*map(len, token_ids)])[:, None]).long()


# ---------------------------------------------------------------- datasets and loaders


class ImageFiles(Dataset):
    """Picture files for evaluation and search. A file that cannot be read yields its OSError instead of pixels."""

    def __init__(self, paths, size, decoded=None, transform=None, seed=()):
        self.paths, self.size, self.decoded, self.transform, self.seed = list(paths), size, decoded, transform, seed
        if decoded:
            memory_map(decoded, size)  # opened before workers are forked, it stays open if the file is deleted

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        try:
            return index, self.pixels(index, int(np.random.default_rng((*self.seed, index)).integers(2**32))), None
        except OSError as error:
            return index, None, error

    def pixels(self, index, seed, content=None):
        """Return one of the pictures as (S, S, 3) uint8: from its file or bytes, or a row of the decoded ones."""
        decoded = self.decoded and memory_map(self.decoded, self.size)[index]
        pixels = read_square(self.paths[index], self.size, content) if decoded is None else decoded
        if self.transform:
            self.transform.py_random.seed(seed)
            pixels = self.transform(image=pixels)["image"]
        return pixels

    @staticmethod
    def collate(items):
        """Return pixels (B, 3, S, S) uint8 of the readable files, their indices, and {index: OSError} of the others."""
        good, faults = [item for item in items if item[1] is not None], {item[0]: item[2] for item in items if item[2]}
        pixels = torch.from_numpy(np.stack([item[1] for item in good])).permute(0, 3, 1, 2) if good else None
        return pixels, [item[0] for item in good], faults


@functools.lru_cache(maxsize=1)
def epoch_draws(seed, epoch, count):
    """Return two random numbers below 2**32 for each photo of an epoch: (N, 2)."""
    return np.random.default_rng((seed, epoch)).integers(2**32, size=(count, 2))


class CaptionDataset(Dataset):
    """Training pairs: one item a photo, with one of its captions drawn anew each epoch.

    A photo is therefore never twice in a batch, where its other captions would be taken for negatives.
    Caption and crop are drawn from (seed, epoch, index) alone: the same for any number of workers, and after a resume.
    """

    def __init__(self, table, data_dir, tokenizer, transform, size, max_tokens, seed=0, cached=None):
        rows = defaultdict(list)  # image name -> the rows of its captions
        for row, name in enumerate(table["image"]):
            rows[name].append(row)
        self.rows = list(rows.values())
        # cache.Cached: features take the place of pixels (N, V, F) and token ids (M, F), where they are given
        decoded, self.image_features, self.text_features = cached or (None, None, None)
        self.photos = ImageFiles([image_path(data_dir, name) for name in rows], size, decoded, transform)
        self.seed, self.epoch, self.token_ids = seed, 0, tokenize(tokenizer, table["caption"], max_tokens)
        self.pad_id = tokenizer.pad_token_id or 0  # some tokenizers have none; the mask hides it in any case

    def __len__(self):
        return len(self.photos)

    def draws(self):
        """Return two random numbers for each photo: (N, 2), for its caption and its crop."""
        return epoch_draws(self.seed, self.epoch, len(self))

    def pixels(self, index, content=None):
        """Return a photo, whose bytes may be given, as this epoch shows it: (S, S, 3) uint8."""
        return self.photos.pixels(index, int(self.draws()[index, 1]), content)

    def __getitem__(self, index):
        return self.__getitems__([index])

    def __getitems__(self, indices):  # which DataLoader prefers: a batch at once costs much less than its items
        return self.batch(indices, map(self.pixels, indices))

    def batch(self, indices, photos):
        """Return a batch: pixels (B, 3, S, S) uint8, ids and mask (B, T); of cached features (B, F), (B, F), None."""
        captions, views = self.draws()[indices].T.tolist()
        rows = [self.rows[index][draw % len(self.rows[index])] for index, draw in zip(indices, captions, strict=True)]
        if self.image_features is None:
            pixels = np.empty((len(indices), self.photos.size, self.photos.size, 3), np.uint8)
            for place, photo in enumerate(photos):
                pixels[place] = photo  # while it is in the processor's cache: stacking later costs twice as much
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # this memory order is torch's channels_last
        else:
            images = self.image_features[indices, [draw % self.image_features.shape[1] for draw in views]]
        if self.text_features is None:
            return images, *pad([self.token_ids[row] for row in rows], self.pad_id)
        return images, self.text_features[rows], None


def image_loader(paths, size, batch_size, workers=0, **options):
    """Return a loader over picture files, or this process's share of them; options as for `ImageFiles`."""
    rank, world = ranks()
    return DataLoader(ImageFiles(paths, size, **options), batch_size, sampler=range(rank, len(paths), world),
                      num_workers=min(workers, CORES), collate_fn=ImageFiles.collate, worker_init_fn=leave_quietly)


def training_loader(dataset, batch_size, workers=0, pin_memory=False, epoch_shards=0):
    """Return a shuffling loader over a CaptionDataset; `start_epoch` must be called before each pass.

    `batch_size` counts the pairs of all processes together: each loads its share. The last, smaller batch is dropped:
    its loss is on another scale, since fewer negatives make it easier. Photos in shards are streamed (`ShardPairs`,
    `epoch_shards` an epoch), unless their features are cached.
    """
    (rank, world), workers = ranks(), min(workers, CORES)
    options = {"drop_last": True, "pin_memory": pin_memory, "worker_init_fn": leave_quietly}
    if len(dataset) < world:
        raise UserError(f"{len(dataset)} training photos are too few for {world} processes")
    if dataset.image_features is None and tar_of(dataset.photos.paths[0]):
        stream = ShardPairs(dataset, batch_size, workers, epoch_shards)
        return DataLoader(stream, stream.batch_size, num_workers=stream.workers, collate_fn=stream.collate, **options)
    order = DistributedSampler(dataset, world, rank, seed=dataset.seed, drop_last=True)
    return DataLoader(dataset, min(batch_size, len(dataset)) // world, sampler=order, num_workers=workers,
                      collate_fn=tuple, **options)


def start_epoch(loader, epoch):
    """Fix all that is random in an epoch: order, captions, crops, dropout. So 1 + 2 epochs equal 3, after a resume."""
    loader.dataset.epoch = epoch
    if isinstance(loader.sampler, DistributedSampler):  # a stream of shards orders itself
        loader.sampler.set_epoch(epoch)
    torch.manual_seed(loader.dataset.seed + 1_000_003 * epoch + ranks()[0])  # dropout differs between processes
