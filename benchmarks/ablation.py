"""What each lever of the recipe is worth: a row a lever, on the dev split.

    python benchmarks/ablation.py frozen --output benchmarks/results/ablation-frozen.md   # minutes
    python benchmarks/ablation.py towers --seeds 1 --output benchmarks/results/ablation-towers.md   # hours

`frozen` trains heads on the cached features of frozen towers: first the ancestors' recipe, repaired step by step,
then ours, with one thing changed at a time. `towers` fine-tunes, each row for as many epochs as --epochs says. Recall
is that of the ancestors' epoch with the lowest validation loss, as they choose it, and of our last epoch, so that we
choose nothing on dev. Seconds are those of training and of measuring dev, without the features of frozen towers. With
`--curve FILE` the mean recall of 1,000 train photos is measured after each epoch, too, and how far it is above dev is
drawn for some of the rows: overfitting is what limits training on 6,000 photos.
"""

import functools
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.errors import expect_ctrl_c, one_line_errors

if __name__ == "__main__":
    expect_ctrl_c()  # while the libraries load, too

import numpy as np
import timm
import torch
import torch.nn.functional as F
import tyro
from torch import nn

from benchmarks import seed_recipe
from config import PRESETS, parse
from dataset import load_splits
from evaluate import embed_split, mean_recall, report_of
from models import CLIP, clip_loss
from support.averaging import RunningMean
from support.drawn import save_figure
from support.files import write_file
from support.process import start_process
from support.run import Run
from train import heads_learn_first, make_phase, precompute, train_and_measure


@dataclass(frozen=True)
class AblationConfig:
    """Train and measure one row after the other."""

    part: tyro.conf.Positional[Literal["frozen", "towers"]]  # which table
    data_dir: Path = PRESETS["flickr8k"].data_dir  # dataset folder
    image_encoder: str = PRESETS["flickr8k"].image_encoder  # any timm name, or local-dir:PATH
    text_encoder: str = PRESETS["flickr8k"].text_encoder  # any name or folder for AutoModel
    epochs: int = 24  # of each row
    seeds: int = 3  # runs of each row
    only: str = ""  # run only the rows whose name contains this; "A|B": or that
    output: Path | None = None  # also write the table to this file
    curve: Path | None = None  # with frozen: also draw how far train is above dev, over the epochs


def unit_length(loss):
    """Return the loss of embeddings brought to unit length."""
    return lambda images, texts, scale: loss(F.normalize(images, dim=-1), F.normalize(texts, dim=-1), scale)


# ---------------------------------------------------------------- levers that are no settings, for they gave nothing


def mean_and_maximum(model):
    """Let the image tower pool its last map by the mean of mean and maximum."""
    pool = timm.layers.SelectAdaptivePool2d(pool_type="avgmax", flatten=True)
    model.image_encoder.backbone.global_pool = pool


LARGEST = (1, 2, 4, 8, 16, 1_000_000)  # the means of so many of the largest values are mixed; the last: of all


def means_of_largest(values, mask):
    """Return for each feature the mean of its K largest values, for each K of LARGEST: (B, 6 * F).

    values: (B, N, F), those of N cells or tokens. mask: (B, N) bool, True where there is one.
    """
    ordered = values.masked_fill(~mask.unsqueeze(2), -torch.inf).sort(dim=1, descending=True).values
    means = []
    for most in LARGEST:
        count = mask.sum(dim=1, keepdim=True).clamp(max=most)  # (B, 1)
        is_chosen = torch.arange(values.shape[1], device=values.device) < count  # (B, N)
        means.append(ordered.masked_fill(~is_chosen.unsqueeze(2), 0).sum(dim=1) / count)
    return torch.cat(means, dim=1)


class LargestOfMap(nn.Module):
    """Pools the last map of an image tower: (B, F, h, w) -> (B, 6 * F)."""

    def forward(self, cells):
        values = cells.flatten(2).transpose(1, 2)  # (B, h * w, F)
        everywhere = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        return means_of_largest(values, everywhere)


class Mixture(nn.Module):
    """A mean of the six pooled features, whose shares are learned: (..., 6 * F) -> (..., F)."""

    def __init__(self):
        super().__init__()
        self.shares = nn.Parameter(torch.zeros(len(LARGEST)))

    def forward(self, features):
        parts = features.unflatten(-1, (len(LARGEST), -1))  # (..., 6, F)
        return (parts * self.shares.softmax(dim=0).unsqueeze(1)).sum(dim=-2)


def learned_pooling_of_the_map(model):
    """Let the head of photos learn which mean of a feature's largest values to take (after Chen et al. 2021)."""
    model.image_encoder.backbone.global_pool = LargestOfMap()
    model.image_head = nn.Sequential(Mixture(), model.image_dropout, model.image_head)
    model.image_dropout = nn.Identity()


def learned_pooling_of_the_tokens(model):
    """The same for captions."""
    tower = model.text_encoder

    def forward(input_ids, attention_mask):
        hidden = tower.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, T, F)
        return means_of_largest(hidden, attention_mask.bool())

    tower.forward = forward
    tower.pooling = f"means of the largest {LARGEST}"  # the name under which features are kept
    model.text_head = nn.Sequential(Mixture(), model.text_dropout, model.text_head)
    model.text_dropout = nn.Identity()


def learned_pooling_of_both(model):
    learned_pooling_of_the_map(model)
    learned_pooling_of_the_tokens(model)


def hardest_negatives(model, margin=0.2):
    """Add the hinge of the hardest negative of each photo and caption (Faghri et al. 2018)."""
    plain = model.loss_of_pairs

    def loss_of_pairs(images, texts, *ids):
        scores = images @ texts.T  # (B, B)
        others = scores - 3 * torch.eye(len(scores), device=scores.device)  # the match is no negative
        of_images = F.relu(margin + others.amax(dim=1) - scores.diagonal())
        of_texts = F.relu(margin + others.amax(dim=0) - scores.diagonal())
        return plain(images, texts, *ids) + of_images.mean() + of_texts.mean()

    model.loss_of_pairs = loss_of_pairs


def taught_by_the_text_tower(model, share=0.3, temperature=0.05):
    """Soften the targets by how alike the frozen text tower finds the captions (as Huang et al. 2024)."""
    embed = model.forward

    def forward(batch):
        model.batch = batch
        return embed(batch)

    def loss(images, texts, *ids):
        scale = model.logit_scale.exp()
        losses = []
        for column, embeddings in enumerate(texts.unbind(dim=1)):  # (B, D)
            features = F.normalize(model.batch.text_features[:, column], dim=-1)
            alike = (features @ features.T / temperature).softmax(dim=1)  # (B, B)
            targets = (1 - share) * torch.eye(len(alike), device=alike.device) + share * alike
            logits = scale * images @ embeddings.T
            losses.append((F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2)
        return torch.stack(losses).mean()

    model.forward = forward
    model.loss = loss


# ---------------------------------------------------------------- the rows

# our recipe of 25 November
ONE_CAPTION = {"captions_alone": 1, "captions": 1, "image_dropout": 0.4, "text_dropout": 0.4}

REPAIRS = {  # the ancestors' recipe, and what of it is mended; each row keeps the repairs above it
    "ancestors' recipe": {},
    "+ embeddings of unit length": {"loss": unit_length(seed_recipe.unscaled)},
    "+ learned scale": {"loss": unit_length(seed_recipe.seed_loss)},
    "+ hard targets (the CLIP loss)": {"loss": unit_length(clip_loss)},
    "+ one caption a photo and epoch": {"loss": unit_length(clip_loss), "one_caption": True},
}
CURVES = [  # rows whose gap between train and dev is drawn
    "our recipe",
    "one caption a photo and step",
    "one caption, dropout of 0.4 on all features",
    "dropout of 0.4 on photos' features",
    "no dropout on features",
    "1,024 dimensions",
]
LEVERS = {  # changes of our recipe, one at a time
    "frozen": {
        "our recipe": {},
        "one caption a photo and step": {"captions_alone": 1},
        "two captions a photo and step": {"captions_alone": 2},
        "one caption, dropout of 0.4 on all features": ONE_CAPTION,
        "dropout of 0.4 on photos' features": {"image_dropout": 0.4},
        "dropout of 0.4 on captions' features": {"text_dropout": 0.4},
        "first token instead of mean": {"pooling": "cls"},
        "linear heads": {"head": "linear"},
        "no dropout on features": {"image_dropout": 0.0, "text_dropout": 0.0},
        "256 dimensions": {"embedding_dim": 256},
        "1,024 dimensions": {"embedding_dim": 1024},
        "dropout of 0.3 in the heads": {"head_dropout": 0.3},
        "no averaging": {"averaging": 0.0},
        "batch 32": {"batch_size": 32},
        "batch 128": {"batch_size": 128},
        "batch 512": {"batch_size": 512},
        "sigmoid loss": {"loss": "siglip"},
        "soft targets, detached": {"loss": "soft"},
        "soft targets from the text tower": {"change": taught_by_the_text_tower},
        "hardest negatives beside": {"change": hardest_negatives},
        "mean and maximum of the photo's map": {"change": mean_and_maximum},
        "learned pooling of the photo's map": {"change": learned_pooling_of_the_map},
        "learned pooling of the caption's tokens": {"change": learned_pooling_of_the_tokens},
        "learned pooling of both": {"change": learned_pooling_of_both},
    },
    "towers": {
        "our recipe": {},
        "one caption a photo and step": {"captions": 1},
        "one caption, dropout of 0.4 on all features": ONE_CAPTION,
        "both towers frozen": {"freeze": "both"},
        "image tower frozen": {"freeze": "image"},
        "text tower frozen": {"freeze": "text"},
        "image tower whole": {"image_depth": 1.0},
        "no heads first": {"heads_first": 0},
        "no crops, no mirroring": {"crop_scale": 1.0, "flip": False},
        "no dropout on features": {"image_dropout": 0.0, "text_dropout": 0.0},
        "no averaging": {"averaging": 0.0},
    },
}


def ours(flags, splits, config, change=None):
    """Train as train.py does, without its files; returns the report of the last epoch and the seconds of all.

    change: a function that changes the model before it trains.
    """
    torch.manual_seed(config.seed)
    model = CLIP.from_config(config).to(start_process("auto"), memory_format=torch.channels_last)
    if change:
        change(model)
    average = RunningMean(model, config.averaging)
    run = Run(config)
    gaps = []  # of each epoch: mean recall of 1,000 train photos less that of dev
    some, known = some_of_train(model, splits, config) if flags.curve else (None, None)
    phases = []
    if heads_learn_first(config):
        phases.append(("both", config.heads_first))
    phases.append((config.freeze, config.epochs))
    seconds = 0
    for frozen, epochs in phases:
        phase = make_phase(model, splits, config, frozen, epochs)
        for epoch in range(1, epochs + 1):
            row = train_and_measure(model, average, phase, run, epoch, splits, config)
            phase.forget_steps()
            seconds += row["seconds"]
            if flags.curve:
                on_train = mean_recall(report_of(embed_split(average.model, some, known=known)))
                gaps.append(on_train - row["mean_recall"])
    return {**row, "gaps": gaps}, seconds


def some_of_train(model, splits, config):
    """Return the captions table of 1,000 photos of train, and the features of the towers, which are frozen."""
    names = splits["train"]["image"].unique()[:1000]
    table = splits["train"][splits["train"]["image"].isin(names)].reset_index(drop=True)
    return table, precompute(model, table, config, "both", "train")


def draw_gaps(gaps, path):
    """Draw the gap between train and dev over the epochs: {row: [gap]}."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in gaps.items():
        axes.plot(range(1, len(values) + 1), values, label=name)
    axes.set(xlabel="epoch", ylabel="points of mean recall", title="how far 1,000 photos of train are above dev")
    axes.legend(fontsize=8)
    save_figure(figure, path, dpi=100)


def one_of_ours(flags, splits, base, changes, seed):
    """Return what `ours` returns for a row of LEVERS and a seed."""
    settings = {name: value for name, value in changes.items() if name != "change"}
    return ours(flags, splits, replace(base, seed=seed, **settings), changes.get("change"))


def ancestors(flags, splits, config, **repairs):
    """Train as the ancestors did, with repairs; returns the report of the epoch with the lowest validation loss."""
    flags = seed_recipe.SeedConfig(Path(), flags.data_dir, config.image_encoder, config.text_encoder, "both",
                                   flags.epochs, config.seed)
    config = seed_recipe.config_of(flags)
    model, history = seed_recipe.train(flags, splits, config, **repairs)
    report = report_of(embed_split(model, splits["dev"], 64))
    return report, sum(row["seconds"] for row in history)


def table_row(name, results):
    """Return one row of the Markdown table from the (report, seconds) of several seeds."""
    figures = np.array([[report[direction][key] for direction in ("text_to_image", "image_to_text")
                         for key in ("R@1", "R@5", "R@10")] for report, _ in results])  # (seeds, 6)
    spread = figures.mean(axis=1)
    cells = [" / ".join(f"{value:.1f}" for value in figures.mean(axis=0)[part]) for part in (slice(3), slice(3, 6))]
    seconds = np.mean([seconds for _, seconds in results])
    spread = f" ({spread.min():.1f} to {spread.max():.1f})" if len(results) > 1 else ""
    return f"| {name} | {cells[0]} | {cells[1]} | {figures.mean():.1f}{spread} | {seconds:.0f} |"


def main(flags):
    base = replace(PRESETS["flickr8k"], data_dir=flags.data_dir, image_encoder=flags.image_encoder,
                   text_encoder=flags.text_encoder, epochs=flags.epochs,
                   freeze="both" if flags.part == "frozen" else "none")
    splits = load_splits(base.data_dir, base.split_seed)
    runs = {}
    if flags.part == "frozen":
        runs |= {name: lambda seed, repairs=repairs: ancestors(flags, splits, replace(base, seed=seed), **repairs)
                 for name, repairs in REPAIRS.items()}
    for name, changes in LEVERS[flags.part].items():
        runs[name] = functools.partial(one_of_ours, flags, splits, base, changes)
    lines = [
        f"{flags.epochs} epochs, {flags.seeds} seed{'s' * (flags.seeds > 1)} a row, {Path(base.image_encoder).name} "
        f"and {Path(base.text_encoder).name}, torch {torch.__version__}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads", "",
        "| recipe | text -> image R@1/5/10 | image -> text R@1/5/10 | mean of six (lowest to highest seed) | seconds |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    gaps = {}
    for name, run in runs.items():
        if any(words in name for words in flags.only.split("|")):
            results = [run(seed) for seed in range(flags.seeds)]
            lines.append(table_row(name, results))
            if flags.curve and name in CURVES:
                gaps[name] = np.mean([report["gaps"] for report, _ in results], axis=0)
                draw_gaps(gaps, flags.curve)
            print(lines[-1], flush=True)
            if flags.output:  # after every row: a long table survives an interruption
                write_file(flags.output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    with one_line_errors():
        main(parse(AblationConfig))
