"""Processes that start beside a command: without what only the command needs, and deaf to Ctrl-C. Imports no torch."""

import contextlib
import signal
import sys


@contextlib.contextmanager
def starting_workers(need_script=False):
    """Let processes start that are no copies of this one: without the script that runs here, and deaf to Ctrl-C.

    Such a process would import the script anew, with all that it imports; what it needs mostly lies in other files. And
    until it has imported these, Ctrl-C, which reaches all processes of a terminal, would end it in a traceback.
    need_script: what they are to do stands in the script itself.
    """
    main = vars(sys.modules["__main__"])
    hidden = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    can_block = hasattr(signal, "pthread_sigmask")  # not on Windows
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if can_block else None
    try:
        if not need_script:
            main.pop("__file__", None)
            main["__spec__"] = None
        yield
    finally:
        main.update(hidden)
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
