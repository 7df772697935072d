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

from config import InferenceConfig, UserError, checkpoint_dir, one_line_errors, parse, ranks, resolve_device

if __name__ == "__main__":
    FLAGS = parse(InferenceConfig)  # before torch is imported, so that --help and a mistyped flag answer at once

import hashlib
import json
import math
import sys
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from cache import (
    IMAGE_SUFFIXES,
    embed_images,
    embed_texts,
    file_key,
    from_first,
    picture_files,
    writable,
    write_tensors,
)
from data.shards import dataset_folder, exists
from dataset import image_loader, image_path, load_splits, read_image
from models import CLIP

OUTPUT_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg"}
INDEX_NAME = ".clip-index.safetensors"
MOST_DRAWN = 50  # pictures in one image of the result


@dataclass(frozen=True)
class Match:
    """One result: its rank (1 is best), its file, and the cosine similarity from -1 to 1."""

    rank: int
    file: Path
    score: float


class Gallery:
    """A folder of pictures, or a split of the data the model was trained on, embedded and ready to be searched.

    folder: searched recursively; None takes `split` of the model's own dataset (test, or dev where there is no test).
    checkpoint: a model directory; None takes best/ of the newest run.
    progress: show a progress bar on standard error while pictures are embedded.

    Afterwards: `files` (N paths), `embeddings` (N, D) of unit length, `skipped` {file: reason} for files that cannot
    be read, `embedded`, how many files were opened this time (0 when the index knew them all), `index`, where that is
    kept, and `unsaved`, why it could not be. Raises UserError where folder or checkpoint cannot be used; an empty
    folder is an empty gallery.
    """

    def __init__(
        self, folder=None, checkpoint=None, split=None, device="auto", batch_size=64, workers=0, progress=True
    ):
        checkpoint = checkpoint_dir(checkpoint and Path(checkpoint))
        self.model = CLIP.from_pretrained(checkpoint).to(resolve_device(device))
        if folder is None:
            self.name, files, index = split_gallery(self.model.config, split)
        else:
            self.name, files, index = folder_gallery(folder)
        self.index, model_hash = writable(index), fingerprint(checkpoint)

        rows, faults = read_index(self.index, model_hash)  # {key: (D,) embedding} and {key: reason why there is none}
        files = from_first(files)
        keys = {file: file_key(file, index.parent) for file in files}
        new = from_first([file for file in files if keys[file] not in rows and keys[file] not in faults])
        temporary_faults = set()  # keys: a missing permission, a network drive that is away
        if new:
            loader = image_loader(new, self.model.config.image_size, batch_size, workers)
            progress = f"embedding {len(new):,} pictures" if progress else None
            embeddings, readable, errors = embed_images(self.model, loader, progress=progress)
            rows |= {keys[new[place]]: row for place, row in zip(readable, embeddings, strict=True)}
            faults |= {keys[new[place]]: str(error) for place, error in errors.items()}
            temporary_faults = {keys[new[place]] for place, error in errors.items() if error.errno is not None}
        self.embedded = len(new)
        self.skipped = {file: faults[keys[file]] for file in files if keys[file] in faults}
        self.files = [file for file in files if keys[file] in rows]
        found = [rows[keys[file]] for file in self.files]
        self.embeddings = torch.stack(found) if found else torch.empty(0, self.model.config.embedding_dim)

        current = set(keys.values())
        self.unsaved = None
        if ranks()[0] == 0 and (new or current != {*rows, *faults}):
            try:
                write_index(self.index, model_hash, [keys[file] for file in self.files], self.embeddings,
                            {key: faults[key] for key in current & set(faults) - temporary_faults})
            except OSError as error:  # the answer matters more than its being remembered
                self.unsaved = str(error)

    def search(self, query, top_k=9):
        """Return the best `Match`es for a prompt, best first: at most top_k, fewer in a smaller gallery."""
        return self.rank(embed_texts(self.model, [query])[0], top_k)

    def search_by_image(self, file, top_k=9):
        """Return the best `Match`es for an example picture, best first; raises UserError if it cannot be read."""
        embeddings, _, faults = embed_images(self.model, image_loader([file], self.model.config.image_size, 1))
        if faults:
            raise UserError(f"the example picture cannot be read: {faults[0]}")
        return self.rank(embeddings[0], top_k)

    def rank(self, embedding, top_k):
        """Return the best `Match`es for a unit-length (D,) embedding."""
        scores = self.embeddings @ embedding  # (N, D) @ (D,) -> (N,): cosines, since all are of unit length
        best = scores.topk(min(top_k, len(scores)))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [Match(rank, self.files[row], score) for rank, (score, row) in enumerate(pairs, start=1)]

    def remarks(self, query):
        """Return what a person should know about a prompt: that it is too long, or of words the model does not know."""
        tower = self.model.text_encoder
        token_ids = tower.tokenizer(query, verbose=False)["input_ids"]
        lines = []
        if (more := len(token_ids) - tower.max_tokens) > 0:
            lines.append(f"the prompt is too long: its last {more} tokens are not looked at")
        if set(token_ids) <= set(tower.tokenizer.all_special_ids):  # the unknown token is one of these
            lines.append("the text tower knows none of these words: the ranking means nothing")
        return lines


# ---------------------------------------------------------------- galleries and their index


def folder_gallery(folder):
    """Return (name, picture files, index path) of a folder, searched recursively; hidden files are left alone."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"--gallery {folder} is not a folder")
    return str(folder), picture_files(root), root / INDEX_NAME


def split_gallery(config, split=None):
    """Return (name, picture files, index path) of a split of the data a model was trained on."""
    if not (folder := dataset_folder(config.data_dir)).is_dir():
        raise UserError(f"the data trained on, {config.data_dir}, is not here: name a folder with --gallery DIR")
    splits = {name: table for name, table in load_splits(config.data_dir, config.split_seed).items() if len(table)}
    split = split or ("test" if "test" in splits else "dev")
    if split not in splits:
        raise UserError(f"{config.data_dir} has no {split} photos: try --split {' or '.join(splits)}, or --gallery DIR")
    files = [image_path(config.data_dir, name) for name in splits[split]["image"].unique()]
    return f"{config.data_dir} ({split} split)", files, folder / f".clip-index-{split}.safetensors"


def fingerprint(directory):
    """Return a hash of a model directory's content: embeddings of another model are never taken for its own."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(directory).rglob("*") if path.is_file()):
        digest.update(path.relative_to(directory).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def read_index(path, model_hash):
    """Return {file key: (D,) embedding} and {file key: reason}; nothing from an index of another model, or damaged."""
    try:
        with safe_open(path, "pt") as file:
            saved = json.loads(file.metadata()["index"])
            if saved["model"] == model_hash:
                return dict(zip(saved["keys"], file.get_tensor("embeddings"), strict=True)), saved["faults"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        pass  # no index yet, or not one of ours: build it
    return {}, {}


def write_index(path, model_hash, keys, embeddings, faults):
    """Write keys and their (N, D) embeddings in one rename, so that an interruption leaves the previous index."""
    about = json.dumps({"model": model_hash, "keys": keys, "faults": faults})
    write_tensors(path, {"embeddings": embeddings}, {"index": about})


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
    for number, reason in enumerate(gallery.skipped.values()):
        if number < 5:
            say(f"skipped: {reason}")
    if len(gallery.skipped) > 5:
        say(f"… and {len(gallery.skipped) - 5:,} more")
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
        print(json.dumps({"query": wanted, "matches": found}))
    try:
        draw_matches(matches, title, flags.output)
    except OSError as error:
        raise UserError(f"--output {flags.output} cannot be written: {error}") from None
    say(f"\nwrote {flags.output}" + (f" with the first {MOST_DRAWN}" if len(matches) > MOST_DRAWN else ""))


if __name__ == "__main__":
    with one_line_errors():
        main(FLAGS)
