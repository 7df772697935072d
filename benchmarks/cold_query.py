"""The wait for an answer: `inference.py --query` as a whole process, with the picture that it draws and without.

    python benchmarks/cold_query.py --other ../an-older-checkout
    python benchmarks/cold_query.py --image-encoder resnet50 --photos DIR --counts 120

Galleries of any size are made of links to the photos. Ours finds the index and the text tower that an earlier query has
left; so does another checkout of this repository, where one is named. The ancestors' query loads both towers, embeds
all photos of the gallery again, ranks them and draws nine, so it is asked of small galleries only. (They embed each
photo five times over, once for each caption; here it counts once.) All have random weights, so that nothing is
downloaded: the time is the same. They take turns, each in a process of its own.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import PRESETS, parse
from support.errors import UserError, one_line_errors

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ColdConfig:
    """Time the answer to a prompt."""

    photos: Path = Path("data/sample/Images")  # folder of pictures
    counts: tuple[int, ...] = (120, 7_000, 100_000)  # pictures in a gallery
    image_encoder: str = "test_resnet"  # any timm name
    text_layers: int = 6  # of the DistilBERT
    other: Path | None = None  # another checkout of this repository, to be compared with
    rounds: int = 5  # answers of each way, after one that warms up
    ancestors_up_to: int = 200  # pictures; the ancestors embed them all every time
    ancestors: Path | None = None  # the model directory: answer as the ancestors do, in this process


def write_model(folder, image_encoder, text_layers):
    """Write a model directory: an image tower and a DistilBERT, with random weights and a small vocabulary."""
    from transformers import DistilBertConfig

    from models import CLIP
    from support.wordpiece import train_tokenizer

    with tempfile.TemporaryDirectory() as tower:
        train_tokenizer(["people sitting near the beach", "a dog running through water"], 512).save_pretrained(tower)
        DistilBertConfig(n_layers=text_layers).save_pretrained(tower)
        size = PRESETS["sample"].image_size if image_encoder == "test_resnet" else None
        config = replace(PRESETS["flickr8k"], pretrained=False, image_encoder=image_encoder, text_encoder=tower,
                         image_size=size)
        CLIP.from_config(config).save_pretrained(folder)


def ancestors_answer(flags):
    """Rank the photos as the ancestors do: all towers loaded, all photos embedded, every time."""
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader

    from benchmarks.decoding import AncestorFiles
    from dataset import pad, tokenize
    from models import CLIP
    from support.images import picture_files

    model = CLIP.from_pretrained(flags.ancestors)
    tower = model.text_encoder
    model.image_encoder.to(memory_format=torch.contiguous_format)
    files = picture_files(flags.photos)
    with torch.no_grad():
        images = torch.cat([model.image_head(model.image_encoder.backbone(pixels))
                            for pixels in DataLoader(AncestorFiles(files, model.config.image_size), 32)])
        prompt = pad(tokenize(tower.tokenizer, ["people near the beach"], 200), tower.pad_id)
        texts = model.text_head(tower(*prompt))
        scores = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    best = [files[row] for row in scores[0].topk(9).indices.tolist()]
    print(*best, sep="\n")
    draw_nine(best)


def draw_nine(files):
    """Draw nine pictures as the ancestors do."""
    import matplotlib.pyplot as plt
    from PIL import Image

    _, axes = plt.subplots(3, 3, figsize=(10, 10))
    for file, ax in zip(files, axes.flatten(), strict=True):
        ax.imshow(Image.open(file))
        ax.axis("off")
    plt.savefig("matches.png")


def gallery_of(files, count, folder):
    """Make a folder of so many links to some files, over and over."""
    folder.mkdir()
    for number in range(count):
        file = files[number % len(files)]
        (folder / f"{number:06}{file.suffix}").symlink_to(file.resolve())
    return folder


def commands(flags, files, count, model, folder):
    """Return {way: its command} for a gallery of so many pictures; each way has a gallery of its own."""
    repositories = {"ours": ROOT}
    if flags.other:
        repositories["the other"] = flags.other.resolve()
    found = {}
    for way, repository in repositories.items():
        pictures = gallery_of(files, count, folder / f"{way} {count}")
        ask = [str(repository / "inference.py"), "--query", "people near the beach", "--gallery", str(pictures),
               "--checkpoint", str(model), "--device", "cpu"]
        found[f"{way}, with its picture"] = ask
        found[f"{way}, without"] = [*ask, "--no-picture"]
    if count <= flags.ancestors_up_to:
        pictures = gallery_of(files, count, folder / f"ancestors {count}")
        found["ancestors"] = [__file__, "--ancestors", str(model), "--photos", str(pictures)]
    return found


def main(flags):
    if flags.ancestors:
        return ancestors_answer(flags)
    from support.images import picture_files

    files = picture_files(flags.photos)
    if not files:
        raise UserError(f"--photos {flags.photos} holds no pictures: python data/sample_scenes.py draws some")
    print(f"{flags.image_encoder} and DistilBERT, {flags.rounds} rounds, {os.cpu_count()} cores; the first answer of "
          "ours embeds the gallery\n")
    print("| pictures | way | seconds to the answer (median, range) | the first one |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_model(folder / "model", flags.image_encoder, flags.text_layers)
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        for count in flags.counts:
            ways = commands(flags, files, count, folder / "model", folder)
            seconds = {way: [] for way in ways}
            for _ in range(1 + flags.rounds):
                for way, command in ways.items():
                    start = time.perf_counter()
                    subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment,
                                   cwd=folder)
                    seconds[way].append(time.perf_counter() - start)
            for way, (first, *values) in seconds.items():
                print(f"| {count:,} | {way} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) "
                      f"| {first:.1f} |", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main(parse(ColdConfig))
