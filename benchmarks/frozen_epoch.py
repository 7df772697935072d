"""An epoch with frozen towers: the ancestors', whose towers run in every step, and ours, from cached features.

    python benchmarks/frozen_epoch.py --image-encoder resnet50 --text-encoder distilbert-base-uncased

Theirs: photos decoded and towers run anew for every pair, float32, batches of 32, captions padded to 200 tokens; a few
steps are timed, and scaled to the epoch. Ours is train.py's: the pass that makes the features, once for all epochs, is
reported apart; then an epoch is drawing captions, heads, loss, clipping, AdamW and averaging. Both show one caption
a photo, to compare; train.py shows five, in about twice the time. Data of fewer photos is repeated. Without
--pretrained the towers have random weights: the work is the same.
"""

import copy
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.errors import expect_ctrl_c, one_line_errors

if __name__ == "__main__":
    expect_ctrl_c()  # while the libraries load, too

import pandas as pd
import torch
import torch.nn.functional as F

from benchmarks.seed_recipe import BATCH_SIZE, RATES, WEIGHT_DECAY, CaptionRows, batch_loss, unscaled
from config import PRESETS, parse
from data.sample_scenes import write_sample
from dataset import (
    NOTHING_KNOWN,
    CaptionDataset,
    Precomputed,
    load_splits,
    train_transform,
    training_loader,
)
from models import CLIP, TextEncoder
from support.averaging import RunningMean
from support.process import start_process
from support.run import Run
from train import Phase, parameter_groups, precompute, train_one_epoch


@dataclass(frozen=True)
class EpochConfig:
    """Time an epoch of the heads."""

    data_dir: Path | None = None  # dataset folder; None: the bundled sample, drawn into a temporary folder
    image_encoder: str = PRESETS["flickr8k"].image_encoder  # any timm name, or local-dir:PATH
    text_encoder: str = "scratch"  # any name or folder for AutoModel, or a small one
    pretrained: bool = False  # with the weights of these towers
    photos: int = 512  # photos to embed; their features are repeated to make up the pairs
    pairs: int = 30_000  # of an epoch
    steps: int = 2  # of the ancestors that are timed in each round
    rounds: int = 3  # alternating


def ancestors(model, table, data_dir):
    """Yield the seconds of a pair after each step as the ancestors take it."""
    model = copy.deepcopy(model)
    model.config = replace(model.config, precision="fp32", image_dropout=0.0, text_dropout=0.0)
    model.image_dropout.p = 0.0
    model.text_dropout.p = 0.0
    model.image_encoder.to(memory_format=torch.contiguous_format)
    rows = CaptionRows(table, model, NOTHING_KNOWN)
    groups = [{"params": [parameter], "lr": RATES["heads"]} for parameter in model.parameters()
              if parameter.requires_grad]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    # whole batches, padding and all
    model.text_encoder.forward = partial(TextEncoder.forward.__wrapped__, model.text_encoder)
    model.train()
    while True:
        for start in range(0, len(rows) - BATCH_SIZE + 1, BATCH_SIZE):
            begun = time.perf_counter()
            pixels, *texts = rows.collate([rows[row] for row in range(start, start + BATCH_SIZE)])
            longest = min(200, model.text_encoder.max_tokens)
            texts = [F.pad(tensor, (0, longest - tensor.shape[1])) for tensor in texts]
            optimizer.zero_grad()
            batch_loss(model, (pixels.contiguous(), *texts), unscaled).backward()
            optimizer.step()
            yield (time.perf_counter() - begun) / BATCH_SIZE


def repeated(table, cached, pairs):
    """Return a captions table of that many photos and its features, made of those given over and over."""
    names, images = list(table["image"].unique()), len(cached.image_features)
    copies = -(-pairs // images)
    tables = [table.assign(image=[f"{copy}/{name}" for name in table["image"]]) for copy in range(copies)]
    whole = pd.concat(tables, ignore_index=True)
    kept = whole["image"].isin(set([f"{copy}/{name}" for copy in range(copies) for name in names][:pairs]))
    features = Precomputed(
        image_features=cached.image_features.repeat(copies, 1)[:pairs],
        text_features=cached.text_features.repeat(copies, 1)[kept],
    )
    return whole[kept].reset_index(drop=True), features


def ours(model, table, cached, flags):
    """Yield the seconds of a pair after each epoch as train.py runs it."""
    table, cached = repeated(table, cached, flags.pairs)
    config, tower = replace(model.config, epochs=1 + flags.rounds), model.text_encoder
    transform = train_transform(model.config.image_size)
    pairs = CaptionDataset(table, tower.tokenizer, transform, model.config.image_size, tower.max_tokens, 0, cached)
    loader = training_loader(pairs, config.batch_size)
    phase = Phase(
        pairs=pairs,
        loader=loader,
        micro_batch=loader.batch_size,
        forward=model,
        weights=[parameter for parameter in model.parameters() if parameter.requires_grad],
        optimizer=torch.optim.AdamW(parameter_groups(model, config), fused=True),
        scaler=torch.amp.GradScaler(enabled=False),
        epochs=config.epochs,
        warmup=config.warmup,
        device=model.device,
        chance_loss=None,
        dev_precomputed=NOTHING_KNOWN,
        dev_loader=None,  # nothing is measured
    )
    average = RunningMean(model, config.averaging)
    run = Run(config)
    for epoch in range(1, 2 + flags.rounds):
        start = time.perf_counter()
        train_one_epoch(model, average, phase, run, epoch, config)
        phase.forget_steps()
        yield (time.perf_counter() - start) / (len(loader) * loader.batch_size)


def main(flags):
    with tempfile.TemporaryDirectory() as folder:
        data_dir = flags.data_dir or Path(folder) / "sample"
        if not flags.data_dir:
            write_sample(data_dir, train=flags.photos, dev=20, test=20)
        config = replace(PRESETS["flickr8k"], image_encoder=flags.image_encoder, text_encoder=flags.text_encoder,
                         pretrained=flags.pretrained, max_tokens=200)
        table = load_splits(data_dir)["train"]
        table = table[table["image"].isin(table["image"].unique()[: flags.photos])].reset_index(drop=True)
        torch.manual_seed(0)
        model = CLIP.from_config(config, table["caption"]).to(start_process("cpu"), memory_format=torch.channels_last)
        model.freeze("both")
        start = time.perf_counter()
        cached = precompute(model.eval(), table, replace(config, data_dir=data_dir, workers=0), "both", "train")
        embedding = time.perf_counter() - start
        theirs, own = ancestors(model, table, data_dir), ours(model, table, cached, flags)
        next(theirs), next(own)  # these warm up
        seconds = {"ancestors": [], "ours, from cached features": []}
        for _ in range(flags.rounds):
            seconds["ancestors"].append(flags.pairs * statistics.mean(next(theirs) for _ in range(flags.steps)))
            seconds["ours, from cached features"].append(flags.pairs * next(own))
    print(f"{flags.pairs:,} pairs, {Path(flags.image_encoder).name} ({model.image_encoder.feature_dim} wide) and "
          f"{Path(flags.text_encoder).name} ({model.text_encoder.feature_dim}), {flags.rounds} rounds; ancestors: "
          f"{flags.steps} steps of {BATCH_SIZE} a round, scaled; torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads\n\n| epoch | seconds (median, range) | x ancestors |\n|---|---|---|")
    first = statistics.median(seconds["ancestors"])
    for way, values in seconds.items():
        median = statistics.median(values)
        print(f"| {way} | {median:,.2f} ({min(values):,.2f} to {max(values):,.2f}) | {first / median:,.0f} |")
    photos = len(cached.image_features)
    print(f"\nfeatures, once: {embedding:.1f} s for {photos:,} photos and {len(cached.text_features):,} captions "
          f"({embedding / photos * flags.pairs:,.0f} s for {flags.pairs:,}), or less where they were on disk")


if __name__ == "__main__":
    with one_line_errors():
        main(parse(EpochConfig))
