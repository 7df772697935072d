"""The wait for an answer: `inference.py --query` as a whole process, against the ancestors' way.

    python benchmarks/cold_query.py --image-encoder resnet50 --photos DIR

The ancestors' query loads both towers, embeds all photos of the gallery again, and ranks. (They do so five times over,
once for each caption of a photo; here each photo counts once.) Ours finds the index and the text tower that an earlier
query has left. Both have random weights, so that nothing is downloaded: the time is the same. The two take turns, each
in a process of its own; the picture of the result is left out of both.
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

import tyro

from config import PRESETS
from support.errors import UserError, one_line_errors

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ColdConfig:
    """Time the answer to a prompt."""

    photos: Path = Path("data/sample/Images")  # folder of pictures
    count: int = 200  # pictures of it to use
    image_encoder: str = "resnet50"  # any timm name
    rounds: int = 5  # answers of each way, after one that warms up
    ancestors: Path | None = None  # the model directory: answer as the ancestors do, in this process


def write_model(folder, image_encoder):
    """Write a model directory: an image tower and a DistilBERT, with random weights and a small vocabulary."""
    from transformers import DistilBertConfig

    from models import CLIP
    from support.wordpiece import train_tokenizer

    with tempfile.TemporaryDirectory() as tower:
        train_tokenizer(["people sitting near the beach", "a dog running through water"], 512).save_pretrained(tower)
        DistilBertConfig().save_pretrained(tower)
        config = replace(PRESETS["flickr8k"], pretrained=False, image_encoder=image_encoder, text_encoder=tower)
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
    files = picture_files(flags.photos)[: flags.count]
    with torch.no_grad():
        images = torch.cat([model.image_head(model.image_encoder.backbone(pixels))
                            for pixels in DataLoader(AncestorFiles(files, model.config.image_size), 32)])
        prompt = pad(tokenize(tower.tokenizer, ["people near the beach"], 200), tower.pad_id)
        texts = model.text_head(tower(*prompt))
        scores = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    for row in scores[0].topk(9).indices.tolist():
        print(files[row])


def main(flags):
    if flags.ancestors:
        return ancestors_answer(flags)
    import torch

    from support.images import picture_files

    files = picture_files(flags.photos)[: flags.count]
    if not files:
        raise UserError(f"--photos {flags.photos} holds no pictures: python data/sample_scenes.py draws some")
    with tempfile.TemporaryDirectory() as folder:
        model, pictures = Path(folder) / "model", Path(folder) / "pictures"
        write_model(model, flags.image_encoder)
        pictures.mkdir()
        for number, file in enumerate(files):
            (pictures / f"{number:06}{file.suffix}").symlink_to(file.resolve())
        ours = [str(ROOT / "inference.py"), "--query", "people near the beach", "--gallery", str(pictures),
                "--checkpoint", str(model), "--json", "--no-picture", "--device", "cpu"]
        theirs = [__file__, "--ancestors", str(model), "--photos", str(pictures), "--count", str(flags.count)]
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        seconds = {"ancestors": [], "ours": []}
        for _ in range(1 + flags.rounds):
            for way, command in (("ancestors", theirs), ("ours", ours)):
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
                seconds[way].append(time.perf_counter() - start)
    print(f"{len(files):,} pictures, {flags.image_encoder} and DistilBERT, {flags.rounds} rounds, torch "
          f"{torch.__version__}, {os.cpu_count()} cores; the first query of ours, which embeds and keeps: "
          f"{seconds['ours'][0]:.1f} s\n\n| way | seconds to the answer (median, range) | x ancestors |\n|---|---|---|")
    medians = {way: statistics.median(values[1:]) for way, values in seconds.items()}
    for way, values in seconds.items():
        print(f"| {way} | {medians[way]:.2f} ({min(values[1:]):.2f} to {max(values[1:]):.2f}) "
              f"| {medians['ancestors'] / medians[way]:.1f} |")


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(ColdConfig, config=(tyro.conf.FlagCreatePairsOff,)))
