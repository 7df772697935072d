"""Errors that people can mend: one clear line, exit status 2, no traceback."""

import contextlib
import os
import re
import shlex
import sys

CONTROL = r"[\x00-\x1f\x7f-\x9f]"  # characters that steer a terminal or end a file's name


class UserError(Exception):
    """What a person can mend: shown as one line, exit status 2, no traceback."""


def shown(words):
    """Return words from elsewhere, such as a file's name, as one line: no control character reaches the terminal."""
    return re.sub(CONTROL, lambda found: ascii(found[0])[1:-1], str(words))


def quoted(words):
    """Return words as a shell takes them, in double quotes where that is safe."""
    return f'"{words}"' if re.fullmatch(r"[\w ,.-]+", words) else shlex.quote(words)


def shortened(error):
    """Return the words of a library's error as one line of at most 240 characters."""
    return " ".join(str(error).split())[:240]


@contextlib.contextmanager
def one_line_errors():
    """Turn a `UserError` into one line on standard error; errors of the program keep their traceback."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a file name that is not UTF-8 can still be printed
    try:
        yield
    except UserError as error:  # what a file holds may stand in it
        print(f"error: {shown(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `python inference.py … | head`: the reader has left, so there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
