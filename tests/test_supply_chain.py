"""What is installed, what is asked of the network, and what is left behind: nothing that nobody asked for."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

from support import SETTINGS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PEERS = [Requirement(line) for line in EXTRAS["peers"]]
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
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        assert requirement in PEERS  # of no use but to be compared with
        return
    assert installed in requirement.specifier


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
    environment |= {"PYTHONPATH": str(folder), "HOME": str(folder / "home")}
    (folder / "home").mkdir()
    numbers = itertools.count()

    def start(*command):
        """Start a command; returns a function that waits for its end."""
        asked, counts = (folder / f"{name}-{next(numbers)}.txt" for name in ("asked", "counts"))
        asked.write_text("")
        with_counts = ["sh", "-c", f'"$@" && cat /proc/net/snmp > {counts}', "sh", sys.executable, *map(str, command)]
        process = subprocess.Popen([*unshare, *with_counts], cwd=folder, env={**environment, "ASKED": str(asked)},
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        def finish():
            printed, errors = process.communicate(timeout=280)
            assert process.returncode == 0, errors
            return printed, asked.read_text() + counted(counts)

        return finish

    def run(*command):
        return start(*command)()

    run.start = start
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


# The page, asked a prompt as the browser does, and left alone for a minute: whatever a library does in the background,
# it has time for.
A_MINUTE_OF_THE_PAGE = """import fcntl, json, socket, struct, subprocess, sys, time
from urllib.request import Request, urlopen

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:  # the loop within this machine is all there is
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
page = subprocess.Popen([sys.executable, sys.argv[1], "--port", "7861"], stdout=subprocess.PIPE, text=True)
address = page.stdout.readline().split()[0]

def ask(path, body=None):
    headers = {"Content-Type": "application/json"}
    return urlopen(Request(address + path, body and json.dumps(body).encode(), headers)).read().decode()

events = json.loads(ask("/config"))["dependencies"]
search = next(event["id"] for event in events if event["api_name"] == "search")
asked = ["a dog", "", None, 9, -1, "", "", "", "", "score"]
ask("/gradio_api/queue/join", {"data": asked, "fn_index": search, "session_hash": "a"})
print("picture/" in ask("/gradio_api/queue/data?session_hash=a"))
time.sleep(60)
page.terminate()
page.wait()
"""


def test_training_measuring_and_searching_ask_for_nothing_and_leave_nothing_behind(alone, sample_dir):
    printed, asked = alone(ROOT / "train.py", "sample", "--data-dir", sample_dir, "--epochs", 1, "--batch-size", 32)
    assert "next: python inference.py" in printed and asked == ""
    a_minute_of_the_page = alone.start("-c", A_MINUTE_OF_THE_PAGE, ROOT / "app.py")
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

    printed, asked = a_minute_of_the_page()
    asked_elsewhere = [line for line in asked.splitlines() if "127.0.0.1" not in line and "Out" not in line
                       and "ActiveOpens" not in line]
    assert printed == "True\n" and asked_elsewhere == [] and "OutNoRoutes" not in asked
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
