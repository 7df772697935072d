"""How many threads compute: as many as other programs leave cores to them.

The threads of a convolution wait for each other at every layer. Where one of them shares its core with another program,
all wait for it, and spin while they do: with one busy program on two cores, two threads take two to four times as long
as one. So what others use is looked at now and then, and torch gets as many threads as there are cores left.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

import torch

CPU_TIMES = Path("/proc/stat")  # Linux; elsewhere torch's own choice stays
SHORTEST = 0.2  # seconds between two looks: what is counted comes in hundredths


class Look(NamedTuple):
    """What was seen at a moment, in seconds."""

    moment: float
    busy: float  # of all programs, summed over the cores
    own: float  # of this process


last_look = None
MOST_THREADS = torch.get_num_threads()  # torch's own choice: one a core, where a core looks like two


def use_free_cores(device):
    """Let torch compute with as many threads as others have left cores since the last look; at least one.

    Never more than torch itself would take. Called now and then. A number of the user's own (OMP_NUM_THREADS) stays.
    """
    global last_look
    if device.type != "cpu" or "OMP_NUM_THREADS" in os.environ or not CPU_TIMES.exists():
        return
    cores = sorted(os.sched_getaffinity(0))
    if last_look is None:
        last_look = look(cores)
        time.sleep(SHORTEST)
    now = look(cores)
    if now.moment - last_look.moment >= SHORTEST:
        torch.set_num_threads(min(MOST_THREADS, free_cores(last_look, now, len(cores))))
        last_look = now


def look(cores):
    """Return a `Look` at what keeps these cores busy."""
    busy = 0.0
    for line in CPU_TIMES.read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _, _, interrupts, soft_interrupts = map(int, ticks[:7])  # without idle and waiting
            busy += user + nice + system + interrupts + soft_interrupts
    return Look(time.monotonic(), busy / os.sysconf("SC_CLK_TCK"), time.process_time())


def free_cores(before, now, cores):
    """Return how many of some cores other programs have left free between two looks; at least 1."""
    seconds = max(now.moment - before.moment, 1e-9)
    others = (now.busy - before.busy) - (now.own - before.own)
    return max(1, cores - round(others / seconds))
