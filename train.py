"""Train CLIP on pictures and captions.

    python train.py                   # flickr8k when data/flickr8k is there, else the small drawn sample
    python train.py sample            # towers from scratch, no download, no GPU: minutes on two cores
    python train.py flickr8k          # pretrained ResNet50 + DistilBERT; CUDA and AMP when there is a GPU
    python train.py --resume          # go on with the newest run

A run writes runs/NAME/: best/ (the model directory with the highest mean recall on dev), last/ (the newest one, with
the state of the optimiser), metrics.jsonl (a line an epoch) and curves.png.
"""

from config import PRESETS, Config, UserError, differing_settings, one_line_errors, parse_train

if __name__ == "__main__":
    CONFIG, WHY = parse_train()  # before torch is imported, so that --help and a mistyped flag answer at once

import contextlib
import json
import math
import shutil
import sys
import time

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from data.sample_scenes import write_sample
from dataset import (
    SPLIT_FILES,
    CaptionDataset,
    inspect_dataset,
    load_splits,
    start_epoch,
    train_transform,
    training_loader,
)
from evaluate import evaluate_split, mean_recall, recall_table
from models import CLIP, resolve_device, resolve_dtype, write_json

# ---------------------------------------------------------------- data


def load_data(config):
    """Return the tables {"train", "dev", …} of captions whose photo is sound, and lines that report on the data."""
    if config.data_dir == PRESETS["sample"].data_dir and not config.data_dir.exists():
        write_sample(config.data_dir)
    splits = load_splits(config.data_dir, config.split_seed)
    faults = inspect_dataset(config.data_dir, config.split_seed)
    unusable = {*faults["missing"], *faults["unreadable"]}
    splits = {split: table[~table["image"].isin(unusable)].reset_index(drop=True) for split, table in splits.items()}
    split_of = {name: split for split, table in splits.items() for name in table["image"]}

    counts = ", ".join(f"{split} {table['image'].nunique():,}" for split, table in splits.items())
    lines = [f"{config.data_dir}: {sum(map(len, splits.values())):,} captions of photos: {counts}"]
    for what, items in (
        ("missing, left out", faults["missing"]),
        ("unreadable, left out", list(faults["unreadable"].values())),
        ("listed, but without captions", faults["without captions"]),
        ("in no split, not used", faults["in no split"]),
        ("in two splits, not trained on", faults["in two splits"]),
        ("the same photo byte for byte", [" = ".join(f"{name} ({split_of[name]})" for name in copies)
                                          for copies in faults["duplicates"]]),
    ):
        if items:
            more = f" and {len(items) - 5:,} more" if len(items) > 5 else ""
            lines.append(f"  {what}: {len(items):,} ({', '.join(items[:5])}{more})")
    for split, least in (("train", 2), ("dev", 1)):
        if split not in splits or splits[split]["image"].nunique() < least:
            raise UserError(
                f"{config.data_dir} needs at least {least} usable photos in {split}: list some in {SPLIT_FILES[split]} "
                f"or, without lists, add photos, or try --split-seed N. {'; '.join(map(str.strip, lines))}")
    if (count := splits["dev"]["image"].nunique()) < 20:
        lines.append(f"  dev has only {count} of them: its recall means little, and picks the best epoch by chance")
    return splits, lines


# ---------------------------------------------------------------- optimisation


def parameter_groups(model, config):
    """Return AdamW's parameter groups: a peak learning rate for each part, decay on matrices and kernels only."""
    parts = {"heads": (config.lr_heads, []), "image": (config.lr_image, []), "text": (config.lr_text, [])}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = {"image_encoder": "image", "text_encoder": "text"}.get(name.split(".")[0], "heads")
            parts[part][1].append(parameter)
    groups = []
    for part, (peak_lr, parameters) in parts.items():
        # Norms, biases and the logit scale have one dimension or none. Decay would pull them to 0, which means nothing.
        decayed = [parameter for parameter in parameters if parameter.ndim >= 2]
        others = [parameter for parameter in parameters if parameter.ndim < 2]
        for members, decay in ((decayed, config.weight_decay), (others, 0.0)):
            if members:
                groups.append({"params": members, "weight_decay": decay, "peak_lr": peak_lr, "part": part})
    return groups


def lr_share(step, steps, warmup):
    """Return the share of the peak learning rate at a step: linear rise over the warm-up, then a half cosine to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def train_one_epoch(model, loader, optimizer, scaler, config, epoch, last_checkpoint):
    """Show every photo once, but for a last, smaller batch.

    Returns {"train_loss" (mean), "first_loss" (of its first step), "lr_heads" (of its last), "samples_per_second"}.
    """
    device, autocast = model.logit_scale.device, model.autocast()
    start_epoch(loader, epoch)
    model.train()
    losses, start = [], time.perf_counter()
    bar = tqdm(loader, f"epoch {epoch}/{config.epochs}", leave=False, unit="step", disable=None)
    for index, batch in enumerate(bar):
        step = (epoch - 1) * len(loader) + index
        share = lr_share(step, config.epochs * len(loader), config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak_lr"]

        pixels, input_ids, attention_mask = (tensor.to(device, non_blocking=True) for tensor in batch)
        with autocast:
            image_embeddings, text_embeddings = model(pixels, input_ids, attention_mask)  # (B, D), (B, D)
        loss = model.loss(image_embeddings, text_embeddings)  # in float32: softmax over similarities needs the digits

        optimizer.zero_grad(set_to_none=True)
        # The scaler keeps small fp16 gradients from vanishing; in bf16 and float32 it is disabled and does nothing.
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        losses.append(loss.item())
        # fp16 overflows now and then: the scaler skips that step and halves its scale. Anything else is a real fault.
        overflow = scaler.is_enabled() and scaler.get_scale() > 1
        if not math.isfinite(losses[-1]) or not (overflow or math.isfinite(norm)):
            rates = ", ".join(f"{group['part']} {group['lr']:.2g}" for group in optimizer.param_groups)
            raise UserError(
                f"stopped at step {step + 1} (epoch {epoch}): loss {losses[-1]}, gradient norm {norm:.3g}, learning "
                f"rates {rates}. Last good checkpoint: {last_checkpoint}. Try lower learning rates or --precision fp32")
        scaler.step(optimizer)
        scaler.update()
        model.clamp_logit_scale()
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    seen = len(losses) * loader.batch_size
    return {
        "train_loss": sum(losses) / len(losses), "first_loss": losses[0], "lr_heads": share * config.lr_heads,
        "samples_per_second": round(seen / (time.perf_counter() - start), 1),
    }


# ---------------------------------------------------------------- checkpoints


@contextlib.contextmanager
def replacing(directory):
    """Yield a new folder that takes the place of `directory` once everything in it has been written.

    Until then the previous one stays. A kill between the two renames leaves it as `.NAME.old`: `config.recover`.
    """
    new, old = (directory.with_name(f".{directory.name}.{suffix}") for suffix in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def save_last(run_dir, model, optimizer, scaler, progress):
    """Write last/: a model directory and the state of the trainer, as safetensors and JSON; nothing is pickled."""
    with replacing(run_dir / "last") as folder:
        model.save_pretrained(folder)
        slots = {f"{index}.{key}": value.contiguous() for index, slot in optimizer.state_dict()["state"].items()
                 for key, value in slot.items()}
        save_file(slots, folder / "optimizer.safetensors")
        write_json(folder / "trainer.json", {**progress, "scaler": scaler.state_dict()})


def load_last(run_dir, optimizer, scaler):
    """Restore the state that `save_last` wrote; returns the progress {"epoch", "best", "history"}."""
    state = {}
    for name, value in load_file(run_dir / "last" / "optimizer.safetensors").items():
        index, key = name.split(".")  # number of the parameter; step, exp_avg or exp_avg_sq
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, slots in optimizer.state.items():  # in the memory order of its parameter, as fused AdamW expects
        slots.update({key: torch.empty_like(parameter).copy_(value) for key, value in slots.items() if value.ndim})
    progress = json.loads((run_dir / "last" / "trainer.json").read_text(encoding="utf-8"))
    if scaling := progress.pop("scaler"):  # empty unless the run was in fp16, which on another GPU it need not be
        scaler.load_state_dict(scaling)
    return progress


def check_run_dir(config):
    """Refuse to overwrite a run, and to resume one with settings that would make it another run."""
    if config.run_dir.exists() and not config.run_dir.is_dir():
        raise UserError(f"--run-dir {config.run_dir} is a file: name a folder")
    if not config.resume:
        if (config.run_dir / "last").exists():
            raise UserError(f"{config.run_dir} already holds a run: add --resume to go on, or name another --run-dir")
        return
    saved = Config.load(config.run_dir / "last" / "config.json")
    harmless = ("resume ", "run_dir ", "device ", "workers ", "data_dir ", "epochs ")
    if changes := [change for change in differing_settings(saved, config) if not change.startswith(harmless)]:
        raise UserError(f"{config.run_dir} cannot go on with other settings ({', '.join(changes)}): drop these flags")


# ---------------------------------------------------------------- what a run shows


def write_history(history, path):
    """Write metrics.jsonl, a line an epoch. The whole file in one rename: a kill leaves no half line."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")
    temporary.replace(path)


def draw_curves(history, path):
    """Draw training loss, recall on dev and the logit scale over the epochs."""
    from matplotlib.figure import Figure  # here, because it costs half a second and needs no display this way

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    loss, recall, scale = figure.subplots(1, 3)
    loss.plot(epochs, [row["train_loss"] for row in history], marker=".")
    loss.set(title="training loss", xlabel="epoch")
    for direction, style in (("text_to_image", "-"), ("image_to_text", "--")):
        for key, colour in (("R@1", "C0"), ("R@5", "C1"), ("R@10", "C2")):
            values = [row[direction][key] for row in history]
            recall.plot(epochs, values, style, color=colour, label=f"{direction.replace('_', ' ')} {key}")
    recall.set(title="recall on dev, percent", xlabel="epoch", ylim=(0, 100))
    recall.legend(fontsize=6)
    scale.plot(epochs, [row["logit_scale"] for row in history], marker=".")
    scale.set(title="logit scale (1 / temperature)", xlabel="epoch")
    figure.savefig(path, dpi=110)


def epoch_line(row, epochs):
    """Return one line for people about an epoch."""
    recalls = "  ".join(
        f"{arrow} " + "/".join(f"{row[direction][key]:.1f}" for key in ("R@1", "R@5", "R@10"))
        for arrow, direction in (("text->image", "text_to_image"), ("image->text", "image_to_text")))
    loss, seconds = f"loss {row['train_loss']:.3f}", f"{row['seconds']:.1f} s"
    return f"epoch {row['epoch']:>3}/{epochs}  {loss}  dev R@1/5/10 {recalls}  {seconds}"


# ---------------------------------------------------------------- the run


def main(config, why):
    print(why)
    check_run_dir(config)
    device = resolve_device(config.device)
    dtype = resolve_dtype(device, config.precision)
    splits, report = load_data(config)
    print("\n".join(report))

    image, text = config.image_encoder, config.text_encoder
    weights = "pretrained" if config.pretrained else "random weights"
    text_weights = "random weights" if text == "scratch" else weights
    print(f"towers: {image} ({weights}) and {text} ({text_weights}); frozen: {config.freeze}", flush=True)
    if not config.pretrained and (image.startswith("local-dir:") or text != "scratch"):
        print("the weights of the towers named are not used: add --pretrained to start from them")
    torch.manual_seed(config.seed)
    if config.resume:
        model = CLIP.from_pretrained(config.run_dir / "last")
        model.config = config
    else:
        model = CLIP.from_config(config, splits["train"]["caption"])
    model.to(device, memory_format=torch.channels_last)
    size, tower = model.config.image_size, model.text_encoder
    transform = train_transform(size, config.crop_scale, config.flip)
    pairs = CaptionDataset(
        splits["train"], config.data_dir, tower.tokenizer, transform, tower.max_tokens, config.seed)
    loader = training_loader(pairs, config.batch_size, config.workers, pin_memory=device.type == "cuda")
    optimizer = torch.optim.AdamW(parameter_groups(model, config), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    progress = {"epoch": 0, "best": -1.0, "history": []}
    if config.resume:
        progress = load_last(config.run_dir, optimizer, scaler)
        print(f"going on after epoch {progress['epoch']} of {config.epochs}" if progress["epoch"] < config.epochs else
              f"all {config.epochs} epochs are done: add --epochs N to train on")

    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"{trained:,} of {total:,} parameters, {size} px, on {device} in {str(dtype).removeprefix('torch.')}\n"
          f"{config.epochs} epochs of {len(loader)} steps of {loader.batch_size} pairs, into {config.run_dir}")
    if loader.batch_size < config.batch_size:
        print(f"--batch-size {config.batch_size} is more than the {len(pairs)} training photos: using {len(pairs)}")

    for epoch in range(progress["epoch"] + 1, config.epochs + 1):
        start = time.perf_counter()
        last_checkpoint = config.run_dir / "last" if epoch > 1 else "none yet"
        row = train_one_epoch(model, loader, optimizer, scaler, config, epoch, last_checkpoint)
        model.eval()
        recall, _ = evaluate_split(model, splits["dev"], config.data_dir, config.batch_size, config.workers)
        row = {"epoch": epoch, **row, "logit_scale": model.logit_scale.exp().item(), **recall,
               "mean_recall": mean_recall(recall), "seconds": round(time.perf_counter() - start, 2)}
        if row["mean_recall"] > progress["best"]:
            progress["best"] = row["mean_recall"]
            with replacing(config.run_dir / "best") as folder:
                model.save_pretrained(folder)
        progress["epoch"] = epoch
        progress["history"].append(row)
        save_last(config.run_dir, model, optimizer, scaler, progress)
        write_history(progress["history"], config.run_dir / "metrics.jsonl")
        draw_curves(progress["history"], config.run_dir / "curves.png")
        print(epoch_line(row, config.epochs), flush=True)

    best = CLIP.from_pretrained(config.run_dir / "best").to(device)
    split = "test" if "test" in splits and len(splits["test"]) else "dev"
    recall, _ = evaluate_split(best, splits[split], config.data_dir, config.batch_size, config.workers)
    print(f"{config.run_dir / 'best'} on the {recall['images']:,} photos of the {split} split, recall in percent")
    print(recall_table(recall))
    print('next: python inference.py --query "people sitting near the beach"')


if __name__ == "__main__":
    with one_line_errors():
        try:
            main(CONFIG, WHY)
        except KeyboardInterrupt:
            saved = (CONFIG.run_dir / "last").exists()
            print(f"\nstopped; go on with: python train.py --resume --run-dir {CONFIG.run_dir}" if saved else
                  "\nstopped before the end of the first epoch: nothing is saved")
            sys.exit(130)
