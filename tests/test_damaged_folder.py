"""A folder of 1,000 pictures as they lie on people's disks, some of them damaged: every good one is found."""

import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

GOOD = 980
# `python inference.py …`, which then says how much memory it has had at most, in kB
AS_COMMAND = """import re, runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
open("memory", "w").write(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])"""
ODD_NAMES = ["two words.jpg", "it's \"the\" one.jpg", "☀ 🏖️ été.JPG", "-dash.jpg", "$HOME;ls.jpg", "مرحبا.jpg"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, sample_dir):
    """The folder, and {name: part of the reason} for what cannot be read in it."""
    folder, source = tmp_path_factory.mktemp("damaged") / "my pictures", sorted((sample_dir / "Images").iterdir())
    (folder / "2024" / "summer").mkdir(parents=True)
    draw, whole = np.random.default_rng(0), source[0].read_bytes()
    names = ODD_NAMES + [f"2024/summer/IMG_{number:04}.jpg" for number in range(GOOD - len(ODD_NAMES))]
    for number, name in enumerate(names):
        pixels = cv2.imread(str(source[number % len(source)]))
        pixels = cv2.resize(pixels, (160, 120)) // 2 + draw.integers(128, size=(15, 20, 3), dtype=np.uint8).repeat(
            8, axis=0).repeat(8, axis=1)
        (folder / name).write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
    Image.open(source[1]).save(folder / "a PNG.jpg", "PNG")  # another format than its name says: no damage

    png, reasons = (folder / "a PNG.jpg").read_bytes(), {}

    def damaged(name, content, reason):
        (folder / name).write_bytes(content)
        reasons[name] = reason

    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        damaged(f"cut at {share}.jpg", whole[: int(share * len(whole))], "truncated")
    damaged("cut.png", png[: len(png) // 2], "truncated")
    damaged("header only.jpg", whole[:20], "")
    damaged("empty.jpg", b"", "not a picture")
    damaged("empty.png", b"", "not a picture")
    damaged("notes.jpg", b"Shopping list: milk, eggs, bread.\n" * 100, "not a picture")
    damaged("page.jpeg", b"<!doctype html><title>404</title>", "not a picture")
    damaged("archive.png", b"PK\x03\x04" + bytes(500), "not a picture")
    damaged("film.jpg", b"\0\0\0\x20ftypisom" + bytes(500), "not a picture")
    damaged("zeros.webp", bytes(5000), "not a picture")
    damaged("svg.bmp", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture")
    Image.new("1", (50_000, 3_000)).save(folder / "wide.png")
    reasons["wide.png"] = "its pixels are more than 100,000,000"
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    reasons["gone.jpg"] = "there is no such file"
    (folder / "round.jpg").symlink_to(folder / "round.jpg")
    reasons["round.jpg"] = "there is no such file"
    damaged("secret.jpg", whole, "Permission denied")
    (folder / "secret.jpg").chmod(0)
    os.mkfifo(folder / "pipe.jpg")
    reasons["pipe.jpg"] = "not a file"
    assert len(reasons) == 20
    return folder, reasons


def ask(folder, cwd, *flags):
    """Run the command as a user who may not read everything; returns its output, its errors and its memory in MB."""
    command = [sys.executable, "-c", AS_COMMAND, str(ROOT / "inference.py"), "--gallery", str(folder), "--query",
               "a dog on the beach", "--json", "--no-picture", *flags]
    if os.getuid() == 0:  # root reads all, unless it gives that up
        powers = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}", *command]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["matches"], done.stderr, int((cwd / "memory").read_text()) / 1024


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="root can read every file")
def test_every_good_picture_is_found_and_every_bad_one_named_once(pictures, workplace):
    folder, reasons = pictures
    matches, said, memory = ask(folder, workplace, "--top-k", "2000", "--no-fold")
    found = [match["file"] for match in matches]
    assert len(found) == len(set(found)) == GOOD + 1
    assert {str(folder / name) for name in ODD_NAMES} <= set(found)
    skipped = [line for line in said.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == len(reasons)
    for name, reason in reasons.items():
        assert [reason in line for line in skipped if str(folder / name) in line] == [True], name
    assert memory < 2000  # torch alone takes some 700
    assert f"({GOOD + 1} embedded now, 20 unreadable)" in said

    # what could not be opened may be open to us another time; nothing else is looked at again
    _, said, _ = ask(folder, workplace)
    assert "(all known from the index, 20 unreadable)" in said
    for number in range(10):
        Image.new("RGB", (80, 60), (25 * number, 100, 50)).save(folder / f"new {number}.png")
    matches, said, _ = ask(folder, workplace, "--top-k", "2000", "--no-fold")
    assert "(10 embedded now, 20 unreadable)" in said and len(matches) == GOOD + 11
