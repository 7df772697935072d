"""The processes that decode photos for a loader: how they start, how long they live, and what reaches them."""

import sys

import torch
from torch.utils.data import DataLoader

from support.interruptions import leave_quietly
from support.new_processes import starting_workers


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
