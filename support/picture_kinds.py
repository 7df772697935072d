"""Which files are pictures by their names, and what reads each kind of them. Imports no library that reads any.

A name decides only whether a file is looked at, and what a person is told where nothing can be made of it; how it is
read is told by its first bytes (support/images.py).
"""

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

# What Pillow reads. A .mpo holds several JPEGs, of which the first is the photo; .jpg files may hold the same.
PILLOW_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif",
}  # fmt: skip
HEIF_SUFFIXES = {".heic", ".heif", ".hif"}  # every iPhone's photos, and those of some cameras
RAW_SUFFIXES = {
    ".cr2", ".cr3", ".crw",  # Canon
    ".nef", ".nrw",  # Nikon
    ".arw", ".sr2",  # Sony
    ".dng",  # many phones, Leica, Adobe
    ".raf", ".orf", ".rw2", ".pef", ".srw", ".rwl", ".3fr", ".iiq", ".raw",
    ".x3f", ".erf", ".kdc", ".dcr", ".mrw", ".gpr",
}  # fmt: skip
READING = 2  # raise it when more files can be read than before: those that an index calls unreadable are tried again


class Kind(NamedTuple):
    """A kind of pictures that not every installation reads, or none."""

    name: str
    library: str | None  # the Python module that reads it; None where nothing here does
    remedy: str  # what a person can do; {them} stands for one file or many


HEIF = Kind("HEIC", "pillow_heif", "to read {them} type pip install -e .")
RAW = Kind("camera RAW", "rawpy", 'to read {them} type pip install -e ".[raw]"')

# Pillow knows some of these. Its readers of them are seldom used and seldom tested; for EPS it runs another program.
# The one plugin for JPEG XL that has wheels for every system is under the GPL, and this repository under MIT.
NAMES_OF_UNREAD = {
    ".jxl": "JPEG XL",
    ".jp2": "JPEG 2000",
    ".j2k": "JPEG 2000",
    ".jpx": "JPEG 2000",
    ".psd": "Photoshop",
    ".psb": "Photoshop",
    ".xcf": "GIMP",
    ".kra": "Krita",
    ".eps": "PostScript",
    ".svg": "a drawing",
    ".exr": "OpenEXR",
    ".hdr": "Radiance HDR",
    ".tga": "Targa",
    ".ico": "an icon",
    ".ppm": "Netpbm",
    ".pgm": "Netpbm",
    ".pbm": "Netpbm",
}


def kinds():
    """Return {suffix: Kind} of all pictures but those that Pillow reads."""
    by_suffix = {suffix: HEIF for suffix in HEIF_SUFFIXES}
    by_suffix |= {suffix: RAW for suffix in RAW_SUFFIXES}
    for suffix, name in NAMES_OF_UNREAD.items():
        by_suffix[suffix] = Kind(name, None, "to find {them} save {them} as JPEG")
    return by_suffix


KINDS = kinds()
IMAGE_SUFFIXES = PILLOW_SUFFIXES | KINDS.keys()


# ---------------------------------------------------------------- what is there to read them


def is_there(kind):
    """Return whether what reads a kind of pictures is installed, without importing it."""
    return kind.library is not None and find_spec(kind.library) is not None


def readable_suffixes():
    """Return the suffixes of the files that can be read as long as they are whole."""
    suffixes = set(PILLOW_SUFFIXES)
    if is_there(HEIF):
        suffixes |= HEIF_SUFFIXES
    if is_there(RAW):
        suffixes |= RAW_SUFFIXES
    return suffixes


def readers():
    """Return what tells whether a file that could not be read may be readable by now: it is another text then."""
    installed = [kind.library for kind in (HEIF, RAW) if is_there(kind)]
    return " ".join([str(READING), *installed])


# ---------------------------------------------------------------- what people are told


def suffix_of(path):
    """Return the ending of a file's name, in small letters."""
    return Path(path).suffix.lower()


def is_raw(path):
    """Return whether a file is camera RAW by its name: its first bytes are often those of a TIFF."""
    return suffix_of(path) in RAW_SUFFIXES


def unread_kind(path):
    """Return the `Kind` of a file, going by its name, if nothing that is installed reads it; else None."""
    kind = KINDS.get(suffix_of(path))
    if kind is None or is_there(kind):
        return None
    return kind


def unread_reason(kind):
    """Return why a file of a kind that nothing reads cannot be read."""
    return f"{kind.name}: {kind.remedy.format(them='it')}"


def skipped_lines(reasons):
    """Return {file: why it cannot be read} as lines for people.

    Files of a kind that nothing reads are counted, a line for each ending, and come first. Every other file has a line
    of its own.
    """
    counts = Counter()
    others = []
    for file, reason in reasons.items():
        kind = KINDS.get(suffix_of(file))
        if kind is not None and reason.endswith(unread_reason(kind)):  # the name stands before it
            counts[suffix_of(file), kind] += 1
        else:
            others.append(reason)

    lines = []
    for (suffix, kind), count in counts.most_common():
        files = "file" if count == 1 else "files"
        them = "it" if count == 1 else "them"
        lines.append(f"{count:,} {suffix} {files}, {kind.name}: {kind.remedy.format(them=them)}")
    return lines + others
