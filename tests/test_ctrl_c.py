"""Ctrl-C in any command, at any moment: one line, exit status 130, nothing lost, and how to go on."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, run_script

# Presses Ctrl-C for all processes of the terminal when something is done for the first time: a module imported, or an
# event of Python's own, as which the opening of a file is known.
PRESSING = """
import os, runpy, signal, sys
root, moment, script, *flags = sys.argv[1:]
sys.path.insert(0, root)
sys.argv = [os.path.join(root, script), *flags]
signal.signal(signal.SIGINT, signal.default_int_handler)
pressed = False

def look(event, arguments):
    global pressed
    what = " ".join(map(str, [event, *arguments[:1]]))
    if moment in what and not pressed:
        pressed = True
        os.killpg(0, signal.SIGINT)

sys.addaudithook(look)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def press(moment, script, *flags, cwd):
    """Run a script in which Ctrl-C is pressed at a moment; returns the lines that it prints on standard error."""
    command = [sys.executable, "-c", PRESSING, ROOT, moment, script, *flags]
    process = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, start_new_session=True)
    assert process.returncode == 130 and "Traceback" not in process.stderr, process.stderr
    return [line for line in process.stderr.splitlines() if line]


AGAIN = "stopped: nothing is lost or damaged; type the same command to begin again"


@pytest.mark.parametrize("moment, script, flags", [
    ("import PIL.Image", "inference.py", ["--query", "a dog"]),
    ("import torch._C", "evaluate.py", ["--split", "test"]),
    ("import torch._C", "dataset.py", []),
    ("import cv2", "data/make_shards.py", ["data", "shards"]),
    ("import torch._C", "docs/make_tour.py", []),
    ("import torch._C", "benchmarks/ablation.py", ["frozen"]),
])
def test_while_libraries_load(moment, script, flags, tmp_path):
    assert press(moment, script, *flags, cwd=tmp_path) == [AGAIN]


def test_every_script_expects_it_before_it_loads_what_takes_long():
    scripts = [*ROOT.glob("data/*.py"), *ROOT.glob("docs/*.py"), *ROOT.glob("benchmarks/*.py")]
    slow_library = r"^(?:import|from) (?:cv2|torch|timm|transformers|pandas|models|dataset|train|evaluate|inference)\b"
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        slow = re.search(slow_library, text, re.MULTILINE)
        if slow and '__name__ == "__main__"' in text:
            assert -1 < text.find("\n    expect_ctrl_c()") < slow.start(), path.name


def test_while_a_split_is_measured(workplace):
    lines = press("captions.txt", "evaluate.py", "--split", "dev", cwd=workplace)
    assert lines[-1] == AGAIN


def test_while_shards_are_written_and_nothing_is_left(sample_dir, tmp_path):
    lines = press("train-00001.tar", "data/make_shards.py", sample_dir, "shards", "--photos", 40, cwd=tmp_path)
    assert lines[-1] == AGAIN and not list(tmp_path.iterdir())


KEPT = "stopped: 512 of 520 new pictures are embedded and kept; the same command goes on with the others"


@pytest.fixture
def pictures(sample_dir, tmp_path):
    """A folder of 520 pictures: one part of a first search, and the beginning of another."""
    sources = sorted((sample_dir / "Images").iterdir())
    for number in range(520):
        shutil.copyfile(sources[number % len(sources)], tmp_path / f"{number:04}.jpg")
    return tmp_path


def test_a_first_search_says_what_is_kept_and_goes_on(workplace, pictures):
    flags = ["--query", "a dog", "--gallery", pictures, "--no-picture", "--workers"]
    lines = press("0515.jpg", "inference.py", *flags, 0, cwd=workplace)
    assert lines[-1] == KEPT
    assert "8 embedded now" in run_script("inference.py", *flags, 2, cwd=workplace).stdout


def test_a_page_that_is_not_ready_yet_says_what_is_kept(workplace, pictures):
    pytest.importorskip("gradio", reason='the page needs Gradio: pip install -e ".[app]"')
    lines = press("0515.jpg", "app.py", "--gallery", pictures, "--port", 0, cwd=workplace)
    assert lines[-1] == KEPT
