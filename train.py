"""Train CLIP on pictures and captions.

    python train.py                   # flickr8k when data/flickr8k is there, else the small drawn sample
    python train.py sample            # towers from scratch, no download, no GPU: minutes on two cores
    python train.py flickr8k          # pretrained ResNet50 + DistilBERT; CUDA and AMP when there is a GPU
    python train.py --resume          # go on with the newest run
    torchrun --nproc-per-node=4 train.py flickr8k     # four GPUs: one batch and one loss over all of them

Pretrained towers are good and new heads are not: the heads first learn alone, on features that the towers make once
(seconds); then the upper layers of the towers join in. What is evaluated and kept is a running mean of the weights.

A run writes runs/NAME/: best/ (the model directory with the highest mean recall on dev), last/ (the newest one, with
the state of the trainer), metrics.jsonl (a line an epoch), and pictures to look at: curves.png, similarity-dev.png and
worst-dev.png.
"""

from config import (
    PRESETS,
    UserError,
    one_line_errors,
    parse_train,
    ranks,
    resolve_device,
    resolve_dtype,
)
from data.runs import check_run_dir, guarded, heed_signals, unbroken

if __name__ == "__main__":
    CONFIG, WHY = parse_train()  # before torch is imported, so that --help and a mistyped flag answer at once
    heed_signals()

import copy
import json
import math
import time
from dataclasses import replace

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from cache import decoded_photos, embed_split, from_first, frozen_features, one_at_first
from data.files import replacing, write_file
from data.hub import model_card
from data.pictures import draw_curves
from data.progress import load_last, new_progress, not_finite, save_last, steps_to_come
from data.sample_scenes import write_sample
from data.shards import is_sharded, skipped_samples
from dataset import CaptionDataset, inspect_dataset, load_splits, start_epoch, train_transform, training_loader
from evaluate import draw_pictures, mean_recall, modality_gap, recall_table, report_of
from models import CLIP

MOST_UNUSABLE = 0.5  # share of the photos, of all or of a split, that may be missing or unreadable

# ---------------------------------------------------------------- data


def load_data(config):
    """Return the tables {"train", "dev", …} of captions whose photo is sound, and lines that report on the data."""
    with one_at_first():
        if config.data_dir == PRESETS["sample"].data_dir and not config.data_dir.exists():
            write_sample(config.data_dir)
    splits = load_splits(config.data_dir, config.split_seed)
    # a stream of shards skips bad photos as it meets them, but features need sound ones: of a tower that waits or stays
    waits = config.freeze in ("image", "both") or config.heads_first > 0 and config.is_pretrained("text")
    look = config.data_dir, config.split_seed, waits or not is_sharded(config.data_dir)
    faults = from_first(inspect_dataset(*look) if ranks()[0] == 0 else None)
    unusable = {*faults["missing"], *faults["unreadable"]}
    listed = {split: set(table["image"]) for split, table in splits.items()}
    for part, names in {**listed, "all splits": set(faults["missing"]).union(*listed.values())}.items():
        if len(bad := sorted(names & unusable)) > MOST_UNUSABLE * len(names):
            raise UserError(f"{config.data_dir}: of {len(names):,} photos in {part}, {len(bad):,} are missing or "
                            f"unreadable ({', '.join(bad[:5])}{' …' * (len(bad) > 5)}), more than {MOST_UNUSABLE:.0%}: "
                            "look whether Images/ is whole, and is the one that captions.txt speaks of")
    splits = {split: table[~table["image"].isin(unusable)].reset_index(drop=True) for split, table in splits.items()}
    split_of = {name: split for split, table in splits.items() for name in table["image"]}

    counts = ", ".join(f"{split} {table['image'].nunique():,}" for split, table in splits.items())
    lines = [f"{config.data_dir}: {sum(map(len, splits.values())):,} captions; photos: {counts}"]
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
            hint = (f"list some in Flickr_8k.{split}Images.txt or, without lists, add photos, or try --split-seed N"
                    if not is_sharded(config.data_dir) else f"put some into {split}-00000.tar beside it")
            raise UserError(f"{config.data_dir} needs at least {least} usable photos in {split}: {hint}. "
                            + "; ".join(map(str.strip, lines)))
    if (count := splits["dev"]["image"].nunique()) < 20:
        lines.append(f"  dev has only {count} of them: its recall means little, and picks the best epoch by chance")
    return splits, lines


# ---------------------------------------------------------------- optimisation


def parameter_groups(model, config):
    """Return AdamW's parameter groups: a peak learning rate for each tower and the heads; decay on matrices only."""
    towers = {"image_encoder": ("image", config.lr_image), "text_encoder": ("text", config.lr_text)}
    alone = not any(parameter.requires_grad for tower in towers for parameter in getattr(model, tower).parameters())
    heads = ("heads", config.lr_heads_alone if alone else config.lr_heads)
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part, peak_lr = towers.get(name.split(".")[0], heads)
            # Norms, biases and the logit scale (one dimension or none) are not to be pulled to 0.
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            group = {"params": [], "weight_decay": decay, "peak_lr": peak_lr, "part": part}
            groups.setdefault((part, peak_lr, decay), group)["params"].append(parameter)
    return list(groups.values())


def lr_share(step, steps, warmup):
    """Return the share of the peak learning rate at a step: linear rise over the warm-up, then a half cosine to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def moving_weights(average, model):
    """Return what training moves, of `average` and `model`: parameters and running statistics. Slow: once an epoch."""
    pairs = [pair for pair in zip(average.parameters(), model.parameters(), strict=True) if pair[1].requires_grad]
    for mean, now in zip(average.modules(), model.modules(), strict=True):
        if now.training:  # a frozen BatchNorm's statistics stand still
            buffers = zip(mean.buffers(recurse=False), now.buffers(recurse=False), strict=True)
            pairs += [pair for pair in buffers if pair[0].is_floating_point()]
    return tuple(map(list, zip(*pairs, strict=True)))


@torch.no_grad()
def update_average(means, weights, share):
    """Set means = share * means + (1 - share) * weights: these circle round a better place (Izmailov et al. 2018)."""
    torch._foreach_lerp_(means, weights, 1 - share)


@torch.no_grad()
def put_statistics_back(means, weights):
    """Take the running statistics of the mean: a step that was skipped may have spoilt the others for good."""
    for mean, weight in zip(means, weights, strict=True):
        if not weight.requires_grad:
            weight.copy_(mean)


def train_one_epoch(model, average, stage, scaler, config, epoch, progress):
    """Show every photo once, but for a last, smaller batch, and let `average` follow the weights.

    `progress` says how far a stop let the epoch come, and is kept up to date: "losses", a step each, "skipped_steps".
    Returns {"train_loss" (mean), "first_loss", "lr_heads" (at the end), "samples_per_second"}, in fp16 "skipped_steps"
    too, of shards "skipped".
    """
    device, autocast, (loader, optimizer, forward, _) = model.logit_scale.device, model.autocast(), stage
    rank, world = ranks()
    start_epoch(loader, epoch)
    model.train()
    (means, weights), losses, start = moving_weights(average, model), progress["losses"], time.perf_counter()
    trained, done = [weight for weight in weights if weight.requires_grad], len(losses)
    bar = tqdm(steps_to_come(loader, progress), f"epoch {epoch}/{config.epochs}", len(loader), leave=False, unit="step",
               initial=done, disable=rank > 0 or None)
    for step, batch in enumerate(bar, (epoch - 1) * len(loader) + done):
        share = lr_share(step, config.epochs * len(loader), config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak_lr"]

        # pixels, token ids and their mask; of a frozen tower its features, and then no mask
        batch = (part if part is None else part.to(device, non_blocking=True) for part in batch)
        with autocast:
            image_embeddings, text_embeddings = forward(*batch)  # (B, D), (B, D)
        loss = model.loss(image_embeddings, text_embeddings)  # in float32: softmax over similarities needs the digits

        optimizer.zero_grad(set_to_none=True)
        # The scaler keeps small fp16 gradients from vanishing; in bf16 and float32 it is disabled and does nothing.
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(trained, config.grad_clip)
        losses.append(loss.item())
        if math.isfinite(losses[-1]) and math.isfinite(norm):
            scaler.step(optimizer)
            model.clamp_logit_scale()
            # The mean looks back 1 / (1 - averaging) steps, and over fewer while there have been few.
            update_average(means, weights, min(config.averaging, (1 + step) / (10 + step)))
        elif scaler.is_enabled() and scaler.get_scale() > 1:  # fp16 overflows now and then: the scale is halved
            progress["skipped_steps"] += 1
            put_statistics_back(means, weights)
        else:
            raise not_finite(losses[-1], norm, (image_embeddings, text_embeddings), stage, config, epoch, step)
        scaler.update()
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    seconds = time.perf_counter() - start
    if world > 1:
        torch.distributed.all_reduce(losses := torch.tensor(losses, device=device) / world)
        losses = losses.tolist()
    finite = list(filter(math.isfinite, losses))
    if not finite:
        raise UserError(f"no loss of epoch {epoch} was finite: try lower learning rates or --precision fp32")
    return {
        "train_loss": sum(finite) / len(finite), "first_loss": finite[0],
        "lr_heads": lr_share(epoch * len(loader) - 1, config.epochs * len(loader), config.warmup) * next(
            group["peak_lr"] for group in optimizer.param_groups if group["part"] == "heads"),
        "samples_per_second": round((len(losses) - done) * world * loader.batch_size / seconds, 1),
        **({"skipped_steps": progress["skipped_steps"]} if scaler.is_enabled() else {}),
        **skipped_samples(loader, device),
    }


# ---------------------------------------------------------------- what a run shows


def chance_loss(loader, config):
    """Return the loss of a model that knows nothing, ln B; None for the sigmoid loss, whose chance is its bias."""
    return None if config.loss == "siglip" else math.log(ranks()[1] * loader.batch_size)


def stuck(history, chance):
    """Return a warning if the loss of the newest epochs is that of chance, else None."""
    newest = [row["train_loss"] for row in history[-2:]]
    if chance is None or len(newest) < 2 or min(newest) < 0.98 * chance:
        return None
    return (f"warning: the loss stands at chance, ln(batch size) = {chance:.2f}: nothing has been learned yet. Are "
            "these the captions of these photos? If so, try lower --lr-image and --lr-text, and more --epochs")


def epoch_line(row, epochs):
    """Return one line for people about an epoch."""
    recalls = "  ".join(
        f"{arrow} " + "/".join(f"{row[direction][key]:.1f}" for key in ("R@1", "R@5", "R@10"))
        for arrow, direction in (("text->image", "text_to_image"), ("image->text", "image_to_text")))
    skipped = f"  {row['skipped']:,} bad samples skipped" if row.get("skipped") else ""
    skipped += f"  {row['skipped_steps']:,} steps skipped: fp16 overflow" if row.get("skipped_steps") else ""
    loss = f"loss {row['train_loss']:.3f}"
    return f"epoch {row['epoch']:>3}/{epochs}  {loss}  dev R@1/5/10 {recalls}  {row['seconds']:.1f} s{skipped}"


# ---------------------------------------------------------------- the run


def prepare(model, splits, config, towers):
    """Return what the heads, and the towers not named, train with: loader, optimiser, forward, and dev's `Cached`.

    forward embeds a batch. Where several processes train, it also averages their gradients while they come in.
    """
    data, table, tower = config.data_dir, splits["train"], model.text_encoder
    model.freeze(towers)
    frozen, size = towers if config.cache else "none", model.config.image_size
    cached = frozen_features(model.eval(), table, data, frozen, 64, config.workers, config.cached_views)
    dev_cached = frozen_features(model, splits["dev"], data, frozen, 64, config.workers)
    if config.cache and cached.images is None:
        if not is_sharded(data):  # these are streamed
            cached = cached._replace(decoded=decoded_photos(table, data, size, "train"))
        dev_cached = dev_cached._replace(decoded=decoded_photos(splits["dev"], data, size, "dev"))
    transform = train_transform(size, config.crop_scale, config.flip)
    pairs = CaptionDataset(table, data, tower.tokenizer, transform, size, tower.max_tokens, config.seed, cached)
    workers = config.workers if cached.images is None else 0  # rows of a tensor need no processes to fetch them
    loader = training_loader(pairs, config.batch_size, workers, model.logit_scale.is_cuda, config.epoch_shards)
    forward = DistributedDataParallel(model) if ranks()[1] > 1 else model
    return loader, torch.optim.AdamW(parameter_groups(model, config), fused=True), forward, dev_cached


def epoch_row(model, average, stage, scaler, splits, config, epoch, progress):
    """Train one epoch and measure the averaged weights on dev. Returns its row of metrics.jsonl."""
    start = time.perf_counter()
    row = train_one_epoch(model, average, stage, scaler, config, epoch, progress)
    average.eval()
    for buffer in average.buffers() if ranks()[1] > 1 else ():  # a BatchNorm that learns has seen other photos
        torch.distributed.broadcast(buffer, 0)
    dev = embed_split(average, splits["dev"], config.data_dir, 64, config.workers, stage[-1])
    if dev.faults:
        raise UserError(f"a dev photo can no longer be read: {next(iter(dev.faults.values()))}")
    recall = report_of(dev)
    return {"epoch": epoch, **row, "logit_scale": average.logit_scale.exp().item(),
            "modality_gap": modality_gap(dev.image_embeddings, dev.text_embeddings), **recall,
            "mean_recall": mean_recall(recall), "seconds": round(time.perf_counter() - start, 2)}


def train_heads_first(model, average, scaler, splits, config):
    """Train the heads alone while both towers keep their pretrained weights; returns the row of epoch 0.

    A random head sends random gradients into a good tower; and heads on cached features train in seconds.
    """
    start = time.perf_counter()
    config = replace(config, epochs=config.heads_first, cache=True)
    stage = prepare(model, splits, config, "both")
    print(f"features of both towers: {time.perf_counter() - start:.0f} s", flush=True)
    rows = [epoch_row(model, average, stage, scaler, splits, config, epoch, new_progress())
            for epoch in range(1, config.epochs + 1)]
    return {**rows[-1], "epoch": 0, "first_loss": rows[0]["first_loss"], "seconds": sum(row["seconds"] for row in rows)}


def keep(config, model, average, optimizer, scaler, progress, chance):
    """Write what is kept after an epoch: best/ if it is the best so far, metrics.jsonl, curves.png, and last/.

    last/ says that the epoch is done, so it comes last: what a kill leaves unwritten is made again after a resume.
    """
    if (newest := progress["history"][-1]["mean_recall"]) > progress["best"]:
        progress["best"] = newest
        with replacing(config.run_dir / "best") as folder:
            average.save_pretrained(folder)
    write_file(config.run_dir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in progress["history"]))
    draw_curves(progress["history"], chance, config.run_dir / "curves.png")
    save_last(config.run_dir, model, average, optimizer, scaler, progress)


def main(config, why):
    device, (rank, world) = resolve_device(config.device), ranks()
    if config.batch_size % world:
        raise UserError(f"--batch-size {config.batch_size} is shared by {world} processes: give a multiple of {world}")
    print(why)
    check_run_dir(config)
    dtype = resolve_dtype(device, config.precision)
    splits, report = load_data(config)
    print("\n".join(report))
    image, text = config.image_encoder, config.text_encoder
    start = ["pretrained" if config.is_pretrained(tower) else "random weights" for tower in ("image", "text")]
    print(f"towers: {image} ({start[0]}) and {text} ({start[1]}); frozen: {config.freeze}", flush=True)
    if config.freeze in ("image", "both") and config.cache and config.cached_views == 1:
        print("the features of whole photos are kept; for crops add --cached-views N, or --no-cache")
    if not config.pretrained and (image.startswith("local-dir:") or text != "scratch"):
        print("the weights of the towers named are not used: add --pretrained to start from them")
    if (config.micro_batch or world > 1) and not (config.pretrained and config.fix_batch_norm):
        print("BatchNorm, where it learns, sees the photos of one part only: not quite the result of the whole batch")
    torch.manual_seed(config.seed)
    if config.resume:
        model = CLIP.from_pretrained(config.run_dir / "last")
        model.config = config
    else:
        model = CLIP.from_config(config, splits["train"]["caption"])
    model.to(device, memory_format=torch.channels_last)
    if len(model.image_encoder.layers()) == 1 and config.image_depth < 1:
        print(f"the layers of {image} are not known: it trains as a whole")
    average, scaler = copy.deepcopy(model), torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    heads = None  # they learn alone first where both towers are pretrained and one of them will move
    if config.heads_first and config.freeze != "both" and config.is_pretrained("text") and not config.resume:
        heads = train_heads_first(model, average, scaler, splits, config)
    stage = loader, optimizer, *_ = prepare(model, splits, config, config.freeze)
    progress, chance = new_progress(), chance_loss(loader, config)
    if config.resume:
        progress = load_last(config.run_dir, model, optimizer, scaler)
        within = f", step {len(progress['losses'])} of the next" if progress["losses"] else ""
        print(f"going on after epoch {progress['epoch']} of {config.epochs}{within}"
              if progress["epoch"] < config.epochs else
              f"all {config.epochs} epochs are done: add --epochs N, more than these, to train on")

    trained, total = (sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or every)
                      for every in (False, True))
    print(f"{trained:,} of {total:,} parameters, {model.config.image_size} px, on {device} in "
          f"{str(dtype).removeprefix('torch.')}\n"
          f"{config.epochs} epochs of {len(loader)} steps of {world * loader.batch_size} pairs, into {config.run_dir}"
          + f", in {world} processes" * (world > 1))
    if (pairs := world * loader.batch_size) < config.batch_size:
        print(f"--batch-size {config.batch_size} is more than the training photos of an epoch: using {pairs}")
    for epoch in range(progress["epoch"] + (heads is None), config.epochs + 1):
        try:
            row = heads or epoch_row(model, average, stage, scaler, splits, config, epoch, progress)
            heads = None  # epoch 0 is the heads alone
            with unbroken():
                progress |= {"epoch": epoch, "history": [*progress["history"], row], "losses": [], "skipped_steps": 0}
                if rank == 0:
                    keep(config, model, average, optimizer, scaler, progress, chance)
                print(epoch_line(row, config.epochs), flush=True)
        except KeyboardInterrupt:  # between two steps, or while dev was measured; several processes lose the epoch
            if progress["losses"] and world == 1:
                save_last(config.run_dir, model, average, optimizer, scaler, progress)
                print(f"\nkept within epoch {epoch}: {len(progress['losses'])} of {len(loader)} steps are done")
            raise
        if remark := stuck(progress["history"], chance):
            print(remark, flush=True)

    # on a machine that cannot see the run folder, the weights come from the first process
    best = average if rank else CLIP.from_pretrained(config.run_dir / "best").to(device)
    for tensor in best.state_dict().values() if world > 1 else ():
        torch.distributed.broadcast(tensor, 0)
    measured = {split: embed_split(best, splits[split], config.data_dir, 64, config.workers)
                for split in ("dev", "test") if split in splits and len(splits[split])}
    split, embedded = list(measured.items())[-1]  # test, or dev where there is no test
    print(f"{config.run_dir / 'best'} on the {len(embedded.files):,} photos of the {split} split, recall in percent")
    reports = {name: report_of(embedded) for name, embedded in measured.items()}
    print(recall_table(reports[split]))
    draw_pictures(measured["dev"], config.run_dir, "dev")
    if rank == 0:
        write_file(config.run_dir / "best" / "README.md", model_card(best.config, reports))
    elsewhere = f" --checkpoint {config.run_dir}" * (str(config.run_dir.parent) != "runs")
    print(f'next: python inference.py --query "people sitting near the beach"{elsewhere}')


if __name__ == "__main__":
    with one_line_errors():
        resolve_device(CONFIG.device)  # under torchrun, this is where the processes meet
        CONFIG = replace(CONFIG, run_dir=from_first(CONFIG.run_dir))
        with guarded(CONFIG):
            main(CONFIG, WHY)
