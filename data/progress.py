"""Where a run stands: kept in last/, gone on from there, within an epoch too, and told when a step fails.

`progress` is a dict of plain values: "epoch", how many are done; "best", the highest mean recall; "history", the rows
of metrics.jsonl; and of the epoch under way "losses", one for each step, and "skipped_steps".
"""

import contextlib
import json
from itertools import islice

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, DistributedSampler

from config import UserError, ranks
from data.files import replacing
from data.runs import unbroken


def save_last(run_dir, model, average, optimizer, scaler, progress):
    """Write last/: the averaged model and the state of the trainer, as safetensors and JSON; nothing is pickled."""
    with replacing(run_dir / "last") as folder:
        average.save_pretrained(folder)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()},
                  folder / "weights.safetensors")
        slots = {f"{index}.{key}": value.contiguous() for index, slot in optimizer.state_dict()["state"].items()
                 for key, value in slot.items()}
        save_file(slots, folder / "optimizer.safetensors")
        within = {"random": random_state()} if progress["losses"] else {}  # an epoch begins with a state of its own
        written = json.dumps({**within, **progress, "scaler": scaler.state_dict()}, indent=2)
        (folder / "trainer.json").write_text(written + "\n", encoding="utf-8")


def load_last(run_dir, model, optimizer, scaler):
    """Restore the state that `save_last` wrote; returns the progress {"epoch", "best", "history", "losses", …}."""
    model.load_state_dict(load_file(run_dir / "last" / "weights.safetensors"))
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
    return {**new_progress(), **progress}


def new_progress():
    """Return the progress of a run that has yet to begin: epochs done, and of the one under way what its steps gave."""
    return {"epoch": 0, "best": -1.0, "history": [], "losses": [], "skipped_steps": 0}


def random_state():
    """Return the state of torch's random numbers, which dropout draws, as text: of the CPU and of the GPU in use."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [])]
    return [state.numpy().tobytes().hex() for state in states]


def steps_to_come(loader, progress):
    """Yield the batches that an epoch has yet to show. With one process a stop waits for the end of a step.

    After a stop within the epoch those of the steps done are read again and dropped, so that whatever reads them is
    where it was; then torch's random numbers go on where they were.
    """
    rank, world = ranks()
    batches = iter(loader)  # draws a random number itself
    for _ in progress["losses"]:
        next(batches, None)
    if rank == 0:  # the run was then one process: only that is saved within an epoch
        for state, put in zip(progress.get("random", []), (torch.set_rng_state, torch.cuda.set_rng_state),
                              strict=False):
            put(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8))
    progress.pop("random", None)  # until here a second stop keeps it
    for batch in batches:
        with unbroken() if world == 1 else contextlib.nullcontext():
            yield batch


def photos_of(loader, step):
    """Return the paths of the photos of a batch of this epoch. Where they are streamed, the stream is read again."""
    if isinstance(loader.sampler, DistributedSampler):
        rows = list(loader.sampler)[step * loader.batch_size :][: loader.batch_size]
        return [loader.dataset.photos.paths[row] for row in rows]
    stream = DataLoader(loader.dataset, loader.batch_size, num_workers=loader.num_workers, collate_fn=tuple)
    return [loader.dataset.pairs.photos.paths[row] for row, _ in next(islice(stream, step, None))]


def not_finite(loss, norm, embeddings, stage, config, epoch, step):
    """Return the error that stops a run at a loss or gradient that is no number: where, which photos, what to try."""
    loader, optimizer, *_ = stage
    photos = photos_of(loader, step - (epoch - 1) * len(loader))
    sound = torch.cat(embeddings, dim=1).isfinite().all(dim=1).tolist()
    which = "photo or caption without a finite embedding"
    faulty = [photo for photo, good in zip(photos, sound, strict=True) if not good]
    if not faulty or len(faulty) == len(photos):  # by a BatchNorm that learns, one spoils all
        which, faulty = "the photos of this step", photos
    names = ", ".join(photo.name for photo in faulty)
    rates = ", ".join(f"{group['part']} {group['lr']:.2g}" for group in optimizer.param_groups)
    last = config.run_dir and config.run_dir / "last"
    kept = f"Last good checkpoint: {last if last and last.exists() else 'none yet'}"
    return UserError(
        f"stopped at step {step + 1} (epoch {epoch}): loss {loss}, gradient norm {norm:.3g}, learning rates {rates}; "
        f"{which}: {names}. {kept}. Look at these photos and their captions, or leave them out; or train anew with "
        "lower learning rates or --precision fp32")
