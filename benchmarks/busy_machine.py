"""Training, embedding and a prompt while other programs keep cores busy, by the real commands.

    python benchmarks/busy_machine.py --other ../an-older-checkout

A busy program computes without end and waits for nothing. Each figure is of `python train.py sample` (photos a second
in its last epoch) and `python inference.py` (seconds for the whole process: the first time, which embeds, and again).
Given another checkout of this repository, the two take turns. Both train the same towers, those of --towers.
"""

import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import PRESETS, parse
from support.errors import UserError, one_line_errors

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ("photos a second in training", "seconds to embed a gallery", "seconds to answer a prompt")


@dataclass(frozen=True)
class BusyConfig:
    """Time commands beside busy programs."""

    data_dir: Path = PRESETS["sample"].data_dir  # drawn by python train.py
    other: Path | None = None  # another checkout of this repository, to be compared with
    busy: tuple[int, ...] = (0, 1, 2)  # how many programs are busy beside
    rounds: int = 3  # of each
    epochs: int = 2  # of which the last one counts
    # flags of train.py, for both checkouts
    towers: str = "--image-encoder resnet10t --image-size 64 --scratch-layers 2 --scratch-width 128"


@contextlib.contextmanager
def busy_programs(count):
    """Keep so many programs busy."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def run(repository, script, *flags, cwd, environment):
    """Run a script of a checkout; returns the seconds it took."""
    command = [sys.executable, str(repository / script), *map(str, flags)]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{shlex.join(command)} failed: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - start


def measure(repository, flags):
    """Return the three figures of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        pictures = folder / "pictures"
        pictures.mkdir()
        for file in (flags.data_dir / "Images").resolve().iterdir():
            (pictures / file.name).symlink_to(file)

        train = ["sample", "--data-dir", flags.data_dir.resolve(), "--epochs", flags.epochs, "--run-dir", "run"]
        run(repository, "train.py", *train, *shlex.split(flags.towers), cwd=folder, environment=environment)
        rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        photos = len((flags.data_dir / "Flickr_8k.trainImages.txt").read_text().split())

        ask = ["--query", "people sitting near the beach", "--gallery", pictures, "--checkpoint", "run", "--no-picture"]
        embedding = run(repository, "inference.py", *ask, cwd=folder, environment=environment)
        prompt = run(repository, "inference.py", *ask, cwd=folder, environment=environment)
    return photos / rows[-1]["seconds"], embedding, prompt


def main(flags):
    if not (flags.data_dir / "captions.txt").is_file():
        raise UserError(f"{flags.data_dir} is not there: python train.py draws it")
    repositories = {"this checkout": ROOT}
    if flags.other:
        repositories["the other"] = flags.other.resolve()
    print(f"{os.cpu_count()} cores, {flags.rounds} rounds, medians (range); {flags.towers}\n")
    print(f"| beside | checkout | {' | '.join(MEASURED)} |\n|---|---|---|---|---|")
    for count in flags.busy:
        figures = {name: [] for name in repositories}
        with busy_programs(count):
            for _ in range(flags.rounds):
                for name, repository in repositories.items():
                    figures[name].append(measure(repository, flags))
        for name, rounds in figures.items():
            cells = [f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
                     for values in zip(*rounds, strict=True)]
            print(f"| {count} busy programs | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main(parse(BusyConfig))
