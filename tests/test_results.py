"""What is done with a result: files copied, a page in one file, pictures in the terminal."""

import fcntl
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import termios
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import ROOT, run_script
from PIL import Image
from test_app import CHROMIUM, QUIET, sync_api

from inference import Match
from search.copies import copy_matches
from search.result_page import write_result_page
from support.errors import UserError


@pytest.fixture
def album(tmp_path, sample_dir):
    """Three pictures, one with a name full of HTML, all of the year 2001; in a folder of their own."""
    folder = tmp_path / "album"
    (folder / "old").mkdir(parents=True)
    sources = sorted((sample_dir / "Images").iterdir())
    for source, name in zip(sources, ("a.jpg", "old/b.jpg", "<img src=x onerror=alert(1)>.jpg"), strict=False):
        shutil.copy(source, folder / name)
        os.utime(folder / name, (1e9, 1e9))
    return folder


def matches_of(*files):
    return [Match(rank, file, 0.5, row=rank - 1) for rank, file in enumerate(files, start=1)]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------- copies


def test_copies_keep_order_content_and_time_and_overwrite_nothing(album, tmp_path):
    a, b = album / "a.jpg", album / "old" / "b.jpg"
    folder = tmp_path / "new" / "copies"
    assert copy_matches(matches_of(b, a), folder) == [f"copied 2 of 2 pictures into {folder}"]
    first = content(folder)
    assert first == {"01_b.jpg": b.read_bytes(), "02_a.jpg": a.read_bytes()}
    assert {path.stat().st_mtime for path in folder.iterdir()} == {1e9}
    for _ in range(2):
        copy_matches(matches_of(a, b), folder)
        copy_matches(matches_of(b, a), folder)
    names = {f"0{place}_{name}{more}.jpg" for place in (1, 2) for name in "ab" for more in ("", " (2)")}
    assert names <= content(folder).keys() and len(content(folder)) == 10
    assert first.items() <= content(folder).items()
    assert a.exists() and b.exists()


def test_of_a_hundred_copies_the_names_are_in_order(album, tmp_path):
    copy_matches(matches_of(*[album / "a.jpg"] * 100), tmp_path / "copies")
    names = sorted(content(tmp_path / "copies"))
    assert names[0] == "001_a.jpg" and names[9] == "010_a.jpg" and names[99] == "100_a.jpg"


def test_a_picture_in_a_tar_is_copied_as_its_bytes(album, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(album / "a.jpg", "x/000.jpg")
    os.utime(tmp_path / "shard.tar", (1e9, 1e9))
    copy_matches(matches_of(tmp_path / "shard.tar" / "x" / "000.jpg"), tmp_path / "copies")
    assert content(tmp_path / "copies") == {"01_000.jpg": (album / "a.jpg").read_bytes()}
    assert (tmp_path / "copies" / "01_000.jpg").stat().st_mtime == 1e9


def test_what_cannot_be_copied_is_said_and_the_rest_is_copied(album, tmp_path):
    lines = copy_matches(matches_of(album / "gone.jpg", album / "a.jpg"), tmp_path / "copies")
    assert lines[0].startswith("not copied: ") and "gone.jpg" in lines[0]
    assert lines[1] == f"copied 1 of 2 pictures into {tmp_path / 'copies'}"
    assert list(content(tmp_path / "copies")) == ["02_a.jpg"]
    with pytest.raises(UserError, match="--copy-to .* cannot be made"):
        copy_matches(matches_of(album / "a.jpg"), album / "a.jpg" / "copies")


# ---------------------------------------------------------------- the page


class Addresses(HTMLParser):
    """Collects the tags of a page, and everything in it that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.tags, self.found = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]


def test_a_page_holds_its_pictures_and_asks_for_nothing(album, tmp_path):
    files = [album / "a.jpg", next(album.glob("<*")), album / "gone.jpg"]
    write_result_page(tmp_path / "new" / "page.html", "<script>alert(1)</script>", matches_of(*files),
                      lambda row: files[row].name, "3 of 3 pictures & more")
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    parser = Addresses()
    parser.feed(page)
    assert parser.tags.count("img") == 3 and "script" not in parser.tags and len(parser.found) == 3
    for address in parser.found:
        head, _, encoded = address.partition("base64,")
        with Image.open(io.BytesIO(b64decode(encoded))) as picture:
            assert head == "data:image/jpeg;" and picture.format == "JPEG" and max(picture.size) <= 512
            assert not picture.getexif()
    assert "&lt;img src=x onerror=alert(1)&gt;.jpg" in page and "3 of 3 pictures &amp; more" in page
    assert str(tmp_path) not in page


def test_a_page_opens_on_a_phone_in_the_dark_and_runs_nothing(album, tmp_path):
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    files = [*album.rglob("*.jpg")]
    write_result_page(tmp_path / "page.html", "a dog " * 40, matches_of(*files), lambda row: files[row].name, "")
    asked, faults = [], []
    with sync_api.sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET) as browser:
            page = browser.new_page(viewport={"width": 375, "height": 800}, color_scheme="dark")
            page.on("request", lambda request: asked.append(request.url))
            page.on("dialog", lambda dialog: faults.append(dialog.message))
            page.on("console", lambda message: faults.append(message.text))
            page.goto((tmp_path / "page.html").as_uri())
            assert page.evaluate("[...document.images].map(image => image.naturalWidth > 1)") == [True] * 3
            assert page.evaluate("document.documentElement.scrollWidth") == 375
            ground = page.evaluate("getComputedStyle(document.documentElement).colorScheme")
            letters = page.evaluate("getComputedStyle(document.body).color")
    assert ground == "light dark" and letters == "rgb(255, 255, 255)" and faults == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


# ---------------------------------------------------------------- the command


def test_the_command_copies_and_writes_a_page_in_the_order_shown(workplace, album, tmp_path):
    ask = ["a dog", "--gallery", album, "--json", "--no-picture", "--sort", "date", "--top-k", 2]
    more = ["--copy-to", tmp_path / "copies", "--html", tmp_path / "page.html"]
    process = run_script("inference.py", *ask, *more, cwd=workplace)
    files = [Path(match["file"]) for match in json.loads(process.stdout)["matches"]]
    assert sorted(content(tmp_path / "copies")) == [f"01_{files[0].name}", f"02_{files[1].name}"]
    page = (tmp_path / "page.html").read_text()
    assert page.count("<time>2001-09-09</time>") == 2 and "2 of 3 pictures" in page
    assert f"copied 2 of 2 pictures into {tmp_path / 'copies'}" in process.stderr
    process = run_script("inference.py", *ask, *more, "--under", "nowhere", cwd=workplace)
    assert "nothing was found, so there is nothing to show, copy or write" in process.stderr


@pytest.mark.parametrize("flags, complaint", [
    (["--html", "page.txt"], "--html page.txt cannot be: it must be a file that ends in .html"),
    (["--html", "train.log/page.html"], "--html train.log/page.html cannot be written"),
    (["--copy-to", "train.log"], "--copy-to train.log is a file: name a folder"),
    (["--show", "--json"], "--json answers a program, and --show a person"),
])
def test_what_cannot_be_ends_in_one_line(workplace, album, flags, complaint):
    ask = ["a dog", "--gallery", album, "--no-picture", *flags]
    process = run_script("inference.py", *ask, cwd=workplace, check=False)
    assert process.returncode == 2 and complaint in process.stderr and "Traceback" not in process.stderr


# ---------------------------------------------------------------- the terminal


def in_a_terminal(answers, *arguments, cwd, **environment):
    """Run inference.py in a terminal of 80 x 24 that answers to what it is asked; returns all that it was sent.

    answers: {what a program asks a terminal: its answer}.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 800, 480))
    command = [sys.executable, ROOT / "inference.py", *arguments]
    process = subprocess.Popen(list(map(str, command)), stdin=its, stdout=its, stderr=its, cwd=cwd,
                               env={**os.environ, "TERM": "xterm-256color", **environment})
    os.close(its)
    sent, answered = b"", 0
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # it has ended
            break
        if not part:
            break
        sent += part
        for asked, answer in answers.items():
            while asked in sent[answered:]:
                answered = sent.index(asked, answered) + len(asked)
                os.write(ours, answer)
    os.close(ours)
    assert process.wait(timeout=60) == 0, sent
    return sent


SIXEL = {b"\x1b[c": b"\x1b[?62;4;22c"}  # what iTerm2, foot and others say of themselves
NO_PICTURES = {b"\x1b[c": b"\x1b[?62;22c"}


def test_pictures_are_drawn_where_the_terminal_shows_them(workplace, album):
    pytest.importorskip("textual_image", reason='--show needs textual-image: pip install -e ".[show]"')
    ask = ["a dog", "--gallery", album, "--no-picture", "--device", "cpu"]
    run_script("inference.py", *ask, cwd=workplace)  # from here on no prompt waits for torch
    sent = in_a_terminal(SIXEL, *ask, "--show", cwd=workplace)
    (picture,) = re.findall(rb"\x1bP[\d;]*q(.*?)\x1b\\", sent, re.DOTALL)
    assert len(picture) > 5_000 and b"rank  score  file" in sent

    sent = in_a_terminal(NO_PICTURES, *ask, "--show", cwd=workplace)
    assert b"\x1bP" not in sent and b"this terminal shows no pictures; kitty, iTerm2" in sent
    sent = in_a_terminal({}, *ask, "--show", cwd=workplace, TERM="dumb")
    assert b"\x1b" not in sent and b"--show draws in a terminal, and this is none" in sent
    sent = in_a_terminal({}, *ask, cwd=workplace)  # not asked for: not a word to the terminal
    assert b"\x1b" not in sent


def test_kitty_is_sent_pictures_by_its_own_protocol(workplace, album):
    pytest.importorskip("textual_image", reason='--show needs textual-image: pip install -e ".[show]"')

    class Kitty(dict):
        """Answers a question about its protocol, which holds a number that the answer repeats."""

        def items(self):
            yield b"\x1b[c", b"\x1b[?62c"
            yield b"AAAA\x1b\\", b"\x1b_Gi=1;OK\x1b\\"

    ask = ["a dog", "--gallery", album, "--no-picture", "--device", "cpu", "--show"]
    sent = in_a_terminal(Kitty(), *ask, cwd=workplace)
    assert sent.count(b"\x1b_G") > 2 and b"\x1bP" not in sent and b"shows no pictures" not in sent


def test_no_escape_codes_go_into_a_pipe_and_a_missing_library_is_named(workplace, album, tmp_path):
    ask = ["a dog", "--gallery", album, "--no-picture", "--show"]
    process = run_script("inference.py", *ask, cwd=workplace)
    assert "\x1b" not in process.stdout + process.stderr
    assert process.stdout.endswith("--show draws in a terminal, and this is none\n")
    (tmp_path / "textual_image.py").write_text("raise ImportError")
    sent = in_a_terminal({}, *ask, cwd=workplace, PYTHONPATH=str(tmp_path))
    assert b'--show needs the library textual-image: type pip install -e ".[show]"' in sent and b"\x1b" not in sent
