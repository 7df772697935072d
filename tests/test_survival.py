"""What a run survives: kills, signals, a full disk, a second process. And that it is the same run every time.

Each run is a real `python train.py`, in a process that is forked from one which has imported torch already: so a run
begins in a moment, and can be killed often. It draws no pictures here: they cost more than the training.
"""

import json
import multiprocessing
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, fork_context, save_image_tower, save_text_tower, with_flags
from safetensors.torch import load_file, save_file

import evaluate
import support.run
from config import PRESETS
from support.errors import UserError
from support.run import Run, check_run_dir

KILLS = 30


# ---------------------------------------------------------------- a run and its damage


def as_command(folder, flags, damage, arguments):
    """Be `python train.py FLAGS` in a folder, with some damage arranged beforehand; the output goes to train.log."""
    os.chdir(folder)
    log = os.open("train.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, under which these tests may run, has it ignored
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in a command: here loaders would ask the forkserver
    support.run.draw_curves = evaluate.draw_charts = lambda *_: None
    if damage:
        damage(*arguments)
    sys.argv = [str(ROOT / "train.py"), *map(str, flags)]
    runpy.run_path(sys.argv[0], run_name="__main__")


def at_step(number, act, *arguments):
    """Do something in the middle of a step, which is counted from the start of the process."""
    step, count = torch.optim.AdamW.step, Counter()

    def stepping(*given, **options):
        count["steps"] += 1
        if count["steps"] == number:
            act(*arguments)
        return step(*given, **options)

    torch.optim.AdamW.step = stepping


def receive(*signals):
    for number in signals:
        os.kill(os.getpid(), number)


def receive_with_workers(number):
    for worker in multiprocessing.active_children():  # as Ctrl-C in a terminal, or the end of a job, reaches them
        os.kill(worker.pid, number)
    time.sleep(0.2)
    receive(number)


def while_measuring(number):
    """Receive a signal when dev is measured after the second epoch."""
    report_of, count = evaluate.report_of, Counter()

    def report(split):
        count["epochs"] += 1
        if count["epochs"] == 2:
            receive(number)
        return report_of(split)

    evaluate.report_of = report


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def wait_for(file):
    Path("waiting").touch()
    while not Path(file).exists():
        time.sleep(0.02)


def kill_at_file(number):
    """Die by SIGKILL just before the run folder is touched for the nth time: a file opened, renamed or deleted."""
    count = Counter()

    def look(event, arguments):
        if event.split(".")[0] in ("open", "os", "shutil") and "/run/" in f"/{arguments[0] if arguments else ''}/":
            count["touched"] += 1
            if count["touched"] == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


@pytest.fixture(scope="module")
def start(sample_dir):
    """A function that starts a run of three epochs of six steps, with dropout, into FOLDER/run."""
    fork_context()  # imports the libraries, which is not to be timed

    def start(folder, *flags, damage=None, arguments=()):
        folder.mkdir(exist_ok=True)
        towers = ["--image-encoder", "test_resnet", "--image-size", 32, "--scratch-layers", 1, "--scratch-width", 64]
        given = ["sample", "--data-dir", sample_dir, "--batch-size", 16, "--epochs", 3, *towers, "--run-dir", "run"]
        process = fork_context().Process(target=as_command, args=(folder, with_flags(given, *flags), damage, arguments))
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def run(start):
    """A function that lets such a run come to its end; returns its exit status and what it has printed."""
    def run(folder, *flags, **options):
        log = folder / "train.log"
        log.unlink(missing_ok=True)
        process = start(folder, *flags, **options)
        process.join(120)
        return process.exitcode, log.read_text()

    return run


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def outcome(folder):
    """Return all that a run has come to, to the last digit: its rows and the weights that it leaves."""
    weights = sorted((folder / "run").rglob("*.safetensors"))
    assert {path.name for path in (folder / "run").iterdir()} == {"best", "last", "metrics.jsonl"}  # nothing is left
    return rows_of(folder), {str(path.relative_to(folder)): path.read_bytes() for path in weights}


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The outcome of a run that nothing befell, and how long it took."""
    folder, begin = tmp_path_factory.mktemp("whole"), time.monotonic()
    status, log = run(folder)
    assert status == 0, log
    return outcome(folder), time.monotonic() - begin


def progress_of(folder):
    return json.loads((folder / "run" / "last" / "trainer.json").read_text())


# ---------------------------------------------------------------- kill -9


def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(start, run, whole, tmp_path):
    expected, seconds = whole
    draw, kills, amid, chain = random.Random(0), 0, 0, 0
    while kills < KILLS:
        folder = tmp_path / str(chain)
        resume = ["--resume"] * (folder / "run" / "last").exists() or ["--resume"] * (folder / "run/.last.old").exists()
        began = time.monotonic()
        if kills % 2:  # while it saves, and otherwise whenever
            process = start(folder, *resume, damage=kill_at_file, arguments=(draw.randint(1, 60),))
            process.join(120)
        else:
            process = start(folder, *resume)
            process.join(draw.uniform(0.2, 1) * seconds)
            process.kill()
            process.join()
        if process.exitcode == 0:
            assert outcome(folder) == expected
            chain += 1
            seconds = min(seconds, time.monotonic() - began)  # after a slow first run none would be killed
            continue
        assert process.exitcode == -signal.SIGKILL, (folder / "train.log").read_text()
        kills += 1
        amid += any(path.suffix in (".new", ".old") for path in (folder / "run").glob(".*"))
    if (folder / "run" / "last").exists() or (folder / "run" / ".last.old").exists():
        assert run(folder, "--resume")[0] == 0 and outcome(folder) == expected
    assert chain >= 1 and amid >= 5, (chain, amid)
    print(f"{kills} kills, {amid} of them within a save, {chain} runs")


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("damage, arguments, flags, steps", [
    (at_step, (8, receive, signal.SIGTERM), [], 2),
    (at_step, (3, receive, signal.SIGINT), [], 3),  # before anything else was kept
    (at_step, (12, receive, signal.SIGTERM), [], 6),
    (while_measuring, (signal.SIGTERM,), [], 6),
    (at_step, (8, receive, signal.SIGHUP), [], 2),
    (at_step, (10, receive_with_workers, signal.SIGINT), ["--workers", 2, "--no-cache"], 4),
    (at_step, (10, receive_with_workers, signal.SIGTERM), ["--workers", 2, "--no-cache"], 4),
])
def test_a_signal_ends_the_step_and_the_run_goes_on_after_it(run, whole, tmp_path, damage, arguments, flags, steps):
    status, log = run(tmp_path, *flags, damage=damage, arguments=arguments)
    assert status == 130 and "Traceback" not in log, log
    assert "go on with: python train.py --resume --run-dir run" in log and f"{steps} of 6 steps are done" in log
    assert len(progress_of(tmp_path)["losses"]) == steps
    status, log = run(tmp_path, "--resume", *flags)
    assert status == 0 and f"after step {steps} of 6" in log, log
    if not flags:  # decoded by other processes, anew in each epoch, to the same pixels
        assert outcome(tmp_path) == whole[0]
    else:
        assert rows_of(tmp_path) == whole[0][0]


def test_a_second_signal_stops_at_once_and_leaves_the_last_checkpoint(run, whole, tmp_path):
    signals = (8, receive, signal.SIGINT, signal.SIGTERM)
    status, log = run(tmp_path, damage=at_step, arguments=signals)
    assert status == 130 and "stopped at once; go on with: python train.py --resume" in log
    assert progress_of(tmp_path)["epoch"] == 1 and progress_of(tmp_path)["losses"] == []
    assert run(tmp_path, "--resume")[0] == 0 and outcome(tmp_path) == whole[0]


def early():
    torch.amp.GradScaler = lambda *_, **__: receive(signal.SIGTERM)  # before the first step


def test_a_stop_before_the_first_step_is_one_line(run, tmp_path):
    status, log = run(tmp_path, damage=early)
    assert status == 130 and log.splitlines()[-1] == "stopped; it was before anything could be kept: begin anew"
    assert "Traceback" not in log and not (tmp_path / "run").exists()


def while_it_begins_again(when):
    """Receive a signal in a resumed run whose steps are read again, but whose random numbers are not yet put back."""
    owner, name = {"before": (Run, "put_random_numbers_back"), "amid": (torch, "set_rng_state")}[when]
    put_back = getattr(owner, name)

    def putting_back(*arguments):
        receive(signal.SIGTERM)
        put_back(*arguments)

    setattr(owner, name, putting_back)


@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_stop_before_the_first_step_of_a_resumed_run_keeps_its_random_numbers(run, whole, tmp_path, when):
    run(tmp_path, damage=at_step, arguments=(8, receive, signal.SIGTERM))
    kept = progress_of(tmp_path)
    assert len(kept["losses"]) == 2 and kept["random"]
    status, log = run(tmp_path, "--resume", damage=while_it_begins_again, arguments=(when,))
    assert status == 130 and "2 of 6 steps are done" in log, log
    assert progress_of(tmp_path) == kept
    assert run(tmp_path, "--resume")[0] == 0 and outcome(tmp_path) == whole[0]


# ---------------------------------------------------------------- a run of the previous version


def test_a_run_that_the_previous_version_left_within_an_epoch_goes_on(run, whole, tmp_path):
    run(tmp_path, damage=at_step, arguments=(8, receive, signal.SIGTERM))
    kept = progress_of(tmp_path)
    figures = {"first_loss": 2.8, "lr_heads": 0.002, "samples_per_second": 99.0}  # which its rows had as well
    rows = [{**row, **figures} for row in kept["history"]]
    written = {"random": kept["random"], "epoch": 1, "best": kept["best"], "history": rows, "losses": kept["losses"],
               "skipped_steps": 0, "scaler": {}}
    assert set(written) == set(kept) and kept["epoch"] == 1
    last = tmp_path / "run" / "last"
    (last / "trainer.json").write_text(json.dumps(written, indent=2) + "\n")
    settings = json.loads((last / "config.json").read_text())
    (last / "config.json").write_text(json.dumps(settings | {"cached_views": 1}, indent=2) + "\n")

    status, log = run(tmp_path, "--resume")
    assert status == 0 and "going on within epoch 2 of 3, after step 2 of 6" in log, log
    (rows, weights), (expected_rows, expected_weights) = outcome(tmp_path), whole[0]
    assert weights == expected_weights
    assert rows == [expected_rows[0] | figures, *expected_rows[1:]]


# ---------------------------------------------------------------- a full disk


def test_a_limit_on_files_is_one_line_and_leaves_the_last_checkpoint(run, whole, tmp_path):
    status, log = run(tmp_path, damage=at_step, arguments=(8, limit_files, 1_000_000))
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and "Traceback" not in log, log
    assert "no room to write" in errors[0] and "go on with: python train.py --resume --run-dir run" in errors[0]
    assert progress_of(tmp_path)["epoch"] == 1 and not list((tmp_path / "run").glob(".*"))
    assert run(tmp_path, "--resume")[0] == 0 and outcome(tmp_path) == whole[0]


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(run, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        status, log = run(disk)
        assert status == 2 and "Traceback" not in log and log.count("error: no room to write") == 1, log
        assert progress_of(disk)["epoch"] >= 1
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert run(disk, "--resume")[0] == 0 and outcome(disk) == whole[0]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---------------------------------------------------------------- a second process, other settings


def test_no_memory_left_is_one_line(run, whole, tmp_path):
    status, log = run(tmp_path, damage=at_step, arguments=(8, torch.empty, 2**50))
    assert status == 2 and "Traceback" not in log, log
    assert "error: no memory left: try a smaller --micro-batch" in log and "go on with: python train.py --resume" in log
    assert run(tmp_path, "--resume", "--micro-batch", 16)[0] == 0 and outcome(tmp_path) == whole[0]


def test_a_second_process_on_the_same_run_is_refused_and_the_first_is_not_disturbed(start, run, whole, tmp_path):
    first = start(tmp_path, damage=at_step, arguments=(8, wait_for, "go"))
    while not (tmp_path / "waiting").exists():
        assert first.is_alive()
        time.sleep(0.05)
    for flags in ([], ["--resume"]):
        status, log = run(tmp_path, *flags)
        errors = [line for line in log.splitlines() if line.startswith("error: ")]
        assert status == 2 and errors == ["error: run is in use: another process trains there. "
                                          "Wait for it, stop it, or name another --run-dir"]
    (tmp_path / "go").touch()
    first.join(120)
    assert first.exitcode == 0 and outcome(tmp_path) == whole[0]


def test_a_run_on_several_cached_views_is_not_resumed_as_another_run(tmp_path):
    saved = replace(PRESETS["flickr8k"], run_dir=tmp_path, freeze="both")
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "weights.safetensors").touch()
    for views in (1, 8):
        saved.save(tmp_path / "last" / "config.json")
        settings = json.loads((tmp_path / "last" / "config.json").read_text())
        (tmp_path / "last" / "config.json").write_text(json.dumps(settings | {"cached_views": views}))
        if views == 1:
            check_run_dir(replace(saved, resume=True))
    with pytest.raises(UserError, match="several cached views of each photo"):
        check_run_dir(replace(saved, resume=True))


def test_other_settings_are_refused_by_name_all_of_them(tmp_path):
    saved = replace(PRESETS["flickr8k"], run_dir=tmp_path)
    (tmp_path / "last").mkdir()
    saved.save(tmp_path / "last" / "config.json")
    (tmp_path / "last" / "weights.safetensors").touch()
    harmless = {"run_dir": tmp_path, "resume": True, "device": "cpu", "workers": 0, "data_dir": Path("elsewhere"),
                "image_dir": Path("photos"), "epochs": 99, "micro_batch": 8}
    check_run_dir(replace(saved, **harmless))
    other = {"preset": "sample", "image_size": 48, "pooling": "cls", "head": "linear", "loss": "soft",
             "precision": "fp32", "freeze": "image", "image_encoder": "resnet18", "text_encoder": "other"}
    for name, value in vars(saved).items():
        if name not in harmless and name not in other:
            other[name] = not value if isinstance(value, bool) else value * 2 if value else 7
            other[name] = min(other[name], 0.99) if isinstance(value, float) else other[name]
    other = {name: value for name, value in other.items() if name != "pretrained"} | {"crop_scale": 0.5}
    assert set(other) | set(harmless) | {"pretrained"} == set(vars(saved))
    with pytest.raises(UserError) as refused:
        check_run_dir(replace(saved, **harmless, **other))
    for name, value in other.items():
        assert f"{name} {getattr(saved, name)} -> {value}" in str(refused.value)


# ---------------------------------------------------------------- the same every time


def test_a_run_is_the_same_for_any_number_of_workers(run, whole, tmp_path):
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        status, log = run(folder, "--workers", workers)
        assert status == 0, log
        assert rows_of(folder) == whole[0][0]


# ---------------------------------------------------------------- numbers that are not finite


@pytest.mark.parametrize("heads_first", [0, 2])
def test_the_photo_whose_caption_is_not_finite_is_named(run, tmp_path, sample_dir, heads_first):
    """A word whose weights are damaged, in the captions of one photo."""
    shutil.copytree(sample_dir, tmp_path / "photos", ignore=shutil.ignore_patterns(".clip-cache"))
    listed = (sample_dir / "Flickr_8k.trainImages.txt").read_text().split()
    lines = (sample_dir / "captions.txt").read_text().splitlines()
    lines = [f"{listed[40]},a zebra" if line.startswith(listed[40]) else line for line in lines]
    (tmp_path / "photos" / "captions.txt").write_text("\n".join(lines) + "\n")
    save_image_tower(tmp_path / "image")
    save_text_tower(tmp_path / "text", ["a zebra", "two people sit near the beach"], torch.float32)
    words = json.loads((tmp_path / "text" / "tokenizer.json").read_text())["model"]["vocab"]
    weights = load_file(tmp_path / "text" / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][words["zebra"]] = torch.nan
    save_file(weights, tmp_path / "text" / "model.safetensors", metadata={"format": "pt"})

    towers = ["--image-encoder", f"local-dir:{tmp_path / 'image'}", "--text-encoder", tmp_path / "text"]
    status, log = run(tmp_path, "--pretrained", *towers, "--max-tokens", 32, "--data-dir", tmp_path / "photos",
                      "--heads-first", heads_first)
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and "Traceback" not in log, log
    assert "(epoch 1): loss nan" in errors[0] and "Last good checkpoint: none yet" in errors[0]
    assert f"photo or caption without a finite embedding: {listed[40]}. " in errors[0]
    assert "leave them out" in errors[0] and "lower learning rates or --precision fp32" in errors[0]
