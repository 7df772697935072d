"""Files: which of them are pictures, what is in a picture, what tells that a file has changed, and writing safely.

Imports no torch, as nothing does that a prompt to an embedded gallery needs: torch alone takes seconds.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.tars import contents, tar_of

# Pillow cannot read .heic; such files are listed as skipped instead of being passed over in silence.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic"}
MOST_PIXELS = 100_000_000  # of a picture: a small file can unpack to more than the memory holds
LARGE = 16_000_000  # pixels from which a picture is reduced before anything else is done with it
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # wherever a picture is opened Pillow refuses it at twice this …
warnings.filterwarnings("ignore", module=r"PIL\.")  # … and would warn of half as many, as of each damaged tag


def picture_files(folder):
    """Return the picture files of a folder and the folders in it, sorted; hidden ones are left alone."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [os.path.join(parent, name) for name in names
                  if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")]
    return sorted(map(Path, files))


@functools.cache
def formats():
    """Return the formats that pictures are read in, whatever their names say.

    Pillow knows more of them, and has another program run for one (EPS). AVIF is not in every build.
    """
    Image.init()
    return [name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if name in Image.OPEN]


def read_image(path, shrink_to=None, content=None):
    """Decode a picture file to an (H, W, 3) uint8 RGB array, upright (EXIF orientation applied).

    `content` is the file's bytes, where they are known. `shrink_to` lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its
    size, and a very large picture of another format be reduced, as long as both sides keep that many pixels.
    Transparency becomes white; 16 or more bits a pixel become 8. Raises the OSError of a file that cannot be opened,
    and one without `errno` where the content is damaged, truncated (OpenCV would return it half grey), no picture, or
    of more than 100 million pixels.
    """
    try:
        if content is None and tar_of(path):
            content = contents(path)
        if content is None and os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise ValueError("not a file")
        with Image.open(path if content is None else BytesIO(content), formats=formats()) as image:
            if min(image.size) < 1:
                raise ValueError("it has no pixels")
            if shrink_to:
                image.draft("RGB", (shrink_to, shrink_to))
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith(("I", "F")):  # Pillow would clip these to white
                pixels = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0)
                image = Image.fromarray(np.uint8(255 * (pixels / max(pixels.max(), 1e-9)).clip(0, 1)))
            elif image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            if image.mode != "RGB":
                image = image.convert("RGB")
            if shrink_to and image.width * image.height > LARGE and min(image.size) > shrink_to:
                image = image.reduce(min(image.size) // shrink_to)  # before it is copied into an array
            return np.array(image)  # a copy: Pillow's own bytes are read-only
    except UnidentifiedImageError:
        raise OSError(f"{path}: not a picture") from None
    except Image.DecompressionBombError:
        raise OSError(f"{path}: its pixels are more than {MOST_PIXELS:,}") from None
    except Exception as error:  # on damaged bytes the decoders raise nearly anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise OSError(f"{path}: {error}") from None


def stamp(path):
    """Return size and time of change of a file, or of the tar it lies in, as text; None where there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # a name that no file can have, as a stranger's index may hold
        if (tar := tar_of(path)) is None:
            return None
        status = tar.stat()
    return f"{status.st_size}|{status.st_mtime_ns}"


def file_key(file, folder):
    """Return what identifies a file of a folder and its content: its name and stamp."""
    return f"{file.relative_to(folder).as_posix()}|{stamp(file) or 'missing'}"


def model_files(directory):
    """Return the files of a model directory on which its embeddings depend: all but its card."""
    return sorted(path for path in Path(directory).rglob("*") if path.is_file() and path.name != "README.md")


def model_stamps(directory):
    """Return what tells, without reading them, whether the files of a model directory are still the same.

    Size and time alone may agree by chance or design; the inode and its time cannot be set by a program.
    """
    return {path.relative_to(directory).as_posix(): [(status := path.stat()).st_size, status.st_mtime_ns,
                                                     status.st_ctime_ns, status.st_ino]
            for path in model_files(directory)}


def fingerprint(directory):
    """Return a hash of a model directory's content: embeddings of another model are never taken for its own."""
    digest = hashlib.sha256()
    for path in model_files(directory):
        digest.update(os.fsencode(path.relative_to(directory).as_posix()) + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def user_cache():
    """Return the folder for what is kept outside the data: models made ready, indexes of read-only folders."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip-index"


def writable(path):
    """Return `path`, or one in the user's cache folder where the folder that would hold it is read-only."""
    folder = next(parent for parent in path.parents if parent.is_dir())
    if os.access(folder, os.W_OK) and folder.stat().st_mode & 0o222:  # root could write, but was asked not to
        return path
    return user_cache() / hashlib.sha256(os.fsencode(path.parent.resolve())).hexdigest()[:24] / path.name


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

    Until then the previous one stays. A kill between the two renames leaves it as `.NAME.old`: `data.runs.recover`.
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


def sync(path):
    """Wait until a file, or the names in a folder, are on the disk itself: what is not is lost with the power."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
