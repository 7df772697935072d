"""A training step of ResNet50 and DistilBERT, random weights: the ancestors', ours, and ours in micro-batches.

    python benchmarks/training_step.py --batch-size 32 --micro-batch 8
    python benchmarks/training_step.py --batch-size 256 --limits 4 8 16 24 --steps 1    # GB of memory

The ancestors' step: float32, captions padded to 200 tokens, their loss, plain AdamW. Ours is that of train.py: bfloat16
where the processor has it, channels last, captions padded to the longest of like length, gradient clipping, fused AdamW
and the running mean; all layers train in both, and photos come with one caption. Each way runs in processes of its own,
turn by turn, so that the peak of its memory is its own. The last lines give the share of the measured matrix-product
peak of this machine.
"""

import itertools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.errors import UserError, expect_ctrl_c, one_line_errors, shortened

if __name__ == "__main__":
    expect_ctrl_c()  # while the libraries load, too

import numpy as np
import torch
from transformers import DistilBertConfig

from benchmarks.seed_recipe import RATES, WEIGHT_DECAY, batch_loss, unscaled
from config import PRESETS, parse
from data.sample_scenes import all_scenes, captions_of
from dataset import Batch, pad, tokenize
from models import CLIP, TextEncoder
from support.averaging import RunningMean
from support.big_batch import MicroBatches
from support.memory import pages_of_this_process, pairs_that_fit
from support.process import start_process
from support.wordpiece import train_tokenizer
from train import parameter_groups

GFLOP = 24.3, 6.2 / 24  # forward and backward: of a photo at 224 pixels in ResNet50, of a token in DistilBERT


@dataclass(frozen=True)
class StepConfig:
    """Time a training step."""

    batch_size: int = 32  # pairs
    micro_batch: int = 8  # pairs at a time, for the third way
    steps: int = 3  # timed in each process, after one that warms up
    rounds: int = 3  # processes of each way
    limits: tuple[float, ...] = ()  # GB of memory: instead, a step in the parts that train.py would choose
    image_encoder: str = "resnet50"  # any timm name
    text_layers: int = 6  # of the DistilBERT
    way: Literal["all", "ancestors", "ours", "ours, micro-batches", "what fits"] = "all"  # one: run it in this process


def set_up(flags):
    """Return a model and the captions of a batch as token ids."""
    scenes, rng = all_scenes(), np.random.default_rng(0)
    captions = [captions_of(scenes[row], rng)[0] for row in rng.choice(len(scenes), flags.batch_size, replace=False)]
    with tempfile.TemporaryDirectory() as folder:  # DistilBERT's architecture, with a small vocabulary in use
        train_tokenizer(captions, 512).save_pretrained(folder)
        DistilBertConfig(n_layers=flags.text_layers).save_pretrained(folder)
        config = replace(PRESETS["flickr8k"], pretrained=False, image_encoder=flags.image_encoder, image_size=224,
                         text_encoder=folder, max_tokens=200,
                         micro_batch=flags.micro_batch if "micro" in flags.way else 0)
        torch.manual_seed(0)
        model = CLIP.from_config(config).train()
    return model, tokenize(model.text_encoder.tokenizer, captions, 200)


def steps(flags):
    """Yield after each training step of one way."""
    model, token_ids = set_up(flags)
    pixels = torch.randint(0, 256, (flags.batch_size, 3, 224, 224), dtype=torch.uint8)
    input_ids, mask = pad(token_ids, model.text_encoder.pad_id)
    if flags.way == "ancestors":
        model.config = replace(model.config, precision="fp32")
        model.image_encoder.to(memory_format=torch.contiguous_format)
        model.image_encoder.forward = lambda pixels: model.image_encoder.backbone(pixels)
        model.text_encoder.forward = partial(TextEncoder.forward.__wrapped__, model.text_encoder)
        pixels = ((pixels - model.image_encoder.mean) / model.image_encoder.std).contiguous()
        input_ids, mask = (torch.nn.functional.pad(tensor, (0, 200 - tensor.shape[1])) for tensor in (input_ids, mask))
        groups = [{"params": [parameter], "lr": RATES.get(name.split(".")[0], RATES["heads"])}
                  for name, parameter in model.named_parameters()]
        optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
        while True:
            optimizer.zero_grad()
            batch_loss(model, (pixels, input_ids, mask), unscaled).backward()
            optimizer.step()
            yield
    model.to(start_process("cpu"), memory_format=torch.channels_last)
    pixels, average = pixels.contiguous(memory_format=torch.channels_last), RunningMean(model, 0.97)
    optimizer = torch.optim.AdamW(parameter_groups(model, model.config), fused=True)
    average.follow(model)
    rows = torch.arange(len(pixels))
    batch = Batch(rows, rows, rows[:, None], pixels, input_ids[:, None], mask[:, None], None, None)
    micro_batch = {"ours": flags.batch_size, "ours, micro-batches": flags.micro_batch}.get(flags.way)
    if micro_batch is None:  # under a limit, which counts addresses, of which a program has many that it does not use
        addresses, resident = pages_of_this_process()
        limit = round(flags.limits[0] * 1e9) + addresses - resident
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        micro_batch = pairs_that_fit(model, lambda count: batch.in_parts(count)[0], flags.batch_size)
        print(micro_batch, file=sys.stderr)
    forward = MicroBatches(model, micro_batch) if micro_batch < flags.batch_size else model
    for step in itertools.count():
        with model.autocast():
            embeddings = forward(batch)
        optimizer.zero_grad(set_to_none=True)
        model.loss(*embeddings, batch.photo_ids, batch.caption_ids).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), model.config.grad_clip)
        optimizer.step()
        average.update(step)
        yield


def measure(flags):
    """Print the median seconds of a step, the peak of memory in MB, and the tokens of a caption."""
    tokens = statistics.mean(map(len, set_up(flags)[1]))
    step, seconds = steps(flags), []
    for _ in range(1 + flags.steps):
        start = time.perf_counter()
        next(step)
        seconds.append(time.perf_counter() - start)
    print(statistics.median(seconds[1:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, tokens)


def peak_gflops(dtype, size=4096):
    """Return the speed of a large matrix product in GFLOP/s, the best of five."""
    a, seconds = torch.randn(size, size).to(dtype), []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def run(flags, way, *more):
    """Measure one way in a process of its own; returns its figures and what it says on standard error."""
    command = [sys.executable, __file__, "--way", way, "--steps", str(flags.steps), "--batch-size",
               str(flags.batch_size), "--micro-batch", str(flags.micro_batch), "--image-encoder", flags.image_encoder,
               "--text-layers", str(flags.text_layers), *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(shortened(done.stderr.strip().splitlines()[-1]))
    return tuple(map(float, done.stdout.splitlines()[-1].split())), done.stderr


def under_limits(flags):
    """Print in which parts a batch is computed where memory is scarce, how long that takes, and its peak."""
    print("| memory, GB | pairs at a time | seconds a step | peak, GB |\n|---|---|---|---|")
    for limit in flags.limits:
        try:
            (seconds, megabytes, _), said = run(flags, "what fits", "--limits", str(limit))
        except UserError:
            print(f"| {limit:g} | does not fit | | |", flush=True)
            continue
        print(f"| {limit:g} | {said.split()[-1]} of {flags.batch_size} | {seconds:.1f} | {megabytes / 1024:.1f} |",
              flush=True)


def main(flags):
    if flags.way != "all":
        return measure(flags)
    if flags.limits:
        return under_limits(flags)
    runs = {way: [] for way in ("ancestors", "ours", "ours, micro-batches")}
    for _ in range(flags.rounds):
        for way in runs:
            runs[way].append(run(flags, way)[0])
    tokens = runs["ours"][0][2]
    print(f"batch {flags.batch_size}, micro-batch {flags.micro_batch}, {tokens:.0f} tokens a caption, {flags.rounds} "
          f"processes of {flags.steps} steps, torch {torch.__version__}, {torch.get_num_threads()} threads\n\n"
          "| step | samples a second (median, range) | x ancestors | peak memory, GB |\n|---|---|---|---|")
    rates = {way: [flags.batch_size / seconds for seconds, _, _ in results] for way, results in runs.items()}
    first = statistics.median(rates["ancestors"])
    for way, results in runs.items():
        median, memory = statistics.median(rates[way]), statistics.median(result[1] for result in results) / 1024
        print(f"| {way} | {median:.1f} ({min(rates[way]):.1f} to {max(rates[way]):.1f}) | {median / first:.1f} "
              f"| {memory:.1f} |")
    dtype, gflop = CLIP.from_config(PRESETS["sample"], ["a"]).compute_dtype(), GFLOP[0] + GFLOP[1] * tokens
    peak = peak_gflops(dtype)
    print(f"\nmatrix products reach {peak:.0f} GFLOP/s in {dtype}; ours uses "
          f"{100 * gflop * statistics.median(rates['ours']) / peak:.0f} % of that ({gflop:.1f} GFLOP a sample)")


if __name__ == "__main__":
    with one_line_errors():
        main(parse(StepConfig))
