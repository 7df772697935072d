"""Find pictures by describing them.

    python inference.py --query "people sitting near the beach"                    # in the data trained on
    python inference.py --query "a dog running through water" --gallery ~/Pictures # in any folder
    python inference.py --image my_dog.jpg --gallery ~/Pictures                    # pictures like this one

The gallery is embedded once; its embeddings are kept in the folder and used again while the checkpoint and the files
are unchanged. A query is then one pass of the text tower and one matrix product.

    >>> gallery = Gallery("~/Pictures")
    >>> gallery.search("two dogs playing in the snow", top_k=1)
    [Match(rank=1, file=PosixPath('/home/me/Pictures/IMG_0042.jpg'), score=0.41)]
"""

from config import Config, InferenceConfig, UserError, checkpoint_dir, one_line_errors, parse, ranks, resolve_device

if __name__ == "__main__":
    FLAGS = parse(InferenceConfig)  # first of all, so that --help and a mistyped flag answer at once

import contextlib
import copy
import functools
import json
import math
import os
import sys
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from data.files import IMAGE_SUFFIXES, picture_files, read_image, stamp, writable
from data.tars import dataset_folder, exists, is_sharded, tar_pictures
from gallery import (
    Index,
    Match,
    PromptEncoder,
    encoder_folder,
    fingerprint,
    keep_encoder,
    model_stamps,
    read_index,
    remarks,
    search,
    write_index,
)

OUTPUT_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg"}
INDEX_NAME, SPLIT_INDEX_NAME = ".clip-index.safetensors", ".clip-index-{}.safetensors"
MOST_DRAWN = 50  # pictures in one image of the result

# Torch, and all that imports it, is imported only where it is needed: not for a prompt to an embedded gallery.


class Gallery:
    """A folder of pictures, or a split of the data the model was trained on, embedded and ready to be searched.

    folder: searched recursively, or a pattern of tars; None takes `split` of the model's own dataset (test, or dev
        where there is no test).
    checkpoint: a model directory; None takes best/ of the newest run.
    progress: show a progress bar on standard error while pictures are embedded.

    Afterwards: `files` (N paths), `embeddings` (N, D) float16 of unit length, `skipped` {file: reason} for files that
    cannot be read, `embedded`, how many were embedded this time (0 when the index knew them all), `index_path`, where
    that is kept, and `unsaved`, why it could not be. Raises UserError where folder or checkpoint cannot be used; an
    empty folder is an empty gallery.
    """

    def __init__(
        self, folder=None, checkpoint=None, split=None, device="auto", batch_size=64, workers=0, progress=True
    ):
        self.checkpoint, self.device = checkpoint_dir(checkpoint and Path(checkpoint)), device
        self.config, self.loading = Config.load(self.checkpoint / "config.json"), (batch_size, workers)
        if folder is None:
            self.root = dataset_folder(self.config.data_dir)
            split, files, sources, splits = split_gallery(self.config, split)
            self.name, index_name = f"{self.config.data_dir} ({split} split)", SPLIT_INDEX_NAME.format(split)
        else:
            self.name, sources, splits = str(folder), {}, []
            folder = Path(folder).expanduser()
            self.root, tars = dataset_folder(folder), is_sharded(folder)
            if not self.root.is_dir():
                raise UserError(f"--gallery {self.name} is not a folder")
            files = tar_pictures(folder) if tars else picture_files(folder)
            index_name = SPLIT_INDEX_NAME.format(folder.name) if tars else INDEX_NAME
        self.index_path, self.unsaved = writable(self.root / index_name), None
        if ranks()[1] > 1:  # they share the embedding, and look at the folder at different moments
            from cache import from_first

            resolve_device(device)
            files = from_first(files)

        known, model_files = read_index(self.index_path), model_stamps(self.checkpoint)
        self.model_hash = known.model if known.model_files == model_files else fingerprint(self.checkpoint)
        if known.model != self.model_hash:  # embeddings of another model mean nothing to this one
            known = Index(embeddings=np.empty((0, self.config.embedding_dim), np.float16))
        about = Index(self.model_hash, model_files, sources=sources, splits=splits)
        index, self.embedded = self.updated(about, known, files, "embedding pictures" if progress else None)
        if index.about() != known.about():
            self.save(index)
        self.embeddings = index.embeddings
        self.skipped = {self.root / name: reason for name, _, reason in index.files if reason is not None}
        self.files = [self.root / name for name, _, reason in index.files if reason is None]

    def updated(self, about, known, files, bar):
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
        new, rows = [name for name in marks if name not in found], known.embeddings
        if ranks()[1] > 1:
            from cache import from_first

            new = from_first(new)
        part_size = max(512, len(new) // 20)
        for start in range(0, len(new), part_size):
            part = new[start : start + part_size]
            title = bar and f"{bar}, {start + len(part):,} of {len(new):,}"
            embeddings, faults = self.embed_files([self.root / name for name in part], title)
            readable = [name for place, name in enumerate(part) if place not in faults]
            found |= {name: row for row, name in enumerate(readable, start=len(rows))}
            rows = np.concatenate([rows, embeddings])
            for place, error in faults.items():
                found[part[place]] = str(error)
                if error.errno is not None:  # a missing permission, a drive that is away: to be tried again
                    marks[part[place]] = None
            if len(found) < len(marks):  # a part of a split is not to be taken for all of it, so without sources
                self.save(index_of(found, marks, rows, replace(about, sources={})))
        return index_of(found, marks, rows, about), len(rows) - len(known.embeddings)

    def save(self, index):
        """Keep the index on disk; the answer matters more than its being remembered."""
        try:
            if ranks()[0] == 0:
                write_index(self.index_path, index)
        except OSError as error:
            self.unsaved = str(error)

    @functools.cached_property
    def model(self):
        """The CLIP model; loaded only where pictures are to be embedded, or its text tower is not ready as a file."""
        from models import CLIP

        return CLIP.from_pretrained(self.checkpoint).to(resolve_device(self.device))

    @functools.cached_property
    def encoder(self):
        """The `PromptEncoder` of the model, or None where there is none yet, or where a GPU was asked for by name."""
        folder = encoder_folder(self.model_hash)
        if self.device != "cuda" and ranks()[1] == 1 and (folder / "text.onnx").is_file():
            with contextlib.suppress(OSError):
                os.utime(folder)  # used just now
            return PromptEncoder(folder)
        return None

    def embed_files(self, files, progress=None):
        """Return (n, D) float16 embeddings of the picture files that can be read, and {place: OSError} of the rest."""
        from cache import embed_images
        from dataset import image_loader

        loader = image_loader(files, self.model.config.image_size, *self.loading)
        rows, _, faults = embed_images(self.model, loader, progress=progress)
        return rows.half().numpy(), faults

    def embed_prompts(self, prompts):
        """Return the (Q, D) float32 embeddings of prompts: in float32 on every device, so that all give the same."""
        if self.encoder:
            return self.encoder(prompts)
        import torch

        from dataset import pad, tokenize

        tower, device = self.model.text_encoder, self.model.logit_scale.device
        with torch.inference_mode():
            input_ids, mask = pad(tokenize(tower.tokenizer, prompts, tower.max_tokens), tower.pad_id)
            return self.model.encode_text(input_ids.to(device), mask.to(device)).cpu().numpy()

    def search(self, query, top_k=9):
        """Return the best `Match`es for a prompt, best first: at most top_k, fewer in a smaller gallery."""
        return self.rank(self.embed_prompts([query]), top_k)[0]

    def search_by_image(self, file, top_k=9):
        """Return the best `Match`es for an example picture, best first; raises UserError if it cannot be read."""
        embedding, faults = self.embed_files([file])
        if faults:
            raise UserError(f"the example picture cannot be read: {faults[0]}")
        return self.rank(embedding.astype(np.float32), top_k)[0]

    def rank(self, embeddings, top_k):
        """Return a list of the best `Match`es for each of the unit-length float32 (Q, D) embeddings."""
        if not self.files:
            return [[] for _ in embeddings]
        scores, rows = search(self.embeddings, embeddings, top_k)
        return [[Match(rank, self.files[row], float(score))
                 for rank, (score, row) in enumerate(zip(*best, strict=True), start=1)]
                for best in zip(scores, rows, strict=True)]

    def remarks(self, prompt):
        """Return what a person should know about a prompt: that it is too long, or of words the model does not know."""
        if self.encoder:
            return remarks(self.encoder.tokenizer, self.encoder.max_tokens, prompt)
        tower = self.model.text_encoder
        return remarks(copy.deepcopy(tower.tokenizer.backend_tokenizer), tower.max_tokens, prompt)


def index_of(found, marks, rows, about):
    """Return `about` with the files found so far, {name: row or reason} with their stamps, and their rows."""
    files = [[name, mark, found[name] if isinstance(found[name], str) else None]
             for name, mark in marks.items() if name in found]
    used = [found[name] for name, _, reason in files if reason is None]
    return replace(about, files=files, embeddings=rows if used == list(range(len(rows))) else rows[used])


def split_gallery(config, split=None):
    """Return the split, its picture files, the stamps of all that decides which these are, and the splits there are.

    An index whose stamps still hold knows the files, so that the captions need not be read again.
    """
    folder = dataset_folder(config.data_dir)
    for name in [split] if split else ["test", "dev"]:
        index = read_index(writable(folder / SPLIT_INDEX_NAME.format(name))) if folder.is_dir() else Index()
        asked_for = split or ("test" if "test" in index.splits else "dev")
        if index.sources and name == asked_for and all(
                stamp(Path(path)) == mark for path, mark in index.sources.items()):
            return name, [folder / file for file, *_ in index.files], index.sources, index.splits
    from dataset import SPLIT_FILES, image_path, load_splits

    if not folder.is_dir():
        raise UserError(f"the data trained on, {config.data_dir}, is not here: name a folder with --gallery DIR")
    tables = load_splits(config.data_dir, config.split_seed)
    splits = [name for name, table in tables.items() if len(table)]
    split = split or ("test" if "test" in splits else "dev")
    if split not in splits:
        raise UserError(f"{config.data_dir} has no {split} photos: try --split {' or '.join(splits)}, or --gallery DIR")
    files = [image_path(config.data_dir, name) for name in tables[split]["image"].unique()]
    decides = {folder / name for name in ("captions.txt", "Flickr8k.token.txt", *SPLIT_FILES.values())}
    decides |= {path.parent for table in tables.values()
                for path in map(functools.partial(image_path, folder), table["image"])}
    # new shards appear in a folder that also changes when an index is written there: their captions are always read
    sources = {} if is_sharded(config.data_dir) else {str(path): stamp(path) for path in sorted(decides)}
    return split, files, sources, splits


# ---------------------------------------------------------------- what a person sees


def match_table(matches):
    """Return the matches as lines of text."""
    return "\n".join(["rank  score  file", *(f"{match.rank:>4}  {match.score:.3f}  {match.file}" for match in matches)])


def draw_matches(matches, title, path):
    """Draw at most 50 matches in rows, best first, with the prompt as title and rank and score under each picture."""
    from matplotlib.figure import Figure  # here, because it costs half a second and needs no display this way

    matches = matches[:MOST_DRAWN]
    columns = len(matches) if len(matches) <= 3 else math.ceil(math.sqrt(len(matches)))
    rows = math.ceil(len(matches) / columns)
    title = textwrap.fill(title, 20 * columns, max_lines=3, placeholder=" …")
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows + 0.3 * (1 + title.count("\n"))), layout="constrained")
    # parse_math off: a prompt with a dollar sign is a prompt, not a formula
    figure.suptitle(title, fontsize=15, parse_math=False)
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if place < len(matches):
            try:
                picture = Image.fromarray(read_image(matches[place].file, shrink_to=400))
            except OSError:  # gone or damaged since it was embedded
                picture = Image.new("RGB", (400, 400), "lightgrey")
            picture.thumbnail((400, 400))
            axes.imshow(picture)
            axes.text(0.5, -0.03, f"{matches[place].rank}.  {matches[place].score:.3f}", transform=axes.transAxes,
                      ha="center", va="top", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a prompt in letters that the font lacks is drawn as boxes
        figure.savefig(path, dpi=100)


def main(flags):
    def say(*words):  # with --json, standard output is for the program that reads it
        print(*words, file=sys.stderr if flags.json else sys.stdout)

    if flags.output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"--output {flags.output}: choose a name that ends in {', '.join(sorted(OUTPUT_SUFFIXES))}")
    if flags.image is not None and not exists(flags.image):
        raise UserError(f"--image {flags.image} is not a file")
    checkpoint = checkpoint_dir(flags.checkpoint)
    gallery = Gallery(flags.gallery, checkpoint, flags.split, flags.device, flags.batch_size, flags.workers)
    for reason in gallery.skipped.values():
        say(f"skipped: {reason}")
    if not gallery.files:
        raise UserError(f"{gallery.name} holds no readable picture ({', '.join(sorted(IMAGE_SUFFIXES))})")
    kept = f"{gallery.embedded:,} embedded now" if gallery.embedded else "all known from the index"
    count = f"{len(gallery.files):,} pictures of {gallery.name}"
    say(f"{checkpoint} on {count} ({kept}, {len(gallery.skipped)} unreadable)")
    if gallery.unsaved:
        say(f"the index cannot be saved, so the next search embeds again: {gallery.unsaved}")
    if flags.query is not None:
        wanted, title = flags.query, flags.query
        for remark in gallery.remarks(wanted):
            say(remark)
        matches = gallery.search(wanted, flags.top_k)
    else:
        wanted, title = str(flags.image), f"pictures like {flags.image.name}"
        matches = gallery.search_by_image(flags.image, flags.top_k)
    if ranks()[0] > 0:  # of several processes that shared the work, the first shows the result
        return
    say(f"\n{title}\n{match_table(matches)}")
    if flags.json:
        found = [{"rank": match.rank, "file": str(match.file), "score": match.score} for match in matches]
        print(json.dumps({"query": wanted, "matches": found}), flush=True)
    if flags.picture:
        try:
            draw_matches(matches, title, flags.output)
        except OSError as error:
            raise UserError(f"--output {flags.output} cannot be written: {error}") from None
        say(f"\nwrote {flags.output}" + (f" with the first {MOST_DRAWN}" if len(matches) > MOST_DRAWN else ""))
    if flags.query is not None and not gallery.encoder and "model" in vars(gallery):
        if reason := keep_encoder(gallery.model, gallery.model_hash):
            say(f"each prompt takes some seconds, for this text tower cannot be kept ready for them: {reason}")


if __name__ == "__main__":
    with one_line_errors():
        main(FLAGS)
