"""What several test files share: a small drawn dataset, a run trained on it by the real command, and runners."""

import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would download something fails at once

import pytest

from data.sample_scenes import write_sample

ROOT = Path(__file__).parents[1]


def run_script(name, *arguments, cwd, check=True):
    """Run a script of the repository as a user would; returns the finished process with its output as text."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    process = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280)
    assert not check or process.returncode == 0, process.stderr
    return process


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory):
    """A drawn dataset of 96 train, 16 dev and 16 test pictures."""
    directory = tmp_path_factory.mktemp("data") / "sample"
    write_sample(directory, seed=1, train=96, dev=16, test=16)
    return directory


@pytest.fixture(scope="session")
def train_flags(sample_dir):
    """A run of seconds: four epochs of three steps."""
    return ["sample", "--data-dir", sample_dir, "--epochs", 4, "--batch-size", 32]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory, train_flags):
    """A working directory in which `train.py` has made runs/first."""
    directory = tmp_path_factory.mktemp("workplace")
    directory.joinpath("train.log").write_text(
        run_script("train.py", *train_flags, "--run-dir", "runs/first", cwd=directory).stdout)
    return directory


@pytest.fixture(scope="session")
def checkpoint(workplace):
    """The best/ model directory of that run."""
    return workplace / "runs" / "first" / "best"
