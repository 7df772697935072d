"""Training and embedding with open_clip and with sentence-transformers, against ours, on the same towers and photos.

    pip install -e ".[peers]" && python benchmarks/peers.py

All train a timm ResNet50 and a BERT of six layers, with random weights, on the same photos and captions, in bfloat16
where the processor has it. Each runs in a process of its own, turn by turn:

- open_clip: its CustomTextCLIP of these towers, its tokenizer (which pads to 77 tokens), ClipLoss, and the step of its
  train_one_epoch with --precision amp_bf16; photos are embedded through its own transform and a DataLoader.
- sentence-transformers: a SentenceTransformer with both towers in a module of its own, for none that it brings takes a
  timm tower; MultipleNegativesRankingLoss in both directions, and what its trainer does with bf16=True; photos are
  embedded by `encode`.
- ours: the step of train.py, and `embed_images`.

Start-up is what passes from the start of Python to a model that is ready. Memory is the highest of the training steps.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import PRESETS, parse
from support.errors import UserError, one_line_errors

WAYS = ("ours", "open_clip", "sentence-transformers")
FIGURES = ("start_up", "samples", "memory", "photos")
SIZE = 224  # pixels a side
WIDTH = 512  # of an embedding
WORKERS = 2  # processes that decode photos, where a library has such


@dataclass(frozen=True)
class PeersConfig:
    """Time training steps and embedding."""

    data_dir: Path = PRESETS["sample"].data_dir  # dataset folder; python train.py draws this one
    batch_size: int = 32  # pairs
    steps: int = 4  # timed in each process, after one that warms up
    photos: int = 1000  # embedded in each process
    rounds: int = 3  # processes of each way
    image_encoder: str = "resnet50"  # any timm name
    text_layers: int = 6  # of the BERT
    towers: Path | None = None  # in a process of one way: folder of the BERT
    started: float = 0.0  # in a process of one way: when, by time.time()
    way: Literal["all", "ours", "open_clip", "sentence-transformers"] = "all"  # one: run it in this process


# ---------------------------------------------------------------- ours


class Ours:
    """What train.py and a gallery do."""

    def __init__(self, flags):
        import torch

        from models import CLIP
        from support.averaging import RunningMean
        from support.process import start_process
        from train import parameter_groups

        config = replace(
            PRESETS["flickr8k"],
            pretrained=False,
            image_encoder=flags.image_encoder,
            text_encoder=str(flags.towers),
            image_size=SIZE,
            embedding_dim=WIDTH,
        )
        self.model = CLIP.from_config(config).to(start_process("cpu"), memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, config), fused=True)
        self.average = RunningMean(self.model, config.averaging)
        self.average.follow(self.model)

    def batch(self, pixels, captions):
        import torch

        from dataset import Batch

        pixels = pixels.contiguous(memory_format=torch.channels_last)
        input_ids, attention_mask = self.model.text_encoder.tokens_of(captions)
        rows = torch.arange(len(pixels))
        return Batch(rows, rows, rows[:, None], pixels, input_ids[:, None], attention_mask[:, None], None, None)

    def step(self, batch):
        import torch

        self.model.train()
        with self.model.autocast():
            embeddings = self.model(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.model.loss(*embeddings, batch.photo_ids, batch.caption_ids).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.model.config.grad_clip)
        self.optimizer.step()
        self.model.clamp_logit_scale()
        self.average.update(0)

    def embed(self, files):
        from dataset import image_loader
        from models import embed_images

        self.model.eval()
        embeddings, _, _ = embed_images(self.model, image_loader(files, SIZE, 64, WORKERS))
        return embeddings


# ---------------------------------------------------------------- open_clip


class OpenClip:
    """What open_clip does: its model, its loss, and a step of its train_one_epoch."""

    def __init__(self, flags):
        import torch
        from open_clip.loss import ClipLoss
        from open_clip.model import CustomTextCLIP
        from open_clip.tokenizer import HFTokenizer

        image_tower = {"timm_model_name": flags.image_encoder, "timm_pool": "", "timm_proj": "linear",
                       "image_size": SIZE}
        text_tower = {"hf_model_name": str(flags.towers), "hf_tokenizer_name": str(flags.towers),
                      "hf_model_pretrained": False, "hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"}
        self.model = CustomTextCLIP(WIDTH, image_tower, text_tower)
        self.tokenizer = HFTokenizer(str(flags.towers))
        self.loss = ClipLoss()
        self.optimizer = torch.optim.AdamW(groups_with_and_without_decay(self.model), lr=5e-4, betas=(0.9, 0.98))
        self.dtype = best_dtype()

    def batch(self, pixels, captions):
        return normalised(pixels), self.tokenizer(captions)

    def step(self, batch):
        import torch

        self.model.train()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss(*self.model(*batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, 4.6052)

    def embed(self, files):
        import torch
        from open_clip.transform import image_transform
        from PIL import Image
        from torch.utils.data import DataLoader

        prepare = image_transform(SIZE, is_train=False)

        class Files(torch.utils.data.Dataset):
            def __len__(self):
                return len(files)

            def __getitem__(self, row):
                return prepare(Image.open(files[row]))

        self.model.eval()
        rows = []
        with torch.inference_mode(), torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            for pixels in DataLoader(Files(), 64, num_workers=WORKERS):
                rows.append(self.model.encode_image(pixels, normalize=True).float())
        return torch.cat(rows)


def groups_with_and_without_decay(model):
    """Return AdamW's groups as open_clip makes them: decay on matrices only."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [{"params": others, "weight_decay": 0.0}, {"params": weights, "weight_decay": 0.2}]


# ---------------------------------------------------------------- sentence-transformers


class SentenceTransformers:
    """What sentence-transformers does: its model, its loss, and a step of its trainer."""

    def __init__(self, flags):
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.losses import MultipleNegativesRankingLoss

        self.model = SentenceTransformer(modules=[two_towers(flags)], device="cpu")
        self.loss = MultipleNegativesRankingLoss(self.model, directions=("query_to_doc", "doc_to_query"))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, fused=True)
        self.dtype = best_dtype()

    def batch(self, pixels, captions):
        return [{"pixel_values": normalised(pixels)}, self.model.preprocess(captions)]

    def step(self, batch):
        import torch

        self.model.train()
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss([dict(part) for part in batch], None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.zero_grad()

    def embed(self, files):
        import torch

        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            return self.model.encode([str(file) for file in files], batch_size=64, convert_to_tensor=True)


def two_towers(flags):
    """Return a module of sentence-transformers that embeds photos with a timm tower and captions with a BERT."""
    import timm
    import torch
    from PIL import Image
    from sentence_transformers.base.modules import InputModule
    from torchvision import transforms
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    class TwoTowers(InputModule):
        def __init__(self):
            super().__init__()
            self.image_tower = timm.create_model(flags.image_encoder, num_classes=WIDTH)
            self.text_tower = AutoModel.from_config(AutoConfig.from_pretrained(flags.towers), add_pooling_layer=False)
            self.projection = torch.nn.Linear(self.text_tower.config.hidden_size, WIDTH)
            self.tokenizer = AutoTokenizer.from_pretrained(flags.towers)
            self.prepare = transforms.Compose([
                transforms.Resize((SIZE, SIZE)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3),
            ])

        modalities = ["text", "image"]

        def preprocess(self, inputs, prompt=None, **_):
            if all(Path(given).suffix == ".jpg" for given in inputs):
                return {"pixel_values": torch.stack([self.prepare(Image.open(file)) for file in inputs])}
            return dict(self.tokenizer(list(inputs), padding=True, truncation=True, return_tensors="pt"))

        def forward(self, features):
            if "pixel_values" in features:
                features["sentence_embedding"] = self.image_tower(features["pixel_values"])
                return features
            mask = features["attention_mask"]
            hidden = self.text_tower(input_ids=features["input_ids"], attention_mask=mask).last_hidden_state
            mask = mask.unsqueeze(-1).to(hidden.dtype)
            features["sentence_embedding"] = self.projection((hidden * mask).sum(dim=1) / mask.sum(dim=1))
            return features

        def save(self, output_path, *arguments, **options):
            raise NotImplementedError

    return TwoTowers()


# ---------------------------------------------------------------- one process


def best_dtype():
    """Return the dtype that is fastest here: bfloat16 where the processor has it."""
    from support.process import choose_dtype, start_process

    return choose_dtype(start_process("cpu"), "auto")


def normalised(pixels):
    """Return uint8 pixels (B, 3, S, S) as the peers want them, which normalise when they decode."""
    return (pixels / 127.5 - 1).contiguous()


def measure(flags):
    """Print the figures of one way as JSON."""
    kind = {"ours": Ours, "open_clip": OpenClip, "sentence-transformers": SentenceTransformers}[flags.way]
    way = kind(flags)
    start_up = time.time() - flags.started

    import torch

    from dataset import load_splits, paths_of, read_square

    table = load_splits(flags.data_dir)["train"]
    one_caption_each = table.drop_duplicates("image")
    files = paths_of(table)
    squares = [torch.from_numpy(read_square(file, SIZE)) for file in files[: flags.batch_size]]
    pixels = torch.stack(squares).permute(0, 3, 1, 2)  # (B, 3, S, S) uint8
    batch = way.batch(pixels, list(one_caption_each["caption"][: flags.batch_size]))

    seconds = []
    for _ in range(1 + flags.steps):
        start = time.perf_counter()
        way.step(batch)
        seconds.append(time.perf_counter() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # of kB

    way.embed(files[:64])
    files = files[: flags.photos]
    start = time.perf_counter()
    embeddings = way.embed(files)
    photos = len(files) / (time.perf_counter() - start)
    if tuple(embeddings.shape) != (len(files), WIDTH):
        raise UserError(f"{flags.way} has made {tuple(embeddings.shape)} of {len(files)} photos")

    samples = flags.batch_size / statistics.median(seconds[1:])
    print(json.dumps(dict(zip(FIGURES, (start_up, samples, memory, photos), strict=True))))


# ---------------------------------------------------------------- all of them, in turns


def write_text_tower(folder, captions, layers):
    """Write the configuration of a BERT, and a small vocabulary for it."""
    from transformers import BertConfig

    from support.wordpiece import train_tokenizer

    tokenizer = train_tokenizer(captions, 512)
    tokenizer.save_pretrained(folder)
    BertConfig(num_hidden_layers=layers, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)


def run(flags, way, towers):
    """Measure one way in a process of its own; returns its figures."""
    command = [sys.executable, __file__, "--way", way, "--towers", str(towers), "--started", str(time.time())]
    for name in ("data_dir", "batch_size", "steps", "photos", "image_encoder"):
        command += [f"--{name.replace('_', '-')}", str(getattr(flags, name))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{way} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(flags):
    if flags.way != "all":
        return measure(flags)
    from dataset import load_splits

    figures = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as towers:
        captions = list(load_splits(flags.data_dir)["train"]["caption"])
        write_text_tower(towers, captions, flags.text_layers)
        for _ in range(flags.rounds):
            for way, rounds in figures.items():
                rounds.append(run(flags, way, towers))

    print(f"{flags.image_encoder} and a BERT of {flags.text_layers} layers, batch {flags.batch_size}, {flags.rounds} "
          f"processes of {flags.steps} steps, {flags.photos} photos, {best_dtype()}: medians (range)\n")
    print("| | start-up, s | training, samples a second | peak memory, GB | embedding, photos a second |")
    print("|---|---|---|---|---|")
    for way, rounds in figures.items():
        cells = []
        for name in FIGURES:
            values = [figures[name] for figures in rounds]
            cells.append(f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    with one_line_errors():
        main(parse(PeersConfig))
