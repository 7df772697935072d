"""Find pictures by describing them.

    python inference.py --query "people sitting near the beach"                    # in the data trained on
    python inference.py --query "a dog running through water" --gallery ~/Pictures # in any folder
    python inference.py --image my_dog.jpg --gallery ~/Pictures                    # pictures like this one
    python inference.py --labels "beach,forest,street" --gallery ~/Pictures        # which of these is each picture?
    python inference.py --image my_dog.jpg --captions captions.txt                 # the captions that fit it best
    python inference.py --export onnx                                              # both towers, for other programs

The gallery is embedded once; its embeddings are kept in the folder and used again while the checkpoint and the files
are unchanged. A query is then one pass of the text tower and one matrix product.

    >>> gallery = Gallery("~/Pictures")
    >>> gallery.search("two dogs playing in the snow", top_k=1)
    [Match(rank=1, file=PosixPath('/home/me/Pictures/IMG_0042.jpg'), score=0.41, copies=())]
"""

from config import InferenceConfig, parse
from support.errors import UserError, one_line_errors, shown

if __name__ == "__main__":
    FLAGS = parse(InferenceConfig)  # first of all, so that --help and a mistyped flag answer at once

import csv
import functools
import io
import json
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from search.embedder import Embedder
from search.export import export_model
from search.index import INDEX_NAME, SPLIT_INDEX_NAME, Index, index_of, read_index, split_gallery, write_index
from search.nearest import folded, search
from support.files import model_stamps, stamp, writable, write_file
from support.find_run import checkpoint_dir
from support.images import IMAGE_SUFFIXES, picture_files
from support.plots import LABELS_DRAWN, MOST_DRAWN, draw_labels, draw_matches
from support.process import from_first_process, is_first_process, process_count, start_process
from support.prompts import EVERYDAY, class_embeddings
from support.tars import dataset_folder, exists, is_sharded, tar_pictures

OUTPUT_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg"}

# Torch, and all that imports it, is imported only where it is needed: not for a prompt to an embedded gallery.


@dataclass(frozen=True)
class Match:
    """One result: its rank (1 is best), its file, the cosine similarity from -1 to 1, and files that look the same."""

    rank: int
    file: Path
    score: float
    copies: tuple = ()


class Gallery:
    """A folder of pictures, or a split of the data the model was trained on, embedded and ready to be searched.

    folder: searched recursively, or a pattern of tars; None takes `split` of the model's own dataset (test, or dev
        where there is no test).
    checkpoint: a model directory; None takes best/ of the newest run.
    progress: show a progress bar on standard error while pictures are embedded; a function is also told how far it is.
    leave_out: the absolute path of a file that is not to be searched, such as the picture of the last result.

    Afterwards: `embedder`, the towers of the checkpoint, `files` (N paths), `embeddings` (N, D) float16 of unit length,
    `skipped` {file: reason} for files that cannot be read, `embedded`, how many were embedded this time (0 when the
    index knew them all), `index_path`, where that is kept, and `unsaved`, why it could not be. Raises UserError where
    folder or checkpoint cannot be used; an empty folder is an empty gallery.
    """

    def __init__(self, folder=None, checkpoint=None, split=None, device="auto", batch_size=64, workers=0, progress=True,
                 leave_out=None):
        self.embedder = towers = Embedder(checkpoint, device, batch_size, workers)
        data_dir, width = towers.config.data_dir, towers.config.embedding_dim
        if folder is None:
            self.root = dataset_folder(data_dir)
            split, files, sources, splits = split_gallery(towers.config, split)
            self.name, index_name = f"{data_dir} ({split} split)", SPLIT_INDEX_NAME.format(split)
        else:
            self.name, sources, splits = str(folder), {}, []
            folder = Path(folder).expanduser()
            self.root, tars = dataset_folder(folder), is_sharded(folder)
            if not self.root.is_dir():
                raise UserError(f"--gallery {self.name} is not a folder")
            files = tar_pictures(folder) if tars else picture_files(folder)
            files = [file for file in files if os.path.abspath(file) != leave_out]
            index_name = SPLIT_INDEX_NAME.format(folder.name) if tars else INDEX_NAME
        self.index_path, self.unsaved = writable(self.root / index_name), None
        there = self.index_path if self.index_path.exists() else self.root / index_name  # made before it was read-only
        if process_count() > 1:  # they share the embedding, and look at the folder at different moments
            start_process(device)
            files = from_first_process(files)

        known, model_files = read_index(there), model_stamps(towers.checkpoint)
        towers.recall_fingerprint(known.model_files, known.model)
        if known.model != towers.fingerprint or known.embeddings.shape[1] != width:  # another model's
            known = Index(embeddings=np.empty((0, width), np.float16))
        about = Index(towers.fingerprint, model_files, sources=sources, splits=splits)
        index, self.embedded = self.updated(about, known, files, progress)
        same = (index.files, known.usual is None) == (known.files, False)
        index.usual = self.usual = known.usual if same else self.usual_score(index.embeddings)
        if index.about() != known.about():
            self.save(index)
        self.embeddings, self.looks = index.embeddings, index.looks
        self.skipped = {self.root / name: reason for name, _, reason in index.files if reason is not None}
        self.files = [self.root / name for name, _, reason in index.files if reason is None]

    def updated(self, about, known, files, progress):
        """Return the `Index` of these files, and how many had to be embedded: those that `known` does not know.

        What is done is saved now and then, so that an interrupted start goes on where it stopped.
        """
        marks = {file.relative_to(self.root).as_posix(): stamp(file) for file in files}
        found, rows_known = {}, known.known()  # {name: row of its embedding, or why it has none}
        for name, mark in marks.items():
            if mark is None:
                found[name] = f"{self.root / name}: there is no such file"
            elif (name, mark) in rows_known:
                found[name] = rows_known[name, mark]
        new, rows, looks = [name for name in marks if name not in found], known.embeddings, known.looks
        if process_count() > 1:

            new = from_first_process(new)
        part_size = max(512, len(marks) // 20)
        for start in range(0, len(new), part_size):
            part = new[start : start + part_size]
            title = f"embedding pictures, {start + len(part):,} of {len(new):,}"
            if callable(progress):
                progress(title)
            paths = [self.root / name for name in part]
            embeddings, new_looks, faults = self.embedder.embed_files(paths, title if progress else None)
            readable = [name for place, name in enumerate(part) if place not in faults]
            found |= {name: row for row, name in enumerate(readable, start=len(rows))}
            rows, looks = np.concatenate([rows, embeddings]), np.concatenate([looks, new_looks])
            for place, error in faults.items():
                found[part[place]] = str(error)
                if error.errno is not None:  # a missing permission, a drive that is away: to be tried again
                    marks[part[place]] = None
            if len(found) < len(marks):  # a part of a split is not to be taken for all of it, so without sources
                self.save(index_of(found, marks, rows, looks, replace(about, sources={})))
        return index_of(found, marks, rows, looks, about), len(rows) - len(known.embeddings)

    def save(self, index):
        """Keep the index on disk; the answer matters more than its being remembered."""
        try:
            if is_first_process():
                write_index(self.index_path, index)
        except OSError as error:
            self.unsaved = str(error)

    def search(self, query=(), top_k=9, image=None, minus=(), threshold=None, fold=True):
        """Return the best `Match`es, best first: at most top_k, fewer in a smaller gallery.

        query: a prompt, or several that count alike; image: an example, instead of or beside them; minus: prompts to
        keep away from; threshold: the least score; fold: pictures that look the same are one match, with `copies`.
        Raises UserError if nothing is asked for, or the example cannot be read.
        """
        matches = self.rank(self.embedder.query_embedding(query, image, minus), top_k, fold)
        return [match for match in matches if threshold is None or match.score >= threshold]

    def explain(self, file, query=(), image=None, minus=()):
        """Return a picture (H, W, 3) uint8 in which red marks what answers the question; arguments as for `search`.

        Raises UserError where the image tower can explain nothing, and OSError where the picture cannot be read.
        """
        return self.embedder.explain(file, self.embedder.query_embedding(query, image, minus))

    def rank(self, embedding, top_k, fold=True):
        """Return the best `Match`es for a unit-length float32 (D,) embedding, near-duplicates folded together."""
        if not self.files:
            return []
        scores, rows = (best[0] for best in search(self.embeddings, embedding[None], 10 * top_k + 1000))
        groups = folded(self.looks, rows, top_k) if fold else [[place] for place in range(len(rows))][:top_k]
        files = [self.files[row] for row in rows]
        return [Match(rank, files[first], float(scores[first]), tuple(files[place] for place in rest))
                for rank, (first, *rest) in enumerate(groups, start=1)]

    def label_probabilities(self, labels):
        """Return (N, K) float32: how probable each of K labels is for each picture, if one of them is right.

        labels: bare nouns, for they are put into `gallery.TEMPLATES`. The softmax over the labels of the scores, at the
        scale that training has learned (Radford et al. 2021, 3.1.2); --loss siglip has learned none for a softmax.
        """
        classes = class_embeddings(self.embedder.embed_prompts, labels)  # (K, D)
        parts = [np.empty((0, len(labels)), np.float32)]
        for start in range(0, len(self.embeddings), 8192):  # what is mapped from disk is never in memory as a whole
            logits = self.embedder.logit_scale * self.embeddings[start : start + 8192].astype(np.float32) @ classes.T
            chances = np.exp(logits - logits.max(axis=1, keepdims=True))
            parts.append(chances / chances.sum(axis=1, keepdims=True))
        return np.concatenate(parts)

    def usual_score(self, embeddings):
        """Return what the best picture scores for all but two of the `EVERYDAY` prompts, or None without pictures.

        embeddings: (N, D) float16. A prompt whose best picture scores less is likely of something that is not there.
        """
        if not len(embeddings):
            return None
        best, _ = search(embeddings, self.embedder.everyday_embeddings, 1)
        return float(np.sort(best[:, 0])[2])

    def nothing_fits(self, matches):
        """Return a remark if the best match for a prompt scores less than everyday prompts reach here, else None."""
        if not matches or self.usual is None or matches[0].score >= self.usual:
            return None
        return (f"nothing here fits well: the best scores {matches[0].score:.3f}, and for {len(EVERYDAY) - 2} of "
                f"{len(EVERYDAY)} everyday prompts it is {self.usual:.3f} or more")


# ---------------------------------------------------------------- what a person sees


def match_table(matches):
    """Return the matches as lines of text."""
    copies = [f"  (like it: {', '.join(copy.name for copy in match.copies)})" * bool(match.copies) for match in matches]
    return "\n".join(["rank  score  file", *(shown(f"{match.rank:>4}  {match.score:.3f}  {match.file}{more}")
                                             for match, more in zip(matches, copies, strict=True))])


def label_table(groups, top_k):
    """Return as lines of text how many pictures have each label, and the surest of them.

    groups: {label: [(probability, file), …]}, the surest first.
    """
    lines = ["probability  file"]
    for label, pictures in groups.items():
        surest = [shown(f"{probability:>11.3f}  {file}") for probability, file in pictures[:top_k]]
        lines += [f"{label}: {len(pictures):,}", *surest]
        if len(pictures) > top_k:
            lines.append(f"{'…':>11}  and {len(pictures) - top_k:,} more")
    return "\n".join(lines)


def write_labels(path, labels, files, probabilities):
    """Write a CSV file: a line a picture, with its label and the probability of each, as columns "p(LABEL)"."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["file", "label", "probability", *(f"p({label})" for label in labels)])
    for file, chances in zip(files, probabilities, strict=True):
        writer.writerow([file, labels[chances.argmax()], *(f"{chance:.6f}" for chance in (chances.max(), *chances))])
    write_file(path, text.getvalue().encode(errors="surrogateescape"))  # names need not be UTF-8


# ---------------------------------------------------------------- what can be asked


def main(flags):
    # with --json, standard output is for the program that reads it
    say = functools.partial(print, file=sys.stderr if flags.json else sys.stdout)
    if flags.image is not None and not exists(flags.image):
        raise UserError(f"--image {flags.image} is not a file")
    checkpoint = checkpoint_dir(flags.checkpoint)
    if flags.export:
        return export(Embedder(checkpoint, "cpu"), flags, say)
    if flags.captions:
        return find_captions(Embedder(checkpoint, flags.device), flags, say)
    suffixes = OUTPUT_SUFFIXES | ({".csv"} if flags.labels else set())
    if flags.output.suffix.lower() not in suffixes:
        raise UserError(f"--output {flags.output}: choose a name that ends in {', '.join(sorted(suffixes))}")

    gallery = Gallery(flags.gallery, checkpoint, flags.split, flags.device, flags.batch_size, flags.workers,
                      leave_out=os.path.abspath(flags.output))
    for reason in list(gallery.skipped.values())[: None if gallery.embedded else 5]:  # each, until they are known
        say(f"skipped: {shown(reason)}")
    if not gallery.files:
        raise UserError(f"{gallery.name} holds no readable picture ({', '.join(sorted(IMAGE_SUFFIXES))})")
    kept = f"{gallery.embedded:,} embedded now" if gallery.embedded else "all known from the index"
    count = f"{len(gallery.files):,} pictures of {gallery.name}"
    say(f"{checkpoint} on {count} ({kept}, {len(gallery.skipped)} unreadable)")
    if gallery.unsaved:
        say(f"the index cannot be saved, so the next search embeds again: {gallery.unsaved}")
    (sort_into_labels if flags.labels else find_pictures)(gallery, flags, say)
    towers = gallery.embedder
    asked_in_words = flags.query or flags.labels
    if not asked_in_words or towers.has_text_tower_ready or not towers.model_is_loaded or not is_first_process():
        return
    reason = towers.keep_text_tower()
    if reason:
        say(f"each prompt takes some seconds, for this text tower cannot be kept ready for them: {reason}")


def find_pictures(gallery, flags, say):
    """Rank the gallery against prompts or an example picture."""
    prompts, like = [*flags.query, *flags.plus], f"pictures like {flags.image.name}" if flags.image else None
    for remark in {remark: None for prompt in (*prompts, *flags.minus) for remark in gallery.embedder.remarks(prompt)}:
        say(remark)
    wanted = gallery.embedder.query_embedding(prompts, flags.image, flags.minus)
    if not is_first_process():  # of several processes that shared the work, the first shows the result
        return
    found = gallery.rank(wanted, flags.top_k, flags.fold)
    matches = [match for match in found if flags.threshold is None or match.score >= flags.threshold]
    title = " + ".join(filter(None, [like, *prompts])) + "".join(f" - {prompt}" for prompt in flags.minus)
    say(f"\n{title}" + f"\n{match_table(matches)}" * bool(matches))
    if not matches:
        say(f"no picture scores {flags.threshold} or more: the best is {found[0].score:.3f}")
    elif len(prompts) == 1 and not (like or flags.minus) and (remark := gallery.nothing_fits(matches)):
        say(remark)
    if flags.json:
        rows = [{"rank": match.rank, "file": str(match.file), "score": match.score}
                | ({"copies": list(map(str, match.copies))} if match.copies else {}) for match in matches]
        asked = title if prompts or flags.minus else str(flags.image)
        print(json.dumps({"query": asked, "matches": rows}), flush=True)
    if matches:
        explain = functools.partial(gallery.embedder.explain, query_embedding=wanted) if flags.explain else None
        write_output(flags, say, lambda path: draw_matches(matches, title, path, explain))
        if flags.picture and len(matches) > MOST_DRAWN:
            say(f"it shows the first {MOST_DRAWN}")


def sort_into_labels(gallery, flags, say):
    """Give each picture of the gallery the label that fits it best."""
    labels = flags.label_names()
    for remark in (f"{label}: {remark}" for label in labels for remark in gallery.embedder.remarks(label)):
        say(remark)
    probabilities = gallery.label_probabilities(labels)  # (N, K)
    if not is_first_process():
        return
    best, groups = probabilities.argmax(axis=1), {label: [] for label in labels}
    for row in probabilities.max(axis=1).argsort(kind="stable")[::-1]:
        groups[labels[best[row]]].append((float(probabilities[row, best[row]]), gallery.files[row]))
    groups = dict(sorted(groups.items(), key=lambda group: -len(group[1])))
    say(f"\n{label_table(groups, flags.top_k)}")
    if flags.json:
        print(json.dumps({"labels": labels, "pictures": [
            {"file": str(file), "label": labels[own], "probabilities": dict(zip(labels, chances.tolist(), strict=True))}
            for file, own, chances in zip(gallery.files, best, probabilities, strict=True)]}), flush=True)
    if flags.output.suffix.lower() == ".csv":
        write_output(flags, say, lambda path: write_labels(path, labels, gallery.files, probabilities))
    else:
        write_output(flags, say, functools.partial(draw_labels, groups))
        if flags.picture and sum(map(bool, groups.values())) > LABELS_DRAWN:
            say(f"it shows the {LABELS_DRAWN} labels with the most pictures")


def find_captions(towers, flags, say):
    """Rank the captions of a file against a picture."""
    captions = read_caption_list(flags.captions)
    example, _, faults = towers.embed_files([flags.image])  # (1, D)
    if faults:
        raise UserError(f"--image {flags.image} cannot be read: {faults[0]}")
    from models import embed_texts

    embeddings = embed_texts(towers.model, captions, progress="embedding captions").half().numpy()  # (M, D)
    (scores,), (rows,) = search(embeddings, example.astype(np.float32), flags.top_k)
    if not is_first_process():
        return
    found = [(rank, float(score), captions[row]) for rank, (score, row) in enumerate(zip(scores, rows, strict=True), 1)]
    say(f"{towers.checkpoint} on {len(captions):,} captions of {flags.captions}\n\ncaptions for {flags.image.name}")
    table = [f"{rank:>4}  {score:.3f}  {shown(caption)}" for rank, score, caption in found]
    say("\n".join(["rank  score  caption", *table]))
    if flags.json:
        matches = [{"rank": rank, "caption": caption, "score": score} for rank, score, caption in found]
        print(json.dumps({"query": str(flags.image), "matches": matches}))


def read_caption_list(path):
    """Return the captions of a file, each once: a dataset's captions file, or a plain text with a caption a line."""
    from support.captions import csv_rows, read_text, token_rows

    if not path.is_file():
        raise UserError(f"--captions {path} is not a file: name a captions.txt, or a text file with a caption a line")
    lines = read_text(path)
    first = lines[0].lower() if lines else ""
    if "," in first and "caption" in [name.strip(' "\r\n') for name in first.split(",")]:
        lines = [caption for *_, caption in csv_rows(lines, path)]
    elif re.match(r"[^\t]+#\d+\t", first):
        lines = [caption for *_, caption in token_rows(lines, path)]
    captions = list(dict.fromkeys(filter(None, map(str.strip, lines))))
    if not captions:
        raise UserError(f"--captions {path} holds no captions")
    return captions


def export(towers, flags, say):
    """Write both towers as ONNX, for programs that know nothing of torch, with an example of how to use them."""
    if process_count() > 1:
        raise UserError("--export is the work of one process: start it with python")
    if flags.export.exists():
        raise UserError(f"--export {flags.export} is there already: name a new folder")
    say("writing both towers as ONNX, which takes a minute")
    difference = export_model(towers.model, flags.export)
    say(f"wrote {flags.export}, which differs from torch by {difference:.0e} at most; example.py in it shows its use:\n"
        f'python {flags.export}/example.py "a dog running through water" photo.jpg another.jpg')
    if flags.json:
        print(json.dumps({"export": str(flags.export), "difference": difference}))


def write_output(flags, say, write):
    """Write the file that --output names, with the function `write` of its path, unless no picture is wanted."""
    if not flags.picture and flags.output.suffix.lower() != ".csv":
        return
    try:
        write(flags.output)
    except OSError as error:
        raise UserError(f"--output {flags.output} cannot be written: {error}") from None
    say(f"\nwrote {flags.output}")


if __name__ == "__main__":
    with one_line_errors():
        main(FLAGS)
