"""Find pictures by describing them.

    python inference.py "people sitting near the beach"                            # in the data trained on
    python inference.py "a dog running through water" --gallery ~/Pictures         # in any folder
    python inference.py my_dog.jpg "in the snow" --gallery ~/Pictures              # pictures like this one, in the snow
    python inference.py --labels "beach,forest,street" --gallery ~/Pictures        # which of these is each picture?
    python inference.py --image my_dog.jpg --captions captions.txt                 # the captions that fit it best
    python inference.py --export onnx                                              # both towers, for other programs

Pictures and texts meet in one space: whatever is asked becomes an embedding, and one matrix product with the embeddings
of the gallery answers it. A gallery is embedded once; its embeddings are kept in the folder, and used again while the
checkpoint and the files are unchanged. A query is then one pass of the text tower and that product.

    >>> gallery = Gallery("~/Pictures")
    >>> gallery.search("two dogs playing in the snow", top_k=1)
    [Match(rank=1, file=PosixPath('/home/me/Pictures/IMG_0042.jpg'), score=0.41, copies=())]
"""

from config import PRESETS, InferenceConfig, parse
from support.errors import UserError, one_line_errors, shown

if __name__ == "__main__":
    FLAGS = parse(InferenceConfig)  # first of all, so that --help and a mistyped flag answer at once

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Torch, and all that imports it, is imported only where it is needed: not for a prompt to an embedded gallery.
from search.caption_list import read_caption_list
from search.drawing import LABELS_DRAWN, MOST_DRAWN, draw_labels, draw_matches, sheet_of_matches
from search.embedder import Embedder
from search.export import export_model
from search.joined import joined
from search.narrow import lies_under, was_taken
from search.near_duplicates import groups_that_look_the_same
from search.nearest import all_cosines, nearest
from search.pictures import pictures_of_folders, pictures_of_split
from search.question import Question
from search.remarks import remarks_on_matches, remarks_on_question
from search.tables import LABEL_COLUMNS, caption_table, label_table, match_table, write_label_table
from search.taken import when_taken
from search.update import up_to_date_index
from support.dates import day
from support.drawn import DRAWN, is_drawn
from support.files import refuse_to_replace
from support.find_run import checkpoint_dir
from support.images import lines_on_links
from support.kept_splits import held_out_of_model
from support.picture_kinds import IMAGE_SUFFIXES, readable_suffixes, skipped_lines
from support.process import is_first_process, process_count
from support.prompts import class_embeddings
from support.tars import exists
from support.words import weights_and_words

OUTPUT_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".pdf"}
ROUNDING = 1e-6  # by which a cosine may differ from one computed beside fewer others
MOST_COPIES = 1000  # pictures that look the same, for which one search makes room

# ---------------------------------------------------------------- what answers a question


@dataclass(frozen=True)
class Match:
    """One result: its rank (1 is best), its file, the cosine similarity from -1 to 1, and files that look the same."""

    rank: int
    file: Path
    score: float
    copies: tuple = ()
    row: int | None = field(default=None, repr=False, compare=False)  # of its embedding in the gallery
    taken: str | None = field(default=None, repr=False)  # on which day, such as "2019-06-30", where that was asked for

    def for_programs(self):
        """Return what --json prints of it."""
        values = {"rank": self.rank, "file": str(self.file), "score": self.score}
        if self.copies:
            values["copies"] = [str(copy) for copy in self.copies]
        if self.taken:
            values["taken"] = self.taken
        return values


class Found(NamedTuple):
    """What a search has found, and by what."""

    matches: list  # of `Match`
    embedding: np.ndarray  # (D,), of what was asked for
    among: np.ndarray | None  # (M,) numbers of the pictures that were searched; None: all


# ---------------------------------------------------------------- a gallery


class Gallery:
    """Folders of pictures, or a split of the data the model was trained on, embedded and ready to be searched.

    folder: searched recursively, or a pattern of tars, or a list of these; None takes `split` of the model's own
        dataset (test, or dev where there is no test).
    checkpoint: a model directory; None takes best/ of the newest run.
    progress: show a progress bar on standard error while pictures are embedded; a function is also told how far it is.
    leave_out: the absolute path of a file that is not to be searched, such as the picture of the last result.
    trust_index: where no folder has changed since the index was made, do not look at each file; check: look at every
        picture again, though its file has the size and time that it had.

    Raises UserError where folder or checkpoint cannot be used; an empty folder is an empty gallery.
    """

    def __init__(
        self,
        folder=None,
        checkpoint=None,
        split=None,
        device="auto",
        batch_size=64,
        workers=0,
        progress=True,
        leave_out=None,
        trust_index=False,
        check=False,
    ):
        self.embedder = Embedder(checkpoint, device, batch_size, workers)
        if folder is None:
            held_out = held_out_of_model(self.embedder.checkpoint)
            self.folders = [pictures_of_split(self.embedder.config, split, held_out)]
        else:
            folders = folder if isinstance(folder, list | tuple) else [folder]
            self.folders = pictures_of_folders(folders, leave_out, trust_index)
        self.name = " and ".join(pictures.name for pictures in self.folders)
        self.folder_names = [os.path.basename(os.path.realpath(pictures.root)) for pictures in self.folders]
        self.links = [link for pictures in self.folders for link in pictures.links]  # to folders, not followed

        # Each picture that is new goes through `CLIP.encode_image`, once; the others are known from an earlier start.
        self.indexes = []  # one in each folder
        self.embedded = 0  # so many are new
        for pictures in self.folders:
            index, count = up_to_date_index(pictures, self.embedder, progress, check)
            self.indexes.append(index)
            self.embedded += count
        index_files = [pictures.index_file for pictures in self.folders]
        self.index_path = index_files[0].path
        self.unsaved = next((file.unsaved for file in index_files if file.unsaved), None)  # why one could not be kept

        # Together they are one gallery of N readable pictures, in the same order everywhere.
        self.files, self.names, self.skipped = files_of(self.folders, self.indexes)
        self.first_rows = np.cumsum([0, *(len(index.embeddings) for index in self.indexes)])  # of each folder
        self.embeddings = joined([index.embeddings for index in self.indexes])  # (N, D) float16, of unit length
        self.looks = joined([index.looks for index in self.indexes])  # (N, 192): pictures that look the same are near
        # What is taken off a picture's score before a prompt's pictures are ranked, so that one which is near to every
        # text does not answer every prompt (support/hubs.py): (N,).
        self.penalties = np.concatenate([index.penalties for index in self.indexes])
        # What the first match scores at least for nearly all everyday prompts, such as "a dog runs through the grass".
        # A prompt that stays below it asks for something that is likely not here. Of several folders the highest: what
        # answers in one of them answers in all together.
        self.usual_score = max((index.usual for index in self.indexes if index.usual is not None), default=None)

    @functools.cached_property
    def taken(self):
        """When the pictures were taken, as `search.taken.Taken`; of old indexes the dates are read here, once."""
        return when_taken(self.folders, self.indexes)

    def search(
        self,
        query=(),
        top_k=9,
        image=None,
        minus=(),
        threshold=None,
        fold=True,
        under=(),
        after=None,
        before=None,
        sort="score",
    ):
        """Return the best `Match`es, best first: at most top_k, fewer in a smaller gallery.

        query: a prompt, or several that count alike, or by their weights, as in "2:a dog"; image: an example, instead
        of or beside them; minus: prompts to keep away from; threshold: the least score; fold: pictures that look the
        same are one match, with `copies`. under, after, before: which pictures are searched, as for `narrow`; sort:
        "date" arranges the matches by when they were taken, the oldest first. Raises UserError if nothing is asked for,
        or the example cannot be read.
        """
        question = Question(
            query=as_list(query),
            image=image,
            minus=as_list(minus),
            top_k=top_k,
            threshold=threshold,
            fold=fold,
            under=as_list(under),
            after=after,
            before=before,
            sort=sort,
        )
        return self.find(question).matches

    def find(self, question):
        """Answer a `Question`: these are the steps of a search. Returns what was `Found`; raises as `search`."""
        embedding = self.query_embedding(question.query, question.image, question.minus)  # (D,)
        among = self.narrow(question.under, question.after, question.before)
        is_prompt = question.is_of_prompts()
        matches = self.rank(embedding, question.top_k, question.fold, question.threshold, is_prompt, among)
        if question.asks_for_dates():
            matches = self.dated(matches, question.sort)
        return Found(matches, embedding, among)

    def query_embedding(self, query=(), image=None, minus=()):
        """Return the unit-length float32 (D,) embedding of what is asked for; arguments as for `search`.

        The weighted mean of the embeddings of all that is wanted: prompts and a picture lie in one space. A prompt may
        begin with its weight, as in "2:a dog"; without one it weighs 1, as a picture does. Half of what is not wanted
        is taken off, and with a weight of 2 all of it. Raises UserError where that leaves nothing.
        """
        prompts = as_list(query)
        minus = as_list(minus)
        if not prompts and image is None:
            raise UserError("say what to look for: a prompt, or an example picture")

        wanted = []
        weights = []
        if prompts:
            prompt_weights, words = weights_and_words(prompts)
            # Prompt -> token ids -> text tower -> head, as in `CLIP.encode_text`. Mostly the tower is kept as an ONNX
            # file, which is there at once, while torch takes seconds to import.
            wanted.append(self.embedder.embed_prompts(words))  # (Q, D)
            weights.append(prompt_weights)  # (Q,)
        if image is not None:
            wanted.append(self.embedder.embed_example(image))  # (1, D)
            weights.append([1])
        embedding = np.average(np.concatenate(wanted), axis=0, weights=np.concatenate(weights))  # (D,)
        if minus:  # by half, because all of it would take away what every text has in common, too
            minus_weights, words = weights_and_words(minus)
            unwanted = self.embedder.embed_prompts(words)  # (Q, D)
            embedding = embedding - np.mean(np.array(minus_weights)[:, None] * unwanted, axis=0) / 2
        length = np.linalg.norm(embedding)
        if length < 1e-3:
            raise UserError("what is not wanted takes all away that is: weigh it less, as in 0.5:WORDS")
        return np.float32(embedding / length)

    def narrow(self, under=(), after=None, before=None):
        """Return the numbers (M,) of the pictures that come into question, in their order; None: all of them.

        under: patterns of their names below their folder, such as "holiday" or "*/2019-??", of which one must fit; of
        several folders a name may also begin with that of its folder.
        after, before: a year, a month or a day, such as 2019-06: taken from its first moment on, and before that.
        """
        fits = np.ones(len(self.files), bool)
        if under:
            fits &= self.lie_under(as_list(under))
        if after or before:
            fits &= was_taken(self.taken.moments, after, before)
        return None if fits.all() else np.flatnonzero(fits)

    def lie_under(self, patterns):
        """Return (N,) bool: whether each picture lies under one of the patterns, as for `narrow`."""
        fits = lies_under(self.names, patterns)
        if len(self.folders) > 1:  # then a pattern may also begin with the name of a folder
            fits |= lies_under(self.shown_names(), patterns)
        return fits

    def rank(self, embedding, top_k, fold=True, threshold=None, is_prompt=True, among=None):
        """Return the best `Match`es for a unit-length float32 (D,) embedding, near-duplicates folded together.

        threshold: the least score. is_prompt: whether it is of prompts alone. Then pictures that are near to every text
        are ranked a little lower (support/hubs.py), and scores, which stay cosines, need not fall from match to match.
        among: the numbers of the pictures to rank, as `narrow` gives them.
        """
        if not self.files:
            return []
        if threshold is not None:
            is_enough = all_cosines(self.embeddings, embedding, among) >= threshold - ROUNDING
            among = np.flatnonzero(is_enough) if among is None else among[is_enough]
        # The cosines with all pictures, (N, D) x (D) -> (N), less the penalties, and of these the best. They are more
        # than top_k, because a good match may have many copies.
        most = 10 * top_k + MOST_COPIES
        penalties = self.penalties if is_prompt else np.zeros_like(self.penalties)
        (ranked_by,), (rows,) = nearest(self.embeddings, embedding[None], most, penalties, among)  # of one query
        cosines = ranked_by + penalties[rows]  # what is shown
        if fold:
            groups = groups_that_look_the_same(self.looks[rows], top_k)  # of places in `rows`, the best first
        else:
            groups = [[place] for place in range(min(top_k, len(rows)))]

        matches = []
        for rank, places in enumerate(groups, start=1):
            row, *others = rows[places].tolist()
            copies = tuple(self.files[other] for other in others)
            matches.append(Match(rank, self.files[row], float(cosines[places[0]]), copies, row))
        return matches

    def dated(self, matches, sort="score"):
        """Return `Match`es with the day on which each was taken; sort: "date" puts the oldest first."""
        moments = self.taken.moments
        if sort == "date":
            matches = sorted(matches, key=lambda match: np.nan_to_num(moments[match.row], nan=np.inf))
        return [replace(match, taken=day(moments[match.row])) for match in matches]

    def best_score(self, embedding, among=None):
        """Return the highest score that any picture has for an embedding (D,); among: as for `rank`."""
        scores, _ = nearest(self.embeddings, embedding[None], 1, among=among)  # (1, 1)
        return float(scores[0, 0])

    def explain(self, file, query=(), image=None, minus=()):
        """Return a picture (H, W, 3) uint8 in which red marks what answers the question; arguments as for `search`.

        Raises UserError where the image tower can explain nothing, and OSError where the picture cannot be read.
        """
        return self.embedder.explain(file, self.query_embedding(query, image, minus))

    def name_of(self, row):
        """Return the name of a picture below its folder; of several folders that of the folder comes first."""
        if len(self.folders) == 1:
            return self.names[row]
        folder = np.searchsorted(self.first_rows, row, side="right") - 1
        return f"{self.folder_names[folder]}/{self.names[row]}"

    def shown_names(self):
        """Return `name_of` each picture."""
        return [self.name_of(row) for row in range(len(self.files))]

    def label_probabilities(self, labels):
        """Return (N, K) float32: how probable each of K labels is for each picture, if one of them is right.

        labels: bare nouns, for they are put into `support.prompts.TEMPLATES`. The softmax over the labels of the
        scores, at the scale that training has learned (Radford et al. 2021, 3.1.2); --loss siglip has learned none for
        a softmax.
        """
        labels_embedded = class_embeddings(self.embedder.embed_prompts, labels)  # (K, D)
        probabilities = np.empty((len(self.files), len(labels)), np.float32)
        for start in range(0, len(self.files), 8192):  # what is mapped from disk is never in memory as a whole
            rows = slice(start, start + 8192)
            pictures = self.embeddings[rows].astype(np.float32)  # (n, D)
            logits = self.embedder.logit_scale * pictures @ labels_embedded.T  # (n, D) x (D, K) -> (n, K)
            exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities[rows] = exponentials / exponentials.sum(axis=1, keepdims=True)
        return probabilities


def files_of(folders, indexes):
    """Return the paths of the readable pictures of folders, their names below these, and {path: why it is skipped}."""
    files = []
    names = []  # with slashes
    skipped = {}
    for pictures, index in zip(folders, indexes, strict=True):
        for name, _, reason in index.files:
            if reason is None:
                files.append(pictures.root / name)
                names.append(name)
            elif reason != DRAWN:  # pictures of earlier results are no part of a gallery
                skipped[pictures.root / name] = reason
    return files, names, skipped


def as_list(words):
    """Return one text, or several, as a list."""
    return [words] if isinstance(words, str) else list(words)


# ---------------------------------------------------------------- what a command line asks


class Answer(NamedTuple):
    """What is answered to the question that a command line asks."""

    lines: list  # for people
    for_programs: dict  # what --json prints
    write: Callable | None = None  # draws it, or writes it as a table, into the file at a path; `write_output` calls it
    matches: list | tuple = ()  # what was found, to be shown and copied


def question_of(flags):
    """Return the `Question` of a command line."""
    return Question(
        query=[*flags.query, *flags.plus],
        image=flags.image,
        minus=flags.minus,
        top_k=flags.top_k,
        threshold=flags.threshold,
        fold=flags.fold,
        under=flags.under,
        after=flags.after,
        before=flags.before,
        sort=flags.sort,
    )


def find_pictures(gallery, flags):
    """Answer which pictures fit prompts, or an example picture, best."""
    question = question_of(flags)
    found = gallery.find(question)
    matches = found.matches

    # For people: what is remarkable about the question, a table, and whether what it shows is any good.
    title = question.title()
    lines = remarks_on_question(gallery, question, found.among)
    remarks = remarks_on_matches(gallery, question, found)
    if matches or remarks:
        lines += ["", title, *match_table(matches), *remarks]

    is_example_alone = not question.query and not question.minus
    asked_for = str(question.image) if is_example_alone else title
    for_programs = {"query": asked_for, "matches": [match.for_programs() for match in matches]}
    if not matches:
        return Answer(lines, for_programs)

    if flags.picture and len(matches) > MOST_DRAWN:
        lines.append(f"the picture shows the first {MOST_DRAWN}")
    explain = None
    if flags.explain:
        explain = functools.partial(gallery.embedder.explain, query_embedding=found.embedding)

    def draw(path):
        draw_matches(matches, title, path, explain)

    return Answer(lines, for_programs, draw, matches)


def sort_into_labels(gallery, flags):
    """Answer which of some labels fits each picture best."""
    labels = flags.label_names()
    probabilities = gallery.label_probabilities(labels)  # (N, K)
    best = probabilities.argmax(axis=1)  # (N,)

    # For people: under each label its pictures, the surest first; the label with the most pictures first.
    groups = {label: [] for label in labels}
    for row in (-probabilities.max(axis=1)).argsort(kind="stable"):
        probability = float(probabilities[row, best[row]])
        groups[labels[best[row]]].append((probability, gallery.files[row]))
    groups = dict(sorted(groups.items(), key=lambda group: -len(group[1])))
    lines = []
    for label in labels:
        lines += [f"{label}: {remark}" for remark in gallery.embedder.remarks(label)]
    lines += ["", *label_table(groups, flags.top_k)]

    pictures = []
    for row, file in enumerate(gallery.files):
        chances = dict(zip(labels, probabilities[row].tolist(), strict=True))
        pictures.append({"file": str(file), "label": labels[best[row]], "probabilities": chances})
    for_programs = {"labels": labels, "pictures": pictures}

    if is_table(flags.output):
        return Answer(lines, for_programs, lambda path: write_label_table(path, labels, gallery.files, probabilities))
    given = [label for label in labels if groups[label]]
    if flags.picture and len(given) > LABELS_DRAWN:
        lines.append(f"the picture shows the {LABELS_DRAWN} labels with the most pictures")
    return Answer(lines, for_programs, lambda path: draw_labels(groups, path))


def find_captions(embedder, flags):
    """Answer which captions of a file fit a picture best."""
    captions = read_caption_list(flags.captions)
    embedding = embedder.embed_example(flags.image)  # (1, D)
    embeddings = embedder.embed_captions(captions)  # (M, D)
    (scores,), (rows,) = nearest(embeddings, embedding, flags.top_k)
    found = [(float(score), captions[row]) for score, row in zip(scores, rows, strict=True)]

    lines = [f"{embedder.checkpoint} on {len(captions):,} captions of {flags.captions}"]
    unknown = sum(map(embedder.has_unknown_words, captions))
    if unknown:
        lines.append(f"{unknown:,} of them hold words that the model does not know")
    lines += ["", f"captions for {flags.image.name}", *caption_table(found)]
    matches = []
    for rank, (score, caption) in enumerate(found, start=1):
        matches.append({"rank": rank, "caption": caption, "score": score})
    return Answer(lines, {"query": str(flags.image), "matches": matches})


def export(embedder, folder):
    """Write both towers as ONNX, for programs that know nothing of torch, with an example of how to use them."""
    if process_count() > 1:
        raise UserError("--export is the work of one process: start it with python")
    if folder.exists():
        raise UserError(f"--export {folder} is there already: name a new folder")
    print("writing both towers as ONNX, which takes a minute")
    difference = export_model(embedder.model, folder)
    lines = [
        f"wrote {folder}, which differs from torch by {difference:.0e} at most; example.py in it shows its use:",
        f'python {folder}/example.py "a dog running through water" photo.jpg another.jpg',
    ]
    return Answer(lines, {"export": str(folder), "difference": difference})


# ---------------------------------------------------------------- the command


def main(flags):
    if flags.image is not None and flags.image.is_dir():
        raise UserError(f"--image {flags.image} is a folder: to search it, type --gallery {flags.image}")
    if flags.image is not None and not exists(flags.image):
        raise UserError(f"--image {flags.image} is not a file")
    refuse_output(flags)
    checkpoint = checkpoint_dir(flags.checkpoint)

    # With --json, standard output is for the program that reads it, and all for people goes to standard error.
    standard_output = sys.stdout
    with contextlib.redirect_stdout(sys.stderr if flags.json else standard_output):
        if flags.export:
            embedder = Embedder(checkpoint, "cpu")
            answer = export(embedder, flags.export)
        elif flags.captions:
            embedder = Embedder(checkpoint, flags.device)
            answer = find_captions(embedder, flags)
        else:
            gallery = open_gallery(checkpoint, flags)
            embedder = gallery.embedder
            answer = sort_into_labels(gallery, flags) if flags.labels else find_pictures(gallery, flags)
        if not is_first_process():  # of several that shared the work, one shows the result
            return

        print("\n".join(answer.lines))
        if flags.json:
            print(json.dumps(answer.for_programs), file=standard_output, flush=True)
        # only now the picture, or the table: the answer is not to wait for it
        write_output(answer, flags)
        if flags.show or flags.copy_to or flags.html:  # which config.py allows with a search alone: there is a gallery
            hand_out(answer.matches, gallery, flags)
        if flags.query or flags.labels:
            make_next_prompt_fast(embedder)


def refuse_output(flags):
    """Raise UserError for an --output, --html or --copy-to that can hold no answer, or that is somebody's file."""
    if flags.copy_to and flags.copy_to.exists() and not flags.copy_to.is_dir():
        raise UserError(f"--copy-to {flags.copy_to} is a file: name a folder, which may be new")
    suffixes = OUTPUT_SUFFIXES | {".csv"} if flags.labels else OUTPUT_SUFFIXES
    if flags.output.suffix.lower() not in suffixes:
        raise UserError(f"--output {flags.output}: choose a name that ends in {', '.join(sorted(suffixes))}")
    if flags.html:
        from search.result_page import BEGINNING

        refuse_to_replace("--html", flags.html, BEGINNING.encode())
    if is_table(flags.output):
        refuse_to_replace("--output", flags.output, ",".join(LABEL_COLUMNS).encode())
    is_picture = flags.picture and flags.output.suffix.lower() in IMAGE_SUFFIXES
    if not is_picture or not flags.output.exists() or is_drawn(flags.output):  # drawn by an earlier search
        return
    for folder in flags.gallery:
        if flags.output.resolve().is_relative_to(Path(os.path.expanduser(folder)).resolve()):
            raise UserError(f"--output {flags.output} is a picture in the gallery: name another file, or delete it")
    if flags.output.name != InferenceConfig.output.name:  # which an earlier version has drawn, without a mark
        raise UserError(f"--output {flags.output} is there, and was not drawn here: name another file, or delete it")


def open_gallery(checkpoint, flags):
    """Return the `Gallery` that the flags name, and print what it holds."""
    gallery = Gallery(
        flags.gallery or None,
        checkpoint,
        flags.split,
        flags.device,
        flags.batch_size,
        flags.workers,
        leave_out=os.path.abspath(flags.output) if flags.picture else None,
        trust_index=flags.trust_index,
        check=flags.check,
    )
    for line in lines_on_links(gallery.links):
        print(shown(line))
    skipped = skipped_lines(gallery.skipped)
    if not gallery.embedded:
        skipped = skipped[:5]  # an earlier search has named them all
    for line in skipped:
        print(f"skipped: {shown(line)}")
    if not gallery.files:
        raise UserError(f"{gallery.name} holds no readable picture ({', '.join(sorted(readable_suffixes()))})")

    count = f"{len(gallery.files):,} pictures of {gallery.name}"
    news = f"{gallery.embedded:,} embedded now" if gallery.embedded else "all known from the index"
    print(f"{checkpoint} on {count} ({news}, {len(gallery.skipped)} unreadable)")
    if flags.gallery and gallery.embedder.config.data_dir == PRESETS["sample"].data_dir:
        print("this model has seen drawn scenes only, so of photos it knows little: train one on Flickr8k for them")
    if gallery.unsaved:
        print(f"the index cannot be saved, so the next search embeds again: {gallery.unsaved}")
    return gallery


def is_table(path):
    """Return whether a file is to hold a table, rather than a picture."""
    return path.suffix.lower() == ".csv"


def write_output(answer, flags):
    """Write the file that --output names; a picture only where one is wanted."""
    is_wanted = flags.picture or is_table(flags.output)
    if answer.write is None or not is_wanted:
        return
    try:
        answer.write(flags.output)
    except OSError as error:
        raise UserError(f"--output {flags.output} cannot be written: {error}") from None
    print(f"\nwrote {flags.output}")


def hand_out(matches, gallery, flags):
    """Draw matches in the terminal, copy their files, and write them as a page, as far as the flags ask for it."""
    if not matches:
        print("nothing was found, so there is nothing to show, copy or write")
        return
    # Imported here, because most prompts need not wait for them.
    from search.copies import copy_matches
    from search.result_page import write_result_page
    from search.terminal import show_in_terminal, why_no_pictures

    title = question_of(flags).title()
    if flags.show:
        reason = why_no_pictures()
        if reason:
            print(reason)
        else:
            show_in_terminal(sheet_of_matches(matches, title))
    if flags.copy_to:
        print("\n".join(copy_matches(matches, flags.copy_to)))
        if any(flags.copy_to.resolve().is_relative_to(pictures.root.resolve()) for pictures in gallery.folders):
            print(f"{flags.copy_to} lies in the gallery, so later searches find these copies, too")
    if flags.html:
        about = f"{len(matches):,} of {len(gallery.files):,} pictures"
        try:
            write_result_page(flags.html, title, matches, gallery.name_of, about)
        except OSError as error:
            raise UserError(f"--html {flags.html} cannot be written: {error}") from None
        print(f"wrote {flags.html}")


def make_next_prompt_fast(embedder):
    """Keep the text tower ready, if it had to be loaded with torch; print why that is not possible."""
    if embedder.has_text_tower_ready or not embedder.model_is_loaded:
        return
    reason = embedder.keep_text_tower()
    if reason:
        print(f"each prompt takes some seconds, for this text tower cannot be kept ready for them: {reason}")


if __name__ == "__main__":
    with one_line_errors():
        main(FLAGS)
