"""data/download_flickr8k.py against two tiny archives served on loopback: layout, restarts, errors."""

import io
import os
import socket
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.download_flickr8k import main

SCRIPT = Path(__file__).parents[1] / "data" / "download_flickr8k.py"
PHOTOS, TEXT = "Flickr8k_Dataset.zip", "Flickr8k_text.zip"
LISTS = {
    "Flickr_8k.trainImages.txt": "0.jpg\n1.jpg\n2.jpg\n3.jpg\n4.jpg\n5.jpg\n",
    "Flickr_8k.devImages.txt": "6.jpg\n7.jpg\n",
    "Flickr_8k.testImages.txt": "8.jpg\n9.jpg\n",
}
EXPECTED = {"Images": 10, "captions.txt": 50, **dict(zip(LISTS, (6, 2, 2), strict=True))}


def make_zip(members: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def jpegs() -> dict[str, bytes]:
    """Ten photos, each of one grey."""
    greys = {f"{i}.jpg": np.full((16, 16, 3), 20 * i, np.uint8) for i in range(10)}
    return {name: cv2.imencode(".jpg", pixels)[1].tobytes() for name, pixels in greys.items()}


@pytest.fixture
def archives(jpegs: dict[str, bytes]) -> dict[str, bytes]:
    """The two zips with what the real ones hold: photos, captions, lists, junk; and one evil name."""
    tokens = [f"{i}.jpg#{k}\tPhoto {i} , caption {k} ." for i in range(10) for k in range(5)]
    tokens[1] = '0.jpg#1\tA "big" dog runs , and a child – with a café sign – looks on .'
    tokens[25:25] = [f"2258277193_586949ec62.jpg.1#{k}\tNo photo ." for k in range(5)]
    photos = {f"Flicker8k_Dataset/{name}": jpeg for name, jpeg in jpegs.items()}
    junk = {"__MACOSX/Flicker8k_Dataset/._0.jpg": b"junk", "__MACOSX/Flicker8k_Dataset/junk.jpg": b"junk"}
    texts = {"Flickr8k.token.txt": "\n".join(tokens) + "\n", "readme.txt": "hello", **LISTS}
    return {
        PHOTOS: make_zip({"Flicker8k_Dataset/": b"", **photos, **junk, "../evil.jpg": b"\xff\xd8\xffevil"}),
        TEXT: make_zip({**texts, "__MACOSX/._Flickr8k.token.txt": b"junk"}),
    }


class Server(ThreadingHTTPServer):
    """Serves `files` by name and notes each request; a name in `cut` loses the line half-way."""

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cut, self.requests = files, set(), []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.lstrip("/")
        self.server.requests.append(name)
        if name not in self.server.files:
            return self.send_error(404)
        content = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name in self.server.cut else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(archives, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    timeout = socket.getdefaulttimeout()  # the script sets one for its process
    with Server(archives) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    socket.setdefaulttimeout(timeout)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data" / "flickr8k"


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def error_line(capsys, out: Path, url: str, status: int = 2) -> str:
    """Run a download that must fail with this status and no final folder; return its one error line."""
    with pytest.raises(SystemExit) as stopped:
        main(out, url, EXPECTED)
    assert stopped.value.code == status
    assert not out.exists()
    last = capsys.readouterr().err.rstrip("\n").split("\n")[-1]  # above it there may be a progress bar
    assert last.startswith("error: ")
    return last


def test_layout_and_contents(server, out, jpegs, capsys):
    main(out, server.url, EXPECTED)

    printed = capsys.readouterr().out
    assert printed.count("for research, not commercial use") == 1
    assert "left out 5 captions of 2258277193_586949ec62.jpg.1" in printed
    images = ["Images", *(f"Images/{i}.jpg" for i in range(10))]
    assert tree(out) == sorted([*images, "captions.txt", *LISTS])
    assert list(out.parents[1].iterdir()) == [out.parent] and list(out.parent.iterdir()) == [out]
    assert {name: (out / "Images" / name).read_bytes() for name in jpegs} == jpegs
    assert {name: (out / name).read_text() for name in LISTS} == LISTS
    rows = (out / "captions.txt").read_bytes().decode("utf-8").split("\n")
    assert rows[:4] == [
        "image,caption",
        '0.jpg,"Photo 0 , caption 0 ."',
        '0.jpg,"A ""big"" dog runs , and a child – with a café sign – looks on ."',
        '0.jpg,"Photo 0 , caption 2 ."',
    ]
    assert rows[-2:] == ['9.jpg,"Photo 9 , caption 4 ."', ""]
    assert len(rows) == 52  # the header, 50 captions, and nothing behind the last newline


def test_restart_fetches_only_what_is_missing(server, out, capsys):
    server.cut.add(PHOTOS)
    message = error_line(capsys, out, server.url)
    assert f"{PHOTOS} was damaged" in message and "type the same command again" in message
    assert tree(out.parent) == [".flickr8k.part", f".flickr8k.part/{TEXT}"]

    server.cut.clear()
    server.requests.clear()
    main(out, server.url, EXPECTED)
    assert server.requests == [PHOTOS]
    assert list(out.parent.iterdir()) == [out]


def test_flipped_byte_is_noticed(server, out, capsys):
    damaged = bytearray(server.files[PHOTOS])
    damaged[damaged.index(b"4.jpg") + 50] ^= 255  # inside the packed photo
    server.files[PHOTOS] = bytes(damaged)
    message = error_line(capsys, out, server.url)
    assert f"{PHOTOS} was damaged" in message and "is removed" in message
    assert tree(out.parent) == [".flickr8k.part", f".flickr8k.part/{TEXT}"]


def test_interrupt_keeps_what_is_finished(server, out, capsys, monkeypatch):
    import torch.hub

    download = torch.hub.download_url_to_file

    def until_ctrl_c(url, path):
        if PHOTOS in url:
            raise KeyboardInterrupt
        download(url, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", until_ctrl_c)
    part = out.parent / ".flickr8k.part"
    part.mkdir(parents=True)
    (part / f"{TEXT}.0123.partial").write_bytes(b"half a file that an earlier, killed download left behind")
    assert "interrupted" in error_line(capsys, out, server.url, 130)
    assert tree(out.parent) == [".flickr8k.part", f".flickr8k.part/{TEXT}"]


@pytest.mark.parametrize(
    ("text_changes", "photo_changes", "expected_words"),
    [
        ({}, {"9.jpg": None}, "Images: expected 10 photo names, found 9"),
        ({}, {"9.jpg": b"<html>"}, "9.jpg is not a JPEG photo"),
        ({"Flickr_8k.devImages.txt": "6.jpg\n"}, {}, "devImages.txt: expected 2 photo names, found 1"),
        ({"Flickr_8k.devImages.txt": "6.jpg\nx.jpg\n"}, {}, "devImages.txt names x.jpg, which is not in"),
        ({"Flickr_8k.testImages.txt": None}, {}, "testImages.txt: expected 2 photo names, found 0"),
        ({"Flickr8k.token.txt": "0.jpg#0\tAlone .\n"}, {}, "captions.txt: expected 50 photo names, found 1"),
    ],
)
def test_wrong_contents(server, out, capsys, text_changes, photo_changes, expected_words):
    photo_changes = {f"Flicker8k_Dataset/{name}": content for name, content in photo_changes.items()}
    for archive, changes in ((TEXT, text_changes), (PHOTOS, photo_changes)):
        with zipfile.ZipFile(io.BytesIO(server.files[archive])) as opened:
            members = {name: opened.read(name) for name in opened.namelist()} | changes
        server.files[archive] = make_zip({name: data for name, data in members.items() if data is not None})
    message = error_line(capsys, out, server.url)
    assert expected_words in message
    assert f'type `rm -r "{out.parent}/.flickr8k.part"` and the same command again' in message


def test_not_found(server, out, capsys):
    message = error_line(capsys, out, f"{server.url}/nowhere/")
    assert f"cannot fetch {server.url}/nowhere/{TEXT} (HTTP Error 404: Not Found)" in message
    assert f"put it in {out.parent}/.flickr8k.part/" in message


def test_only_web_addresses(out, tmp_path, capsys):
    assert "type one that begins with https://" in error_line(capsys, out, tmp_path.as_uri())
    assert tree(tmp_path) == []


def test_command_line_without_network(out):
    with socket.socket() as unused:  # bound but not listening: whoever calls here is refused
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        command = [sys.executable, str(SCRIPT), "--out", str(out), "--base-url", url]
        environment = os.environ | {"no_proxy": "127.0.0.1"}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: cannot fetch {url}/{TEXT} (") and ended.stderr.count("\n") == 1
    assert "refused" in ended.stderr
    assert not out.exists()


def test_existing_folder_is_left_alone(server, out, capsys):
    main(out, server.url, EXPECTED)
    server.requests.clear()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()

    main(out, server.url, EXPECTED)
    assert "already exists and is whole" in capsys.readouterr().out

    with pytest.raises(SystemExit) as stopped:  # with the counts of the real Flickr8k it is not whole
        main(out, server.url)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    problem = f"{out}/Images: expected 8,091 photo names, found 10"
    assert message.startswith(f"error: {out} exists but is not whole ({problem}): type `mv ")
    assert message.count("\n") == 1
    assert server.requests == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
