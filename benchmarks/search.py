"""A prompt against a million pictures: the search of gallery.py, exact, against a product in float32.

    python benchmarks/search.py --rows 1000000 --dim 256

Both look for the nine best among the same embeddings: float32 in memory, as the ancestors keep them, and the float16 of
the index, mapped from its file. They take turns in one process. The last line compares ours with double precision.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import tyro

from search.index import Index, read_index, write_index
from search.nearest import search
from support.errors import one_line_errors
from support.process import start_process

TOP_K = 9


@dataclass(frozen=True)
class SearchConfig:
    """Time the search of a large gallery."""

    rows: int = 1_000_000  # N, pictures
    dim: int = 256  # D
    queries: int = 64  # prompts at once, for the second table row
    rounds: int = 11  # of each way


def main(flags):
    start_process("cpu")
    random = np.random.default_rng(0)
    whole = random.standard_normal((flags.rows, flags.dim), np.float32)
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    asked = random.standard_normal((flags.queries, flags.dim), np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.safetensors"
        files = [[f"{row}.jpg", "", None] for row in range(flags.rows)]
        looks = np.zeros((flags.rows, 192), np.float16)
        write_index(path, Index("0" * 64, files=files, embeddings=whole.astype(np.float16), looks=looks))
        half, size = read_index(path).embeddings, path.stat().st_size

        def plain(queries):
            return (torch.from_numpy(queries) @ torch.from_numpy(whole).T).topk(TOP_K, dim=1)

        ways = {"one prompt, float32": lambda: plain(asked[:1]),
                "one prompt, ours": lambda: search(half, asked[:1], TOP_K),
                f"{flags.queries} prompts, float32": lambda: plain(asked),
                f"{flags.queries} prompts, ours": lambda: search(half, asked, TOP_K)}
        seconds = {way: [] for way in ways}
        for _ in range(1 + flags.rounds):
            for way, run in ways.items():
                start = time.perf_counter()
                run()
                seconds[way].append(time.perf_counter() - start)
        few = asked[:8].astype(np.float64)
        exact = np.concatenate([few @ half[start : start + 50_000].astype(np.float64).T
                                for start in range(0, flags.rows, 50_000)], axis=1)
        best = np.argsort(-exact, axis=1)[:, :TOP_K]
        found = search(half, asked[:8], TOP_K)[1]
        same = np.mean([len(set(a) & set(b)) / TOP_K for a, b in zip(best, found, strict=True)])
    print(f"{flags.rows:,} x {flags.dim}, {flags.rounds} rounds, torch {torch.__version__}, {torch.get_num_threads()} "
          f"threads; float32 {whole.nbytes / 1e6:,.0f} MB, ours {half.nbytes / 1e6:,.0f} MB (the file with names "
          f"{size / 1e6:,.0f} MB)\n\n| search | ms (median, range) | ms a prompt | x float32 |\n|---|---|---|---|")
    medians = {way: 1000 * statistics.median(values[1:]) for way, values in seconds.items()}
    for way, values in seconds.items():
        prompts = 1 if way.startswith("one") else flags.queries
        first = medians[way.split(",")[0] + ", float32"]
        print(f"| {way} | {medians[way]:.1f} ({1000 * min(values[1:]):.1f} to {1000 * max(values[1:]):.1f}) "
              f"| {medians[way] / prompts:.1f} | {first / medians[way]:.1f} |")
    print(f"\nof the nine best by double precision, {100 * same:.1f} % are found")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(SearchConfig, config=(tyro.conf.FlagCreatePairsOff,)))
