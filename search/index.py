"""The index of a gallery: what is kept of its embedded pictures, and which pictures there are."""

import functools
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from search.nearest import LOOK_WIDTH
from support.errors import UserError
from support.files import stamp, writable, write_file
from support.tars import dataset_folder, is_sharded

INDEX_NAME, SPLIT_INDEX_NAME = ".clip-index.safetensors", ".clip-index-{}.safetensors"
FORMAT = 2  # of the index: raise it when what it holds changes


@dataclass
class Index:
    """What is kept of an embedded gallery.

    model: fingerprint of the checkpoint; model_files: the stamps of its files, which spare reading them again.
    files: a list [name, stamp, reason] a picture; reason is None, or why it has no embedding.
    embeddings: (N, D) float16, of unit length, a row for each file without a reason, mapped from disk; looks: (N, 192)
    float16, by which near-duplicates are told.
    sources: the stamps of all that decides which photos a split has, and `splits`, those the data has; {} for a folder.
    usual: the score that the best picture for an everyday prompt has at least, or None where it is not known.
    """

    model: str = ""
    model_files: dict = field(default_factory=dict)
    files: list = field(default_factory=list)
    embeddings: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float16))
    looks: np.ndarray = field(default_factory=lambda: np.empty((0, LOOK_WIDTH), np.float16))
    sources: dict = field(default_factory=dict)
    splits: list = field(default_factory=list)
    usual: float | None = None
    format: int = FORMAT

    def about(self):
        """Return everything but the arrays, as plain types."""
        return {key: value for key, value in vars(self).items() if not isinstance(value, np.ndarray)}

    def known(self):
        """Return {(name, stamp): row of the embeddings, or the reason why there is none}."""
        rows = iter(range(len(self.embeddings)))
        return {(name, stamp): next(rows) if reason is None else reason for name, stamp, reason in self.files}


def read_index(path):
    """Return the `Index` in a file; an empty one where there is none yet, or a damaged one."""
    try:
        if not path.is_file():  # nor a pipe, which would be waited for
            return Index()
        with path.open("rb") as file:  # safetensors: length of the header, the header as JSON, the tensors' bytes
            start = 8 + int.from_bytes(file.read(8), "little")
            tensors = json.loads(file.read(min(start, path.stat().st_size) - 8))
            begin, end = tensors["about"]["data_offsets"]
            file.seek(start + begin)
            about = json.loads(file.read(end - begin))
        # mapped, not read: a million rows are there at once, and several processes share them ("c": never written)
        arrays = {name: np.memmap(path, np.float16, "c", start + tensors[name]["data_offsets"][0], tuple(shape))
                  if (shape := tensors[name]["shape"])[0] else np.empty(shape, np.float16)
                  for name in ("embeddings", "looks")}
        texts = str, type(None)
        sound = about["format"] == FORMAT and re.fullmatch("[0-9a-f]{64}", about["model"]) and all(
            isinstance(name, str) and isinstance(mark, texts) and isinstance(reason, texts)
            and not name.startswith("/") and ".." not in name.split("/") for name, mark, reason in about["files"])
        count = sum(reason is None for _, _, reason in about["files"])
        kinds = {"usual": float | None, "model_files": dict, "sources": dict, "splits": list}
        sound = sound and all(isinstance(about[name], kind) for name, kind in kinds.items()) and min(
            tensors[name]["data_offsets"][0] for name in arrays) >= 0
        rows = arrays["embeddings"]
        if sound and rows.ndim == 2 and len(rows) == count and arrays["looks"].shape == (count, LOOK_WIDTH):
            return Index(**arrays, **about)
    except (OSError, LookupError, TypeError, ValueError, AttributeError, OverflowError, MemoryError, RecursionError):
        pass  # there is none yet, or it is damaged, or not made by this program
    return Index()


def write_index(path, index):
    """Write an `Index` in one rename, so that an interruption leaves the previous one."""
    from safetensors.numpy import save

    text = np.frombuffer(json.dumps(index.about()).encode(), np.uint8)
    rows = {"embeddings": np.ascontiguousarray(index.embeddings), "looks": np.ascontiguousarray(index.looks)}
    write_file(path, save({**rows, "about": text}))


def index_of(found, marks, rows, looks, about):
    """Return `about` with the files found so far, {name: row or reason} with their stamps, and their rows and looks."""
    files = [[name, mark, found[name] if isinstance(found[name], str) else None]
             for name, mark in marks.items() if name in found]
    used = [found[name] for name, _, reason in files if reason is None]
    if used != list(range(len(rows))):
        rows, looks = rows[used], looks[used]
    return replace(about, files=files, embeddings=rows, looks=looks)


def split_gallery(config, split=None):
    """Return the split, its picture files, the stamps of all that decides which these are, and the splits there are.

    An index whose stamps still hold knows the files, so that the captions need not be read again.
    """
    folder, seed = dataset_folder(config.data_dir), {"split_seed": config.split_seed}
    for name in [split] if split else ["test", "dev"]:
        index = read_index(writable(folder / SPLIT_INDEX_NAME.format(name))) if folder.is_dir() else Index()
        asked_for = split or ("test" if "test" in index.splits else "dev")
        if index.sources and name == asked_for and index.sources == {
                **seed, **{path: stamp(Path(path)) for path in index.sources if path not in seed}}:
            return name, [folder / file for file, *_ in index.files], index.sources, index.splits
    from dataset import SPLIT_FILES, image_path, load_splits

    if not folder.is_dir():
        raise UserError(f"the data trained on, {config.data_dir}, is not here: name a folder with --gallery DIR")
    tables = load_splits(config.data_dir, config.split_seed)
    splits = [name for name, table in tables.items() if len(table)]
    split = split or ("test" if "test" in splits else "dev")
    if split not in splits:
        raise UserError(f"{config.data_dir} has no {split} photos: try --split {' or '.join(splits)}, or --gallery DIR")
    files = [image_path(config.data_dir, name) for name in tables[split]["image"].unique()]
    decides = {folder / name for name in ("captions.txt", "Flickr8k.token.txt", *SPLIT_FILES.values())}
    decides |= {path.parent for table in tables.values()
                for path in map(functools.partial(image_path, folder), table["image"])}
    # new shards appear in a folder that also changes when an index is written there: their captions are always read
    stamps = {str(path): stamp(path) for path in sorted(decides)}
    sources = {} if is_sharded(config.data_dir) else {**stamps, **seed}
    return split, files, sources, splits
