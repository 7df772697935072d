"""Train CLIP on pictures and captions.

    python train.py                   # flickr8k when data/flickr8k is there, else the small drawn sample
    python train.py sample            # towers from scratch, no download, no GPU: a minute or two on two cores
    python train.py flickr8k          # pretrained ResNet50 + DistilBERT; CUDA and AMP when there is a GPU
    python train.py --resume          # go on with the newest run
    torchrun --nproc-per-node=4 train.py flickr8k     # four GPUs: one batch and one loss over all of them

Pretrained towers are good and new heads are not: the heads first learn alone, on features that the towers make once
(seconds); then the upper layers of the towers join in. What is evaluated and kept is a running mean of the weights.

A run writes runs/NAME/: best/ (the model directory with the highest mean recall on dev), last/ (the newest one, with
the state of the trainer), metrics.jsonl (a line an epoch), and pictures to look at: curves.png, similarity-dev.png and
worst-dev.png.
"""

from config import PRESETS, Config, parse_train
from support.doctor import findings
from support.errors import one_line_errors
from support.interruptions import heed_signals

if __name__ == "__main__":
    COMMAND = parse_train()  # before torch is imported, so that --help and a mistyped flag answer at once
    heed_signals()

import math
import random
import time
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from data.sample_scenes import write_sample
from dataset import (
    CaptionDataset,
    Photos,
    Precomputed,
    image_loader,
    load_usable_splits,
    paths_of,
    refuse_unequal_shares,
    start_epoch,
    tokenize,
    train_transform,
    training_loader,
)
from evaluate import draw_charts, embed_split, mean_recall, modality_gap, recall_table, report_of
from models import CLIP, embed_images, embed_texts
from support.averaging import RunningMean
from support.big_batch import MicroBatches
from support.console import print_plan, print_towers
from support.errors import UserError, quoted, shown
from support.files import file_key, write_file
from support.hubs import BANK_SIZE, write_bank
from support.kept import decode_once, kept_features
from support.kept_splits import held_out_names, lines_on_gone_photos
from support.memory import pairs_that_fit
from support.model_card import model_card
from support.process import (
    choose_dtype,
    copy_from_first_process,
    from_first_process,
    is_first_process,
    one_process_at_first,
    process_count,
    start_process,
)
from support.run import Run, folder_to_resume
from support.tars import dataset_folder, is_sharded

EMBEDDED_AT_ONCE = 64  # photos or captions, where nothing is to be learned from them

# ---------------------------------------------------------------- one epoch


def train_one_epoch(model, average, phase, run, epoch, config):
    """Show every training photo once, with K of its captions.

    average: a running mean of the weights, which is what is measured and kept. phase: what trains, and with what: the
    `Phase` below. run: the run folder, and how far the run is. Returns the figures of the epoch: its mean loss, and
    what had to be skipped.
    """
    model.train()
    start_epoch(phase.loader, epoch)  # shuffles the photos anew, and draws the captions and the crop of each
    average.follow(model)  # notes which weights train; `update` below moves their running mean
    # As `for step, batch in enumerate(phase.loader)`, but steps count from the start of the phase, batches come on the
    # model's device, and an epoch that was interrupted goes on after its len(phase.losses) steps.
    for step, batch in run.steps(phase, epoch):
        phase.set_learning_rates(step)  # linear warm-up, then a cosine to 0

        with model.autocast():
            image_embeddings, text_embeddings = phase.forward(batch)  # (B, D) and (B, K, D), unit length
        # For each k, the (B, B) similarities of all photos with their captions number k: in row i the right text is
        # number i, in column i the right image is. The loss is the mean over the K matrices. With several processes, B
        # counts the photos of all. In float32: a softmax over similarities needs the digits. By their ids equal photos
        # and equal captions are known, which must not be pushed apart.
        loss = model.loss(image_embeddings, text_embeddings, batch.photo_ids, batch.caption_ids)

        phase.optimizer.zero_grad(set_to_none=True)
        # The scaler keeps small fp16 gradients from vanishing; in bf16 and float32 it does nothing.
        phase.scaler.scale(loss).backward()
        phase.scaler.unscale_(phase.optimizer)
        norm = nn.utils.clip_grad_norm_(phase.weights, config.grad_clip)

        phase.losses.append(loss.item())  # for the mean; and a run that stops goes on after so many steps
        # Where loss or norm is no number, the step is not taken. In fp16 that happens now and then, and the step is
        # counted as skipped; otherwise `accepts_step` ends the run, and names the photos.
        if run.accepts_step(step, loss, norm, phase, batch, (image_embeddings, text_embeddings)):
            phase.scaler.step(phase.optimizer)
            model.clamp_logit_scale()
            average.update(step)  # the fewer the steps so far, the faster it follows: it forgets the phase before soon
        else:
            average.put_statistics_back()  # this batch may have spoilt the model's BatchNorm statistics
        phase.scaler.update()
    return phase.figures()


# ---------------------------------------------------------------- a phase of training


@dataclass
class Phase:
    """What training consists of: first for the heads alone, and then for all that is not frozen."""

    pairs: CaptionDataset
    loader: DataLoader  # gives `dataset.Batch`es; with several processes, to each its part
    micro_batch: int  # pairs whose activations are in memory at a time
    forward: nn.Module  # the model, which embeds a batch; where needed inside MicroBatches and DistributedDataParallel
    weights: list  # the parameters that train
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    epochs: int
    warmup: float
    device: torch.device
    chance_loss: float | None  # the loss of a model that knows nothing, ln B; None for the sigmoid loss
    dev_precomputed: Precomputed  # decoded photos, or features of frozen towers, of dev
    dev_loader: DataLoader  # of the photos of dev

    # Of the epoch under way, kept when it is interrupted: where a resumed one goes on, and so empty when one begins.
    losses: list = field(default_factory=list)  # one for each step that is done: a resumed epoch goes on after these
    skipped_steps: int = 0  # counted by `run.accepts_step`

    @property
    def photo_paths(self):
        """Where the photos lie, by their row."""
        return self.pairs.photos.paths

    def set_learning_rates(self, step):
        """Give each group of parameters its learning rate at a step, which is counted from the start of the phase."""
        factor = lr_factor(step, self.epochs * len(self.loader), self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]

    def figures(self):
        """Return the figures of the epoch that its steps have made."""
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        if not finite:
            raise UserError("no loss of this epoch was finite: try lower learning rates or --precision fp32")

        figures = {"train_loss": sum(finite) / len(finite)}
        if self.scaler.is_enabled():
            figures["skipped_steps"] = self.skipped_steps
        if self.pairs.is_streamed:
            figures["skipped"] = self.loader.dataset.skipped_in_epoch(self.device)
        return figures

    def forget_steps(self):
        """Begin a new epoch: the steps of the last one are done."""
        self.losses = []
        self.skipped_steps = 0


def make_phase(model, splits, config, frozen, epochs):
    """Return the `Phase` that trains the model for so many epochs. frozen: none, image, text or both towers."""
    model.freeze(frozen)
    model.eval()
    train_precomputed = precompute(model, splits["train"], config, frozen, "train")
    dev_precomputed = precompute(model, splits["dev"], config, frozen, "dev")

    captions = config.captions_alone if frozen == "both" else config.captions
    pairs = training_pairs(model, splits["train"], config, train_precomputed, captions)
    workers = config.workers
    if train_precomputed.image_features is not None:
        workers = 0  # rows of a tensor need no processes to fetch them
    dev_loader = image_loader(
        paths_of(splits["dev"]),
        model.config.image_size,
        EMBEDDED_AT_ONCE,
        config.workers,
        dev_precomputed.decoded,
        keep_workers=True,
    )
    on_gpu = model.device.type == "cuda"
    loader = training_loader(pairs, config.batch_size, workers, on_gpu, config.epoch_shards)

    # A batch that does not fit into memory is embedded in parts. This is not gradient accumulation, for the loss still
    # compares all pairs of the batch: each part is embedded once for the loss, and again for its gradient.
    micro_batch = config.micro_batch or pairs_that_fit(model, pairs.make_largest_batch, loader.batch_size)
    forward = model
    if micro_batch < loader.batch_size:
        forward = MicroBatches(forward, micro_batch)
    if process_count() > 1:
        forward = DistributedDataParallel(forward)

    chance_loss = math.log(process_count() * loader.batch_size)
    return Phase(
        pairs=pairs,
        loader=loader,
        micro_batch=micro_batch,
        forward=forward,
        weights=[parameter for parameter in model.parameters() if parameter.requires_grad],
        optimizer=torch.optim.AdamW(parameter_groups(model, config), fused=True),
        scaler=torch.amp.GradScaler(model.device.type, enabled=model.compute_dtype() == torch.float16),
        epochs=epochs,
        warmup=config.warmup,
        device=model.device,
        chance_loss=None if config.loss == "siglip" else chance_loss,
        dev_precomputed=dev_precomputed,
        dev_loader=dev_loader,
    )


def training_pairs(model, table, config, known, captions_per_photo):
    """Return the `CaptionDataset` of the train split, as this model wants its photos and captions."""
    size = model.config.image_size
    transform = train_transform(size, config.crop_scale, config.flip)
    tower = model.text_encoder
    return CaptionDataset(
        table,
        tower.tokenizer,
        transform,
        size,
        tower.max_tokens,
        config.seed,
        known,
        captions_per_photo,
    )


def parameter_groups(model, config):
    """Return AdamW's parameter groups: a peak learning rate for each tower and the heads; decay on matrices only."""
    towers = nn.ModuleList([model.image_encoder, model.text_encoder])
    towers_learn = any(parameter.requires_grad for parameter in towers.parameters())
    peak_lr = {
        "image_encoder": config.lr_image,
        "text_encoder": config.lr_text,
        "heads": config.lr_heads if towers_learn else config.lr_heads_alone,
    }
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = name.split(".")[0]
        if part not in peak_lr:
            part = "heads"  # and the logit scale
        # Norms, biases and the logit scale (one dimension or none) are not to be pulled to 0.
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        if (part, decay) not in groups:
            groups[part, decay] = {
                "params": [],
                "part": part.removesuffix("_encoder"),
                "peak_lr": peak_lr[part],
                "weight_decay": decay,
            }
        groups[part, decay]["params"].append(parameter)
    return list(groups.values())


def lr_factor(step, steps, warmup):
    """Return what the peak learning rate is multiplied by: a linear rise over the warm-up, then a half cosine to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


# ---------------------------------------------------------------- what need not be computed twice


def precompute(model, table, config, frozen, split):
    """Return what training would otherwise compute in every epoch: `Precomputed`.

    table: the captions of a split, a row each, with the columns image and caption.
    image tower frozen: the features of each photo, as a whole, for there are no crops then.
    image tower learns: decoded photos; but nothing for the train photos of shards, which are streamed.
    text tower frozen: the features of each caption.
    All are kept in the dataset folder, and found there by the next run.
    """
    if not config.cache:
        return Precomputed()
    decoded = image_features = text_features = None
    if frozen in ("image", "both"):
        image_features = photo_features(model, table, config.data_dir, config.workers)
    elif split != "train" or not is_sharded(config.data_dir):
        photos = Photos(paths_of(table), model.config.image_size)
        decoded = decode_once(photos, config.data_dir, split)
    if frozen in ("text", "both"):
        text_features = caption_features(model, table, config.data_dir)
    return Precomputed(decoded, image_features, text_features)


def photo_features(model, table, data_dir, workers=0):
    """Return (N, F), what the image tower makes of the photos of a table, each as a whole."""
    paths = paths_of(table)
    size = model.config.image_size

    def embed():
        loader = image_loader(paths, size, EMBEDDED_AT_ONCE, workers)
        features, _, faults = embed_images(model, loader, model.image_encoder, "features of photos")  # (N, F)
        if faults:
            raise UserError(f"a photo can no longer be read: {next(iter(faults.values()))}")
        return features

    files = [file_key(path, dataset_folder(data_dir)) for path in paths]
    depends_on = [size, *files]  # and on the tower: if any of these has changed, they are made anew
    return kept_features(data_dir, model, model.image_encoder, depends_on, embed)


def caption_features(model, table, data_dir):
    """Return (M, F), what the text tower makes of the captions of a table."""
    tower = model.text_encoder
    captions = list(table["caption"])

    def embed():
        return embed_texts(model, captions, EMBEDDED_AT_ONCE, tower)

    token_ids = tokenize(tower.tokenizer, captions, tower.max_tokens)
    depends_on = [tower.pooling, token_ids]
    return kept_features(data_dir, model, tower, depends_on, embed)


# ---------------------------------------------------------------- an epoch, measured


def train_and_measure(model, average, phase, run, epoch, splits, config):
    """Train one epoch and measure the averaged weights on dev; returns its row of metrics.jsonl."""
    start = time.perf_counter()
    figures = train_one_epoch(model, average, phase, run, epoch, config)
    recall = measure_on_dev(average.model, phase, splits["dev"], config)
    return {"epoch": epoch, **figures, **recall, "seconds": round(time.perf_counter() - start, 2)}


def measure_on_dev(model, phase, table, config):
    """Return the recall of a model on dev, in both directions, its logit scale, and the gap between its two sides."""
    model.eval()
    copy_from_first_process(model.buffers())  # a BatchNorm that learns has seen other photos in each process
    dev = embed_split(model, table, EMBEDDED_AT_ONCE, known=phase.dev_precomputed, loader=phase.dev_loader)
    if dev.faults:
        raise UserError(f"a dev photo can no longer be read: {next(iter(dev.faults.values()))}")
    recall = report_of(dev)
    return {
        "logit_scale": model.logit_scale.exp().item(),
        "modality_gap": modality_gap(dev.image_embeddings, dev.text_embeddings),
        **recall,
        "mean_recall": mean_recall(recall),
    }


# ---------------------------------------------------------------- the run


def main(config, first_line=""):
    device = start_process(config.device)  # under torchrun the processes meet here; only the first one prints
    # Called for the errors they raise: what this machine cannot do is refused before anything is read.
    choose_dtype(device, config.precision)
    refuse_unequal_shares(config.batch_size)
    config = replace(config, run_dir=from_first_process(config.run_dir))  # else each names it after its own clock
    with Run(config) as run:  # its folder is ours alone; a signal or a full disk ends the run in good order
        print(first_line)
        splits, report = load_data(config, run.held_out)
        # Kept in last/: these photos stay unseen, whatever comes or goes.
        run.held_out = held_out_names(splits, run.held_out)
        print_towers(config)
        torch.manual_seed(config.seed)
        if run.is_new:
            model = CLIP.from_config(config, splits["train"]["caption"])
            model.refuse_unloadable(run.folder)  # now rather than after the last epoch
        else:  # last/ holds the running mean as a model; `run.take_up` below puts back what has trained
            model = CLIP.from_pretrained(run.folder / "last")
            model.config = config
        model.to(device, memory_format=torch.channels_last)
        for line in remarks_on_data(model, splits["train"], report, config):
            print(line, flush=True)
        average = RunningMean(model, config.averaging)

        # A random head sends random gradients into a good tower, so the heads learn alone first. This takes seconds, on
        # features that the towers make once. Its heads stay in the model, and the last of its epochs is row 0 of
        # metrics.jsonl. On disk nothing is kept before it is over: after a stop in it the run begins anew.
        heads_row = None
        if run.is_new and heads_learn_first(config):
            start = time.perf_counter()
            with_cache = replace(config, cache=True)  # also with --no-cache: here are many epochs
            heads_phase = make_phase(model, splits, with_cache, "both", config.heads_first)
            print(f"features of both towers: {time.perf_counter() - start:.0f} s", flush=True)
            start = time.perf_counter()
            for epoch in range(1, heads_phase.epochs + 1):
                heads_phase.forget_steps()  # those of the epoch before; later `run.keep` does this
                figures = train_one_epoch(model, average, heads_phase, run, epoch, config)
            recall = measure_on_dev(average.model, heads_phase, splits["dev"], config)
            heads_row = {"epoch": 0, **figures, **recall, "seconds": round(time.perf_counter() - start, 2)}
            del heads_phase  # and the features in it, which may be large

        phase = make_phase(model, splits, config, config.freeze, config.epochs)
        model.config = replace(model.config, micro_batch=phase.micro_batch)  # kept, so that a resume has the same
        average.model.config = model.config
        # From here on the run keeps these three; one that goes on puts weights, moments and history back from last/.
        run.take_up(model, average, phase)
        print_plan(model, phase, config)
        if heads_row:
            run.keep(heads_row)  # writes what an epoch leaves, and prints its line
        for epoch in run.epochs_to_come():
            row = train_and_measure(model, average, phase, run, epoch, splits, config)
            # Writes average.model to best/ if it is the best so far, all that a resume needs to last/, and the row to
            # metrics.jsonl; prints a line. The losses of the epoch are then forgotten.
            run.keep(row)

        finish(run, average, splits, config)


def load_data(config, held_out=None):
    """Return the captions table of each split, without photos that cannot be used, and a `DataReport`; prints that.

    held_out: the names of the photos of dev and test, of a run that goes on.
    """
    if config.epoch_shards and not is_sharded(config.data_dir):
        raise UserError(f"--epoch-shards counts shards, and {config.data_dir} is a folder: leave it out")
    with one_process_at_first():
        if config.data_dir == PRESETS["sample"].data_dir and not config.data_dir.exists():
            write_sample(config.data_dir)
    # Photos of shards are checked as they stream by, unless features are made of them first: where the image tower is
    # frozen, or the heads learn first.
    needs_features = config.freeze in ("image", "both") or heads_learn_first(config)
    open_train_photos = needs_features or not is_sharded(config.data_dir)
    splits, report = load_usable_splits(config.source, config.split_seed, open_train_photos, held_out)
    for line in [*report.lines, *lines_on_gone_photos(splits, held_out)]:
        print(shown(line))
    return splits, report


def remarks_on_data(model, table, report, config):
    """Return lines on what captions and photos of train mean for these towers: the doctor speaks before the loss."""
    tower = model.text_encoder
    size = model.config.image_size
    is_scratch = config.text_encoder == "scratch"
    return findings(table, report, tower.tokenizer, is_scratch, tower.max_tokens, config.batch_size, size)


def heads_learn_first(config):
    """Return whether the heads learn alone first: where both towers are pretrained and one of them will move.

    A pretrained text tower says that both are: --pretrained counts for the two.
    """
    return config.heads_first > 0 and config.freeze != "both" and config.is_pretrained("text")


def finish(run, average, splits, config):
    """Measure best/ on dev and test, and write the pictures and the model card of the run."""
    best = average.model  # in the other processes, whose weights are then overwritten
    if is_first_process():  # the others may be on machines that do not see the run folder
        best = CLIP.from_pretrained(run.folder / "best").to(best.device)
    copy_from_first_process(best.state_dict().values())
    keep_caption_bank(best, splits["train"], run, config)

    embedded = {}
    for split in ("dev", "test"):
        if split in splits and len(splits[split]):
            embedded[split] = embed_split(best, splits[split], EMBEDDED_AT_ONCE, config.workers)
    reports = {split: report_of(measured) for split, measured in embedded.items()}
    split = "test" if "test" in reports else "dev"
    photos = reports[split]["images"]
    print(f"{run.folder / 'best'} on the {photos:,} photos of the {split} split, recall in percent")
    print(recall_table(reports[split]))

    draw_charts(embedded["dev"], run.folder, "dev")
    if is_first_process():
        run.draw_curves()
        write_file(run.folder / "best" / "README.md", model_card(best.config, reports))
    prompt = "people sitting near the beach"
    if config.data_dir not in [preset.data_dir for preset in PRESETS.values()]:
        prompt = embedded[split].captions[0]  # data of another kind: something that is in it
    elsewhere = "" if str(run.folder.parent) == "runs" else f" --checkpoint {run.folder}"
    print(f"next: python inference.py --query {quoted(prompt)}{elsewhere}")


def keep_caption_bank(best, table, run, config):
    """Embed some thousand training captions, by which a search recognises photos that are near to every text."""
    captions = list(table["caption"])
    drawn = random.Random(config.seed).sample(captions, min(BANK_SIZE, len(captions)))
    bank = embed_texts(best, drawn, EMBEDDED_AT_ONCE, title="embedding captions to know hubs by")  # (K, D)
    best.caption_bank = bank.half().float()  # as it is kept
    if is_first_process():
        write_bank(run.folder / "best", best.caption_bank.numpy())


def read_again(command):
    """Return the `TrainCommand` of a run that goes on: its own settings, but for the flags that are given.

    The command line says which run that is, and is therefore read twice: now with the run's settings as defaults.
    """
    run_dir = folder_to_resume(command.config.run_dir, command.named)
    saved = Config.load(run_dir / "last" / "config.json")
    return parse_train(saved=replace(saved, run_dir=run_dir, resume=True))


if __name__ == "__main__":
    with one_line_errors():
        if COMMAND.config.resume:
            COMMAND = read_again(COMMAND)
        main(COMMAND.config, COMMAND.first_line)
