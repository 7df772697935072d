"""The contrastive loss of a very large batch: the ancestors', the plain one, and ours, which is streamed.

    python benchmarks/contrastive_loss.py --pairs 16384

Forward and backward of unit-length embeddings in float32. Each way runs in a process of its own, turn by turn, so that
the peak of its memory is its own; the first of two passes in a process warms up.
"""

import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.errors import expect_ctrl_c, one_line_errors

if __name__ == "__main__":
    expect_ctrl_c()  # while the libraries load, too

import torch
import torch.nn.functional as F

from benchmarks.seed_recipe import seed_loss
from config import parse
from models import clip_loss
from support.big_batch import blockwise_clip_loss

WAYS = {"ancestors": lambda images, texts, scale: seed_loss(images, texts), "plain": clip_loss,
        "streamed": lambda *inputs: blockwise_clip_loss(*inputs, *[torch.arange(len(inputs[0]))] * 2)}


@dataclass(frozen=True)
class LossConfig:
    """Time the loss of many pairs."""

    pairs: int = 16_384  # N
    dim: int = 256  # D
    rounds: int = 3  # processes of each way
    way: Literal["all", "ancestors", "plain", "streamed"] = "all"  # one of them: run it in this process


def peak_mb():
    """Return the largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(flags):
    """Print seconds and MB of the second pass of one way."""
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(flags.pairs, flags.dim), dim=1).requires_grad_() for _ in range(2))
    scale, before = torch.tensor(14.0, requires_grad=True), peak_mb()
    for _ in range(2):
        start = time.perf_counter()
        WAYS[flags.way](images, texts, scale).backward()
        seconds = time.perf_counter() - start
    print(seconds, peak_mb() - before)


def main(flags):
    if flags.way != "all":
        return measure(flags)
    runs = {way: [] for way in WAYS}
    for _ in range(flags.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, "--pairs", str(flags.pairs), "--dim", str(flags.dim), "--way", way]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[way].append(tuple(map(float, output.split())))
    print(f"N = {flags.pairs:,}, D = {flags.dim}, {flags.rounds} runs, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads\n\n"
          "| loss | seconds (median, range) | x ancestors | GB |\n|---|---|---|---|")
    medians = {way: statistics.median(seconds for seconds, _ in results) for way, results in runs.items()}
    for way, results in runs.items():
        seconds = [seconds for seconds, _ in results]
        gigabytes = statistics.median(megabytes for _, megabytes in results) / 1024
        print(f"| {way} | {medians[way]:.1f} ({min(seconds):.1f} to {max(seconds):.1f}) "
              f"| {medians['ancestors'] / medians[way]:.1f} | {gigabytes:.2f} |")


if __name__ == "__main__":
    with one_line_errors():
        main(parse(LossConfig))
