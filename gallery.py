"""What a search is made of: the towers that embed, the index of a gallery, and finding the best rows in it.

    files ─ stamp ─> the Index holds the rows of those it knows; the new and changed ─ Towers ─> rows (n, D)
    prompt or example ─ Towers ─> (D,) embedding ─ search ─> the best rows of the Index and their scores

Imports no torch and nothing that does: to import it takes seconds, and the whole answer to a prompt half of one.
"""

import copy
import functools
import json
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open

from config import Config, UserError, checkpoint_dir, ranks, resolve_device
from data.files import fingerprint, read_image, stamp, writable, write_file
from data.tars import dataset_folder, is_sharded
from data.towers import open_encoder, remarks

INDEX_NAME, SPLIT_INDEX_NAME = ".clip-index.safetensors", ".clip-index-{}.safetensors"
FORMAT = 2  # of the index: raise it when what it holds changes
# Of looks. Of 500,000 pairs of photos none reached it; a photo does that is saved again, smaller, brighter or grey.
ALIKE = 0.97
LOOK = 192  # numbers that say how a picture looks: 8 x 8 fields of 3 colours
FEW_ROWS = 50_000  # up to so many, or where torch is not imported, numpy searches
# A product of unit-length vectors in half precision errs by up to 2^-11 for the rounded query and 2^-12 for the rounded
# result; this bounds the error of a difference of two.
HALF_ERROR = 2e-3
# Prompts of which most people have pictures: what they reach in a gallery, a prompt that fits does.
EVERYDAY = (
    "a dog runs through the grass", "two dogs play with a ball", "a child plays in the water", "people near the beach",
    "a man rides a bicycle", "a woman walks down the street", "a group of people pose for a photo", "a baby with a toy",
    "children play in the snow", "a boy jumps into a pool", "a man climbs a rock", "a girl in a dress smiles",
    "people at a party", "a football player with the ball", "a person stands on a mountain", "a crowd in the city",
    "a man sits on a bench", "a skateboarder does a trick", "a sailing boat on the lake", "a cat on a sofa",
    "a bird on a branch", "a car on the road", "flowers in a garden", "a plate of food on a table",
    "a building against the sky", "a sunset over the sea", "a horse in a field", "people dance on a stage",
    "a bride and groom", "a market with stalls", "a room with furniture", "a forest in autumn",
)

TEMPLATES = "a photo of a {}.", "a picture of a {}.", "a {}."  # for the name of a class: a mean is steadier than one

# ---------------------------------------------------------------- what embeds


class Towers:
    """The two towers of a checkpoint, each loaded when it is first needed: a prompt need not wait for torch.

    checkpoint: a model directory; None takes best/ of the newest run. Raises UserError where it cannot be used.
    """

    def __init__(self, checkpoint=None, device="auto", batch_size=64, workers=0):
        self.checkpoint, self.device = checkpoint_dir(checkpoint and Path(checkpoint)), device
        self.config, self.loading = Config.load(self.checkpoint / "config.json"), (batch_size, workers)

    @functools.cached_property
    def hash(self):
        """The fingerprint of the checkpoint."""
        return fingerprint(self.checkpoint)

    @functools.cached_property
    def model(self):
        """The CLIP model; loaded only where pictures are to be embedded, or its text tower is not ready as a file."""
        from models import CLIP

        return CLIP.from_pretrained(self.checkpoint).to(resolve_device(self.device))

    @functools.cached_property
    def encoder(self):
        """The `PromptEncoder` of the model, or None where there is none yet, or where a GPU was asked for by name."""
        return open_encoder(self.hash) if self.device != "cuda" and ranks()[1] == 1 else None

    @functools.cached_property
    def logit_scale(self):
        """What cosines are multiplied by before a softmax makes probabilities of them; read without the model."""
        with safe_open(self.checkpoint / "model.safetensors", "numpy") as tensors:
            return float(np.exp(tensors.get_tensor("logit_scale")))

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
        token_ids = tokenize(tower.tokenizer, prompts, tower.max_tokens)
        parts = [pad(token_ids[start : start + 128], tower.pad_id) for start in range(0, len(token_ids), 128)]
        with torch.inference_mode():
            rows = [self.model.encode_text(ids.to(device), mask.to(device)).cpu() for ids, mask in parts]
        return torch.cat(rows).numpy()

    def remarks(self, prompt):
        """Return what a person should know about a prompt: that it is too long, or of words the model does not know."""
        if self.encoder:
            return remarks(self.encoder.whole, self.encoder.max_tokens, prompt)
        tower = self.model.text_encoder
        whole = copy.deepcopy(tower.tokenizer.backend_tokenizer)
        whole.no_truncation()
        whole.no_padding()
        return remarks(whole, tower.max_tokens, prompt)

    def wanted(self, query=(), image=None, minus=()):
        """Return the unit-length float32 (D,) embedding of what is asked for; arguments as for `Gallery.search`."""
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

    def explain(self, file, query=(), image=None, minus=(), wanted=None):
        """Return a picture (H, W, 3) uint8 in which red marks what answers the prompt or example.

        Raises UserError for an image tower without a feature map, such as a vision transformer, and as `wanted` does;
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


def class_embeddings(embed, names, templates=TEMPLATES):
    """Return (K, D) unit-length embeddings: for each class the mean over its prompts (Radford et al. 2021, 3.1.4).

    embed: a function of Q texts that returns their (Q, D) embeddings. An article before a name is left out.
    """
    nouns = [re.sub(r"^(a|an|the)\s+", "", name, flags=re.IGNORECASE) for name in names]
    prompts = [template.replace("{}", noun) for noun in nouns for template in templates]
    embeddings = embed(prompts).reshape(len(names), len(templates), -1).mean(axis=1)  # (K, D)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


# ---------------------------------------------------------------- the index


@dataclass
class Index:
    """What is kept of an embedded gallery.

    model: fingerprint of the checkpoint; model_files: the stamps of its files, which spare reading them again.
    files: a list [name, stamp, reason] a picture; reason is None, or why it has no embedding.
    embeddings: (N, D) float16, of unit length, a row for each file without a reason, mapped from disk; looks: (N, 192)
    float16, by which near-duplicates are told.
    sources: the stamps of all that decides which photos a split has, and `splits`, those the data has; {} for a folder.
    usual: the score that the best picture for an everyday prompt has at least, or None where it is not known.
    """

    model: str = ""
    model_files: dict = field(default_factory=dict)
    files: list = field(default_factory=list)
    embeddings: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float16))
    looks: np.ndarray = field(default_factory=lambda: np.empty((0, LOOK), np.float16))
    sources: dict = field(default_factory=dict)
    splits: list = field(default_factory=list)
    usual: float | None = None
    format: int = FORMAT

    def about(self):
        """Return everything but the arrays, as plain types."""
        return {key: value for key, value in vars(self).items() if not isinstance(value, np.ndarray)}

    def known(self):
        """Return {(name, stamp): row of the embeddings, or the reason why there is none}."""
        rows = iter(range(len(self.embeddings)))
        return {(name, stamp): next(rows) if reason is None else reason for name, stamp, reason in self.files}


def read_index(path):
    """Return the `Index` in a file; an empty one where there is none yet, or a damaged one."""
    try:
        if not path.is_file():  # nor a pipe, which would be waited for
            return Index()
        with path.open("rb") as file:  # safetensors: length of the header, the header as JSON, the tensors' bytes
            start = 8 + int.from_bytes(file.read(8), "little")
            tensors = json.loads(file.read(min(start, path.stat().st_size) - 8))
            begin, end = tensors["about"]["data_offsets"]
            file.seek(start + begin)
            about = json.loads(file.read(end - begin))
        # mapped, not read: a million rows are there at once, and several processes share them ("c": never written)
        arrays = {name: np.memmap(path, np.float16, "c", start + tensors[name]["data_offsets"][0], tuple(shape))
                  if (shape := tensors[name]["shape"])[0] else np.empty(shape, np.float16)
                  for name in ("embeddings", "looks")}
        texts = str, type(None)
        sound = about["format"] == FORMAT and re.fullmatch("[0-9a-f]{64}", about["model"]) and all(
            isinstance(name, str) and isinstance(mark, texts) and isinstance(reason, texts)
            and not name.startswith("/") and ".." not in name.split("/") for name, mark, reason in about["files"])
        count = sum(reason is None for _, _, reason in about["files"])
        kinds = {"usual": float | None, "model_files": dict, "sources": dict, "splits": list}
        sound = sound and all(isinstance(about[name], kind) for name, kind in kinds.items()) and min(
            tensors[name]["data_offsets"][0] for name in arrays) >= 0
        rows = arrays["embeddings"]
        if sound and rows.ndim == 2 and len(rows) == count and arrays["looks"].shape == (count, LOOK):
            return Index(**arrays, **about)
    except (OSError, LookupError, TypeError, ValueError, AttributeError, OverflowError, MemoryError, RecursionError):
        pass  # there is none yet, or it is damaged, or not made by this program
    return Index()


def write_index(path, index):
    """Write an `Index` in one rename, so that an interruption leaves the previous one."""
    from safetensors.numpy import save

    text = np.frombuffer(json.dumps(index.about()).encode(), np.uint8)
    rows = {"embeddings": np.ascontiguousarray(index.embeddings), "looks": np.ascontiguousarray(index.looks)}
    write_file(path, save({**rows, "about": text}))


def index_of(found, marks, rows, looks, about):
    """Return `about` with the files found so far, {name: row or reason} with their stamps, and their rows and looks."""
    files = [[name, mark, found[name] if isinstance(found[name], str) else None]
             for name, mark in marks.items() if name in found]
    used = [found[name] for name, _, reason in files if reason is None]
    if used != list(range(len(rows))):
        rows, looks = rows[used], looks[used]
    return replace(about, files=files, embeddings=rows, looks=looks)


def split_gallery(config, split=None):
    """Return the split, its picture files, the stamps of all that decides which these are, and the splits there are.

    An index whose stamps still hold knows the files, so that the captions need not be read again.
    """
    folder, seed = dataset_folder(config.data_dir), {"split_seed": config.split_seed}
    for name in [split] if split else ["test", "dev"]:
        index = read_index(writable(folder / SPLIT_INDEX_NAME.format(name))) if folder.is_dir() else Index()
        asked_for = split or ("test" if "test" in index.splits else "dev")
        if index.sources and name == asked_for and index.sources == {
                **seed, **{path: stamp(Path(path)) for path in index.sources if path not in seed}}:
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
    stamps = {str(path): stamp(path) for path in sorted(decides)}
    sources = {} if is_sharded(config.data_dir) else {**stamps, **seed}
    return split, files, sources, splits


# ---------------------------------------------------------------- search


@dataclass(frozen=True)
class Match:
    """One result: its rank (1 is best), its file, the cosine similarity from -1 to 1, and files that look the same."""

    rank: int
    file: Path
    score: float
    copies: tuple = ()


def search(embeddings, queries, top_k):
    """Return the scores (Q, K) and rows (Q, K) of the best rows for each query, best first; exact. K <= top_k.

    embeddings: (N, D) float16, unit length; queries: (Q, D) float32, unit length. Scores are float32 cosines.
    """
    top_k = min(top_k, len(embeddings))
    if len(embeddings) <= FEW_ROWS or "torch" not in sys.modules:  # to import torch takes longer than a million rows
        starts = range(0, len(embeddings), 8192)
        with np.errstate(invalid="ignore"):  # of rows that are no numbers; `best_of` puts them last
            blocks = [queries @ embeddings[start : start + 8192].astype(np.float32).T for start in starts]
        best = [best_of(scores, np.arange(len(scores)), top_k) for scores in np.concatenate(blocks, axis=1)]
    else:
        find = half_candidates if len(queries) <= 8 else block_candidates
        best = [best_of(embeddings[rows].astype(np.float32) @ query, rows, top_k)
                for query, rows in zip(queries, find(embeddings, queries, top_k), strict=True)]
    scores, rows = zip(*best, strict=True)
    return np.stack(scores), np.stack(rows)


def look_of(pixels):
    """Return (B, 192), what (B, 3, S, S) pictures look like from afar: the colours of 8 x 8 fields, unit length."""
    import torch.nn.functional as F

    fields = F.adaptive_avg_pool2d(pixels.float(), 8).flatten(2)  # (B, 3, 64)
    return F.normalize((fields - fields.mean(dim=2, keepdim=True)).flatten(1), dim=1)


def folded(looks, rows, most):
    """Return the places of rows (K,) in at most `most` groups of pictures that look the same, the best of each first.

    looks: (N, 192), as `look_of` gives it: cosines are correlations.
    """
    groups, firsts = [], np.empty((min(most, len(rows)), looks.shape[1]), np.float32)
    for place, look in enumerate(looks[rows].astype(np.float32)):
        alike = (firsts[: len(groups)] @ look >= ALIKE).nonzero()[0]
        if len(alike):
            groups[alike[0]].append(place)
        elif len(groups) < most:
            firsts[len(groups)] = look
            groups.append([place])
    return groups


def best_of(scores, rows, top_k):
    """Return the scores (K,) and numbers (K,) of the best of some rows; of equal ones the first comes first."""
    scores = np.nan_to_num(scores, nan=-1, posinf=-1, neginf=-1)  # a stranger's index may hold anything
    if len(scores) > 4 * top_k:  # those that can be among the best, before they are sorted
        least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        scores, rows = scores[scores >= least], rows[scores >= least]
    order = np.lexsort((rows, -scores))[:top_k]
    return scores[order], rows[order]


def half_candidates(embeddings, queries, top_k):
    """Yield for each query the rows that surely hold the best: all that come near enough in half precision."""
    import torch  # its half-precision product reads half of the bytes that float32 has; numpy's is far slower

    rows = torch.from_numpy(embeddings)
    for query in torch.from_numpy(queries):
        scores = (rows @ query.half()).nan_to_num(-1, -1, -1)
        yield (scores >= scores.topk(top_k).values[-1].float() - HALF_ERROR).nonzero().flatten().numpy()


def block_candidates(embeddings, queries, top_k, rows=16_384):
    """Return the best rows of each block of rows for each of many queries: one matrix product a block."""
    import torch

    queries, found = torch.from_numpy(queries), []
    for start in range(0, len(embeddings), rows):
        block = torch.from_numpy(embeddings[start : start + rows]).float()  # stays in the processor's cache
        found.append(start + (queries @ block.T).nan_to_num(-1, -1, -1).topk(min(top_k, len(block)), dim=1).indices)
    return torch.cat(found, dim=1).numpy()


def heat_map(model, pixels, wanted, steps=12):
    """Return (h, w) from 0 to 1: how much each field of the image tower's last feature map adds to the score.

    pixels: (S, S, 3) uint8; wanted: (D,) float32. The gradient of the score, through the head, times the activations
    (Selvaraju et al. 2017, Grad-CAM), where the gradient is the mean over a path from no activation to all of it
    (Sundararajan et al. 2017): the head is curved, and at its end alone most of it is flat. What speaks against the
    prompt is 0. Raises UserError for a tower without such a map, such as a vision transformer.
    """
    import torch
    import torch.nn.functional as F

    tower = model.image_encoder
    wanted, pixels = (torch.from_numpy(array).to(tower.mean.device) for array in (wanted, pixels))
    with torch.no_grad():
        features = tower.backbone.forward_features((pixels.permute(2, 0, 1)[None] - tower.mean) / tower.std)
    if features.ndim != 4 or features.shape[-1] == tower.backbone.num_features:  # tokens, or channels last
        raise UserError(f"the image tower {model.config.image_encoder} has no map of features to explain a picture by: "
                        "convolutional towers such as resnet50 have")
    part = (torch.linspace(1 / steps, 1, steps, device=features.device).view(-1, 1, 1, 1) * features).requires_grad_()
    embeddings = F.normalize(model.image_head(tower.backbone.forward_head(part, pre_logits=True)), dim=-1)  # (steps, D)
    (gradient,) = torch.autograd.grad((embeddings @ wanted).sum(), part)  # (steps, F, h, w)
    heat = (gradient.mean(dim=0) * features[0]).sum(dim=0).relu()
    return (heat / heat.max().clamp(min=1e-9)).cpu().numpy()
