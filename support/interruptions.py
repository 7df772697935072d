"""What reaches a run from outside: a signal, a second process on its folder, a full disk. Imports no torch.

SIGINT (Ctrl-C), SIGTERM and SIGHUP (a lost connection) end a run between two steps or after what is being saved
(`unbroken`); a second one ends it at once. Nothing can be done about kill -9: so everything is written beside its place
and renamed, see files.py.
"""

import contextlib
import errno
import os
import re
import shutil
import signal
import sys

try:
    import fcntl
except ImportError:  # Windows, where a run folder is not locked
    fcntl = None

from support.errors import UserError
from support.files import put_back_what_was_replaced

LOCK = ".lock"  # in the run folder, while a process writes there
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# ---------------------------------------------------------------- signals


class Stop:
    """Whether the run of this process was asked to stop, and whether that must wait a moment."""

    run_dir = None  # of the run, once it has begun
    must_wait = False
    was_asked = False


def heed_signals():
    """From now on let SIGINT, SIGTERM and SIGHUP stop the run in good order; under nohup SIGHUP stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, heed)
    hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
    if hang_up and signal.getsignal(hang_up) == signal.SIG_DFL:
        signal.signal(hang_up, heed)


def heed(number, frame):
    """Stop: now, or where that must wait, at the end of `unbroken`; without any order if it is the second signal."""
    if Stop.run_dir is None:
        write_to_terminal("stopped before the run began")
        os._exit(130)
    if Stop.was_asked:
        write_to_terminal(f"stopped at once; {how_to_go_on(Stop.run_dir)}")
        os._exit(130)
    Stop.was_asked = True
    if not Stop.must_wait:
        raise KeyboardInterrupt
    write_to_terminal("stopping after this step; a second signal stops at once")


def write_to_terminal(line):
    """Write a line to standard error. In a signal handler `print` may meet itself and fail."""
    with contextlib.suppress(OSError, RuntimeError):
        sys.stdout.flush()
    os.write(2, f"\n{line}\n".encode(errors="backslashreplace"))


@contextlib.contextmanager
def unbroken():
    """Let a stop wait for the end of this block."""
    Stop.must_wait = True
    try:
        yield
    finally:
        Stop.must_wait = False
    if Stop.was_asked:
        raise KeyboardInterrupt


def leave_quietly(worker):
    """Keep a loader's worker from ending with a fault when a signal goes to all processes of a terminal or a job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers itself
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def how_to_go_on(run_dir):
    """Return what to type after a run has stopped."""
    if not (run_dir / "last").exists():
        return "it was before anything could be kept: begin anew"
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    start = f"torchrun --nproc-per-node={processes}" if processes else "python"
    return f"go on with: {start} train.py --resume --run-dir {run_dir}"


# ---------------------------------------------------------------- the lock


@contextlib.contextmanager
def locked(run_dir):
    """Hold a run folder for this process. The system lets go of it when the process ends, even by kill -9."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / LOCK).open("a")
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--run-dir {run_dir} is a file: name a folder") from None
    except OSError as error:
        if is_full(error):
            raise
        raise UserError(f"--run-dir {run_dir} cannot be written: {error}") from None
    with file:
        if not can_lock(file):
            raise UserError(is_in_use_line(run_dir))
        repair(run_dir)
        # what a process left that was killed while it wrote
        for litter in (*run_dir.glob(".*.new"), *run_dir.glob(".*.old")):
            if litter.is_dir():
                shutil.rmtree(litter)
            else:
                litter.unlink()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (run_dir / LOCK).unlink()
                run_dir.rmdir()  # where nothing has come of it: a folder that holds something stays


def can_lock(file, shared=False):
    """Lock an open file if no other process has; returns whether it is ours."""
    if fcntl is None:
        return True
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        # lockf is this process's alone: a lock by flock lives on in the workers of a loader that was killed
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)  # others: a disk that knows no locks
    return True


def is_in_use(run_dir):
    """Return whether another process writes this run. Not to be asked by one that holds it: it would let go."""
    try:
        with (run_dir / LOCK).open() as file:
            return not can_lock(file, shared=True)
    except OSError:
        return False


def is_in_use_line(run_dir):
    """Return the message of a run folder that another process holds."""
    return f"{run_dir} is in use: another process trains there. Wait for it, stop it, or name another --run-dir"


def repair(run_dir):
    """Put back the previous last/ and best/ of a run if a kill came between the two renames that replace them."""
    for name in ("last", "best"):
        put_back_what_was_replaced(run_dir / name)


# ---------------------------------------------------------------- a full disk, no memory, a lost process


@contextlib.contextmanager
def one_line_for_interruptions(run_dir):
    """Turn what ends a run from outside into one line that says how to go on."""
    Stop.run_dir = run_dir
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nstopped; {how_to_go_on(run_dir)}")
        sys.exit(130)
    except Exception as error:
        if is_full(error):
            raise UserError(f"no room to write: {error}. Free some; {how_to_go_on(run_dir)}") from None
        if is_out_of_memory(error):
            line = "no memory left: try a smaller --micro-batch, or train anew with smaller towers or --freeze both"
            raise UserError(f"{line}; {how_to_go_on(run_dir)}") from None
        if is_lost_process(error):
            line = "another process of this run has ended, see its message"
            raise UserError(f"{line}; {how_to_go_on(run_dir)}") from None
        raise


def is_full(error):
    """Return whether an error says that a disk, a quota or a limit on files is exhausted."""
    if getattr(error, "errno", None) in FULL:
        return True
    code = re.search(r"\(os error (\d+)\)", str(error))  # safetensors has no errno
    return code is not None and int(code[1]) in FULL


def is_out_of_memory(error):
    """Return whether an error says that there is no memory left, on the GPU or beside it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # of torch's own allocator, and of oneDNN, which computes convolutions
    words = "can't allocate memory", "could not create a primitive"
    return isinstance(error, RuntimeError) and any(some in str(error) for some in words)


def is_lost_process(error):
    """Return whether an error says that another process of this run does not answer any more."""
    from torch.distributed import DistBackendError  # it is imported by now

    if isinstance(error, DistBackendError):
        return True
    return isinstance(error, RuntimeError) and "onnection" in str(error)
