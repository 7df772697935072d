"""What several test files share: a small drawn dataset, a run trained on it by the real command, and runners."""

import functools
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two of pytest's workers share the cores
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A test that would download something fails at once, and finds nothing that somebody downloaded before.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="empty-hub-cache-")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="empty-user-cache-")

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import AutoModel, BertConfig

from data.sample_scenes import write_sample
from support.wordpiece import train_tokenizer

ROOT = Path(__file__).parents[1]


# Files that take long: begun first, so that none of them runs alone at the end, beside an idle core.
SLOW = ("supply_chain", "benchmarks", "train", "towers", "distributed", "survival", "app_attacks", "app", "gallery",
        "shards", "hostile_checkpoints", "damaged_folder", "inference", "narrow", "results", "flickr8k")


def pytest_collection_modifyitems(items):
    """Put the tests of slow files first."""
    names = [f"test_{name}.py" for name in SLOW]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else len(names))


@functools.cache
def script_server():
    """Start, once, what runs scripts without importing torch again for each."""
    server = [sys.executable, str(ROOT / "tests" / "script_server.py")]
    return subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@functools.cache
def fork_context():
    """Return the context for processes that begin in the middle of our code, with the libraries imported.

    They are forked from one that has no threads, as pytest's own process has: what one of these held at the moment of
    the fork would be held for ever.
    """
    context = multiprocessing.get_context("forkserver")
    ours = ["train", "test_survival", "test_distributed"]
    context.set_forkserver_preload([*ours, "transformers.models.distilbert.modeling_distilbert"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        first = context.Process(target=len, args=("",))
        first.start()
        first.join()
    return context


def run_script(name, *arguments, cwd, check=True):
    """Run a script of the repository in a process of its own; returns the finished process with its output as text."""
    (process,) = run_processes([{}], name, *arguments, cwd=cwd)
    assert not check or process.returncode == 0, process.stderr
    return process


def with_flags(flags, *others):
    """Return flags with others in their places: a command line may hold none twice."""
    kept = list(flags)
    for flag in others:
        if flag in kept and str(flag).startswith("--"):
            place = kept.index(flag)
            del kept[place : place + 2]
    return [*kept, *others]


def run_as_torchrun(world, name, *arguments, cwd):
    """Run a script in several processes at once, which have the environment that torchrun gives; returns all of them.

    torchrun itself, which starts each with the libraries to be imported anew, is tried in test_distributed.py.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} for rank in range(world)]
    return run_processes(ranks, name, *arguments, cwd=cwd)


def run_processes(environments, name, *arguments, cwd):
    """Run a script once for each of some additions to the environment, at the same time."""
    command = [str(ROOT / name), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        processes = [{"environment": {**os.environ, **more}, "stdout": f"{folder}/{number}.out",
                      "stderr": f"{folder}/{number}.err"} for number, more in enumerate(environments)]
        request = {"command": command, "folder": str(cwd), "processes": processes, "seconds": 280}
        print(json.dumps(request), file=script_server().stdin, flush=True)
        statuses = json.loads(script_server().stdout.readline())
        return [subprocess.CompletedProcess(command, status, Path(one["stdout"]).read_text(),
                                            Path(one["stderr"]).read_text())
                for status, one in zip(statuses, processes, strict=True)]


def save_image_tower(directory, architecture="test_resnet", size=32, **model_args):
    """Write a timm tower with weights in local-dir form, with a normalisation of its own; returns it in eval mode."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    tower = timm.create_model(architecture, num_classes=0, **model_args).eval()
    save_file(tower.state_dict(), directory / "model.safetensors")
    known = tower.pretrained_cfg
    (directory / "config.json").write_text(json.dumps({
        "architecture": architecture, "model_args": model_args,
        "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3], "input_size": [3, size, size],
                           "num_classes": 0, "first_conv": known["first_conv"], "classifier": known["classifier"]},
    }))
    return tower


def save_text_tower(directory, captions, dtype=torch.float16):
    """Write a small BERT and its tokenizer, by default in half precision; returns it in float32 and eval mode."""
    tokenizer = train_tokenizer(captions, 32)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(1)
    model = AutoModel.from_config(BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32)).to(dtype).eval()
    model.save_pretrained(directory)
    return model.float()


@pytest.fixture(scope="session")
def tower_flags(tmp_path_factory, sample_dir):
    """Flags that name a small pretrained image tower and a small pretrained text tower, both local folders."""
    directory = tmp_path_factory.mktemp("towers")
    save_image_tower(directory / "image")
    save_text_tower(directory / "text", ["Two people sit near the beach .", "A dog runs through the water ."])
    return {"image_encoder": f"local-dir:{directory / 'image'}", "text_encoder": str(directory / "text")}


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory):
    """A drawn dataset of 96 train, 16 dev and 16 test pictures."""
    directory = tmp_path_factory.mktemp("data") / "sample"
    write_sample(directory, seed=1, train=96, dev=16, test=16)
    return directory


@pytest.fixture(scope="session")
def train_flags(sample_dir):
    """A run of seconds: four epochs of three steps."""
    return ["sample", "--data-dir", sample_dir, "--epochs", 4, "--batch-size", 32]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory, train_flags):
    """A working directory in which `train.py` has made runs/first."""
    directory = tmp_path_factory.mktemp("workplace")
    directory.joinpath("train.log").write_text(
        run_script("train.py", *train_flags, "--run-dir", "runs/first", cwd=directory).stdout)
    return directory


@pytest.fixture(scope="session")
def checkpoint(workplace):
    """The best/ model directory of that run."""
    return workplace / "runs" / "first" / "best"
