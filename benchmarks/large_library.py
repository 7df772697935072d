"""A photo library of 100,000 pictures in 2,000 folders: how long a prompt takes, and ten new photos.

    python benchmarks/large_library.py --photos DIR

The library is made of links to a few photos, and its index of their embeddings, over and over: to embed so many would
take an hour. The model is a small image tower with a DistilBERT, of random weights, and answers as fast as a trained
one. Every answer is a process of its own, `inference.py --query … --no-picture`.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.cold_query import write_model
from config import parse
from support.errors import UserError, one_line_errors

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "people near the beach"


@dataclass(frozen=True)
class LibraryConfig:
    """Time prompts to a large library."""

    photos: Path = Path("data/sample/Images")  # folder of pictures that are linked to
    different: int = 500  # of them
    count: int = 100_000  # pictures in the library
    folders: int = 2_000  # that they lie in
    new: int = 10  # pictures that are added at the end
    rounds: int = 5  # answers of each way, after one that warms up


def make_library(files, folder, count, folders):
    """Link files into a folder, over and over, in so many folders; returns the names below it, in order."""
    names = []
    for number in range(count):
        file = files[number % len(files)]
        name = f"{number % folders:05}/{number:06}{file.suffix}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        link(file, folder / name)
        names.append(name)
    return sorted(names)


def link(file, path):
    """Link a path to a file, by name where the disks differ."""
    try:
        os.link(file, path)
    except OSError:
        path.symlink_to(file.resolve())


def write_index_of(names, folder, photos, model):
    """Write the index that a first search of the library would have left, from that of the photos it is made of."""
    from inference import Gallery
    from search.index import INDEX_NAME, write_index
    from support.files import stamp

    gallery = Gallery(photos, model, device="cpu")
    (index,) = gallery.indexes
    files = [[name, stamp(folder / name), None] for name in names]
    rows = np.array([int(Path(name).stem) % len(gallery.files) for name in names])
    arrays = {array: getattr(index, array)[rows] for array in ("embeddings", "looks", "penalties", "taken", "marks")}
    write_index(folder / INDEX_NAME, replace(index, files=files, sources={}, **arrays))


def ask(folder, model, cache, *flags):
    """Ask a prompt of the library; returns seconds."""
    command = [sys.executable, ROOT / "inference.py", "--query", PROMPT, "--gallery", folder, "--checkpoint", model,
               "--device", "cpu", "--no-picture", *flags]  # fmt: skip
    start = time.perf_counter()
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=cache)
    return time.perf_counter() - start


def main(flags):
    from support.images import picture_files

    files = picture_files(flags.photos)[: flags.different]
    if not files:
        raise UserError(f"--photos {flags.photos} holds no pictures: python data/sample_scenes.py draws some")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        (scratch / "cache").mkdir()
        write_model(scratch / "model", "test_resnet", text_layers=6)
        photos = scratch / "photos"
        photos.mkdir()
        for number, file in enumerate(files):
            link(file, photos / f"{number:06}{file.suffix}")
        library = scratch / "library"
        library.mkdir()
        names = make_library(files, library, flags.count, flags.folders)
        write_index_of(names, library, photos, scratch / "model")

        print(f"{flags.count:,} pictures in {flags.folders:,} folders, {flags.rounds} rounds, {os.cpu_count()} cores\n")
        print("| what | seconds (median, range) |\n|---|---|", flush=True)
        ways = {"a prompt": [], "a prompt with --trust-index": ["--trust-index"]}
        seconds = {way: [] for way in ways}
        for _ in range(1 + flags.rounds):
            for way, more in ways.items():
                seconds[way].append(ask(library, scratch / "model", scratch / "cache", *more))
        for way, (_, *values) in seconds.items():
            print(f"| {way} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |", flush=True)
        for number, file in enumerate(files[: flags.new]):
            link(file, library / "00000" / f"new {number}{file.suffix}")
        print(f"| {flags.new} new photos | {ask(library, scratch / 'model', scratch / 'cache'):.2f} |")
        print(f"| --check of all | {ask(library, scratch / 'model', scratch / 'cache', '--check'):.0f} |")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the largest, which embeds
        print(f"\nlargest memory of these processes: {peak:,.0f} MB")


if __name__ == "__main__":
    with one_line_errors():
        main(parse(LibraryConfig))
