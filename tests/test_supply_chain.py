"""What is installed, what is asked of the network, and what is left behind: nothing that nobody asked for."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

from support import SETTINGS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OUR_OWN = PROJECT["name"]
REQUIRED = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]

# Put before all that Python runs: writes down each name that is looked up, and each address that is connected to.
AUDIT = """import os, sys

def audit(event, arguments):
    if event in {"socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"}:
        if not (event == "socket.connect" and isinstance(arguments[1], (str, bytes))):  # a socket in a folder
            with open(os.environ["ASKED"], "a") as file:
                print(event, *arguments, file=file)

sys.addaudithook(audit)
"""
# What the system has counted since the namespace began: it sees libraries that are not Python, too.
COUNTED = {"Tcp": ["ActiveOpens"], "Udp": ["OutDatagrams"], "Ip": ["OutRequests", "OutNoRoutes"]}
# All that may lie in a home folder that was empty: ours, and the list of fonts that matplotlib makes.
OUR_FOLDERS = {".cache/clip-index", ".cache/matplotlib", ".config/matplotlib"}


@pytest.mark.parametrize("requirement", REQUIRED, ids=str)
def test_each_dependency_has_a_lower_bound_that_what_is_installed_satisfies(requirement):
    assert requirement.url is None  # nothing from an address or a version control system: only what a registry holds
    if requirement.name == OUR_OWN:
        assert requirement.extras <= EXTRAS.keys()
        return
    assert any(bound.operator == ">=" for bound in requirement.specifier)
    assert version(requirement.name) in requirement.specifier


def test_nothing_is_installed_but_what_is_written_there():
    for script in (ROOT / ".ci").iterdir():
        for line in re.findall(r"\bpip\W+install\b.*", script.read_text()):
            words = [word for word in line.split()[2:] if not word.startswith(("-", '"$venv', ".", "lowest-direct"))]
            assert words in ([], ['".[dev]"'], ["uv"], ["pyproject.toml", "dev"]), line


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A function that runs a command where there is no network, in a home folder that was empty.

    Returns its output and what it asked of the network.
    """
    for unshare in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if shutil.which("unshare") and subprocess.run([*unshare, "true"], capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("a process without a network needs unshare, and the right to use it")
    folder = tmp_path_factory.mktemp("alone")
    (folder / "sitecustomize.py").write_text(AUDIT)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment.pop("XDG_CACHE_HOME")
    environment |= {"PYTHONPATH": str(folder), "ASKED": str(folder / "asked.txt"), "HOME": str(folder / "home")}
    (folder / "home").mkdir()

    def run(*command):
        (folder / "asked.txt").write_text("")
        with_counts = ["sh", "-c", '"$@" && cat /proc/net/snmp > counts.txt', "sh", sys.executable, *map(str, command)]
        process = subprocess.run([*unshare, *with_counts], cwd=folder, env=environment, capture_output=True, text=True,
                                 timeout=280)
        assert process.returncode == 0, process.stderr
        return process.stdout, (folder / "asked.txt").read_text() + counted(folder / "counts.txt")

    run.folder = folder
    return run


def counted(file):
    """Return those of the system's counts that are not 0, as text."""
    lines, counts = [line.split() for line in file.read_text().splitlines()], ""
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        for name, value in zip(names[1:], values[1:], strict=True):
            if name in COUNTED.get(names[0].rstrip(":"), ()) and value != "0":
                counts += f"{names[0]} {name} {value}\n"
    return counts


def test_the_test_sees_what_asks_the_network(alone):
    lines = """import socket
for ask in (lambda: socket.create_connection(("192.0.2.1", 80), 1), lambda: socket.getaddrinfo("example.com", 80)):
    try: ask(); print("reached")
    except OSError: pass"""
    printed, asked = alone("-c", lines)
    assert printed == "" and "192.0.2.1" in asked and "example.com" in asked and "OutNoRoutes" in asked


def test_training_measuring_and_searching_ask_for_nothing_and_leave_nothing_behind(alone, sample_dir):
    printed, asked = alone(ROOT / "train.py", "sample", "--data-dir", sample_dir, "--epochs", 1, "--batch-size", 32)
    assert "next: python inference.py" in printed and asked == ""
    printed, asked = alone(ROOT / "evaluate.py")
    assert "R@10" in printed and asked == ""
    for _ in range(2):  # with torch, and with the text tower as a file
        printed, asked = alone(ROOT / "inference.py", "--query", "people sitting near the beach")
        assert "wrote matches.png" in printed and asked == ""
    printed, asked = alone(ROOT / "inference.py", "--export", "onnx")
    assert "wrote onnx" in printed and asked == ""
    pictures = sorted(map(str, (sample_dir / "Images").iterdir()))[:2]
    printed, asked = alone(alone.folder / "onnx" / "example.py", "a dog", *pictures)
    assert len(printed.splitlines()) == 2 and asked == ""

    # A process that stays: whatever a library does in the background, it has time for.
    lines = (f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from inference import Gallery; "
             "print(Gallery(progress=False).search('a dog', top_k=1)[0].rank); time.sleep(4)")
    assert alone("-c", lines) == ("1\n", "")
    assert {path.relative_to(alone.folder / "home").as_posix() for path in (alone.folder / "home").glob("*/*")} <= (
        OUR_FOLDERS)


def test_importing_the_scripts_asks_the_network_for_nothing(alone):
    modules = [path.stem for path in ROOT.glob("*.py")] + [
        f"{folder}.{path.stem}" for folder in ("support", "search", "data") for path in ROOT.glob(f"{folder}/[a-z]*.py")
        if path.name != "onnx_example.py"]  # a script alone
    lines = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(modules)}"
    assert {"app", "support.hub", "search.index", "data.make_shards"} <= set(modules)
    assert alone("-c", lines) == ("", "")


def test_the_switches_are_turned_but_for_those_that_the_user_has_set():
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    lines = "import os, support; print(*(os.environ[name] for name in support.SETTINGS))"
    for own in ({}, {"ORT_DISABLE_TELEMETRY": "0"}):
        printed = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, env=environment | own, check=True,
                                 capture_output=True, text=True).stdout.split()
        assert printed == list((SETTINGS | own).values())
