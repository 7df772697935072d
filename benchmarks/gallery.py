"""Photos a second into a gallery: the ancestors' way against ours.

    python benchmarks/gallery.py --photos data/sample/Images

The image tower has random weights: the work is the same. The ancestors decode with OpenCV, resize, normalise to float32
and embed batches of 32, channels first, in float32. Ours is `cache.embed_images`, with which a gallery is made. They
take turns in one process; the same photos in both.
"""

import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import tyro
from torch.utils.data import DataLoader

from benchmarks.decoding import AncestorFiles
from cache import embed_images, picture_files
from config import PRESETS, InferenceConfig, UserError, one_line_errors, resolve_device
from dataset import image_loader
from models import CLIP


@dataclass(frozen=True)
class GalleryConfig:
    """Time the embedding of a folder of pictures."""

    photos: Path = Path("data/sample/Images")  # folder of pictures
    count: int = 256  # pictures of it to use
    image_encoder: str = PRESETS["flickr8k"].image_encoder  # any timm name, or local-dir:PATH
    size: int = 224  # pixels a side
    rounds: int = 3  # passes of each way


@torch.inference_mode()
def ancestors(model, paths, size):
    """Embed as the ancestors do: (N, D)."""
    backbone = model.image_encoder.backbone.to(memory_format=torch.contiguous_format)
    rows = [model.image_head(backbone(pixels.contiguous())) for pixels in DataLoader(AncestorFiles(paths, size), 32)]
    backbone.to(memory_format=torch.channels_last)
    return torch.cat(rows)


def ours(model, paths, size):
    """Embed as a gallery does: (N, D)."""
    return embed_images(model, image_loader(paths, size, InferenceConfig.batch_size))[0]


def main(flags):
    paths = picture_files(flags.photos)[: flags.count]
    if not paths:
        raise UserError(f"--photos {flags.photos} holds no pictures: python data/sample_scenes.py draws some")
    torch.manual_seed(0)
    config = replace(PRESETS["flickr8k"], image_encoder=flags.image_encoder, image_size=flags.size, pretrained=False,
                     text_encoder="scratch")
    model = CLIP.from_config(config, ["a photo"]).to(resolve_device("cpu"), memory_format=torch.channels_last).eval()
    rates = {"ancestors": [], "ours": []}
    for make in (ancestors, ours):
        make(model, paths[:64], flags.size)  # warms up
    for _ in range(flags.rounds):
        for way, make in (("ancestors", ancestors), ("ours", ours)):
            start = time.perf_counter()
            make(model, paths, flags.size)
            rates[way].append(len(paths) / (time.perf_counter() - start))
    print(f"{len(paths):,} photos at {flags.size} px, {Path(flags.image_encoder).name}, {flags.rounds} rounds, "
          f"{model.compute_dtype()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n\n"
          "| way | photos a second (median, range) | x ancestors |\n|---|---|---|")
    first = statistics.median(rates["ancestors"])
    for way, values in rates.items():
        median = statistics.median(values)
        print(f"| {way} | {median:.1f} ({min(values):.1f} to {max(values):.1f}) | {median / first:.2f} |")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(GalleryConfig, config=(tyro.conf.FlagCreatePairsOff,)))
