"""support/cores.py: arithmetic by hand, a file as the system writes it, and a real program beside."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from support import cores
from support.cores import Look, free_cores, look


@pytest.mark.parametrize("busy, own, count, free", [
    (0.0, 0.0, 2, 2),
    (20.0, 20.0, 2, 2),  # all of it is ours
    (20.0, 10.0, 2, 1),  # another program has a core
    (13.0, 10.0, 2, 2),  # another one is busy for a third of the time
    (20.0, 0.5, 2, 1),  # both are taken: one thread all the same
    (40.0, 10.0, 8, 5),
])
def test_what_others_leave_by_hand(busy, own, count, free):
    assert free_cores(Look(100.0, 500.0, 3.0), Look(110.0, 500.0 + busy, 3.0 + own), count) == free


def test_only_the_cores_of_this_process_count(tmp_path, monkeypatch):
    (tmp_path / "stat").write_text("cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 20 30 4000 500 6 7 0 0 0\n"
                                   "cpu1 1000 0 0 0 0 0 0 0 0 0\ncpu10 50 0 0 0 0 0 0 0 0 0\nintr 1 2 3\n")
    monkeypatch.setattr(cores, "CPU_TIMES", tmp_path / "stat")
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 10})
    assert look().busy == pytest.approx((100 + 20 + 30 + 6 + 7 + 50) / 100)


@pytest.mark.skipif(not cores.CPU_TIMES.exists(), reason="the system does not tell")
def test_a_busy_program_beside_takes_a_core_and_a_number_of_the_users_stays():
    count = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        threads = threads_of_a_program()
        chosen_outside = threads_of_a_program(OMP_NUM_THREADS=str(count))
        chosen_inside = threads_of_a_program(before="torch.set_num_threads(3)")
    finally:
        for process in busy:
            process.kill()
            process.wait()
    if count > 1:
        assert threads == f"computing on 1 of {count} cores: other programs keep the rest busy\n1\n"
    assert chosen_outside == f"None\n{count}\n"
    assert chosen_inside == "None\n3\n"


def threads_of_a_program(before="", **environment):
    """Return what a program prints that looks for free cores once: the line for people, and torch's threads."""
    lines = ("import torch\nfrom support.cores import use_free_cores\n"
             f"{before}\nprint(use_free_cores(torch.device('cpu')))\nprint(torch.get_num_threads())")
    rest = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", lines]
    done = subprocess.run(command, cwd=ROOT, env={**rest, **environment}, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.mark.skipif(not cores.CPU_TIMES.exists(), reason="the system does not tell")
def test_a_child_that_has_ended_is_not_another_program():
    before = look()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    assert look().own - before.own >= 0.4


def test_ctrl_c_is_one_line():
    lines = ("import os, signal\nfrom support.errors import one_line_errors\n"
             "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # behind "&" a shell has it ignored
             "with one_line_errors(): os.kill(os.getpid(), signal.SIGINT)")
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        130, "\nstopped: nothing is lost or damaged; type the same command to begin again\n")
