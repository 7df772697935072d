"""Which pictures of a gallery come into question at all: those under some paths, and of some time."""

import re
from fnmatch import translate

import numpy as np

from support.dates import day, first_moment

FOLDERS_NAMED = 8  # of a gallery, where no picture lies where it was looked for


def lies_under(names, patterns):
    """Return (N,) bool: whether each name fits one of the patterns.

    names: of pictures below their gallery, with slashes. patterns: as in a shell, but * also crosses folders; that of
    a folder means all below it, also where its name holds signs that mean something in a pattern.
    """
    fits = np.zeros(len(names), bool)
    for pattern in patterns:
        pattern = pattern.removeprefix("./").rstrip("/")
        matches = re.compile(f"{translate(pattern)}|{translate(pattern + '/*')}").match
        folder = f"{pattern}/"
        for row, name in enumerate(names):
            if matches(name) or name == pattern or name.startswith(folder):
                fits[row] = True
    return fits


def was_taken(moments, after=None, before=None):
    """Return (N,) bool: whether each moment, in seconds, is of the time from `after` to before `before`.

    after, before: a year, a month or a day, each from its first moment on; None: no limit. What is not a number is of
    no time.
    """
    fits = ~np.isnan(moments)
    if after is not None:
        fits &= moments >= first_moment(after)
    if before is not None:
        fits &= moments < first_moment(before)
    return fits


def why_nothing_fits(names, patterns, lies_there, moments, after, before):
    """Return a line that says that no picture fits, and what there is instead.

    lies_there: (N,) bool, whether each lies under one of the patterns. moments: (N,), or None where no time was asked
    for.
    """
    if patterns:
        where = " or ".join(patterns)
        if not lies_there.any():
            return f"no picture lies under {where}: {contents_in_words(names)}"
        moments = moments[lies_there]
        where = f" under {where}"
    else:
        where = ""
    return f"no picture{where} was taken {time_in_words(after, before)}: {span_in_words(moments)}"


def time_in_words(after, before):
    """Return what --after and --before leave, such as "from 2019-06 on and before 2019-09"."""
    parts = []
    if after:
        parts.append(f"from {after} on")
    if before:
        parts.append(f"before {before}")
    return " and ".join(parts)


def span_in_words(moments):
    """Return from when to when pictures were taken."""
    first, last = span_of(moments)
    return f"they are from {first} to {last}" if first else "it is not known of any when that was"


def span_of(moments):
    """Return the first and the last day on which pictures were taken, or None twice where it is known of none."""
    moments = moments[~np.isnan(moments)]
    return (day(moments.min()), day(moments.max())) if len(moments) else (None, None)


def contents_in_words(names):
    """Return which folders names lie in, those with the most pictures first."""
    counts = {}
    for name in names:
        folder, slash, _ = name.partition("/")
        if slash:
            counts[folder] = counts.get(folder, 0) + 1
    if not counts:
        return "the gallery has no folders in it"
    folders = sorted(counts, key=lambda folder: (-counts[folder], folder))
    words = ", ".join(folders[:FOLDERS_NAMED])
    if len(folders) > FOLDERS_NAMED:
        words += f" and {len(folders) - FOLDERS_NAMED:,} more"
    return f"the folders of the gallery are {words}"
