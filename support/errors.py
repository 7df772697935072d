"""Errors that people can mend: one clear line, exit status 2, no traceback."""

import atexit
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
    except KeyboardInterrupt as stop:  # by Ctrl-C; who knows what is kept has put it into words
        print(f"\n{words_on_a_stop(stop)}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `python inference.py … | head`: the reader has left, so there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def words_on_a_stop(stop):
    """Return what a person is told who has pressed Ctrl-C."""
    return f"stopped: {str(stop) or 'nothing is lost or damaged; type the same command to begin again'}"


def expect_ctrl_c():
    """From now on let Ctrl-C end this command in one line outside `one_line_errors` too, as while libraries load."""
    show_traceback = sys.excepthook

    def show(kind, error, traceback):
        if not issubclass(kind, KeyboardInterrupt):
            show_traceback(kind, error, traceback)
            return
        print(f"\n{words_on_a_stop(error)}", file=sys.stderr, flush=True)
        atexit._run_exitfuncs()
        os._exit(130)  # Python itself would end by the signal

    sys.excepthook = show
