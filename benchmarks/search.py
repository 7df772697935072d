"""A prompt against a million pictures: the exact search of search/nearest.py, against a product in float32.

    python benchmarks/search.py --rows 1000000 --dim 256

All look for the nine best among the same embeddings: float32 in memory, as the ancestors keep them, and the float16 of
the index, mapped from its file. Ours is timed as a command searches, without torch, and as the page does, which has
imported it. They take turns in one process. The last line compares ours with double precision.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.errors import expect_ctrl_c, one_line_errors

if __name__ == "__main__":
    expect_ctrl_c()  # while the libraries load, too

import numpy as np
import torch

from config import parse
from search.index import Index, read_index, write_index
from search.near_duplicates import LOOK_WIDTH
from search.nearest import nearest
from support.process import start_process

TOP_K = 9


@dataclass(frozen=True)
class SearchConfig:
    """Time the search of a large gallery."""

    rows: int = 1_000_000  # N, pictures
    dim: int = 256  # D
    queries: int = 64  # prompts at once, for the second half of the table
    rounds: int = 5  # of each way, after one that warms up


def unit_rows(random, count, width):
    """Return (count, width) random float32 rows of unit length."""
    rows = random.standard_normal((count, width), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def mapped(embeddings, path):
    """Return embeddings as a search finds them: in float16, mapped from an index."""
    files = [[f"{row}.jpg", "", None] for row in range(len(embeddings))]
    looks = np.zeros((len(embeddings), LOOK_WIDTH), np.float16)
    write_index(path, Index("0" * 64, files=files, embeddings=embeddings.astype(np.float16), looks=looks))
    return read_index(path).embeddings


def search_without_torch(embeddings, queries, top_k):
    """Search as a process does that has not imported torch."""
    with mock.patch.dict(sys.modules):
        del sys.modules["torch"]
        return nearest(embeddings, queries, top_k)


def milliseconds(ways, rounds):
    """Return {way: [milliseconds]} of functions that take turns."""
    times = {way: [] for way in ways}
    for _ in range(1 + rounds):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            times[way].append(1000 * (time.perf_counter() - start))
    return {way: values[1:] for way, values in times.items()}


def found_of_the_best(half, queries):
    """Return the share of the best rows by double precision that the search finds."""
    parts = []
    for start in range(0, len(half), 50_000):
        parts.append(queries.astype(np.float64) @ half[start : start + 50_000].astype(np.float64).T)
    best = np.argsort(-np.concatenate(parts, axis=1), axis=1)[:, :TOP_K]
    _, found = nearest(half, queries, TOP_K)
    return np.mean([len(set(a) & set(b)) / TOP_K for a, b in zip(best, found, strict=True)])


def main(flags):
    start_process("cpu")
    random = np.random.default_rng(0)
    whole = unit_rows(random, flags.rows, flags.dim)
    asked = unit_rows(random, flags.queries, flags.dim)

    def plain(queries):
        return (torch.from_numpy(queries) @ torch.from_numpy(whole).T).topk(TOP_K, dim=1)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.safetensors"
        half = mapped(whole, path)
        size = path.stat().st_size
        ways = {}
        for title, queries in (("one prompt", asked[:1]), (f"{flags.queries} prompts", asked)):
            ways[title, "float32"] = lambda queries=queries: plain(queries)
            ways[title, "ours"] = lambda queries=queries: nearest(half, queries, TOP_K)
            ways[title, "ours, without torch"] = lambda queries=queries: search_without_torch(half, queries, TOP_K)
        times = milliseconds(ways, flags.rounds)
        same = found_of_the_best(half, asked[:8])

    print(
        f"{flags.rows:,} x {flags.dim}, {flags.rounds} rounds, torch {torch.__version__}, numpy {np.__version__}, "
        f"{torch.get_num_threads()} threads; float32 {whole.nbytes / 1e6:,.0f} MB, ours {half.nbytes / 1e6:,.0f} MB "
        f"(the file with names {size / 1e6:,.0f} MB)\n"
    )
    print("| search | ms (median, range) | ms a prompt | x float32 |\n|---|---|---|---|")
    for (title, way), values in times.items():
        median = statistics.median(values)
        prompts = 1 if title == "one prompt" else flags.queries
        ratio = statistics.median(times[title, "float32"]) / median
        print(
            f"| {title}, {way} | {median:.1f} ({min(values):.1f} to {max(values):.1f}) | {median / prompts:.1f} "
            f"| {ratio:.1f} |"
        )
    print(f"\nof the nine best by double precision, {100 * same:.1f} % are found")


if __name__ == "__main__":
    with one_line_errors():
        main(parse(SearchConfig))
