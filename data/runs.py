"""What reaches a run from outside: a signal, a second process, a full disk. Imports no torch.

SIGTERM and SIGINT (Ctrl-C) end a run between two steps or after what is being saved (`unbroken`); a second one ends it
at once. Nothing can be done about kill -9: so everything is written beside its place and renamed, see data/files.py.
"""

import contextlib
import errno
import os
import re
import shutil
import signal
import sys
from types import SimpleNamespace

try:
    import fcntl
except ImportError:  # Windows, where a run folder is not locked
    fcntl = None

from config import Config, UserError, differing_settings, ranks

LOCK = ".lock"  # in the run folder, while a process writes there
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# config: of the run, once it has begun; held: whether a stop must wait; asked: whether one was asked for
STATE = SimpleNamespace(config=None, held=False, asked=False)


# ---------------------------------------------------------------- signals


def heed_signals():
    """From now on let SIGTERM and SIGINT stop the run in good order."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, heed)


def heed(number, frame):
    """Stop: now, or where that must wait, at the end of `unbroken`; without any order if it is the second signal."""
    if STATE.asked or STATE.config is None:
        say(f"stopped at once; {go_on(STATE.config)}" if STATE.config else "stopped before the run began")
        os._exit(130)
    STATE.asked = True
    if not STATE.held:
        raise KeyboardInterrupt
    say("stopping after this step; a second signal stops at once")


def say(line):
    """Write a line to standard error. In a signal handler `print` may meet itself and fail."""
    with contextlib.suppress(OSError, RuntimeError):
        sys.stdout.flush()
    os.write(2, f"\n{line}\n".encode(errors="backslashreplace"))


@contextlib.contextmanager
def unbroken():
    """Let a stop wait for the end of this block."""
    STATE.held = True
    try:
        yield
    finally:
        STATE.held = False
    if STATE.asked:
        raise KeyboardInterrupt


def leave_quietly(worker):
    """Keep a loader's worker from ending with a fault when a signal goes to all processes of a terminal or a job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers itself
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


# ---------------------------------------------------------------- the run folder


def check_run_dir(config):
    """Refuse to overwrite a run, and to resume one with settings that would make it another run."""
    recover(config.run_dir)
    if not config.resume:
        if (config.run_dir / "last").exists():
            raise UserError(f"{config.run_dir} already holds a run: add --resume to go on, or name another --run-dir")
        return
    saved = Config.load(config.run_dir / "last" / "config.json")
    if not (config.run_dir / "last" / "weights.safetensors").exists():
        raise UserError(f"{config.run_dir} is a run of another version: it cannot be resumed, train anew")
    harmless = ("resume ", "run_dir ", "device ", "workers ", "data_dir ", "epochs ", "micro_batch ")
    if changes := [change for change in differing_settings(saved, config) if not change.startswith(harmless)]:
        raise UserError(f"{config.run_dir} cannot go on with other settings ({', '.join(changes)}): drop these flags")


def go_on(config):
    """Return what to type after a run has stopped."""
    if not (config.run_dir / "last").exists():
        return "it was before anything could be kept: begin anew"
    start = f"torchrun --nproc-per-node={world}" if (world := os.environ.get("LOCAL_WORLD_SIZE")) else "python"
    return f"go on with: {start} train.py --resume --run-dir {config.run_dir}"


def recover(run_dir):
    """Put back the previous last/ and best/ of a run if a kill came between the two renames that replace them."""
    for name in ("last", "best"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # none, or another process was first
            if not (run_dir / name).exists():
                (run_dir / f".{name}.old").rename(run_dir / name)


@contextlib.contextmanager
def guarded(config):
    """Keep the run folder for this process, and turn what ends a run from outside into one line."""
    STATE.config = config
    try:
        with locked(config.run_dir) if ranks()[0] == 0 else contextlib.nullcontext():
            yield
    except KeyboardInterrupt:
        print(f"\nstopped; {go_on(config)}")
        sys.exit(130)
    except Exception as error:
        if is_full(error):
            raise UserError(f"no room to write: {error}. Free some; {go_on(config)}") from None
        from torch.distributed import DistBackendError  # it is imported by now
        if isinstance(error, DistBackendError) or isinstance(error, RuntimeError) and "onnection" in str(error):
            raise UserError(f"another process of this run has ended, see its message; {go_on(config)}") from None
        raise


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
        if not taken(file):
            raise UserError(busy(run_dir))
        recover(run_dir)
        for litter in (*run_dir.glob(".*.new"), *run_dir.glob(".*.old")):  # of a process that was killed while it wrote
            shutil.rmtree(litter) if litter.is_dir() else litter.unlink()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (run_dir / LOCK).unlink()
                run_dir.rmdir()  # where nothing has come of it: a folder that holds something stays


def taken(file, shared=False):
    """Lock an open file if no other process has; returns whether it is ours."""
    # lockf, for a lock that is this process's alone: one by flock lives on in the workers of a loader that was killed
    try:
        if fcntl:
            fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)  # others: a disk that knows no locks
    return True


def in_use(run_dir):
    """Return whether another process writes this run. Not to be asked by one that holds it: it would let go."""
    try:
        with (run_dir / LOCK).open() as file:
            return not taken(file, shared=True)
    except OSError:
        return False


def busy(run_dir):
    """Return the message of a run folder that another process holds."""
    return f"{run_dir} is in use: another process trains there. Wait for it, stop it, or name another --run-dir"


def is_full(error):
    """Return whether an error says that a disk, a quota or a limit on files is exhausted."""
    code = re.search(r"\(os error (\d+)\)", str(error))  # safetensors has no errno
    return getattr(error, "errno", None) in FULL or code is not None and int(code[1]) in FULL
