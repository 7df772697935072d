"""What need not be computed twice: kept in the dataset folder, in .clip-cache, which can be deleted at any time.

A photo has the same pixels in every epoch, and a tower that does not learn makes the same features of them. Both are
kept under a hash of all that they depend on, so that nothing stale is ever found.
"""

import contextlib
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import chain

import cv2
import numpy as np
import PIL
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from support.errors import UserError
from support.files import file_key, writable, write_file
from support.process import is_first_process, one_process_at_first, process_count, usable_cores
from support.progress import with_progress
from support.tars import dataset_folder

FORMAT_NUMBER = 2  # raise it when the way from a file to pixels or features changes
CACHE_FOLDER = ".clip-cache"

# ---------------------------------------------------------------- decoded photos


class DecodedPhotos:
    """A file of (N, S, S, 3) uint8 pixels, mapped into memory: all processes of the machine share it.

    decoded[row] is (S, S, 3). Opened before workers are forked, it stays open if the file is deleted.
    """

    def __init__(self, path, size):
        self.path = path
        self.size = size
        self.pixels = np.asarray(np.memmap(path, np.uint8, "r")).reshape(-1, size, size, 3)

    def __getitem__(self, row):
        return self.pixels[row]

    def __len__(self):
        return len(self.pixels)

    def __reduce__(self):  # a worker that does not inherit the memory opens the file itself
        return DecodedPhotos, (self.path, self.size)


def decode_once(photos, data_dir, split):
    """Return the `DecodedPhotos` of a `dataset.Photos`: from the file of an earlier run, or decoded now.

    The file lies beside the photos under a hash of their names, sizes and times; older ones of the split are deleted.
    Returns None, and says so, where the file cannot be written. Raises UserError for a photo that cannot be read.
    """
    folder = dataset_folder(data_dir)
    keys = [file_key(path, folder) for path in photos.paths]
    about = [FORMAT_NUMBER, PIL.__version__, cv2.__version__, *keys]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    name = f"{split}-{photos.size}px"
    path = writable(folder / CACHE_FOLDER / f"{name}-{digest}.rgb")
    with one_process_at_first():
        is_whole = os.path.isfile(path) and path.stat().st_size == len(photos) * photos.size**2 * 3
        if not is_whole and not decode_into(path, photos, name):
            return None
        return DecodedPhotos(path, photos.size)


def decode_into(path, photos, name):
    """Write a file of decoded photos and delete older ones of that name; returns whether it could be written."""

    def decode(row):
        try:
            return photos.pixels(row)
        except OSError as error:
            raise UserError(f"a photo can no longer be read: {error}") from None

    temporary = path.with_name(f"{name}-{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Threads are enough: decoders let go of the interpreter lock.
        with temporary.open("wb") as file, ThreadPoolExecutor(usable_cores()) as pool:
            squares = pool.map(decode, range(len(photos)))
            for pixels in with_progress(squares, f"decoding photos, once: {name}", "photos", len(photos)):
                file.write(pixels.tobytes())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        print(f"decoded photos cannot be kept ({error}): decoding them anew in every epoch")
        return False
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    for old in path.parent.glob(f"{name}-*.rgb"):
        if old != path:  # a run that uses it has it open, and goes on
            old.unlink(missing_ok=True)
    return True


# ---------------------------------------------------------------- features of frozen towers


def kept_features(data_dir, model, tower, inputs, make):
    """Return the tensor that `make()` gives, from disk where it was made before.

    tower: whose features they are. inputs: what tells the photos or captions apart, as plain values. With the weights
    and architecture of the tower, the precision and the versions of the libraries they make the name of the file.
    """
    name = features_digest(model, tower, inputs)[:32]
    path = writable(dataset_folder(data_dir) / CACHE_FOLDER / f"{name}.safetensors")
    features = read_features(path)
    if not all_processes_have(features, model.device):
        features = make()
        if is_first_process():
            try:
                write_file(path, save({"features": features}))
            except OSError as error:
                print(f"features are not kept for the next run: {error}")
    return features


def features_digest(model, tower, inputs):
    """Return a hash of all that the features of a tower depend on."""
    backbone = tower.backbone
    # repr() does not show everything, so its settings are named too
    settings = getattr(backbone, "config", None) or (getattr(backbone, "pretrained_cfg", ""), tower.model_args)
    libraries = ["torch", "timm", "transformers", "pillow", "albumentations"]
    versions = [cv2.__version__, *map(version, libraries)]
    about = [FORMAT_NUMBER, versions, str(model.compute_dtype()), repr(backbone), str(settings), inputs]
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, tensor in chain(tower.named_parameters(), tower.named_buffers()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_features(path):
    """Return the features in a file, or None where it is not there yet, or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("features")
    except (OSError, SafetensorError):
        return None


def all_processes_have(features, device):
    """Return whether no process lacks the features: all make them together, or none does."""
    if process_count() == 1:
        return features is not None
    import torch.distributed as dist

    there = torch.tensor(features is not None, dtype=torch.uint8, device=device)
    dist.all_reduce(there, dist.ReduceOp.MIN)
    return bool(there)
