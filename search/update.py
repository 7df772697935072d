"""Bring the index of a gallery up to date: embed the pictures that are new or have changed, and no others."""

import contextlib
import os
import sys
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from search.check import NO_MARK, marks_of, pictures_that_changed
from search.index import Entry, Index
from search.nearest import nearest
from search.taken import NOT_READ, noted_dates
from support.drawn import DRAWN, is_drawn
from support.files import model_stamps, stamp
from support.picture_kinds import readers
from support.process import from_first_process, is_first_process, process_count, start_process
from support.progress import with_progress

SMALLEST_PART = 512  # pictures embedded before the index is saved, so that an interrupted start need not begin anew
MOST_PARTS = 20  # of a large gallery: to write its index takes time, too
EXCEPTIONS = 2  # everyday prompts for which a gallery may have no good picture


class Rows(NamedTuple):
    """What an index knows of N readable pictures, a row for each: arrays under the names that they have there."""

    embeddings: np.ndarray  # (N, D)
    looks: np.ndarray  # (N, 192): those of pictures that look the same are near
    penalties: np.ndarray  # (N,): less for a picture that is near to every text
    taken: np.ndarray  # (N,): when, by what the camera noted
    marks: np.ndarray  # (N,): a hash of pieces of its file, by which --check knows it again

    def and_more(self, *arrays):
        """Return these rows and more of them, as arrays in the same order."""
        return Rows(*(np.concatenate(pair) for pair in zip(self, arrays, strict=True)))


def rows_of(index):
    """Return the `Rows` of an `Index`."""
    return Rows(index.embeddings, index.looks, index.penalties, index.taken, index.marks)


def up_to_date_index(pictures, embedder, progress=True, check=False):
    """Return the `Index` of a gallery as it is now, and how many of its pictures had to be embedded for that.

    pictures: its `search.pictures.Pictures`, in whose index_file the index is kept. progress: show a progress bar; a
    function is also told how far it is. check: look at all pictures, for one may have been swapped for another of the
    same size and time.
    """
    if process_count() > 1:  # they share the embedding, and look at the folder at different moments
        start_process(embedder.device)
    names = from_first_process(pictures.names)
    known = index_of_this_model(pictures.index_file, embedder)
    header = Index(  # all that the index says beside its rows
        embedder.fingerprint,
        model_stamps(embedder.checkpoint),
        sources=pictures.sources,
        splits=pictures.splits,
        bank=embedder.bank_stamp,
        readers=readers(),
    )

    # What is known, and what is new?
    stamps = pictures.stamps or {name: stamp(os.path.join(pictures.root, name)) for name in names}
    entries = known_entries(known, stamps, pictures.root, try_unreadable_again=known.readers != header.readers)
    if check:
        for name in from_first_process(pictures_that_changed(entries, known, pictures.root)):
            del entries[name]
    new = from_first_process([name for name in stamps if name not in entries])

    # Embed what is new, a part at a time, and keep each part: an interrupted start need not begin anew.
    if new:
        compute_beside_others(embedder)
    rows = rows_of(known)
    kept = [0]  # how many new pictures are in the index on disk, after each part
    with telling_what_is_kept(kept, len(new)):
        for part, done, title in parts_of(new, len(stamps), progress):
            more, rows = embedded_part(part, stamps, rows, pictures.root, embedder, title)
            entries |= more
            if done < len(new):
                # A part of a split is not to be taken for all of it, and so this one has no sources.
                save(arranged(entries, stamps, rows, replace(header, sources={})), pictures)
                kept.append(done)
        index = arranged(entries, stamps, rows, header)
        embedded_now = len(rows.embeddings) - len(known.embeddings)
        complete(index, known, embedded_now, embedder)
        if embedded_now or index.about() != known.about():
            save(index, pictures)
    return index, embedded_now


def parts_of(new, count, progress):
    """Yield new pictures, of `count` in all, a part at a time: (names, how many are done with it, a title or None)."""
    size = max(SMALLEST_PART, count // MOST_PARTS)
    starts = range(0, len(new), size)
    for start in with_progress(starts, "embedding pictures" if progress else None, "parts"):
        part = new[start : start + size]
        done = start + len(part)
        title = f"embedding pictures, {done:,} of {len(new):,}"
        if callable(progress):
            progress(title)
        yield part, done, title if progress else None


def embedded_part(names, stamps, rows, root, embedder, title):
    """Embed some new pictures; returns their {name: Entry}, and the `Rows` with theirs behind them."""
    drawn = from_first_process({name for name in names if is_drawn(os.path.join(root, name))})
    entries = {name: Entry(stamps[name], None, DRAWN) for name in drawn}  # they are not looked into again
    names = [name for name in names if name not in drawn]
    if not names:
        return entries, rows
    paths = [root / name for name in names]
    embedded = embedder.embed_files(paths, title)
    entries |= new_entries(names, stamps, embedded.faults, len(rows.embeddings))
    readable = [path for place, path in enumerate(paths) if place not in embedded.faults]
    rows = rows.and_more(
        embedded.embeddings,
        embedded.looks,
        embedder.hub_penalties(embedded.embeddings),
        noted_dates(readable),
        marks_of(readable),
    )
    return entries, rows


def complete(index, known, embedded_now, embedder):
    """Give an `Index` what follows from its pictures: from the known one, where these are the same."""
    is_as_known = not embedded_now and index.files == known.files
    index.usual = known.usual if is_as_known else None
    if index.usual is None:
        index.usual = usual_score(index, embedder)
    if is_as_known and not index.sources:
        index.sources = known.sources  # of --trust-index: nothing has come, gone or changed since


@contextlib.contextmanager
def telling_what_is_kept(kept, count):
    """Let Ctrl-C say how many of `count` new pictures need not be embedded again: kept[-1] of them."""
    try:
        yield
    except KeyboardInterrupt:
        if not count:
            raise
        done = f"{kept[-1]:,} of {count:,} new pictures are embedded and kept"
        raise KeyboardInterrupt(f"{done}; the same command goes on with the others") from None


def compute_beside_others(embedder):
    """Leave other programs their cores while pictures are embedded; says so on standard error."""
    from support.cores import use_free_cores  # it imports torch, which embedding needs

    line = use_free_cores(embedder.model.device)
    if line and is_first_process():
        print(line, file=sys.stderr)


def index_of_this_model(index_file, embedder):
    """Return the `Index` that is kept, with penalties by the model's bank; an empty one where it is another model's."""
    stamps = model_stamps(embedder.checkpoint)
    index = index_file.read(lambda index: index.model_files == stamps)
    if index.model:
        embedder.recall_fingerprint(index.model_files, index.model)  # the checkpoint need not be read to know it
    else:  # it may have been copied here
        index = index_file.read(lambda index: index.model == embedder.fingerprint)
    width = embedder.config.embedding_dim
    if index.model != embedder.fingerprint or index.embeddings.shape[1] != width:
        index = Index(embeddings=np.empty((0, width), np.float16))
    if index.penalties is None or index.bank != embedder.bank_stamp:  # an earlier version's, or the bank is another
        index.penalties = embedder.hub_penalties(index.embeddings)
        index.usual = None
    if index.taken is None:  # an earlier version's: the dates are read when somebody asks for them
        index.taken = np.full(len(index.embeddings), NOT_READ)
    if index.marks is None:
        index.marks = np.full(len(index.embeddings), NO_MARK, np.uint64)
    return index


def known_entries(known, stamps, root, try_unreadable_again):
    """Return {name: Entry} of the pictures that need not be read: they are unchanged, or not there.

    try_unreadable_again: more can be read than when they were called unreadable, such as by a library installed since.
    """
    old = known.entries()
    entries = {}
    for name, its_stamp in stamps.items():
        if its_stamp is None:
            entries[name] = Entry(None, None, f"{root / name}: there is no such file")
        elif name in old and old[name].stamp == its_stamp:
            is_unreadable = old[name].reason is not None
            if not (is_unreadable and try_unreadable_again):
                entries[name] = old[name]
    return entries


def new_entries(names, stamps, faults, first_row):
    """Return {name: Entry} of pictures just embedded, of which those at the places in `faults` cannot be read."""
    entries = {}
    row = first_row
    for place, name in enumerate(names):
        error = faults.get(place)
        if error is None:
            entries[name] = Entry(stamps[name], row)
            row += 1
        elif error.errno is None:
            entries[name] = Entry(stamps[name], None, str(error))
        else:  # a missing permission, a drive that is away: to be tried again
            entries[name] = Entry(None, None, str(error))
    return entries


def arranged(entries, names, rows, about):
    """Return the `Index` of the entries there are so far, in the order of the names; all else is as in `about`."""
    there = {name: entries[name] for name in names if name in entries}
    files = [[name, entry.stamp, entry.reason] for name, entry in there.items()]
    places = [entry.row for entry in there.values() if entry.reason is None]
    if places != list(range(len(rows.embeddings))):  # otherwise they may stay mapped from disk
        rows = Rows(*(array[places] for array in rows))
    return replace(about, files=files, **rows._asdict())


def save(index, pictures):
    """Keep the index; of several processes the first does."""
    if is_first_process():
        pictures.index_file.save(index)


def usual_score(index, embedder):
    """Return the score that the first match has for nearly all everyday prompts, or None without pictures.

    A prompt whose first match scores less is likely of something that is not there.
    """
    if not len(index.embeddings):
        return None
    scores, rows = nearest(index.embeddings, embedder.everyday_embeddings, 1, index.penalties)  # (Q, 1)
    return float(np.sort(scores + index.penalties[rows], axis=0)[EXCEPTIONS, 0])
