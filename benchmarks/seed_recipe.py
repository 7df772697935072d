"""The recipe of the tutorials that this repository descends from, trained on the same towers and data: what to beat.

    python benchmarks/seed_recipe.py --freeze both --epochs 12 --run-dir runs/seed-frozen
    python evaluate.py --split dev --compare runs/seed-frozen runs/MINE

As they do it: embeddings of any length in training (of unit length only in search), temperature 1, soft targets made of
the embeddings themselves with the gradient attached, one row a caption (so a photo is in an epoch five times, now and
then twice in a batch), no crops, the first token's features for the text, batches of 32, AdamW without schedule at 1e-3
for the heads, 1e-4 for the image tower and 1e-5 for the text tower, and the epoch with the lowest validation
loss, over dev in row order. Kinder than they were in two ways: the towers are pretrained, and frozen ones are in
evaluation mode. The result is an ordinary model directory, `best/` of the run folder.
"""

import json
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
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from config import PRESETS, parse
from dataset import NOTHING_KNOWN, load_splits, pad, read_square, tokenize
from evaluate import embed_split, recall_table, report_of
from models import CLIP
from support.files import replacing
from support.process import start_process
from train import precompute

RATES = {"heads": 1e-3, "image_encoder": 1e-4, "text_encoder": 1e-5}
BATCH_SIZE = 32
WEIGHT_DECAY = 1e-3


@dataclass(frozen=True)
class SeedConfig:
    """Train as the ancestors did."""

    run_dir: Path  # where best/ is written
    data_dir: Path = PRESETS["flickr8k"].data_dir  # dataset folder
    image_encoder: str = PRESETS["flickr8k"].image_encoder  # any timm name, or local-dir:PATH
    text_encoder: str = PRESETS["flickr8k"].text_encoder  # any name or folder for AutoModel
    freeze: Literal["none", "both"] = "both"  # towers that keep their weights
    epochs: int = 12  # each shows every caption once
    seed: int = 0  # heads, shuffling and dropout


def seed_loss(image_embeddings, text_embeddings, logit_scale=None):
    """Return their loss, a scalar, of (B, D) embeddings of any length: cross-entropy against their soft targets.

    logit_scale is there for the ablation, which gives this loss a learned temperature; they have none.
    """
    scale = 1.0 if logit_scale is None else logit_scale
    logits = scale * text_embeddings @ image_embeddings.T  # (B, B): row = text, column = image
    likeness = scale * (image_embeddings @ image_embeddings.T + text_embeddings @ text_embeddings.T) / 2
    targets = F.softmax(likeness, dim=1)  # the gradient flows through these too
    texts = -(targets * F.log_softmax(logits, dim=1)).sum(dim=1)
    images = -(targets.T * F.log_softmax(logits.T, dim=1)).sum(dim=1)  # the rows of targets.T do not sum to 1
    return (texts + images).mean() / 2


class CaptionRows(Dataset):
    """One item a caption: its photo, whole, and its token ids; or the features of both."""

    def __init__(self, table, model, features):
        tower = model.text_encoder
        self.names = list(table["image"])
        row_of = {name: row for row, name in enumerate(table["image"].unique())}
        self.photos = [row_of[name] for name in self.names]
        self.token_ids = tokenize(tower.tokenizer, table["caption"], tower.max_tokens)
        self.paths, self.size = list(table["path"]), model.config.image_size
        self.pad_id, self.features = tower.pad_id, features

    def __len__(self):
        return len(self.names)

    def __getitem__(self, row):
        if self.features.image_features is not None:
            return self.features.image_features[self.photos[row]], self.features.text_features[row]
        return torch.from_numpy(read_square(self.paths[row], self.size)), self.token_ids[row]

    def collate(self, items):
        images, texts = zip(*items, strict=True)
        if self.features.image_features is not None:
            return torch.stack(images), torch.stack(texts), None
        return torch.stack(images).permute(0, 3, 1, 2), *pad(texts, self.pad_id)


def features_of(model, table, config, split):
    """Return what is known of a table: the features of frozen towers, but no decoded photos."""
    if config.freeze == "none":
        return NOTHING_KNOWN
    return precompute(model, table, config, config.freeze, split)


def batch_loss(model, batch, loss):
    """Return the loss of a batch, on embeddings as the heads give them: of any length."""
    pixels, input_ids, mask = batch
    with model.autocast():
        images = pixels if pixels.ndim == 2 else model.image_encoder(pixels)
        texts = input_ids if mask is None else model.text_encoder(input_ids, mask)
        images, texts = model.image_head(images), model.text_head(texts)
    return loss(images.float(), texts.float(), model.logit_scale.exp())


def unscaled(images, texts, _):
    """Return their loss as they have it, at a temperature of 1."""
    return seed_loss(images, texts)


def train(flags, splits, config, loss=unscaled, one_caption=False):
    """Return the model of the epoch with the lowest validation loss, and the history of all epochs.

    The ablation repairs the recipe step by step: with another loss, and with one caption a photo and epoch.
    """
    torch.manual_seed(flags.seed)
    model = CLIP.from_config(config).to(start_process("auto"), memory_format=torch.channels_last).eval()
    for head in (model.image_head, model.text_head):
        torch.nn.init.zeros_(head.norm.bias)  # its random start is ours
    sets = {split: CaptionRows(splits[split], model,
                               features_of(model, splits[split], config, split))
            for split in ("train", "dev")}
    captions_of = splits["train"].reset_index().groupby("image", sort=False)["index"]
    groups = [{"params": [parameter], "lr": RATES.get(name.split(".")[0], RATES["heads"])}
              for name, parameter in model.named_parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    history, best = [], None
    for epoch in range(1, flags.epochs + 1):
        start, losses = time.perf_counter(), []
        model.train()
        pairs = sets["train"]
        if one_caption:
            pairs = Subset(pairs, captions_of.sample(1, random_state=1000 * flags.seed + epoch).tolist())
        loader = DataLoader(pairs, BATCH_SIZE, shuffle=True, collate_fn=sets["train"].collate)
        for batch in tqdm(loader, f"epoch {epoch}/{flags.epochs}", leave=False, disable=None):
            value = batch_loss(model, batch, loss)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
        model.eval()
        with torch.inference_mode():  # dev in row order, as they do
            checks = [batch_loss(model, batch, loss).item()
                      for batch in DataLoader(sets["dev"], BATCH_SIZE, collate_fn=sets["dev"].collate)]
        row = {"epoch": epoch, "train_loss": sum(losses) / len(losses), "dev_loss": sum(checks) / len(checks),
               "seconds": round(time.perf_counter() - start, 1)}
        history.append(row)
        losses = f"loss {row['train_loss']:.3f}  dev loss {row['dev_loss']:.3f}"
        print(f"epoch {epoch:>3}  {losses}  {row['seconds']} s", file=sys.stderr)
        if row["dev_loss"] == min(row["dev_loss"] for row in history):
            best = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best)
    return model.eval(), history


def config_of(flags):
    """Return the `Config` that builds their model out of our parts."""
    return replace(
        PRESETS["flickr8k"], data_dir=flags.data_dir, image_encoder=flags.image_encoder,
        text_encoder=flags.text_encoder, freeze=flags.freeze, pooling="cls", embedding_dim=256, head_dropout=0.1,
        image_dropout=0.0, text_dropout=0.0, image_depth=1.0, fix_batch_norm=False, seed=flags.seed)


def main(flags):
    config = config_of(flags)
    if (flags.run_dir / "best").exists():
        raise UserError(f"{flags.run_dir} already holds a run: name another --run-dir")
    splits = load_splits(config.data_dir, config.split_seed)
    model, history = train(flags, splits, config)
    with replacing(flags.run_dir / "best") as folder:
        model.save_pretrained(folder)
    (flags.run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")
    report = report_of(embed_split(model, splits["dev"], 64))
    print(f"{flags.run_dir / 'best'} on the {report['images']:,} photos of the dev split, recall in percent")
    print(recall_table(report))


if __name__ == "__main__":
    with one_line_errors():
        main(parse(SeedConfig))
