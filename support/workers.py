"""The processes that decode photos for a loader: how they start, how long they live, and what reaches them."""

import contextlib
import signal
import sys

import torch
from torch.utils.data import DataLoader

from support.interruptions import leave_quietly


class Loader(DataLoader):
    """A DataLoader whose workers start without what only the command needs, and end with it, without a word.

    keep_workers: let them live from one pass to the next. Where a worker does not begin as a fork, as on macOS and
    Windows, it imports torch first, which takes as long as a short epoch.
    """

    def __init__(self, dataset, batch_size, workers=0, keep_workers=False, **options):
        super().__init__(
            dataset,
            batch_size,
            num_workers=workers,
            persistent_workers=keep_workers and workers > 0,
            multiprocessing_context=start_of_workers() if workers else None,
            worker_init_fn=leave_quietly,
            # Its own, from which it draws a number for each new iterator: how many there are is to change nothing.
            generator=torch.Generator(),
            **options,
        )

    def __iter__(self):
        with starting_workers():
            return super().__iter__()


def start_of_workers():
    """Return how a loader's workers start: by a fork where that is safe, else as Python does there."""
    return "fork" if sys.platform == "linux" else None


@contextlib.contextmanager
def starting_workers():
    """Let processes start that are no copies of this one: without the script that runs here, and deaf to Ctrl-C.

    Such a process would import the script anew, with all that it imports; what a loader needs lies in other files. And
    until it has imported these, Ctrl-C, which reaches all processes of a terminal, would end it in a traceback.
    """
    main = vars(sys.modules["__main__"])
    hidden = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    can_block = hasattr(signal, "pthread_sigmask")  # not on Windows
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if can_block else None
    try:
        main.pop("__file__", None)
        main["__spec__"] = None
        yield
    finally:
        main.update(hidden)
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class SharedNumber:
    """A whole number in memory that processes share; those which are no copies of this one are sent the place of it."""

    def __init__(self):
        self.number = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def value(self):
        """The number."""
        return int(self.number)

    @value.setter
    def value(self, number):
        self.number.fill_(number)
