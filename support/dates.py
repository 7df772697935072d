"""Dates as people type them, and as cameras and files note them: seconds on the clock that hung on the wall there.

A camera notes what its clock shows, and no time zone. So a moment is the number of seconds since the beginning of 1970
on that same clock, wherever that was; a file's time is taken as this machine's clock showed it.
"""

import math
import re
from datetime import datetime, timedelta

from support.errors import UserError

START = datetime(1970, 1, 1)
TYPED = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?")  # 2019, 2019-06, 2019-06-30
# "2019:06:30 14:05:09" by the standard; other programs write other signs between, or the day alone.
NOTED = re.compile(r"\s*(\d{4})\D(\d{1,2})\D(\d{1,2})(?:\D+(\d{1,2})\D(\d{1,2})(?:\D(\d{1,2}))?)?")
EARLIEST = (datetime(1, 1, 1) - START).total_seconds()
LATEST = (datetime(9999, 12, 31, 23, 59, 59) - START).total_seconds()


def first_moment(words):
    """Return the first moment of a year, a month or a day, in seconds; raises UserError for what is none of these."""
    found = TYPED.fullmatch(words.strip())
    try:
        year, month, day = found.groups()
        return seconds(datetime(int(year), int(month or 1), int(day or 1)))
    except (AttributeError, ValueError):
        raise UserError(f"{words} is no date: type a year, month or day, such as 2019, 2019-06 or 2019-06-30") from None


def noted_moment(words):
    """Return the moment that a camera has noted, in seconds, or None where it has noted none that can be."""
    found = NOTED.match(str(words))
    if not found:
        return None
    try:
        year, month, day, hour, minute, second = (int(part or 0) for part in found.groups())
        return seconds(datetime(year, month, day, hour, minute, min(second, 59)))
    except ValueError:  # 0000:00:00 00:00:00 is a clock that was never set
        return None


def moment_of_file(stamp):
    """Return when a file was last changed, in seconds; not a number where that is not known.

    stamp: what `support.files.stamp` gives.
    """
    try:
        _, nanoseconds = stamp.split("|")
        return seconds(datetime.fromtimestamp(int(nanoseconds) / 1e9))
    except (AttributeError, ValueError, OverflowError, OSError):
        return math.nan


def seconds(moment):
    """Return a datetime without a time zone as seconds."""
    return (moment - START).total_seconds()


def day(moment):
    """Return the day of a moment, such as 2019-06-30; None where it is not a number."""
    if not EARLIEST <= moment <= LATEST:
        return None
    return (START + timedelta(seconds=float(moment))).date().isoformat()
