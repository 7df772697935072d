"""How far a long loop is: a bar in a terminal; elsewhere, in a log or a notebook, a line every half minute."""

import math
import sys
import time

from support.process import is_first_process

LINE_EVERY = 30  # seconds


def with_progress(items, title, unit, total=None, done=0):
    """Return items, to be looped over, and show how far the loop is. Of several processes only the first one shows it.

    title: what is being done; None shows nothing. total: how many there are, where `len` does not tell, `done` of them
    before this loop. `set_postfix(loss="0.123")` of what is returned adds to the bar.
    """
    total = len(items) + done if total is None else total
    is_shown = title is not None and is_first_process()
    if is_shown and sys.stderr.isatty():
        from tqdm import tqdm

        return tqdm(items, title, total, initial=done, unit=unit.removesuffix("s"), leave=False)
    every = LINE_EVERY if is_shown else math.inf
    return LinesForLogs(items, f"{title}: {{}} of {total:,} {unit}", total, done, every)


class LinesForLogs:
    """A loop that prints a line on standard error every so many seconds."""

    def __init__(self, items, line, total, done, every):
        self.every = every
        self.items = items
        self.line = line
        self.total = total
        self.done = done

    def __iter__(self):
        begin = shown = time.monotonic()
        for number, item in enumerate(self.items, start=1):
            yield item
            now = time.monotonic()
            if now - shown >= self.every:
                shown = now
                left = (now - begin) / number * (self.total - self.done - number)
                line = self.line.format(f"{self.done + number:,}")
                print(f"{line}, {in_words(left)} left", file=sys.stderr, flush=True)

    def set_postfix(self, **_):
        """Nothing is added to a line."""


def in_words(seconds):
    """Return a time as people say it: "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
