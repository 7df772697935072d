"""Photos a second into a gallery: the ancestors' way against ours.

    python benchmarks/gallery.py --photos data/sample/Images

The image tower has random weights: the work is the same. The ancestors decode with OpenCV, resize, normalise to float32
and embed batches of 32, channels first, in float32. Ours is `models.embed_images`, with which a gallery is made. Each
runs in a process of its own, turn by turn: how memory is given back is a setting of the process, and part of ours.
"""

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.errors import UserError, expect_ctrl_c, one_line_errors

if __name__ == "__main__":
    expect_ctrl_c()  # while the libraries load, too

import torch
from torch.utils.data import DataLoader

from benchmarks.decoding import AncestorFiles
from config import PRESETS, InferenceConfig, parse
from dataset import image_loader
from models import CLIP, embed_images
from support.images import picture_files
from support.process import start_process


@dataclass(frozen=True)
class GalleryConfig:
    """Time the embedding of a folder of pictures."""

    photos: Path = Path("data/sample/Images")  # folder of pictures
    count: int = 256  # pictures of it to use
    image_encoder: str = PRESETS["flickr8k"].image_encoder  # any timm name, or local-dir:PATH
    size: int = 224  # pixels a side
    rounds: int = 3  # processes of each way
    way: Literal["both", "ancestors", "ours"] = "both"  # one of them: run it in this process


@torch.inference_mode()
def ancestors(model, paths, size):
    """Embed as the ancestors do: (N, D)."""
    backbone = model.image_encoder.backbone.to(memory_format=torch.contiguous_format)
    rows = [model.image_head(backbone(pixels.contiguous())) for pixels in DataLoader(AncestorFiles(paths, size), 32)]
    return torch.cat(rows)


def ours(model, paths, size):
    """Embed as a gallery does: (N, D)."""
    model.to(start_process("cpu"))
    return embed_images(model, image_loader(paths, size, InferenceConfig.batch_size))[0]


def measure(flags, paths):
    """Print photos a second of one way, after a pass that warms up."""
    torch.manual_seed(0)
    config = replace(PRESETS["flickr8k"], image_encoder=flags.image_encoder, image_size=flags.size, pretrained=False,
                     text_encoder="scratch")
    model, make = CLIP.from_config(config, ["a photo"]).eval(), {"ancestors": ancestors, "ours": ours}[flags.way]
    for part in (paths[:64], paths):
        start = time.perf_counter()
        make(model, part, flags.size)
    print(len(paths) / (time.perf_counter() - start))


def main(flags):
    paths = picture_files(flags.photos)[: flags.count]
    if not paths:
        raise UserError(f"--photos {flags.photos} holds no pictures: python data/sample_scenes.py draws some")
    if flags.way != "both":
        return measure(flags, paths)
    rates = {"ancestors": [], "ours": []}
    for _ in range(flags.rounds):
        for way, values in rates.items():
            command = [sys.executable, __file__, "--photos", str(flags.photos), "--count", str(flags.count), "--size",
                       str(flags.size), "--image-encoder", flags.image_encoder, "--way", way]
            values.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print(f"{len(paths):,} photos at {flags.size} px, {Path(flags.image_encoder).name}, {flags.rounds} processes, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads\n\n"
          "| way | photos a second (median, range) | x ancestors |\n|---|---|---|")
    first = statistics.median(rates["ancestors"])
    for way, values in rates.items():
        median = statistics.median(values)
        print(f"| {way} | {median:.1f} ({min(values):.1f} to {max(values):.1f}) | {median / first:.2f} |")


if __name__ == "__main__":
    with one_line_errors():
        main(parse(GalleryConfig))
