"""Find pictures by describing them.

    python inference.py --query "people sitting near the beach"                    # in the data trained on
    python inference.py --query "a dog running through water" --gallery ~/Pictures # in any folder
    python inference.py --image my_dog.jpg --gallery ~/Pictures                    # pictures like this one

The gallery is embedded once; its embeddings are kept in the folder and used again while the checkpoint and the files
are unchanged. A query is then one pass of the text tower and one matrix product.

    >>> gallery = Gallery("~/Pictures")
    >>> gallery.search("two dogs playing in the snow", top_k=1)
    [Match(rank=1, file=PosixPath('/home/me/Pictures/IMG_0042.jpg'), score=0.41, copies=())]
"""

from config import Config, InferenceConfig, UserError, checkpoint_dir, one_line_errors, parse, ranks, resolve_device

if __name__ == "__main__":
    FLAGS = parse(InferenceConfig)  # first of all, so that --help and a mistyped flag answer at once

import copy
import functools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from data.files import IMAGE_SUFFIXES, fingerprint, model_stamps, picture_files, read_image, stamp, writable
from data.pictures import MOST_DRAWN, draw_matches
from data.tars import dataset_folder, exists, is_sharded, tar_pictures
from data.towers import keep_encoder, open_encoder, remarks
from gallery import (
    INDEX_NAME,
    LOOK,
    SPLIT_INDEX_NAME,
    Index,
    Match,
    folded,
    heat_map,
    index_of,
    look_of,
    read_index,
    search,
    split_gallery,
    write_index,
)

OUTPUT_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg"}

EVERYDAY = (  # prompts of which most people have pictures: what they reach in a gallery, a prompt that fits does
    "a dog runs through the grass", "two dogs play with a ball", "a child plays in the water", "people near the beach",
    "a man rides a bicycle", "a woman walks down the street", "a group of people pose for a photo", "a baby with a toy",
    "children play in the snow", "a boy jumps into a pool", "a man climbs a rock", "a girl in a dress smiles",
    "people at a party", "a football player with the ball", "a person stands on a mountain", "a crowd in the city",
    "a man sits on a bench", "a skateboarder does a trick", "a sailing boat on the lake", "a cat on a sofa",
    "a bird on a branch", "a car on the road", "flowers in a garden", "a plate of food on a table",
    "a building against the sky", "a sunset over the sea", "a horse in a field", "people dance on a stage",
    "a bride and groom", "a market with stalls", "a room with furniture", "a forest in autumn",
)

# Torch, and all that imports it, is imported only where it is needed: not for a prompt to an embedded gallery.


class Gallery:
    """A folder of pictures, or a split of the data the model was trained on, embedded and ready to be searched.

    folder: searched recursively, or a pattern of tars; None takes `split` of the model's own dataset (test, or dev
        where there is no test).
    checkpoint: a model directory; None takes best/ of the newest run.
    progress: show a progress bar on standard error while pictures are embedded.
    leave_out: the absolute path of a file that is not to be searched, such as the picture of the last result.

    Afterwards: `files` (N paths), `embeddings` (N, D) float16 of unit length, `skipped` {file: reason} for files that
    cannot be read, `embedded`, how many were embedded this time (0 when the index knew them all), `index_path`, where
    that is kept, and `unsaved`, why it could not be. Raises UserError where folder or checkpoint cannot be used; an
    empty folder is an empty gallery.
    """

    def __init__(self, folder=None, checkpoint=None, split=None, device="auto", batch_size=64, workers=0, progress=True,
                 leave_out=None):
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
            files = [file for file in files if os.path.abspath(file) != leave_out]
            index_name = SPLIT_INDEX_NAME.format(folder.name) if tars else INDEX_NAME
        self.index_path, self.unsaved = writable(self.root / index_name), None
        there = self.index_path if self.index_path.exists() else self.root / index_name  # made before it was read-only
        if ranks()[1] > 1:  # they share the embedding, and look at the folder at different moments
            from cache import from_first

            resolve_device(device)
            files = from_first(files)

        known, model_files = read_index(there), model_stamps(self.checkpoint)
        self.model_hash = known.model if known.model_files == model_files else fingerprint(self.checkpoint)
        if known.model != self.model_hash or known.embeddings.shape[1] != self.config.embedding_dim:  # another model's
            known = Index(embeddings=np.empty((0, self.config.embedding_dim), np.float16))
        about = Index(self.model_hash, model_files, sources=sources, splits=splits)
        index, self.embedded = self.updated(about, known, files, "embedding pictures" if progress else None)
        same = (index.files, known.usual is None) == (known.files, False)
        index.usual = self.usual = known.usual if same else self.usual_score(index.embeddings)
        if index.about() != known.about():
            self.save(index)
        self.embeddings, self.looks = index.embeddings, index.looks
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
        new, rows, looks = [name for name in marks if name not in found], known.embeddings, known.looks
        if ranks()[1] > 1:
            from cache import from_first

            new = from_first(new)
        part_size = max(512, len(marks) // 20)
        for start in range(0, len(new), part_size):
            part = new[start : start + part_size]
            title = bar and f"{bar}, {start + len(part):,} of {len(new):,}"
            embeddings, new_looks, faults = self.embed_files([self.root / name for name in part], title)
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
        return open_encoder(self.model_hash) if self.device != "cuda" and ranks()[1] == 1 else None

    @functools.cached_property
    def everyday(self):
        """The (Q, D) embeddings of the `EVERYDAY` prompts."""
        return self.embed_prompts(EVERYDAY)

    def embed_files(self, files, progress=None):
        """Return (n, D) float16 embeddings and (n, 192) looks of the readable files, and {place: OSError} of others."""
        import torch

        from cache import embed_images
        from dataset import image_loader

        def both(pixels):
            return torch.cat([self.model.encode_image(pixels), look_of(pixels)], dim=1)

        loader = image_loader(files, self.model.config.image_size, *self.loading)
        rows, _, faults = embed_images(self.model, loader, both, progress)
        rows = rows if len(rows) else torch.empty(0, self.config.embedding_dim + LOOK)
        widths = [self.config.embedding_dim, LOOK]  # a model gone wrong finds nothing, and breaks nothing
        return *(part.half().numpy() for part in rows.nan_to_num(0, 0, 0).split(widths, dim=1)), faults

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

    def search(self, query=(), top_k=9, image=None, minus=(), threshold=None, fold=True):
        """Return the best `Match`es, best first: at most top_k, fewer in a smaller gallery.

        query: a prompt, or several that count alike; image: an example, instead of or beside them; minus: prompts to
        keep away from; threshold: the least score; fold: pictures that look the same are one match, with `copies`.
        Raises UserError if nothing is asked for, or the example cannot be read.
        """
        matches = self.rank(self.wanted(query, image, minus), top_k, fold)
        return [match for match in matches if threshold is None or match.score >= threshold]

    def wanted(self, query=(), image=None, minus=()):
        """Return the unit-length float32 (D,) embedding of what is asked for; arguments and errors as for `search`."""
        queries, minus = ([texts] if isinstance(texts, str) else list(texts) for texts in (query, minus))
        if not queries and image is None:
            raise UserError("say what to look for: a prompt, or an example picture")
        parts = [self.embed_prompts(queries)] if queries else []
        if image is not None:
            example, _, faults = self.embed_files([image])
            if faults:
                raise UserError(f"the example picture cannot be read: {faults[0]}")
            parts.append(example.astype(np.float32))
        wanted = np.concatenate(parts).mean(axis=0)  # (D,)
        if minus:  # by half: all texts are a little alike, and that much is not meant
            wanted -= self.embed_prompts(minus).mean(axis=0) / 2
        return wanted / np.linalg.norm(wanted)

    def search_by_image(self, file, top_k=9):
        """Return the best `Match`es for an example picture, best first; raises UserError if it cannot be read."""
        return self.search(image=file, top_k=top_k)

    def rank(self, embedding, top_k, fold=True):
        """Return the best `Match`es for a unit-length float32 (D,) embedding, near-duplicates folded together."""
        if not self.files:
            return []
        scores, rows = (best[0] for best in search(self.embeddings, embedding[None], 10 * top_k + 1000))
        groups = folded(self.looks, rows, top_k) if fold else [[place] for place in range(len(rows))][:top_k]
        files = [self.files[row] for row in rows]
        return [Match(rank, files[first], float(scores[first]), tuple(files[place] for place in rest))
                for rank, (first, *rest) in enumerate(groups, start=1)]

    def explain(self, file, query=(), image=None, minus=(), wanted=None):
        """Return a picture (H, W, 3) uint8 in which red marks what answers the prompt or example.

        Raises UserError for an image tower without a feature map, such as a vision transformer, and as `search` does;
        OSError where the picture cannot be read.
        """
        from dataset import read_square

        wanted = self.wanted(query, image, minus) if wanted is None else wanted
        wanted = wanted - self.everyday.mean(axis=0)  # what is special about it
        pixels, picture = read_square(file, self.model.config.image_size), read_image(file, shrink_to=400)
        heat = heat_map(self.model, pixels, wanted)
        heat = Image.fromarray(np.uint8(255 * heat)).resize(picture.shape[1::-1], Image.Resampling.BICUBIC)
        share = np.asarray(heat, np.float32)[..., None] / 255 * 0.6
        return np.uint8((1 - share) * picture + share * np.array([255, 30, 0]))

    def usual_score(self, embeddings):
        """Return what the best picture scores for all but two of the `EVERYDAY` prompts, or None without pictures.

        embeddings: (N, D) float16. A prompt whose best picture scores less is likely of something that is not there.
        """
        if not len(embeddings):
            return None
        best, _ = search(embeddings, self.everyday, 1)
        return float(np.sort(best[:, 0])[2])

    def nothing_fits(self, matches):
        """Return a remark if the best match for a prompt scores less than everyday prompts reach here, else None."""
        if not matches or self.usual is None or matches[0].score >= self.usual:
            return None
        return (f"nothing here fits well: the best scores {matches[0].score:.3f}, and for {len(EVERYDAY) - 2} of "
                f"{len(EVERYDAY)} everyday prompts it is {self.usual:.3f} or more")

    def remarks(self, prompt):
        """Return what a person should know about a prompt: that it is too long, or of words the model does not know."""
        if self.encoder:
            return remarks(self.encoder.whole, self.encoder.max_tokens, prompt)
        tower = self.model.text_encoder
        whole = copy.deepcopy(tower.tokenizer.backend_tokenizer)
        whole.no_truncation()
        whole.no_padding()
        return remarks(whole, tower.max_tokens, prompt)


# ---------------------------------------------------------------- what a person sees


def match_table(matches):
    """Return the matches as lines of text."""
    copies = [f"  (like it: {', '.join(copy.name for copy in match.copies)})" * bool(match.copies) for match in matches]
    return "\n".join(["rank  score  file", *(f"{match.rank:>4}  {match.score:.3f}  {match.file}{more}"
                                             for match, more in zip(matches, copies, strict=True))])


def main(flags):
    def say(*words):  # with --json, standard output is for the program that reads it
        print(*words, file=sys.stderr if flags.json else sys.stdout)

    if flags.output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"--output {flags.output}: choose a name that ends in {', '.join(sorted(OUTPUT_SUFFIXES))}")
    if flags.image is not None and not exists(flags.image):
        raise UserError(f"--image {flags.image} is not a file")
    checkpoint = checkpoint_dir(flags.checkpoint)
    gallery = Gallery(flags.gallery, checkpoint, flags.split, flags.device, flags.batch_size, flags.workers,
                      leave_out=os.path.abspath(flags.output))
    for reason in gallery.skipped.values():
        say(f"skipped: {reason}")
    if not gallery.files:
        raise UserError(f"{gallery.name} holds no readable picture ({', '.join(sorted(IMAGE_SUFFIXES))})")
    kept = f"{gallery.embedded:,} embedded now" if gallery.embedded else "all known from the index"
    count = f"{len(gallery.files):,} pictures of {gallery.name}"
    say(f"{checkpoint} on {count} ({kept}, {len(gallery.skipped)} unreadable)")
    if gallery.unsaved:
        say(f"the index cannot be saved, so the next search embeds again: {gallery.unsaved}")
    prompts, like = [*flags.query, *flags.plus], f"pictures like {flags.image.name}" if flags.image else None
    for remark in {remark: None for prompt in (*prompts, *flags.minus) for remark in gallery.remarks(prompt)}:
        say(remark)
    wanted = gallery.wanted(prompts, flags.image, flags.minus)
    if ranks()[0] > 0:  # of several processes that shared the work, the first shows the result
        return
    found = gallery.rank(wanted, flags.top_k, flags.fold)
    matches = [match for match in found if flags.threshold is None or match.score >= flags.threshold]
    title = " + ".join(filter(None, [like, *prompts])) + "".join(f" - {prompt}" for prompt in flags.minus)
    say(f"\n{title}\n{match_table(matches)}")
    if not matches:
        say(f"no picture scores {flags.threshold} or more: the best is {found[0].score:.3f}")
    elif len(prompts) == 1 and not (like or flags.minus) and (remark := gallery.nothing_fits(matches)):
        say(remark)
    if flags.json:
        rows = [{"rank": match.rank, "file": str(match.file), "score": match.score}
                | ({"copies": list(map(str, match.copies))} if match.copies else {}) for match in matches]
        asked = title if prompts or flags.minus else str(flags.image)
        print(json.dumps({"query": asked, "matches": rows}), flush=True)
    if flags.picture and matches:
        try:
            explain = functools.partial(gallery.explain, wanted=wanted) if flags.explain else None
            draw_matches(matches, title, flags.output, explain)
        except OSError as error:
            raise UserError(f"--output {flags.output} cannot be written: {error}") from None
        say(f"\nwrote {flags.output}" + (f" with the first {MOST_DRAWN}" if len(matches) > MOST_DRAWN else ""))
    if prompts and not gallery.encoder and "model" in vars(gallery):
        if reason := keep_encoder(gallery.model, gallery.model_hash):
            say(f"each prompt takes some seconds, for this text tower cannot be kept ready for them: {reason}")


if __name__ == "__main__":
    with one_line_errors():
        main(FLAGS)
