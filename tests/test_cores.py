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
    assert look([0, 10]).busy == pytest.approx((100 + 20 + 30 + 6 + 7 + 50) / 100)


@pytest.mark.skipif(not cores.CPU_TIMES.exists(), reason="the system does not tell")
def test_a_busy_program_beside_takes_a_core_and_a_number_of_the_users_stays():
    lines = ("import torch\nfrom support.cores import use_free_cores\n"
             "use_free_cores(torch.device('cpu'))\nprint(torch.get_num_threads())")
    count = len(os.sched_getaffinity(0))
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        free, set_by_user = (subprocess.run([sys.executable, "-c", lines], cwd=ROOT, env={**environment, **more},
                                            check=True, capture_output=True, text=True).stdout
                             for more in ({}, {"OMP_NUM_THREADS": str(count)}))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert (free, set_by_user) == ("1\n", f"{count}\n")
