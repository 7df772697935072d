"""Photos that come or go while a run stands still: what it has trained on never enters its dev or test."""

import csv
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import run_script

from config import PRESETS, Config
from dataset import load_splits, split_table
from evaluate import refuse_other_photos
from search.pictures import pictures_of_split
from support.errors import UserError
from support.files import MOST_JSON
from support.kept_splits import SPLITS_FILE, as_held_out, held_out_of_model, read_held_out, write_held_out
from support.run import Run

FLAGS = ["sample", "--data-dir", "data", "--batch-size", 16, "--run-dir", "runs/a"]


@pytest.fixture
def stopped(tmp_path, sample_dir):
    """A folder in which a run has done one epoch on data without split lists; 20 photos wait aside to be added."""
    shutil.copytree(sample_dir / "Images", tmp_path / "data" / "Images")
    (tmp_path / "aside").mkdir()
    for photo in sorted((tmp_path / "data" / "Images").iterdir())[::6]:
        photo.rename(tmp_path / "aside" / photo.name)
    write_captions(tmp_path, sample_dir)
    run_script("train.py", *FLAGS, "--epochs", 1, cwd=tmp_path)
    return tmp_path


def write_captions(folder, sample_dir):
    """Write captions.txt of the photos that are there."""
    with (sample_dir / "captions.txt").open(newline="") as file:
        header, *rows = csv.reader(file)
    rows = [row for row in rows if (folder / "data" / "Images" / row[0]).exists()]
    with (folder / "data" / "captions.txt").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def change_photos(folder, sample_dir):
    """Add those aside, and remove some others."""
    for photo in (folder / "aside").iterdir():
        photo.rename(folder / "data" / "Images" / photo.name)
    for photo in sorted((folder / "data" / "Images").iterdir())[3::20]:
        photo.unlink()
    write_captions(folder, sample_dir)


def names_of(folder, held_out=None):
    return {split: set(table["image"]) for split, table in load_splits(folder / "data", 0, held_out).items()}


def test_a_resumed_run_keeps_its_dev_and_test(stopped, sample_dir):
    before = names_of(stopped)
    kept = read_held_out(stopped / "runs/a/last")
    assert {split: set(names) for split, names in kept.items()} == {split: before[split] for split in ("dev", "test")}

    change_photos(stopped, sample_dir)
    redrawn = names_of(stopped)
    assert (redrawn["dev"] | redrawn["test"]) & before["train"]  # what would be wrong
    after = names_of(stopped, kept)
    assert after["dev"] <= before["dev"] and after["test"] <= before["test"]
    there = {photo.name for photo in (stopped / "data" / "Images").iterdir()}
    held_out = after["dev"] | after["test"]
    assert after["train"] | held_out == there and not after["train"] & held_out

    log = run_script("train.py", "--resume", "--run-dir", "runs/a", "--epochs", 2, cwd=stopped).stdout
    assert f"photos: train {len(after['train'])}, dev {len(after['dev'])}, test {len(after['test'])}" in log
    for split in ("dev", "test"):
        gone = len(before[split] - after[split])
        assert not gone or f"{split}: {gone} of the {len(before[split])} photos that this run held out are gone" in log
    assert "photos that this run held out are gone, or can no longer be read, so its recall" in log
    assert read_held_out(stopped / "runs/a/last") == kept  # one that comes back is held out again
    for command in (["evaluate.py"], ["evaluate.py", "--data-dir", "data"]):
        said = run_script(*command, "--split", "test", cwd=stopped).stdout
        assert f"{len(after['test'])} photos, " in said
    found = json.loads(run_script("inference.py", "--query", "a dog", "--json", "--top-k", 99, "--no-picture",
                                  "--no-fold", cwd=stopped).stdout)
    assert {match["file"].split("/")[-1] for match in found["matches"]} == after["test"]


def test_a_run_of_an_earlier_version_goes_on_as_before(stopped, sample_dir):
    (stopped / "runs/a/last" / SPLITS_FILE).unlink()
    assert held_out_of_model(stopped / "runs/a/best") is None
    expected = names_of(stopped)
    log = run_script("train.py", "--resume", "--run-dir", "runs/a", "--epochs", 2, cwd=stopped).stdout
    assert f"photos: train {len(expected['train'])}, dev {len(expected['dev'])}" in log
    assert (stopped / "runs/a/last" / SPLITS_FILE).exists()


def test_lists_of_the_data_come_first(sample_dir):
    held_out = {"dev": ["nothing.jpg"], "test": []}
    for split in ("dev", "test"):
        assert split_table(sample_dir, split, 0, held_out).equals(split_table(sample_dir, split))


def test_what_is_new_is_trained_on():
    names = {"dev": ["a", "gone"], "test": ["b"]}
    assert as_held_out(["b", "c", "a", "d"], names) == {"train": ["c", "d"], "dev": ["a"], "test": ["b"]}


def test_an_index_of_another_run_is_not_taken_for_this_ones_split(stopped):
    config = Config.load(stopped / "runs/a/best/config.json")
    config = type(config)(**{**vars(config), "data_dir": stopped / "data"})
    kept = held_out_of_model(stopped / "runs/a/best")
    other = {"dev": kept["test"], "test": kept["dev"]}
    assert pictures_of_split(config, "test", kept).sources != pictures_of_split(config, "test", other).sources


def test_models_are_compared_by_the_photos_of_their_splits(stopped, sample_dir):
    best = stopped / "runs/a/best"
    shutil.copytree(best, stopped / "copied")  # without last/, as a model of the hub
    shutil.copytree(stopped / "runs/a", stopped / "runs/earlier")
    (stopped / "runs/earlier/last" / SPLITS_FILE).unlink()
    shutil.copytree(stopped / "runs/a", stopped / "runs/other")  # as if trained on another dataset
    write_held_out(stopped / "runs/other/last", {"dev": ["x.jpg"], "test": ["y.jpg"]})
    settings = json.loads((best / "config.json").read_text())
    (stopped / "runs/other/best/config.json").write_text(json.dumps({**settings, "data_dir": "elsewhere"}))

    pairs = [("runs/a", "copied"), ("copied", "runs/a"), ("runs/earlier", "runs/a"), ("runs/a", "runs/other")]
    for pair in pairs:
        said = run_script("evaluate.py", "--compare", *pair, cwd=stopped).stdout
        assert said.count("may be chance") == 6
    said = run_script("evaluate.py", "--compare", "runs/other", "runs/a", "--data-dir", "data", cwd=stopped).stdout
    assert said.count("may be chance") == 6

    kept = read_held_out(stopped / "runs/a/last")
    change_photos(stopped, sample_dir)  # what the copy has held out is now anyone's guess
    of_a = names_of(stopped, kept)["test"]
    of_copy = names_of(stopped)["test"]
    assert of_a - of_copy
    process = run_script("evaluate.py", "--compare", "runs/a", "copied", cwd=stopped, check=False)
    wanted = f"or on other photos: {len(of_a - of_copy)} of the {len(of_a)} photos of this split are in none like it"
    assert process.returncode == 2 and wanted in process.stderr


def test_equal_names_are_compared_without_reading_the_captions_again(monkeypatch):
    monkeypatch.setattr("evaluate.load_splits", None)
    config = PRESETS["sample"]
    for names in (None, {"dev": ["a.jpg"], "test": ["b.jpg"]}):
        assert refuse_other_photos(None, config.source, "test", [config, config], [names, names]) is None


@pytest.mark.parametrize("value", [{"dev": "a"}, {"dev": [1]}, {"train": []}, []])
def test_a_damaged_file_is_one_line(tmp_path, value):
    (tmp_path / SPLITS_FILE).write_text(json.dumps(value))
    with pytest.raises(UserError, match=SPLITS_FILE):
        read_held_out(tmp_path)


def test_the_names_of_a_large_run_are_read_back(tmp_path):
    names = {"dev": [f"{number:040}.jpg" for number in range(260_000)], "test": []}
    write_held_out(tmp_path, names)
    assert (tmp_path / SPLITS_FILE).stat().st_size > MOST_JSON  # more than a settings file may have
    assert read_held_out(tmp_path) == names


def test_a_file_that_holds_null_is_not_there(tmp_path):
    (tmp_path / SPLITS_FILE).write_text("null\n")
    assert read_held_out(tmp_path) is None


@pytest.mark.parametrize("held_out", [None, {"dev": ["a.jpg"], "test": []}])
def test_a_run_that_holds_nothing_out_writes_no_names(tmp_path, held_out):
    model = torch.nn.Linear(2, 1)
    run = Run(replace(PRESETS["sample"], run_dir=tmp_path / "run"))
    run.model = model
    run.average = SimpleNamespace(model=SimpleNamespace(save_pretrained=lambda folder: None))
    run.phase = SimpleNamespace(
        losses=[],
        skipped_steps=0,
        optimizer=torch.optim.AdamW(model.parameters()),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    run.held_out = held_out
    run.save()
    last = tmp_path / "run" / "last"
    assert (last / "trainer.json").exists()
    assert (last / SPLITS_FILE).exists() == (held_out is not None)
    assert read_held_out(last) == held_out
