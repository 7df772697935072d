"""The files of a result, copied into a folder. Nothing is moved, and nothing that is there is overwritten."""

import contextlib
import io
import os
import shutil

from support.errors import UserError, shown
from support.tars import contents, tar_of


def copy_matches(matches, folder):
    """Copy the file of each match into a folder; returns lines: how many these are, and which could not be copied.

    Their names begin with their place, 01_beach.jpg, so that a listing has their order; a name that is taken gets
    " (2)". File times are kept. Raises UserError where the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--copy-to {folder} cannot be made: {error}") from None
    digits = max(2, len(str(len(matches))))
    copied = 0
    faults = []
    for place, match in enumerate(matches, start=1):
        try:
            copy_file(match.file, folder / f"{place:0{digits}}_{match.file.name}")
            copied += 1
        except OSError as error:
            faults.append(f"not copied: {shown(error)}")
    return [*faults, f"copied {copied:,} of {len(matches):,} pictures into {shown(folder)}"]


def copy_file(file, path):
    """Copy a file, or a picture inside a tar, to a path, or to one beside it where that is taken; its time is kept."""
    tar = tar_of(file)
    times = os.stat(tar or file)
    with io.BytesIO(contents(file)) if tar else file.open("rb") as source:
        copy = new_file(path)
        try:
            with copy:
                shutil.copyfileobj(source, copy)
        except BaseException:  # a full disk: half a picture is none
            with contextlib.suppress(OSError):
                os.unlink(copy.name)
            raise
    os.utime(copy.name, ns=(times.st_atime_ns, times.st_mtime_ns))


def new_file(path):
    """Open a file for writing that was not there: at a path, or at "NAME (2).jpg" and so on where that is taken."""
    number = 1
    candidate = path
    while True:
        try:
            return candidate.open("xb")
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.stem} ({number}){path.suffix}")
