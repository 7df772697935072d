"""Download Flickr8k and lay it out as Kaggle's `adityajn105/flickr8k` does.

    python data/download_flickr8k.py

Cost: 1.1 GB of network, 2.3 GB of disk while it runs, no GPU. It can be interrupted: finished archives
wait in `data/.flickr8k.part/`, and the same command goes on from there.

Result: `data/flickr8k/`, which appears only when everything in it has been verified, with `Images/*.jpg`,
`captions.txt` (CSV, header `image,caption`) and the authors' three split lists (photo names, one a line).
"""

import csv
import http.client
import shutil
import socket
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from support.command_line import read_flags
from support.errors import one_line_errors

BASE_URL = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"
ARCHIVES = ("Flickr8k_text.zip", "Flickr8k_Dataset.zip")  # the small one first: a wrong URL shows at once
BOGUS_PHOTO = "2258277193_586949ec62.jpg.1"  # has five captions, but there is no such photo
EXPECTED = {  # how many photos each part of the result holds or names
    "Images": 8091,
    "captions.txt": 40455,
    "Flickr_8k.trainImages.txt": 6000,
    "Flickr_8k.devImages.txt": 1000,
    "Flickr_8k.testImages.txt": 1000,
}


def stop(message: str, status: int = 2) -> NoReturn:
    """End with an exit status and one line on stderr that says what is wrong, where, and what to type."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(status)


def fetch(url: str, archive: Path) -> None:
    """Download `url` to `archive` unless it is there, and test it; stop if it cannot be had or is damaged."""
    if not archive.exists():
        # Imported here so that --help stays fast. This downloader writes to a temporary and renames it;
        # torchvision's writes in place, and what an interruption leaves behind would pass for the whole file.
        from torch.hub import download_url_to_file

        print(f"fetching {url}")
        socket.setdefaulttimeout(60)  # seconds: a server that falls silent is an error, not an endless wait
        try:
            download_url_to_file(url, str(archive))
        except (OSError, http.client.HTTPException, ValueError) as error:
            stop(f"cannot fetch {url} ({error}): check the network, --base-url and the free disk space, "
                 f"or get it by hand and put it in {archive.parent}/; then type the same command again")
    try:  # a connection cut short raises nothing, so only reading it all shows that an archive is whole
        with zipfile.ZipFile(archive) as opened:
            damage = opened.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        damage = str(error)
    if damage:
        archive.unlink()
        stop(f"{archive} was damaged ({damage}) and is removed: type the same command again")


def read_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (base name, content) of each file in a zip; without its folders no name can point elsewhere."""
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            path = PurePosixPath(member.filename)
            if not member.is_dir() and not {"__MACOSX", ".."} & set(path.parts):
                yield path.name, opened.read(member)


def write_captions(token_file: bytes, path: Path) -> None:
    """Write the lines `photo.jpg#0<TAB>caption` of Flickr8k.token.txt to `path`, as CSV."""
    # One odd byte in a caption should not cost the whole download, hence "replace".
    lines = [line.decode("utf-8", errors="replace").partition("\t") for line in token_file.splitlines()]
    rows = [(key.split("#")[0], caption) for key, tab, caption in lines if tab]
    kept = [row for row in rows if row[0] != BOGUS_PHOTO]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("image", "caption"), *kept])
    print(f"left out {len(rows) - len(kept)} captions of {BOGUS_PHOTO}, which has no photo")


def photo_names(path: Path) -> list[str]:
    """The photos that one part of the result (a key of EXPECTED) holds or names; none if it is missing."""
    if path.is_dir():
        return [photo.name for photo in path.glob("*.jpg")]
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        if path.name == "captions.txt":
            return [row[0] for row in csv.reader(file) if row][1:]  # without the header
        return file.read().split()


def find_problem(folder: Path, expected: dict[str, int]) -> str | None:
    """Say what is wrong with the dataset in `folder`, or return None if it is whole."""
    photos = set(photo_names(folder / "Images"))
    for part, count in expected.items():
        names = photo_names(folder / part)
        if len(names) != count:
            return f"{folder / part}: expected {count:,} photo names, found {len(names):,}"
        if missing := set(names) - photos:
            return f"{folder / part} names {min(missing)}, which is not in {folder / 'Images'}"
    for photo in sorted(photos):
        with (folder / "Images" / photo).open("rb") as file:
            if file.read(3) != b"\xff\xd8\xff":  # how every JPEG file begins
                return f"{folder / 'Images' / photo} is not a JPEG photo"
    return None


def build(out: Path, part: Path, base_url: str, expected: dict[str, int]) -> None:
    """Make the folder `out`: all work is done in the folder `part`, and one rename at the end shows it."""
    if not base_url.startswith(("http://", "https://")):
        stop(f"--base-url is {base_url}: type one that begins with https:// or http://")
    print("Flickr8k (Hodosh, Young, Hockenmaier 2013) is for research, not commercial use")
    part.mkdir(parents=True, exist_ok=True)
    for leftover in part.glob("*.partial"):  # of a download that was killed
        leftover.unlink()
    for name in ARCHIVES:
        fetch(f"{base_url.rstrip('/')}/{name}", part / name)

    unpacked = part / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    (unpacked / "Images").mkdir(parents=True)
    print(f"unpacking into {unpacked}/")
    for archive in ARCHIVES:
        for name, content in read_members(part / archive):
            if name.endswith(".jpg"):
                (unpacked / "Images" / name).write_bytes(content)
            elif name == "Flickr8k.token.txt":
                write_captions(content, unpacked / "captions.txt")
            elif name in expected:  # the three split lists, copied as they are
                (unpacked / name).write_bytes(content)
    if problem := find_problem(unpacked, expected):
        stop(f'{problem}: type `rm -r "{part}"` and the same command again')
    unpacked.rename(out)
    print(f"{out} is ready: {expected['Images']:,} photos, {expected['captions.txt']:,} captions")


def main(
    out: Path = Path("data/flickr8k"),
    base_url: str = BASE_URL,
    expected: tyro.conf.Suppress[dict[str, int]] = EXPECTED,
) -> None:
    """Download Flickr8k (1.1 GB; for research, not commercial use) and lay it out as Kaggle does.

    Args:
        out: Folder to make; if it exists, it is verified and left alone.
        base_url: Where Flickr8k_Dataset.zip and Flickr8k_text.zip are.
        expected: Photos in each part of the result (only the tests, with their tiny archives, change it).
    """
    part = out.parent / f".{out.name}.part"
    try:
        if not out.exists():
            build(out, part, base_url, expected)
        elif problem := find_problem(out, expected):
            stop(f"{out} exists but is not whole ({problem}): "
                 f'type `mv "{out}" "{out}.old"` and the same command again')
        else:
            print(f"{out} already exists and is whole: nothing to do")
        shutil.rmtree(part, ignore_errors=True)
    except KeyboardInterrupt:
        stop(f"interrupted; finished archives are kept in {part}/: type the same command again to go on", 130)
    except (OSError, csv.Error) as error:
        stop(f"cannot make or check {out} ({error}): make room there or type another --out")


if __name__ == "__main__":
    with one_line_errors():
        read_flags(main)
