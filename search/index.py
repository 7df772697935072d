"""The index of a gallery: what is kept on disk of its embedded pictures."""

import json
import os
import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from support.dates import EARLIEST, LATEST
from support.files import writable, write_file
from support.looks import LOOK_WIDTH

INDEX_NAME = ".clip-index.safetensors"  # in a folder of pictures
SPLIT_INDEX_NAME = ".clip-index-{}.safetensors"  # in a dataset, of one of its splits; beside tars, of these
MOST_INDEXES = 4  # of one gallery, by as many checkpoints
INDEX_FORMAT = 2  # raise it when what an index holds changes


class Entry(NamedTuple):
    """What is known of one picture."""

    stamp: str | None  # of its file when it was read; None: it is to be read again
    row: int | None  # of its embedding
    reason: str | None = None  # why it has none


@dataclass
class Index:
    """What is kept of an embedded gallery. The names are those in the file.

    model: fingerprint of the checkpoint; model_files: the stamps of its files, which spare reading them again.
    files: a list [name, stamp, reason] a picture; reason is None, or why it has no embedding.
    embeddings: (N, D) float16, of unit length, a row for each file without a reason, mapped from disk; looks: (N, 192)
    float16, those of pictures that look the same are near.
    sources: the stamps of all that decides which photos a split has, and `splits`, those the data has. Of a folder
    they are the stamps of the folders in it, by which --trust-index knows that no picture has come or gone; or {}.
    usual: the score that the first match for an everyday prompt has at least, or None where it is not known.
    penalties: (N,) float16, of hubs (support/hubs.py), by the bank whose stamp is `bank`; None in earlier versions.
    taken: (N,) float64, when each was taken by what the camera noted (search/taken.py); None in earlier versions.
    marks: (N,) uint64, by which --check knows a picture again (search/check.py); None in earlier versions.
    readers: what there was to read pictures with (support/picture_kinds.py); None in earlier versions.
    """

    model: str = ""
    model_files: dict = field(default_factory=dict)
    files: list = field(default_factory=list)
    embeddings: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float16))
    looks: np.ndarray = field(default_factory=lambda: np.empty((0, LOOK_WIDTH), np.float16))
    sources: dict = field(default_factory=dict)
    splits: list = field(default_factory=list)
    usual: float | None = None
    bank: str | None = None
    penalties: np.ndarray | None = None
    taken: np.ndarray | None = None
    marks: np.ndarray | None = None
    readers: str | None = None
    format: int = INDEX_FORMAT

    def about(self):
        """Return everything but the arrays, as plain types."""
        arrays = ("embeddings", "looks", "penalties", "taken", "marks")
        return {key: value for key, value in vars(self).items() if key not in arrays}

    def entries(self):
        """Return {name: Entry} of all its files."""
        entries = {}
        next_row = 0
        for name, stamp, reason in self.files:
            if reason is None:
                entries[name] = Entry(stamp, next_row)
                next_row += 1
            else:
                entries[name] = Entry(stamp, None, reason)
        return entries


class IndexFile:
    """Where the index of a gallery is kept: in its folder, or in the user's cache where that is read-only.

    Each of the last four checkpoints that searched the gallery has a file of its own: NAME.safetensors,
    NAME-2.safetensors and so on. Afterwards: `path`, and `unsaved`, why the index could not be written there, or None.
    """

    def __init__(self, folder, name):
        stem, suffix = os.path.splitext(name)
        names = [name, *(f"{stem}-{number}{suffix}" for number in range(2, MOST_INDEXES + 1))]
        self.places = [folder / name for name in names]
        self.path = writable(self.places[0])
        self.unsaved = None
        self.read_before = {}  # {place: Index}

    def read(self, is_the_one=lambda index: True):
        """Return the first `Index` that is the one, such as that of a checkpoint; an empty one where there is none.

        From then on `path` is where it is, or where it will be: a free place, or that of the oldest.
        """
        free = []
        for place in self.places:
            index = self.index_at(place)
            if index.model and is_the_one(index):
                self.path = writable(place)
                return index
            if not index.model:
                free.append(place)
        place = free[0] if free else min(self.places, key=lambda place: self.file_of(place).stat().st_mtime_ns)
        self.path = writable(place)
        return Index()

    def index_at(self, place):
        """Return the `Index` in one place; an empty one where there is none, or one that is no good."""
        if place not in self.read_before:
            self.read_before[place] = read_index(self.file_of(place))
        return self.read_before[place]

    @staticmethod
    def file_of(place):
        """Return the file of a place; in a read-only folder it may be there since before it was made so."""
        path = writable(place)
        return path if os.path.exists(path) else place

    def save(self, index):
        """Keep an `Index`, if that can be: the answer to a question matters more than what is remembered."""
        try:
            write_index(self.path, index)
        except OSError as error:
            self.unsaved = str(error)


def write_index(path, index):
    """Write an `Index` in one rename, so that an interruption leaves the previous one."""
    from safetensors.numpy import save

    tensors = {
        "embeddings": np.ascontiguousarray(index.embeddings),
        "looks": np.ascontiguousarray(index.looks),
        "about": np.frombuffer(json.dumps(index.about()).encode(), np.uint8),
    }
    if index.penalties is not None:
        tensors["penalties"] = index.penalties
    if index.taken is not None:
        tensors["taken"] = np.ascontiguousarray(index.taken)
    if index.marks is not None:
        tensors["marks"] = np.ascontiguousarray(index.marks)
    write_file(path, save(tensors))


def read_index(path):
    """Return the `Index` in a file; an empty one where there is none yet, a damaged one, or not one of this program."""
    try:
        if os.path.isfile(path):  # nor a pipe, which would be waited for
            return map_index(path)
    except (
        OSError, LookupError, TypeError, ValueError, AttributeError, OverflowError, MemoryError, RecursionError
    ):  # what a file that may hold anything can raise
        pass
    return Index()


def map_index(path):
    """Return the `Index` in a file, its arrays mapped from it; raises nearly anything for what is no index.

    Mapped, not read: a million rows are there at once, and several processes share them.
    """
    with path.open("rb") as file:  # safetensors: length of the header, the header as JSON, the tensors' bytes
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(start, path.stat().st_size) - 8))
        begin, end = header["about"]["data_offsets"]
        file.seek(start + begin)
        about = json.loads(file.read(end - begin))
    check_about(about)
    embeddings = map_rows(path, start, header["embeddings"])
    looks = map_rows(path, start, header["looks"])
    penalties = None
    if "penalties" in header:  # not in an index of an earlier version
        penalties = map_rows(path, start, header["penalties"])
    taken = None
    if "taken" in header:  # nor this
        taken = map_rows(path, start, header["taken"], np.float64)
    marks = None
    if "marks" in header:  # nor this
        marks = map_rows(path, start, header["marks"], np.uint64)

    count = sum(reason is None for _, _, reason in about["files"])
    if embeddings.ndim != 2 or len(embeddings) != count or looks.shape != (count, LOOK_WIDTH):
        raise ValueError("the rows are not those of the files")
    if penalties is not None:
        could_be = penalties.shape == (count,) and (np.abs(penalties) <= 1).all()  # also not where it is no number
        penalties = penalties if could_be else None
    if taken is not None and not (taken.shape == (count,) and could_be_moments(taken)):
        taken = None
    if marks is not None and marks.shape != (count,):
        marks = None
    return Index(**about, embeddings=embeddings, looks=looks, penalties=penalties, taken=taken, marks=marks)


def could_be_moments(taken):
    """Return whether numbers are those of search/taken.py: moments of a calendar, no date, or not read."""
    return bool((np.isnan(taken) | np.isneginf(taken) | ((taken >= EARLIEST) & (taken <= LATEST))).all())


def map_rows(path, start, tensor, kind=np.float16):
    """Return a tensor of a safetensors file as an array, of float16 or another kind; offsets count from `start`."""
    shape = tuple(tensor["shape"])
    offset, _ = tensor["data_offsets"]
    if offset < 0:
        raise ValueError("a tensor cannot begin before the tensors")
    if shape[0] == 0:
        return np.empty(shape, kind)
    copy_on_write = "c"  # so that nothing is ever written into the file
    return np.memmap(path, kind, copy_on_write, start + offset, shape)


def check_about(about):
    """Raise an error unless these are values that `Index.about` could have given."""
    kinds = {
        "usual": float | None,
        "bank": str | None,
        "readers": str | None,
        "model_files": dict,
        "sources": dict,
        "splits": list,
    }
    if about["format"] != INDEX_FORMAT or not re.fullmatch("[0-9a-f]{64}", about["model"]):
        raise ValueError("another format, or no fingerprint")
    for name, kind in kinds.items():
        if not isinstance(about.get(name), kind):
            raise ValueError(f"{name} is of another kind")
    for name, stamp, reason in about["files"]:
        if not (isinstance(name, str) and isinstance(stamp, str | None) and isinstance(reason, str | None)):
            raise ValueError("no name, stamp and reason")
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{name} is not in the gallery")
