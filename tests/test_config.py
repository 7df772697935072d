"""config.py: presets, flags, refusals, and settings that survive being saved."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

import train
from config import PRESETS, Config, EvaluateConfig, InferenceConfig, parse, parse_train
from support.errors import UserError
from support.find_run import checkpoint_dir


def words(capsys):
    """What was printed, without the frames and line breaks that fit it to the terminal."""
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).replace("│", " ").split())


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_reading_flags_needs_no_torch():
    code = "import sys, config; config.parse_train(['sample']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "inference.py", "app.py"])
def test_help_shows_field_comments_and_imports_no_torch(script):
    code = ("import runpy, sys\ntry:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit as end:\n    sys.exit(end.code or 'torch' in sys.modules)")
    code = f"import sys; sys.argv = [{str(ROOT / script)!r}, '--help']; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "auto: the GPU if there is one" in " ".join(process.stdout.replace("│", " ").split())


def test_preset_is_sample_without_flickr8k_and_says_how_to_get_it():
    config, why, named = parse_train([])
    assert config.preset == "sample" and not config.pretrained and named is None
    assert "no data/flickr8k" in why and "python data/download_flickr8k.py" in why


def test_preset_is_flickr8k_when_the_data_is_there():
    Path("data/flickr8k").mkdir(parents=True)
    config, why, _ = parse_train(["--epochs", "3"])
    assert (config.preset, config.epochs, config.image_encoder) == ("flickr8k", 3, "resnet50")
    assert "data/flickr8k is there" in why and "python train.py sample" in why
    command = parse_train(["sample"])
    assert command.config.preset == command.named == "sample"


def test_every_run_gets_a_folder_of_its_own():
    assert parse_train(["sample"]).config.run_dir.as_posix().startswith("runs/sample-2")
    assert parse_train(["sample", "--run-dir", "x"]).config.run_dir == Path("x")


@pytest.mark.parametrize("flags, complaint", [
    (["--epochs", "0"], "--epochs 0 cannot be: it must be at least 1"),
    (["--batch-size", "1"], "--batch-size 1 cannot be: it must be at least 2"),
    (["sample", "--freeze", "image"], "--freeze image would keep the random weights of the image tower"),
    (["flickr8k", "--text-encoder", "scratch", "--freeze", "both"], "the random weights of the text tower"),
    (["--lr-image", "0"], "--lr-image 0.0 cannot be: it must be above 0"),
    (["--lr-text", "nan"], "--lr-text nan cannot be"),
    (["--warmup", "1"], "--warmup 1.0 cannot be: it must be from 0 to below 1"),
    (["--image-size", "8"], "--image-size 8 cannot be: it must be at least 32"),
    (["--scratch-width", "100"], "--scratch-width 100 cannot be: it must be a multiple of 64"),
    (["--seed", "-1"], "--seed -1 cannot be"),
    (["--loss", "triplet"], "'clip', 'siglip', 'soft'"),
    (["--epochs", "many"], "--epochs"),
    (["--epoch-count", "3"], "--epoch-count"),
    (["flickr30k"], "there is no preset 'flickr30k': choose one of sample, flickr8k"),
])
def test_impossible_flags_are_refused_and_named(flags, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(flags)
    assert stop.value.code == 2
    assert complaint in words(capsys)


@pytest.mark.parametrize("flags, complaint", [
    ([], "say what to look for"),
    (["--query", "  "], "a prompt is empty"),
    (["--query", "a dog", "--minus", ""], "a prompt is empty"),
    (["--minus", "a dog"], "say what to look for"),
    (["--query", "a dog", "--top-k", "0"], "--top-k 0 cannot be"),
    (["--query", "a dog", "--batch-size", "0"], "--batch-size 0 cannot be"),
    (["--query", "a dog", "--gallery", ".", "--split", "dev"], "left out with --gallery"),
    (["--query", "a dog", "--explain", "--no-picture"], "leave --no-picture out"),
    (["--export", "onnx", "--device", "cuda"], "--export and --device do not go together"),
])
def test_inference_needs_one_thing_to_look_for(flags, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(InferenceConfig, flags)
    assert stop.value.code == 2 and complaint in words(capsys)


@pytest.mark.parametrize("flags, complaint", [
    (["--split", "validation"], "'train', 'dev', 'test'"),
    (["--batch-size", "0"], "--batch-size 0 cannot be"),
    (["--workers", "-1"], "--workers -1 cannot be"),
    (["--zero-shot", ".", "--split", "dev"], "leave --data-dir and --split out"),
])
def test_evaluate_refuses_what_cannot_be(flags, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(EvaluateConfig, flags)
    assert stop.value.code == 2 and complaint in words(capsys)


def test_saved_settings_come_back_equal():
    config = replace(PRESETS["sample"], run_dir=Path("runs/a"), lr_image=3e-4)
    config.save("config.json")
    assert Config.load("config.json") == config


def test_settings_saved_before_a_field_existed_take_its_default():
    PRESETS["sample"].save("config.json")
    values = json.loads(Path("config.json").read_text())
    del values["grad_clip"]
    Path("config.json").write_text(json.dumps(values))
    assert Config.load("config.json") == PRESETS["sample"]


def test_a_setting_that_has_retired_is_passed_over():
    """A model that an earlier version made still loads."""
    PRESETS["sample"].save("config.json")
    values = json.loads(Path("config.json").read_text())
    Path("config.json").write_text(json.dumps({"cached_views": 3, **values}))
    assert Config.load("config.json") == PRESETS["sample"]


def test_settings_of_an_earlier_version_mean_what_they_meant():
    """It had one dropout for both heads, and showed a photo with one of its captions."""
    PRESETS["flickr8k"].save("config.json")
    values = json.loads(Path("config.json").read_text())
    for name in ("image_dropout", "text_dropout", "captions", "captions_alone"):
        del values[name]
    Path("config.json").write_text(json.dumps({"feature_dropout": 0.4, **values}))
    config = Config.load("config.json")
    assert (config.image_dropout, config.text_dropout, config.captions, config.captions_alone) == (0.4, 0.4, 1, 1)
    Path("config.json").write_text(json.dumps(values))  # and one earlier still had no such setting
    assert Config.load("config.json") == config
    Path("config.json").write_text(json.dumps({"feature_dropout": "much", **values}))
    with pytest.raises(UserError, match="image_dropout cannot be 'much'"):
        Config.load("config.json")


@pytest.mark.parametrize("text, complaint", [
    ("{", "cannot be read"),
    ("[]", "must hold a JSON object"),
    ('{"optimizer": "sgd"}', "unknown 'optimizer'"),
    ('{"epochs": "three"}', "epochs cannot be 'three'"),
    ('{"epochs": true}', "epochs cannot be True"),
    ('{"loss": "triplet"}', "loss cannot be 'triplet'"),
    ('{"embedding_dim": 0}', "--embedding-dim 0"),
])
def test_damaged_settings_are_one_clear_line(text, complaint):
    Path("config.json").write_text(text)
    with pytest.raises(UserError, match=complaint):
        Config.load("config.json")


def test_a_folder_without_settings_is_not_a_model_directory():
    with pytest.raises(UserError, match="there is no folder nowhere: name a run, or a model directory"):
        Config.load("nowhere/config.json")
    Path("empty").mkdir()
    with pytest.raises(UserError, match="empty is not a model directory: it has no config.json"):
        Config.load("empty/config.json")


def save_run(name, seconds, **changes):
    """Make runs/NAME with best/ and last/ that were written so many seconds ago."""
    for part in ("best", "last"):
        file = Path("runs", name, part, "config.json")
        file.parent.mkdir(parents=True)
        replace(PRESETS["sample"], run_dir=Path("runs", name), **changes).save(file)
        os.utime(file, (1e9 - seconds, 1e9 - seconds))


def test_commands_take_the_newest_run():
    save_run("new", seconds=0)
    save_run("old", seconds=50)
    assert checkpoint_dir(None) == Path("runs/new/best")
    assert checkpoint_dir(Path("elsewhere")) == Path("elsewhere")
    assert checkpoint_dir(Path("runs/old")) == Path("runs/old/best")  # a run folder means its best model
    for part in ("best", "last"):  # and a file the folder that it lies in
        assert checkpoint_dir(Path("runs/old") / part / "config.json") == Path("runs/old") / part
    Path("runs/old/metrics.jsonl").touch()
    assert checkpoint_dir(Path("runs/old/metrics.jsonl")) == Path("runs/old/best")


def test_without_a_run_the_error_says_what_to_type():
    with pytest.raises(UserError, match="python train.py"):
        checkpoint_dir(None)


def resumed(monkeypatch, *flags):
    """What `python train.py --resume FLAGS` goes on with."""
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    return train.read_again(parse_train())


def test_resume_takes_the_settings_of_the_run(monkeypatch):
    save_run("sample-1", seconds=9, epochs=7, loss="siglip")
    save_run("sample-2", seconds=0, epochs=5)
    config, why, _ = resumed(monkeypatch, "--resume", "--run-dir", "runs/sample-1")
    assert (config.epochs, config.loss, config.resume, config.run_dir) == (7, "siglip", True, Path("runs/sample-1"))
    assert why == "resuming runs/sample-1"
    assert resumed(monkeypatch, "--resume").config.run_dir == Path("runs/sample-2")
    assert resumed(monkeypatch, "--resume", "--run_dir=runs/sample-1").config.epochs == 7  # however it is written
    config, why, _ = resumed(monkeypatch, "sample", "--resume", "--epochs", "9")
    assert config.epochs == 9 and why == "resuming runs/sample-2 with epochs 5 -> 9"


@pytest.mark.parametrize("flags", [["--resume"], ["--resume", "--run-dir", "runs/killed"]])
def test_resume_finds_a_checkpoint_that_a_kill_left_between_two_renames(monkeypatch, flags):
    save_run("killed", seconds=0)
    for part in ("last", "best"):
        Path("runs/killed", part).rename(Path("runs/killed", f".{part}.old"))
    assert resumed(monkeypatch, *flags).config.run_dir == Path("runs/killed")
    assert checkpoint_dir(None) == Path("runs/killed/best")


# what would show that a command line, when it is read, changes something or looks into a run
TOUCHES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.utime", "os.link", "os.symlink",
           "os.truncate", "shutil.rmtree", "shutil.move", "shutil.copyfile")
touched = None


def watch(event, arguments):
    if touched is None:
        return
    opens_something = event == "open" and (arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                                           or "runs" in str(arguments[0]))
    if event in TOUCHES or opens_something:
        touched.append((event, arguments))


sys.addaudithook(watch)


@contextlib.contextmanager
def touches():
    """A list that is filled with what is done to files meanwhile, and with what is read of runs."""
    global touched
    touched = events = []
    try:
        yield events
    finally:
        touched = None


@pytest.mark.parametrize("flags", [
    [], ["sample"], ["--resume"], ["--resume", "--run-dir", "runs/sample-1"], ["sample", "--resume", "--epochs", "9"]])
def test_reading_the_flags_touches_no_file_and_no_run(monkeypatch, flags):
    save_run("sample-1", seconds=0)
    for part in ("last", "best"):
        Path("runs/sample-1", part).rename(Path("runs/sample-1", f".{part}.old"))

    def files():
        return {path: (path.lstat().st_ino, path.lstat().st_ctime_ns) for path in Path().rglob("*")}

    before = files()
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    with touches() as events:
        command = parse_train()
    assert events == [] and files() == before
    if not command.config.resume:
        return
    with touches() as events:  # this one does, and the test would have seen it
        train.read_again(command)
    assert {"open", "os.rename"} <= {event for event, _ in events} and files() != before


def test_differing_settings_are_told():
    changed = replace(PRESETS["sample"], seed=3, loss="soft")
    differences = PRESETS["sample"].differences(changed)
    assert list(differences.items()) == [("loss", "loss clip -> soft"), ("seed", "seed 0 -> 3")]
    assert PRESETS["sample"].differences(PRESETS["sample"]) == {}
