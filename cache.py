"""Embed many pictures and texts, and keep on disk what need not be computed twice.

    picture files ─ embed_images ─> (N, D) embeddings, or with encode=model.image_encoder (N, F) features
    texts         ─ embed_texts ──> (M, D) embeddings, or with encode=model.text_encoder  (M, F) features

A photo has the same pixels in every epoch: `decoded_photos` reads each file once. And a tower that does not learn gives
the same features: `frozen_features` asks it once; after that an epoch costs two small matrix products a pair. The next
run on this data starts at once.
"""

import contextlib
import errno
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import cv2
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm import tqdm

from config import UserError, ranks
from data.files import file_key, writable, write_file
from data.tars import dataset_folder
from dataset import CORES, image_loader, image_path, pad, read_square, tokenize, train_transform

FORMAT = 2  # of what is kept: raise it when the way from a file to pixels or features changes
CACHE_FOLDER = ".clip-cache"  # inside the dataset folder; can be deleted at any time


# ---------------------------------------------------------------- embedding many


@torch.inference_mode()
def embed_images(model, loader, encode=None, progress=None):
    """Embed the files of a `dataset.image_loader` with `encode`, by default `model.encode_image`.

    Returns an (N, D) tensor on the CPU of the files that could be read, their indices, and a dict of the others,
    {index: OSError}. Several processes share the work, and all get all of it. `progress` names a progress bar.
    """
    device, autocast = model.logit_scale.device, model.autocast()
    rows, indices, faults = [], [], {}
    for pixels, good, bad in tqdm(loader, progress, leave=False, disable=None if progress and not ranks()[0] else True):
        if pixels is not None:
            with autocast:
                rows.append((encode or model.encode_image)(pixels.to(device)).cpu())
        indices += good
        faults |= bad
    rows = torch.cat(rows) if rows else torch.empty(0, model.config.embedding_dim)
    if ranks()[1] > 1:
        rows, indices = from_all_processes(rows, indices, len(loader.dataset), device)
        faults = {index: loader.dataset[index][2] or OSError("it could not be read a moment ago")
                  for index in set(range(len(loader.dataset))) - set(indices)}
    return rows, indices, faults


@torch.inference_mode()
def embed_texts(model, texts, batch_size=128, encode=None, progress=None):
    """Embed texts with `encode`, by default `model.encode_text`: (M, D) on the CPU.

    Texts of like length share a batch, so little of it is padding. Several processes share the work. `progress` names
    a progress bar.
    """
    device, autocast, tower = model.logit_scale.device, model.autocast(), model.text_encoder
    token_ids = tokenize(tower.tokenizer, texts, tower.max_tokens)
    order = sorted(range(len(token_ids)), key=lambda index: len(token_ids[index]))
    rank, world = ranks()
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)][rank::world]
    rows = [torch.empty(0, model.config.embedding_dim)] if not parts else []
    for part in tqdm(parts, progress, leave=False, disable=None if progress and not rank else True):
        input_ids, mask = pad([token_ids[row] for row in part], tower.pad_id)
        with autocast:
            rows.append((encode or model.encode_text)(input_ids.to(device), mask.to(device)).cpu())
    rows, indices = torch.cat(rows), [row for part in parts for row in part]
    return from_all_processes(rows, indices, len(texts), device)[0]


def from_all_processes(rows, indices, count, device):
    """Return the (N, D) rows that all processes have made of `count` items, in order, and the indices of these items.

    rows: (n, D) on the CPU, made by this process, of the items `indices`.
    """
    if ranks()[1] == 1:
        order = torch.tensor(indices, dtype=torch.long).argsort()
        return rows[order], sorted(indices)
    width = torch.tensor(rows.shape[1] if len(rows) else 0, device=device)
    dist.all_reduce(width, dist.ReduceOp.MAX)
    whole, there = torch.zeros(count, width, device=device), torch.zeros(count, dtype=torch.uint8, device=device)
    if len(rows):
        whole[indices], there[indices] = rows.to(device, torch.float32), 1
    dist.all_reduce(whole)  # each row is one process's, and nothing to the others: the sum is exact
    dist.all_reduce(there)
    indices = there.nonzero().flatten().tolist()
    return whole.cpu()[indices].to(rows.dtype), indices


class Gathered(torch.autograd.Function):
    """(B, D) of each process -> (W * B, D) of all, in the order of their ranks; gradients find the way back."""

    @staticmethod
    def forward(ctx, rows):
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)  # every process's loss looks at these rows
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def from_first(value):
    """Return what the first of several processes has: they look at a disk, or a clock, at different moments."""
    values = [value]
    if ranks()[1] > 1:
        dist.broadcast_object_list(values)
    return values[0]


@contextlib.contextmanager
def one_at_first():
    """Let one process of each machine do something while the others wait: they then find it done."""
    waits = ranks()[1] > 1 and int(os.environ["LOCAL_RANK"]) > 0
    if waits:
        dist.barrier()
    yield
    if ranks()[1] > 1 and not waits:
        dist.barrier()


# ---------------------------------------------------------------- what is kept of a captions table


class Cached(NamedTuple):
    """What is there already of a captions table: of its photos, in the order in which they first appear, and captions.

    decoded: file of (N, S, S, 3) uint8 pixels; images: (N, V, F) features, V views of each photo; texts: (M, F)
    features, a row a caption. None: to be made from the files, the pixels and the captions.
    """

    decoded: Path | None = None
    images: torch.Tensor | None = None
    texts: torch.Tensor | None = None


def decoded_photos(table, data_dir, size, split):
    """Decode the photos of a split once, each squeezed into a square; returns the file of (N, S, S, 3) uint8 pixels.

    It will be mapped into memory, so that all processes share it. It is kept beside the photos under a hash of their
    names, sizes and times; older ones of the split are deleted. Returns None, and says so, where the disk is full.
    """
    paths = [image_path(data_dir, name) for name in table["image"].unique()]
    about = [FORMAT, version("pillow"), cv2.__version__, *(file_key(path, dataset_folder(data_dir)) for path in paths)]
    digest, name = hashlib.sha256(json.dumps(about).encode()), f"{split}-{size}px"
    path = writable(dataset_folder(data_dir) / CACHE_FOLDER / f"{name}-{digest.hexdigest()[:32]}.rgb")
    with one_at_first():
        return path if path.is_file() else decode_into(path, name, paths, size)


def decode_into(path, name, paths, size):
    """Write the file of `decoded_photos` and delete older ones of that name; returns its path, or None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{name}-{os.getpid()}.new")
    try:
        with temporary.open("wb") as file, ThreadPoolExecutor(CORES) as pool:  # decoders let go of the interpreter lock
            squares = pool.map(lambda photo: read_square(photo, size), paths)
            for pixels in tqdm(squares, f"decoding photos, once: {name}", len(paths), leave=False, disable=None):
                file.write(pixels.tobytes())
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"{path.parent} has no room for the decoded photos ({error}): decoding them anew in every epoch")
            return None
        raise UserError(f"a photo can no longer be read: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    for old in path.parent.glob(f"{name}-*.rgb"):
        if old != path:  # a run that uses it has it open, and goes on
            old.unlink(missing_ok=True)
    return path


def frozen_features(model, table, data_dir, towers, batch_size=128, workers=0, views=1):
    """Return the features of a captions table by the towers named (none, image, text or both): `Cached`.

    The first of the `views` is the whole photo, as in evaluation; the others are cropped and mirrored as in training.
    Kept on disk in the dataset folder (or the user's cache folder, where that is read-only) under a hash of all that
    they depend on: weights and architecture of the tower, precision, transform, and the photos or captions.
    """
    config, images, texts = model.config, None, None
    if towers in ("image", "both"):
        paths = [image_path(data_dir, name) for name in table["image"].unique()]
        crops = [config.crop_scale, config.flip, config.seed] if views > 1 else []
        about = [config.image_size, views, *crops, *(file_key(path, dataset_folder(data_dir)) for path in paths)]
        images = kept(data_dir, model, model.image_encoder, about,
                      lambda: image_features(model, paths, batch_size, workers, views))
    if towers in ("text", "both"):
        captions, tower = list(table["caption"]), model.text_encoder
        about = [config.pooling, tokenize(tower.tokenizer, captions, tower.max_tokens)]
        texts = kept(data_dir, model, tower, about, lambda: embed_texts(model, captions, batch_size, tower))
    return Cached(images=images, texts=texts)


def image_features(model, paths, batch_size, workers, views):
    """Return (N, V, F) features of photos: the whole photo, then V - 1 crops drawn from the seed of the run."""
    config, stacked = model.config, []
    for view in range(views):
        crop = train_transform(config.image_size, config.crop_scale, config.flip) if view else None
        loader = image_loader(paths, config.image_size, batch_size, workers, transform=crop, seed=(config.seed, view))
        features, _, faults = embed_images(model, loader, model.image_encoder,
                                           f"features of photos, view {view + 1} of {views}")
        if faults:
            raise UserError(f"a photo can no longer be read: {next(iter(faults.values()))}")
        stacked.append(features)
    return torch.stack(stacked, dim=1)


def kept(data_dir, model, tower, about, make):
    """Return the tensor that `make` gives for a tower and what `about` tells, from disk where it was made before."""
    backbone = tower.backbone  # repr does not show everything, so its settings are named too
    settings = getattr(backbone, "config", None) or (getattr(backbone, "pretrained_cfg", ""), tower.model_args)
    versions = [cv2.__version__, *map(version, ("torch", "timm", "transformers", "pillow", "albumentations"))]
    digest = hashlib.sha256(json.dumps(
        [FORMAT, versions, str(model.compute_dtype()), repr(backbone), str(settings), about]).encode())
    for name, tensor in chain(tower.named_parameters(), tower.named_buffers()):
        digest.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    path = writable(dataset_folder(data_dir) / CACHE_FOLDER / f"{digest.hexdigest()[:32]}.safetensors")
    features = None
    try:
        with safe_open(path, "pt") as file:
            features = file.get_tensor("features")
    except (OSError, SafetensorError):
        pass  # not made yet, or damaged: make it
    rank, world = ranks()
    if world > 1:  # all processes make them where one of them has none
        there = torch.tensor(features is not None, dtype=torch.uint8, device=model.logit_scale.device)
        dist.all_reduce(there, dist.ReduceOp.MIN)
        features = features if there else None
    if features is not None:
        return features
    features = make()
    try:
        if rank == 0:
            write_file(path, save({"features": features}))
    except OSError as error:
        print(f"features are not kept for the next run: {error}")
    return features


@dataclass(frozen=True)
class EmbeddedSplit:
    """A captions table, embedded: photos in the order in which they first appear, captions in the table's order."""

    files: list  # N paths
    captions: list  # M texts
    image_embeddings: torch.Tensor  # (N, D), unit length
    text_embeddings: torch.Tensor  # (M, D), unit length
    image_of_text: torch.Tensor  # (M,), the row of each caption's photo
    faults: dict  # {path: OSError} of the photos that could not be read; they are left out with their captions


def embed_split(model, table, data_dir, batch_size=128, workers=0, cached=None):
    """Return the `EmbeddedSplit` of a captions table. What is `Cached` of it spares work."""
    cached = cached or Cached()
    paths = [image_path(data_dir, name) for name in table["image"].unique()]
    if cached.images is None:
        loader = image_loader(paths, model.config.image_size, batch_size, workers, decoded=cached.decoded)
        images, readable, faults = embed_images(model, loader)
    else:
        images = from_features(model, model.encode_image, cached.images[:, 0])
        readable, faults = range(len(paths)), {}
    if not readable:
        raise UserError(f"none of the {len(paths):,} photos in {data_dir} can be read: {next(iter(faults.values()))}")
    row_of_image = {paths[index]: row for row, index in enumerate(readable)}
    rows = [row_of_image.get(image_path(data_dir, name), -1) for name in table["image"]]  # -1: left out
    captions = [caption for caption, row in zip(table["caption"], rows, strict=True) if row >= 0]
    rows = torch.tensor(rows)
    if cached.texts is None:
        texts = embed_texts(model, captions, batch_size)
    else:
        texts = from_features(model, model.encode_text, cached.texts[rows >= 0])
    return EmbeddedSplit([paths[index] for index in readable], captions, images, texts, rows[rows >= 0],
                         {paths[index]: error for index, error in faults.items()})


@torch.inference_mode()
def from_features(model, encode, features):
    """Return the (N, D) embeddings, on the CPU, of (N, F) features that a tower has made before."""
    with model.autocast():
        return encode(features.to(model.logit_scale.device)).cpu()


# ---------------------------------------------------------------- files


def write_json(path, value):
    """Write a JSON file, indented for people."""
    Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
