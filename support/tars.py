"""Tars of photos and captions: their format, and paths that lead into them. Imports no torch.

A shard is a plain tar, as the `webdataset` library and img2dataset write it: `KEY.jpg` (or .png, .webp, …) with the
bytes of a photo and, next to it, `KEY.txt` with its captions, a line each, in UTF-8. A pattern of shards,
`shards/train-{00000..00099}.tar`, names those of train; `dev-*.tar` and `test-*.tar` beside them are dev and test.

A photo in a tar has a path, `shards/dev-00000.tar/000012.jpg`, which is looked up in the tar's table of contents and
read from its place there (`contents`): evaluation, the gallery and the features of frozen towers need nothing else.
"""

import errno
import functools
import os
import posixpath
import tarfile
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from support.errors import UserError
from support.progress import with_progress

MOST_SHARDS = 100_000  # that a pattern may name
# Of what support/picture_kinds.py names all that is read in every installation. Camera RAW is not among them: a photo
# often lies in a tar beside the RAW that it was made of, and that one is ten times as large.
PICTURES = (
    "jpg", "jpeg", "jpe", "jfif", "mpo", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif", "hif",
)  # fmt: skip


def is_sharded(data_dir):
    """Return whether a --data-dir names shards, one or a pattern of them, rather than a dataset folder."""
    return Path(data_dir).suffix == ".tar" and not Path(data_dir).is_dir()


def dataset_folder(data_dir):
    """Return the folder that a dataset lies in, and where what is kept of it goes: of shards, or a file, their own."""
    is_folder = not is_sharded(data_dir) and not os.path.isfile(data_dir)
    return Path(data_dir) if is_folder else Path(data_dir).parent


def tar_of(path):
    """Return the tar that a path leads into, or None for a path of an ordinary file."""
    return next((parent for parent in Path(path).parents if parent.suffix == ".tar" and os.path.isfile(parent)), None)


def exists(path):
    """Return whether a photo is there: as a file, or inside a tar that is there, where its name was found."""
    return os.path.isfile(path) or tar_of(path) is not None  # a name too long for the system is no error


def split_of_shard(name):
    """Return the split that a photo `SHARD/MEMBER` belongs to: the shard's name says dev or test, else it is train."""
    return next((split for split in ("dev", "test") if name.startswith(f"{split}-")), "train")


def library(name):
    """Return an optional library of the extra `scale`, imported only where shards are used."""
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f'{name} is not installed, and shards need it: type pip install -e ".[scale]"') from None


def shard_files(data_dir, beside=("dev", "test")):
    """Return the files that a pattern of shards names, and the dev and test shards beside them.

    Only files of this machine are taken: `webdataset` itself would run a `pipe:` URL as a command.
    """
    folder, pattern = Path(data_dir).parent, Path(data_dir).name
    try:
        train = [folder / name for name in islice(library("braceexpand").braceexpand(pattern), MOST_SHARDS + 1)]
    except ValueError as error:
        raise UserError(f"--data-dir {data_dir}: {error}; a range of shards is train-{{00000..00099}}.tar") from None
    if missing := [path for path in train if not path.is_file()]:
        count = f"{len(missing):,} of {len(train):,}" + " or more" * (len(train) > MOST_SHARDS)
        raise UserError(f"there is no shard {missing[0]} (missing: {count}): mend the range in {data_dir}, or make "
                        f"shards with python data/make_shards.py FOLDER {folder}")
    others = [path for split in beside for path in sorted(folder.glob(f"{split}-*.tar"))]
    return list(dict.fromkeys([*train, *others]))


class Contents(NamedTuple):
    """The table of contents of a tar; keys are names up to the first dot, as `webdataset` groups them."""

    photos: dict  # {key: name of the photo's member}
    captions: dict  # {key: [caption]}
    places: dict  # {name of a member: (offset, bytes)}
    fault: str | None  # why there is no more of it


def table_of_contents(tar):
    """Return the `Contents` of a tar; each process reads it once, and again when the file has changed."""
    status = tar.stat()
    return read_tar(str(tar), status.st_size, status.st_mtime_ns)


@functools.cache
def read_tar(path, size, changed):
    """Read the headers and captions of a tar, of `size` bytes, last changed at `changed`; photos are passed over."""
    found = Contents({}, {}, {}, None)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name, key, suffix = parts_of(member.name)
                if not (key and member.isreg() and member.offset_data + member.size <= size):
                    continue
                if suffix == "txt":
                    lines = tar.extractfile(member).read().decode("utf-8", "replace").splitlines()
                    found.captions[key] = [" ".join(line.split()) for line in lines if line.strip()]
                elif suffix in PICTURES:
                    found.photos.setdefault(key, name)
                    found.places[name] = member.offset_data, member.size
            tar.fileobj.seek(tar.offset)
            whole = tar.fileobj.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE  # how every tar ends
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError) as error:
        return found._replace(fault=f"{path}: {error}")
    return found if whole else found._replace(fault=f"{path}: damaged or cut off after {len(found.photos):,} photos")


def parts_of(member):
    """Return (name, key, suffix) of a tar's member; the key ends at the first dot and is empty for hidden files."""
    name = posixpath.normpath(member).lstrip("/")
    folder, base = posixpath.split(name)
    stem, _, suffix = base.partition(".")
    return name, posixpath.join(folder, stem) if stem else "", suffix.lower()


def contents(path):
    """Return the bytes of a file, or of a photo inside a tar; raises OSError where it is not there."""
    if (tar := tar_of(Path(path))) is None:
        return Path(path).read_bytes()
    place = table_of_contents(tar).places.get(Path(path).relative_to(tar).as_posix())
    if place is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such photo in the tar", str(path))
    with tar.open("rb") as file:
        file.seek(place[0])
        return file.read(place[1])


def tar_pictures(pattern):
    """Return the paths of all photos in the tars that a pattern names, with or without captions."""
    return [tar / name for tar in shard_files(pattern, ()) for name in table_of_contents(tar).photos.values()]


def shard_captions(data_dir):
    """Return the (image, caption) rows of all splits; an image is called SHARD/MEMBER, as in train-00000.tar/012.jpg.

    A sample without a photo or without a caption has no row; `shard_faults` names it.
    """
    rows = []
    for tar in with_progress(shard_files(data_dir), "reading captions", "shards"):
        found = table_of_contents(tar)
        rows += [(f"{tar.name}/{name}", caption) for key, name in found.photos.items()
                 for caption in found.captions.get(key, ())]
    if not rows:
        raise UserError(f"{data_dir} holds no photo with a caption: a shard has KEY.jpg and KEY.txt for each "
                        "(data/README.md)")
    return rows


def shard_faults(data_dir):
    """Return what is wrong with shards: names without a photo, names without captions, {tar: why it is cut off}."""
    missing = []
    without_captions = []
    cut_off = {}
    for tar in shard_files(data_dir):
        found = table_of_contents(tar)
        missing += [f"{tar.name}/{key}" for key in found.captions.keys() - found.photos]
        for key, name in found.photos.items():
            if not found.captions.get(key):
                without_captions.append(f"{tar.name}/{name}")
        if found.fault:
            cut_off[tar.name] = found.fault
    return missing, without_captions, cut_off
