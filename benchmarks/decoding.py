"""Photos a second from disk to a batch on one core: the ancestors' way, ours decoding every time, and ours.

    python benchmarks/decoding.py --photos data/sample/Images

The ancestors' way reads with OpenCV, resizes, and normalises to float32. Ours is the loader of train.py: it crops and
mirrors as well, draws a caption, and leaves normalisation to the device that trains. They take turns in one process.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.errors import UserError, expect_ctrl_c, one_line_errors

if __name__ == "__main__":
    expect_ctrl_c()  # while the libraries load, too

import albumentations as A
import cv2
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from config import parse
from dataset import (
    NOTHING_KNOWN,
    CaptionDataset,
    Photos,
    Precomputed,
    image_loader,
    paths_of,
    start_epoch,
    train_transform,
    training_loader,
)
from support.images import picture_files
from support.kept import decode_once
from support.wordpiece import train_tokenizer


@dataclass(frozen=True)
class DecodingConfig:
    """Time the way of photos into batches."""

    photos: Path = Path("data/sample/Images")  # folder of pictures
    count: int = 1000  # pictures of it to use
    size: int = 224  # pixels a side
    rounds: int = 5  # passes of each way


class AncestorFiles(Dataset):
    """Their item: decoded by OpenCV, resized, normalised, float32, channels first."""

    def __init__(self, paths, size):
        self.paths, self.transform = paths, A.Compose([A.Resize(size, size), A.Normalize(max_pixel_value=255.0)])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        image = cv2.cvtColor(cv2.imread(str(self.paths[index])), cv2.COLOR_BGR2RGB)
        return torch.tensor(self.transform(image=image)["image"]).permute(2, 0, 1).float()


def timed(loader, epoch):
    """Return photos a second of one pass."""
    start, photos = time.perf_counter(), 0
    if isinstance(loader.dataset, CaptionDataset):
        start_epoch(loader, epoch)
    for batch in loader:
        photos += len(batch if isinstance(batch, torch.Tensor) else batch[0])  # theirs is pixels alone
    return photos / (time.perf_counter() - start)


def main(flags):
    torch.set_num_threads(1)
    paths = picture_files(flags.photos)[: flags.count]
    if not paths:
        raise UserError(f"--photos {flags.photos} holds no pictures: python data/sample_scenes.py draws some")
    crop = train_transform(flags.size, 0.6, True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Images").symlink_to(flags.photos.resolve())
        table = pd.DataFrame({"image": [path.relative_to(flags.photos).as_posix() for path in paths]})
        table["path"] = [f"{folder}/Images/{name}" for name in table["image"]]
        table["original"] = table["image"]
        table["caption"] = "Two people sit near the beach ."
        tokenizer = train_tokenizer(table["caption"], 64)
        decoded = decode_once(Photos(paths_of(table), flags.size), folder, "benchmark")
        ways = {
            "ancestors": DataLoader(AncestorFiles(paths, flags.size), 32),
            **{way: training_loader(CaptionDataset(table, tokenizer, crop, flags.size, 64, known=known), 256)
               for way, known in (("decoding every time", NOTHING_KNOWN), ("decoded once", Precomputed(decoded)))},
            "decoded once, not cropped": image_loader(paths, flags.size, 256, decoded=decoded),
        }
        rates = {way: [] for way in ways}
        for epoch in range(1 + flags.rounds):
            for way, loader in ways.items():
                rates[way].append(timed(loader, epoch))
    print(f"{len(paths):,} photos at {flags.size} px, {flags.rounds} rounds, one core, no worker process\n\n"
          "| way | photos a second (median, range) | x ancestors |\n|---|---|---|")
    first = statistics.median(rates["ancestors"][1:])  # without the pass that warms up
    for way, values in rates.items():
        median = statistics.median(values[1:])
        print(f"| {way} | {median:,.0f} ({min(values[1:]):,.0f} to {max(values[1:]):,.0f}) | {median / first:.1f} |")


if __name__ == "__main__":
    with one_line_errors():
        main(parse(DecodingConfig))
