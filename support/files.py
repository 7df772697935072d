"""Files: what tells that one has changed, reading JSON, and writing safely. Imports no torch."""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from support.errors import UserError
from support.tars import tar_of

MOST_JSON = 10_000_000  # bytes of a settings file
BANK_FILE = "caption_bank.safetensors"  # in a model directory: support/hubs.py

# ---------------------------------------------------------------- JSON


def read_json(path):
    """Return the object in a JSON file; raises UserError for one that is not there, too large, or no such thing."""
    if not path.parent.exists():
        raise UserError(f"there is no folder {path.parent}: name a run, or a model directory")
    if not path.is_file():  # nor a pipe, which would be waited for
        raise UserError(f"{path.parent} is not a model directory: it has no {path.name}")
    values = value_in_json(path, MOST_JSON)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object")
    return values


def value_in_json(path, most_bytes=None):
    """Return what a JSON file holds, of any type; raises UserError for one that cannot be read.

    most_bytes: of a larger file it also does; None: of none. Reading takes memory in proportion to the file, and runs
    nothing that stands in it.
    """
    try:
        size = path.stat().st_size
        if most_bytes is not None and size > most_bytes:
            raise ValueError(f"its {size:,} bytes are more than {most_bytes:,}")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def write_json(path, value):
    """Write a JSON file, indented for people."""
    Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- what tells that a file has changed


def stamp(path):
    """Return size and time of change of a file, or of the tar it lies in, as text; None where there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # a name that no file can have, as a stranger's index may hold
        if (tar := tar_of(path)) is None:
            return None
        status = tar.stat()
    return f"{status.st_size}|{status.st_mtime_ns}"


def name_below(folder, file):
    """Return the name of a file in a folder, with slashes: what `relative_to` gives, for thousands of files at once."""
    folder, name = str(folder), str(file)
    if os.sep == "/" and name.startswith(f"{folder}/"):
        return name[len(folder) + 1 :]
    return Path(file).relative_to(folder).as_posix()


def file_key(file, folder):
    """Return what identifies a file of a folder and its content: its name and stamp."""
    name = file.relative_to(folder) if file.is_relative_to(folder) else file
    return f"{name.as_posix()}|{stamp(file) or 'missing'}"


def model_files(directory):
    """Return the files of a model directory on which its embeddings depend: all but its card and its bank."""
    others = ("README.md", BANK_FILE)
    return sorted(path for path in Path(directory).rglob("*") if path.is_file() and path.name not in others)


def model_stamps(directory):
    """Return what tells, without reading them, whether the files of a model directory are still the same.

    Size and time alone may agree by chance or design; the inode and its time cannot be set by a program.
    """
    stamps = {}
    for path in model_files(directory):
        status = path.stat()
        name = path.relative_to(directory).as_posix()
        stamps[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return stamps


def fingerprint(directory):
    """Return a hash of a model directory's content: embeddings of another model are never taken for its own."""
    digest = hashlib.sha256()
    for path in model_files(directory):
        digest.update(os.fsencode(path.relative_to(directory).as_posix()) + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def user_cache():
    """Return the folder for what is kept outside the data: models made ready, indexes of read-only folders.

    It need not be there, and often cannot be written: whoever keeps something does without where that fails, and says
    so. Whether it holds something is asked by `os.path`, which takes a folder that may not be looked into for empty.
    """
    home = os.path.expanduser("~")
    if home == "~":  # a user's number without a name, as in a container: his home is what it is there
        home = "/"
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")) / "clip-index"


def writable(path):
    """Return `path`, or one in the user's cache folder where the folder that would hold it is read-only."""
    # By os.path, for which what lies in a folder that may not be looked into is not there.
    folder = next(parent for parent in path.parents if os.path.isdir(parent))
    if os.access(folder, os.W_OK) and folder.stat().st_mode & 0o222:  # root could write, but was asked not to
        return path
    return user_cache() / hashlib.sha256(os.fsencode(path.parent.resolve())).hexdigest()[:24] / path.name


def refuse_to_replace(flag, path, *beginnings):
    """Raise UserError where a file is there that begins with none of these bytes, as ours do: it is somebody's."""
    if not os.path.isfile(path):
        return
    with open(path, "rb") as file:
        beginning = file.read(200)
    if beginning and not beginning.startswith(beginnings):
        raise UserError(f"{flag} {path} is there, and was not written here: name another file, or delete it")


def write_file(path, content):
    """Write bytes or text in one rename, so that an interruption leaves the previous file and no half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(directory):
    """Yield a new folder that takes the place of `directory` once everything in it has been written.

    Until then the previous one stays. A kill between the two renames leaves it as `.NAME.old`, which
    `put_back_what_was_replaced` puts right.
    """
    new, old = (directory.with_name(f".{directory.name}.{suffix}") for suffix in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for path in (*new.rglob("*"), new):
            sync(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # a full disk has its room back
        raise
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def put_back_what_was_replaced(directory):
    """Give a directory its previous content back if a kill came between the two renames of `replacing`."""
    old = directory.with_name(f".{directory.name}.old")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # none, or another process was first
        if not directory.exists():
            old.rename(directory)


def sync(path):
    """Wait until a file, or the names in a folder, are on the disk itself: what is not is lost with the power."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
