"""A run: its folder, where it stands, what is kept of it, and how it goes on after a stop, within an epoch too.

    runs/NAME/best/            the model directory with the highest mean recall on dev
    runs/NAME/last/            the newest one, with all that is needed to go on
    runs/NAME/metrics.jsonl    a line an epoch
    runs/NAME/curves.png       the same, drawn
"""

import contextlib
import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from support.console import print_epoch
from support.cores import use_free_cores
from support.errors import UserError
from support.files import read_json, replacing, write_file
from support.find_run import newest_run
from support.interruptions import (
    is_in_use,
    is_in_use_line,
    locked,
    one_line_for_interruptions,
    repair,
    unbroken,
)
from support.kept_splits import read_held_out, write_held_out
from support.model_directory import tensors_of
from support.not_finite import error_for_not_finite
from support.plots import draw_curves
from support.process import is_first_process, process_count
from support.progress import with_progress

CURVES_EVERY = 60  # seconds
# what may change in a resume
HARMLESS = {"resume", "run_dir", "device", "workers", "data_dir", "image_dir", "epochs", "micro_batch"}


def folder_to_resume(run_dir=None, preset=None):
    """Return the run folder that --resume goes on with: `run_dir`, or the newest one, of a preset if one is named.

    Puts back what a kill between two renames has left aside. Raises UserError where another process trains there.
    """
    for folder in [run_dir] if run_dir else Path("runs").glob("*"):
        if not is_in_use(folder):  # else the moment between two renames is another process's
            repair(folder)
    run_dir = run_dir or newest_run("last/config.json", f"{preset or ''}*")
    if is_in_use(run_dir):
        raise UserError(is_in_use_line(run_dir))
    return run_dir


def check_run_dir(config):
    """Refuse to overwrite a run, and to resume one with settings that would make it another run."""
    run_dir = config.run_dir
    repair(run_dir)
    if not config.resume:
        if (run_dir / "last").exists():
            raise UserError(f"{run_dir} already holds a run: add --resume to go on, or name another --run-dir")
        return
    saved = type(config).load(run_dir / "last" / "config.json")
    if read_json(run_dir / "last" / "config.json").get("cached_views", 1) != 1:
        raise UserError(
            f"{run_dir} was trained on several cached views of each photo, which this version does not have: it cannot "
            "be resumed, train anew"
        )
    if not (run_dir / "last" / "weights.safetensors").exists():
        raise UserError(f"{run_dir} is a run of another version: it cannot be resumed, train anew")
    changes = [line for name, line in saved.differences(config).items() if name not in HARMLESS]
    if changes:
        raise UserError(f"{run_dir} cannot go on with other settings ({', '.join(changes)}): drop these flags")


class Run:
    """A run under way. Inside `with Run(config) as run` its folder is this process's alone, a signal stops the run in
    good order, and a full disk or a lost process ends it in one line that says how to go on.
    """

    def __init__(self, config):
        self.config = config
        self.folder = config.run_dir
        self.epochs_done = 0
        self.history = []  # the rows of metrics.jsonl
        self.best = -1.0  # the highest mean recall of an epoch
        self.curves_drawn = time.monotonic()
        self.phase = None  # what `take_up` was given, once epochs are kept
        self.restored_random_numbers = None
        self.held_out = None  # names of the photos of dev and test, {split: [name]}

    def __enter__(self):
        self.care = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            stack.enter_context(one_line_for_interruptions(self.folder))
            if is_first_process():
                stack.enter_context(locked(self.folder))
            check_run_dir(self.config)
            if not self.is_new:
                self.held_out = read_held_out(self.folder / "last")
            stack.push(self.keep_unfinished_epoch)  # first of all at the end, while the folder is still held
            self.care = stack.pop_all()
        return self

    def __exit__(self, *error):
        return self.care.__exit__(*error)

    @property
    def is_new(self):
        """Whether this run begins; otherwise it goes on with what last/ holds."""
        return not self.config.resume

    # ------------------------------------------------------------ the steps of an epoch

    def take_up(self, model, average, phase):
        """From here on epochs are kept. A run that is resumed takes its weights, optimiser and history from last/."""
        self.model = model
        self.average = average
        if self.is_new:
            self.phase = phase
            return
        self.load(phase)
        self.phase = phase  # only now: a stop must not keep what is half restored
        if self.epochs_done >= self.config.epochs:
            print(f"all {self.epochs_done} epochs are done: add --epochs N, more than these, to train on")
        elif phase.losses:
            print(f"going on within epoch {self.epochs_done + 1} of {self.config.epochs}, "
                  f"after step {len(phase.losses)} of {len(phase.loader)}")
        else:
            print(f"going on after epoch {self.epochs_done} of {self.config.epochs}")

    def epochs_to_come(self):
        """Return the numbers of the epochs that are not done yet, from 1."""
        return range(self.epochs_done + 1, self.config.epochs + 1)

    def steps(self, phase, epoch):
        """Yield (number, batch) for the steps of an epoch that are still to come, batches on the model's device.

        Numbers count from the start of the phase. With one process a stop waits for the end of a step. After a stop
        within the epoch the batches of the steps done are read again and dropped, so that whatever reads them is where
        it was; then torch's random numbers, which dropout draws, go on where they were.
        """
        line = use_free_cores(phase.device)
        if line:
            print(line)
        done = len(phase.losses)
        batches = iter(phase.loader)
        for _ in range(done):
            next(batches, None)
        self.put_random_numbers_back()

        bar = with_progress(batches, f"epoch {epoch}/{phase.epochs}", "steps", len(phase.loader), done)
        first = (epoch - 1) * len(phase.loader) + done
        for number, batch in enumerate(bar, first):
            with unbroken() if process_count() == 1 else contextlib.nullcontext():
                yield number, batch.to(phase.device)
            bar.set_postfix(loss=f"{phase.losses[-1]:.3f}", refresh=False)

    def accepts_step(self, step, loss, norm, phase, batch, embeddings):
        """Return whether the loss of a step and the norm of its gradient are numbers, so that the step may be taken.

        fp16 overflows now and then: then the step counts as skipped, and the scaler halves its scale. Where there is no
        scale to halve this raises UserError, which names the photos.
        """
        if torch.isfinite(loss) and torch.isfinite(norm):
            return True
        if phase.scaler.is_enabled() and phase.scaler.get_scale() > 1:
            phase.skipped_steps += 1
            return False
        raise error_for_not_finite(step, phase, batch, embeddings, norm, self.folder)

    # ------------------------------------------------------------ what is kept

    def keep(self, row):
        """Write what an epoch leaves: best/ if it is the best so far, metrics.jsonl, and last/.

        last/ says that the epoch is done, so it comes last: what a kill leaves unwritten is made again after a resume.
        Then a line about the epoch is printed, and now and then curves.png is drawn.
        """
        with unbroken():
            self.epochs_done = row["epoch"]
            self.history.append(row)
            self.phase.forget_steps()
            if not is_first_process():
                return
            if row["mean_recall"] > self.best:
                self.best = row["mean_recall"]
                with replacing(self.folder / "best") as folder:
                    self.average.model.save_pretrained(folder)
            lines = [json.dumps(row) + "\n" for row in self.history]
            write_file(self.folder / "metrics.jsonl", "".join(lines))
            self.save()
            print_epoch(self.history, self.phase.chance_loss, self.config.epochs)
            if time.monotonic() - self.curves_drawn > CURVES_EVERY:
                self.draw_curves()

    def draw_curves(self):
        """Draw curves.png: now and then, because it takes as long as a short epoch, and at the end of the run."""
        path = self.folder / "curves.png"
        try:
            draw_curves(self.history, self.phase.chance_loss, path)
        except OSError as error:  # the figures matter more
            print(f"could not draw {path}: {error}")
        self.curves_drawn = time.monotonic()

    def keep_unfinished_epoch(self, kind, error, traceback):
        """After a stop between two steps, or while dev was measured, keep the steps that are done.

        Several processes lose them: they do not stop at the same step. The arguments are those of `__exit__`.
        """
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        if not stopped or self.phase is None or not self.phase.losses or process_count() > 1:
            return
        self.save()
        done = f"{len(self.phase.losses)} of {len(self.phase.loader)} steps are done"
        print(f"\nkept within epoch {self.epochs_done + 1}: {done}")

    def save(self):
        """Write last/: all that is needed to go on, as safetensors and JSON; nothing is pickled."""
        phase = self.phase
        weights = tensors_of(self.model)
        moments = {}  # of AdamW, for each parameter by its number
        for number, slots in phase.optimizer.state_dict()["state"].items():
            for key, value in slots.items():
                moments[f"{number}.{key}"] = value.contiguous()
        where_it_stands = {
            "epoch": self.epochs_done,
            "best": self.best,
            "history": self.history,
            "losses": phase.losses,  # of the epoch under way, a step each
            "skipped_steps": phase.skipped_steps,
            "scaler": phase.scaler.state_dict(),
        }
        if phase.losses:  # an epoch begins with random numbers of its own
            where_it_stands["random"] = self.restored_random_numbers or random_numbers()

        with replacing(self.folder / "last") as folder:
            self.average.model.save_pretrained(folder)
            if self.held_out is not None:  # null would say no more than no file does
                write_held_out(folder, self.held_out)
            save_file(weights, folder / "weights.safetensors")
            save_file(moments, folder / "optimizer.safetensors")
            text = json.dumps(where_it_stands, indent=2) + "\n"
            (folder / "trainer.json").write_text(text, encoding="utf-8")

    def load(self, phase):
        """Restore what `save` has written."""
        last = self.folder / "last"
        self.model.load_state_dict(load_file(last / "weights.safetensors"))
        load_moments(phase.optimizer, load_file(last / "optimizer.safetensors"))
        where_it_stands = json.loads((last / "trainer.json").read_text(encoding="utf-8"))
        self.epochs_done = where_it_stands["epoch"]
        self.best = where_it_stands["best"]
        self.history = where_it_stands["history"]
        phase.losses = where_it_stands.get("losses", [])
        phase.skipped_steps = where_it_stands.get("skipped_steps", 0)
        self.restored_random_numbers = where_it_stands.get("random")
        if where_it_stands["scaler"]:  # empty unless the run was in fp16, which on another GPU it need not be
            phase.scaler.load_state_dict(where_it_stands["scaler"])

    def put_random_numbers_back(self):
        """Let torch's random numbers go on where a stop within the epoch has left them."""
        states = self.restored_random_numbers or []
        tensors = [torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8) for state in states]
        if tensors and is_first_process():  # the run was then one process: only that is saved within an epoch
            torch.set_rng_state(tensors[0])
            if len(tensors) > 1:
                torch.cuda.set_rng_state(tensors[1])
        self.restored_random_numbers = None  # until here a second stop keeps them


def load_moments(optimizer, moments):
    """Give AdamW the moments that `Run.save` has written: {"NUMBER.KEY": tensor}."""
    state = {}
    for name, value in moments.items():
        number, key = name.split(".")  # of the parameter; step, exp_avg or exp_avg_sq
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, slots in optimizer.state.items():
        for key, value in slots.items():
            if value.ndim:  # in the memory order of its parameter, as fused AdamW expects
                slots[key] = torch.empty_like(parameter).copy_(value)


def random_numbers():
    """Return the state of torch's random numbers as text: of the CPU, and of the GPU in use."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return [state.numpy().tobytes().hex() for state in states]
