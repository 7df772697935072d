"""What is installed, and what is asked of the network: bounds that hold, and no connection that nobody asked for."""

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
    """A function that runs a command where there is no network, and returns its output and what it asked for there."""
    for unshare in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if shutil.which("unshare") and subprocess.run([*unshare, "true"], capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("a process without a network needs unshare, and the right to use it")
    folder = tmp_path_factory.mktemp("alone")
    (folder / "sitecustomize.py").write_text(AUDIT)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"PYTHONPATH": str(folder), "ASKED": str(folder / "asked.txt"), "HF_HOME": str(folder / "hub"),
                    "XDG_CACHE_HOME": str(folder / "cache")}

    def run(*command):
        (folder / "asked.txt").write_text("")
        process = subprocess.run([*unshare, sys.executable, *map(str, command)], cwd=folder, env=environment,
                                 capture_output=True, text=True, timeout=280)
        assert process.returncode == 0, process.stderr
        return process.stdout, (folder / "asked.txt").read_text()

    return run


def test_the_test_sees_what_asks_the_network(alone):
    lines = """import socket
for ask in (lambda: socket.create_connection(("192.0.2.1", 80), 1), lambda: socket.getaddrinfo("example.com", 80)):
    try: ask(); print("reached")
    except OSError: pass"""
    printed, asked = alone("-c", lines)
    assert printed == "" and "192.0.2.1" in asked and "example.com" in asked


def test_training_measuring_and_searching_ask_the_network_for_nothing(alone, sample_dir):
    printed, asked = alone(ROOT / "train.py", "sample", "--data-dir", sample_dir, "--epochs", 1, "--batch-size", 32)
    assert "next: python inference.py" in printed and asked == ""
    printed, asked = alone(ROOT / "evaluate.py")
    assert "R@10" in printed and asked == ""
    for _ in range(2):  # with torch, and with the text tower as a file
        printed, asked = alone(ROOT / "inference.py", "--query", "people sitting near the beach")
        assert "wrote matches.png" in printed and asked == ""


def test_importing_the_scripts_asks_the_network_for_nothing(alone):
    modules = [path.stem for path in ROOT.glob("*.py")] + [
        f"{folder}.{path.stem}" for folder in ("support", "search", "data") for path in ROOT.glob(f"{folder}/[a-z]*.py")
        if path.name != "onnx_example.py"]  # a script alone
    lines = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(modules)}"
    assert {"app", "support.hub", "search.index", "data.make_shards"} <= set(modules)
    assert alone("-c", lines) == ("", "")
