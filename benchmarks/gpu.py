"""Samples a second of the flickr8k preset on one GPU, and what bounds them: products, memory, or the loader.

    python benchmarks/gpu.py --workers 8

Random weights, ResNet50 at 224 pixels and DistilBERT at 24 tokens, one caption a photo, all layers training, in the
step of train.py: forward, loss, backward, clipping, AdamW and averaging. Each batch size is timed with pixels that are
on the device already, and fed by the training loader from a cache of drawn pixels. Peaks are measured beside it: a
large bfloat16 product, and a large copy. FLOPs are counted as in training_step.py. Bytes are an estimate, not a count:
see `traffic`.
"""

import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.errors import expect_ctrl_c, one_line_errors

if __name__ == "__main__":
    expect_ctrl_c()  # while the libraries load, too

import numpy as np
import pandas as pd
import torch
from transformers import DistilBertConfig

from benchmarks.training_step import GFLOP
from config import PRESETS, parse
from dataset import CaptionDataset, Precomputed, start_epoch, train_transform, training_loader
from models import CLIP
from support.averaging import RunningMean
from support.kept import DecodedPhotos
from support.process import start_process
from support.wordpiece import train_tokenizer
from train import parameter_groups

CAPTION = " ".join(["dog"] * 22)  # 24 tokens with the one of the start and the one of the end


@dataclass(frozen=True)
class GpuConfig:
    """Time the training step on a GPU."""

    batch_sizes: tuple[int, ...] = (256, 1024)  # pairs a step
    workers: int = 8  # processes of the loader (never more than cores)
    steps: int = 20  # timed, after three that warm up
    photos: int = 4096  # drawn pixels in the cache; a pass of the loader lasts no longer than these


def set_up(folder, flags, **changes):
    """Return a model in training, and for each batch size a loader of a cache of random pixels."""
    tokenizer = train_tokenizer(["dog"], 64)
    tokenizer.save_pretrained(folder)
    DistilBertConfig().save_pretrained(folder)
    config = replace(PRESETS["flickr8k"], pretrained=False, **{"text_encoder": str(folder), **changes})
    torch.manual_seed(0)
    model = CLIP.from_config(config, [CAPTION]).to(start_process("auto"), memory_format=torch.channels_last).train()
    size, path = model.config.image_size, Path(folder) / "pixels.rgb"
    np.random.default_rng(0).integers(256, size=(flags.photos, size, size, 3), dtype=np.uint8).tofile(path)
    table = pd.DataFrame({"image": [f"{row}.jpg" for row in range(flags.photos)]})
    table["path"] = table["original"] = table["image"]
    table["caption"] = CAPTION
    transform = train_transform(size, config.crop_scale, config.flip)
    known = Precomputed(DecodedPhotos(path, size))
    pairs = CaptionDataset(table, model.text_encoder.tokenizer, transform, size, 64, known=known)
    pairs.caption_ids = torch.arange(flags.photos)  # as if no two were equal, and so all negatives of each other
    pin = model.logit_scale.device.type == "cuda"
    return model, [training_loader(pairs, count, flags.workers, pin) for count in flags.batch_sizes]


def batches(loader):
    """Yield the batches of one epoch after another."""
    for epoch in range(1, 1_000_000):
        start_epoch(loader, epoch)
        yield from loader


def rate(model, source, steps):
    """Return samples a second of the training step over the batches of an iterator."""
    device, average, start = model.device, RunningMean(model, 0.97), None
    optimizer = torch.optim.AdamW(parameter_groups(model, model.config), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=model.compute_dtype() == torch.float16)
    average.follow(model)
    for index in range(3 + steps):
        if index == 3:
            start = wait(device)
        batch = next(source).to(device)
        with model.autocast():
            embeddings = model(batch)
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(*embeddings, batch.photo_ids, batch.caption_ids)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), model.config.grad_clip)
        loss.item()  # train.py looks at every loss
        scaler.step(optimizer)
        scaler.update()
        average.update(index)
    return steps * len(batch.photo_rows) / (wait(device) - start)


def wait(device):
    """Return the time once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def best_seconds(work, device):
    """Return the shortest time of ten runs."""
    seconds = []
    for _ in range(10):
        start = wait(device)
        work()
        seconds.append(wait(device) - start)
    return min(seconds)


def peaks(device, size=8192):
    """Return TFLOP/s of a bfloat16 matrix product, and TB/s of a copy (read and written)."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    product = 2 * size**3 / best_seconds(lambda: a @ b, device) / 1e12
    source = torch.empty(4 * size * size, device=device)
    target = torch.empty_like(source)
    return product, 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device) / 1e12


def traffic(model, batch):
    """Return an estimate of the GB of memory that a sample's step moves: activations and half-precise gradients.

    Every output of a layer is written and read in the forward pass, read again in the backward pass, and its gradient
    is written and read: five times its bytes. Weights are left out: large batches share them. What the compiler or a
    library fuses is less, what a normalisation reads twice is more.
    """
    sizes = []

    def count(module, arguments, output):
        if isinstance(output, torch.Tensor) and not list(module.children()):
            sizes.append(output.nbytes)

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    with torch.no_grad(), model.autocast():
        model(batch)
    for hook in hooks:
        hook.remove()
    return 5 * sum(sizes) / len(batch.photo_rows) / 1e9


def main(flags):
    if not torch.cuda.is_available():
        return print("no GPU here: torch.cuda.is_available() is False, nothing is measured")
    device = start_process("cuda")
    with tempfile.TemporaryDirectory() as folder:
        model, loaders = set_up(folder, flags)
        flops, bandwidth = peaks(device)
        print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {model.compute_dtype()}: products "
              f"{flops:.0f} TFLOP/s, copies {bandwidth:.2f} TB/s; {flags.workers} workers, {flags.steps} steps\n\n"
              "| batch | samples/s, pixels there | of products | of memory (estimate) | samples/s, loader "
              "| loader's share of the time | peak GB |\n|---|---|---|---|---|---|---|", flush=True)
        for loader in loaders:
            batch = next(batches(loader)).to(device)
            gigabytes = traffic(model, batch.in_parts(32)[0])
            gflop = GFLOP[0] + GFLOP[1] * batch.input_ids[0].numel()
            torch.cuda.reset_peak_memory_stats()
            there = rate(model, iter(lambda batch=batch: batch, None), flags.steps)
            fed = rate(model, batches(loader), flags.steps)
            peak = torch.cuda.max_memory_allocated() / 1e9
            print(f"| {len(batch.photo_rows):,} | {there:,.0f} | {100 * there * gflop / flops / 1e3:.0f} % "
                  f"| {100 * there * gigabytes / bandwidth / 1e3:.0f} % | {fed:,.0f} "
                  f"| {100 * max(0, 1 - fed / there):.0f} % | {peak:.1f} |", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main(parse(GpuConfig))
