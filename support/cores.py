"""How many threads compute: as many as other programs leave cores to them.

The threads of a convolution wait for each other at every layer. Where one of them shares its core with another
program, all wait for it: with one busy program on two cores, two threads take twice to four times as long as one,
however long they spin while they wait. So what others use is looked at before each epoch, and before a gallery is
embedded, and torch gets as many threads as there are cores left. Figures differ in their last digits with the number
of threads; OMP_NUM_THREADS fixes it.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

import torch

from support.process import usable_cores

CPU_TIMES = Path("/proc/stat")  # Linux; elsewhere torch's own choice stays
SHORTEST = 0.5  # seconds between two looks: what is counted comes in hundredths


class Look(NamedTuple):
    """What was seen at a moment, in seconds."""

    moment: float
    busy: float  # of all programs, summed over the cores
    own: float  # of this process and of its children that have ended


def use_free_cores(device):
    """Let torch compute with as many threads as others have left cores since the last look; at least one.

    Never more than torch itself would take, and none but its own number where a user has chosen one. Returns a line for
    people if the number has changed, else None.
    """
    global last_look, chosen
    chosen_elsewhere = "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() != chosen
    if device.type != "cpu" or last_look is None or chosen_elsewhere:
        return None
    time.sleep(max(0, SHORTEST - (time.monotonic() - last_look.moment)))
    now = look()
    threads = min(MOST_THREADS, free_cores(last_look, now, usable_cores()))
    last_look = now
    if threads == chosen:
        return None
    torch.set_num_threads(threads)
    chosen = threads
    if threads < MOST_THREADS:
        return f"computing on {threads} of {MOST_THREADS} cores: other programs keep the rest busy"
    return f"computing on all {MOST_THREADS} cores again"


def look():
    """Return a `Look` at what keeps the cores of this process busy; None where the system does not tell."""
    if not CPU_TIMES.exists():
        return None
    cores = os.sched_getaffinity(0)
    busy = 0.0
    for line in CPU_TIMES.read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _, _, interrupts, soft_interrupts = map(int, ticks[:7])  # without idle and waiting
            busy += user + nice + system + interrupts + soft_interrupts
    own = sum(os.times()[:4])
    return Look(time.monotonic(), busy / os.sysconf("SC_CLK_TCK"), own)


def free_cores(before, now, cores):
    """Return how many of some cores other programs have left free between two looks; at least 1."""
    seconds = max(now.moment - before.moment, 1e-9)
    others = (now.busy - before.busy) - (now.own - before.own)
    return max(1, cores - round(others / seconds))


MOST_THREADS = torch.get_num_threads()  # torch's own choice: one a core, where a core looks like two
chosen = MOST_THREADS
last_look = look()  # at the start of the program
