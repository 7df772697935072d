"""Workers of loaders: the same batches however they start, one start for all epochs, and little that they import."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import dataset
import support.workers
from dataset import (
    CaptionDataset,
    image_loader,
    load_splits,
    paths_of,
    start_epoch,
    train_transform,
    training_loader,
)
from support.wordpiece import train_tokenizer

STARTS = ["fork", "spawn", "forkserver"]


@pytest.fixture(params=STARTS)
def start(request, monkeypatch):
    """A way in which workers start: on Linux a fork, on macOS and Windows spawn, and forkserver in Python 3.14."""
    monkeypatch.setattr(support.workers, "start_of_workers", lambda: request.param)
    monkeypatch.setattr(dataset, "usable_cores", lambda: 2)
    return request.param


def pairs_of(sample_dir):
    table = load_splits(sample_dir)["train"]
    tokenizer = train_tokenizer(table["caption"], 32)
    return CaptionDataset(table, tokenizer, train_transform(32, 0.6, True), 32, 32, captions_per_photo=2)


def epochs_of(loader, epochs):
    """Return the batches of some epochs, and a random number that is drawn after each, as dropout draws them."""
    batches = []
    for epoch in epochs:
        start_epoch(loader, epoch)
        for batch in loader:
            batches.append([part for part in batch if part is not None])
        batches.append([torch.rand(3)])
    return batches


def are_equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(one, other) for mine, theirs in zip(first, second, strict=True)
        for one, other in zip(mine, theirs, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
def test_all_epochs_have_the_same_workers_and_what_they_would_be_without(start, sample_dir):
    expected = epochs_of(training_loader(pairs_of(sample_dir), 32), [1, 2, 3])
    loader = training_loader(pairs_of(sample_dir), 32, workers=2)
    first = epochs_of(loader, [1])
    workers = [worker.pid for worker in loader._iterator._workers]
    assert are_equal(first + epochs_of(loader, [2, 3]), expected)
    assert [worker.pid for worker in loader._iterator._workers] == workers and len(workers) == 2
    assert are_equal(epochs_of(training_loader(pairs_of(sample_dir), 32, workers=2), [3]), expected[-4:])  # a resume


SCRIPT = """
import sys
import wave  # as a script imports what its workers do not need
import support.workers
from dataset import Photos

sys.path.insert(0, sys.argv[2])
from probe import Imported

support.workers.start_of_workers = lambda: sys.argv[1]
if __name__ == "__main__":
    loader = support.workers.Loader(Imported(["a"] * 4, 32), 2, 1, keep_workers=True, collate_fn=list)
    (first, _), (again, _) = list(loader)
    print(first[0] == again[0], *first[1])
"""
PROBE = """
import os, sys
from dataset import Photos

class Imported(Photos):
    def __getitem__(self, row):
        return os.getpid(), sorted(sys.modules), None
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_import_little_and_not_the_script(method, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "probe.py").write_text(PROBE)
    command = [sys.executable, tmp_path / "script.py", method, tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert process.returncode == 0 and not process.stderr, process.stderr
    is_the_same, *modules = process.stdout.split()
    assert is_the_same == "True" and {"dataset", "torch"} <= set(modules)
    assert not {"wave", "transformers", "timm", "matplotlib.pyplot", "onnxruntime"} & set(modules)


DRAWING = """
import multiprocessing
import sys
import wave
from data import sample_scenes

sys.path.insert(0, sys.argv[2])
from probe import draw

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    sample_scenes.draw_into = draw
    sample_scenes.usable_cores = lambda: 1
    sample_scenes.write_sample("drawn", train=8, dev=2, test=2)
"""
DRAWN = """
import signal, sys
from pathlib import Path
from data import sample_scenes

def draw(folder, task):
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    Path("note.txt").write_text(" ".join([str(blocked), *sys.modules]))
    return sample_scenes.draw_into(folder, task)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_draw_the_sample_import_neither_the_script_nor_torch(method, tmp_path):
    (tmp_path / "script.py").write_text(DRAWING)
    (tmp_path / "probe.py").write_text(DRAWN)
    command = [sys.executable, tmp_path / "script.py", method, tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, env=environment, cwd=tmp_path, text=True, capture_output=True)
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stderr
    is_deaf, *modules = (tmp_path / "note.txt").read_text().split()
    assert is_deaf == "True" and {"data.sample_scenes", "cv2"} <= set(modules)
    assert not {"wave", "torch", "timm", "transformers"} & set(modules)
    assert len(list((tmp_path / "drawn" / "Images").iterdir())) == 12


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_the_command_that_draws_is_found_by_its_own_processes(method, tmp_path):
    code = f"import multiprocessing, runpy; multiprocessing.set_start_method({method!r}); " \
           f"runpy.run_path({str(ROOT / 'data' / 'sample_scenes.py')!r}, run_name='__main__')"
    flags = ["--out", "drawn", "--train", "8", "--dev", "2", "--test", "2"]
    process = subprocess.run([sys.executable, "-c", code, *flags], cwd=tmp_path, text=True, capture_output=True)
    assert process.returncode == 0, process.stderr
    assert len(list((tmp_path / "drawn" / "Images").iterdir())) == 12


def test_what_a_worker_imports_holds_no_towers():
    heavy = ["transformers", "timm", "matplotlib", "onnxruntime"]
    code = f"import sys, dataset; found = set({heavy}) & set(sys.modules); sys.exit(str(found) if found else 0)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_dev_photos_that_are_decoded_need_no_workers(sample_dir):
    paths = paths_of(load_splits(sample_dir)["dev"])
    assert image_loader(paths, 32, 4, workers=2).num_workers > 0
    assert image_loader(paths, 32, 4, workers=2, decoded=object()).num_workers == 0
