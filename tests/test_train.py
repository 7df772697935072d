"""train.py: the arithmetic of a step, and the real command: a run, a kill, a resume, and what it refuses."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, run_script
from PIL import Image

from config import PRESETS, UserError
from dataset import CaptionDataset, load_splits, train_transform, training_loader
from models import CLIP
from train import lr_share, parameter_groups, recover, replacing, train_one_epoch


def lines_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def without_times(rows):
    return [{key: value for key, value in row.items() if key not in ("seconds", "samples_per_second")} for row in rows]


# ---------------------------------------------------------------- arithmetic


def test_learning_rate_rises_and_falls_by_hand():
    # 12 steps of which a quarter warm up: 1/3, 2/3, 1, then half a cosine over the other 9
    shares = [lr_share(step, 12, 0.25) for step in range(12)]
    assert shares[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert shares[3] == 1.0 and shares[6] == pytest.approx(0.75)  # cos(pi / 3) = 1/2
    assert shares[11] == pytest.approx(0.5 * (1 + math.cos(math.pi * 8 / 9)))
    assert lr_share(0, 1, 0.0) == 1.0


def test_parameter_groups_hold_each_trained_parameter_once(sample_dir):
    captions = load_splits(sample_dir)["train"]["caption"]
    config = replace(PRESETS["sample"], lr_heads=1.0, lr_image=2.0, lr_text=3.0, weight_decay=0.5, freeze="text")
    model = CLIP.from_config(config, captions)
    groups = parameter_groups(model, config)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    where = {id(parameter): group for group in groups for parameter in group["params"]}
    assert where[id(model.image_encoder.backbone.layer1[0].conv1.weight)]["weight_decay"] == 0.5
    assert where[id(model.image_encoder.backbone.layer1[0].conv1.weight)]["peak_lr"] == 2.0
    for parameter in (model.logit_scale, model.image_encoder.backbone.layer1[0].bn1.weight,
                      model.text_head.norm.weight, model.text_head.hidden.bias):
        assert where[id(parameter)]["weight_decay"] == 0.0
    assert where[id(model.logit_scale)]["peak_lr"] == 1.0
    assert id(next(model.text_encoder.parameters())) not in where


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_the_run(sample_dir, poison):
    table = load_splits(sample_dir)["train"]
    config = replace(PRESETS["sample"], image_encoder="test_resnet", image_size=32, scratch_layers=1, scratch_width=64)
    model = CLIP.from_config(config, table["caption"])
    pairs = CaptionDataset(table, sample_dir, model.text_encoder.tokenizer, train_transform(32), 64)
    if poison == "loss":
        model.text_head.norm.bias.data.fill_(torch.nan)
    else:
        model.text_head.norm.bias.register_hook(lambda gradient: gradient * torch.inf)
    optimizer = torch.optim.AdamW(parameter_groups(model, config))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    before = model.image_head.projection.weight.clone()
    with pytest.raises(UserError, match=r"step 1 .*learning rates heads .*image .*text .*runs/x/last"):
        train_one_epoch(model, training_loader(pairs, 32), optimizer, scaler, config, 1, "runs/x/last")
    assert torch.equal(before, model.image_head.projection.weight)  # nothing was spoilt


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "last"
    with replacing(target) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(KeyboardInterrupt), replacing(target) as folder:
        (folder / "a").write_text("second")
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "first"
    target.rename(tmp_path / ".last.old")  # a kill between the two renames leaves this
    recover(target)
    assert (target / "a").read_text() == "first"
    with replacing(target) as folder:
        (folder / "b").write_text("third")
    assert [path.name for path in tmp_path.rglob("*")] == ["last", "b"]


# ---------------------------------------------------------------- the command


def test_a_run_leaves_what_it_promises(workplace):
    run_dir = workplace / "runs" / "first"
    rows = lines_of(run_dir)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert abs(rows[0]["first_loss"] / math.log(32) - 1) < 0.05  # chance: unlike pairs, a model that knows nothing
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.5
    best = max(range(4), key=lambda epoch: rows[epoch]["mean_recall"])
    assert json.loads((run_dir / "last" / "trainer.json").read_text())["best"] == rows[best]["mean_recall"]
    with Image.open(run_dir / "curves.png") as curves:
        assert curves.format == "PNG" and curves.width > 800
    suffixes = {path.suffix for path in run_dir.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors", ".png"}  # nothing pickled, no temporary left
    assert sorted(path.name for path in run_dir.iterdir()) == ["best", "curves.png", "last", "metrics.jsonl"]


def test_a_run_says_what_it_does(workplace, sample_dir):
    output = (workplace / "train.log").read_text().splitlines()
    assert output[0] == "preset sample"
    assert f"{sample_dir}: 640 captions of photos: train 96, dev 16, test 16" in output
    assert any(line.startswith("epoch   4/4") for line in output)
    assert any("16 photos of the test split" in line for line in output)


def test_evaluate_shows_the_figures_that_training_showed(workplace):
    printed = run_script("evaluate.py", "--split", "test", "--json", "figures.json", cwd=workplace).stdout
    figures = json.loads((workplace / "figures.json").read_text())
    assert list(figures) == ["split", "images", "captions", "text_to_image", "image_to_text"]
    assert (figures["split"], figures["images"], figures["captions"]) == ("test", 16, 80)
    assert list(figures["text_to_image"]) == ["R@1", "R@5", "R@10", "median_rank"]
    table = [line for line in (workplace / "train.log").read_text().splitlines() if " -> " in line]
    assert len(table) == 2 and all(line in printed for line in table)
    assert table[0].split()[3] == f"{figures['text_to_image']['R@1']:.1f}"


def test_a_killed_run_resumes_to_the_same_figures(workplace, train_flags):
    run_dir = workplace / "runs" / "killed"
    command = [sys.executable, str(ROOT / "train.py"), *map(str, train_flags), "--run-dir", "runs/killed"]
    process = subprocess.Popen(command, cwd=workplace, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    trainer = run_dir / "last" / "trainer.json"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (trainer.exists() and json.loads(trainer.read_text())["epoch"] >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = json.loads(trainer.read_text())["epoch"]
    assert finished in (2, 3)
    (run_dir / "metrics.jsonl").open("a").write('{"epoch": 4}\n')  # a line that outlived its checkpoint

    resumed = run_script("train.py", "--resume", "--run-dir", "runs/killed", cwd=workplace).stdout
    assert resumed.splitlines()[0] == "resuming runs/killed"
    assert without_times(lines_of(run_dir)) == without_times(lines_of(workplace / "runs" / "first"))
    for part in ("best", "last"):
        assert ((run_dir / part / "model.safetensors").read_bytes()
                == (workplace / "runs" / "first" / part / "model.safetensors").read_bytes())


@pytest.mark.parametrize("flags, complaint", [
    (["--run-dir", "runs/first"], "runs/first already holds a run: add --resume"),
    (["--run-dir", "runs/first", "--resume", "--loss", "soft"], "other settings (loss clip -> soft)"),
    (["--run-dir", "runs/none", "--resume"], "runs/none/last is not a model directory"),
    (["--image-encoder", "test_vit", "--image-size", "70"], "'test_vit'"),
    (["--data-dir", "nowhere"], "there is no dataset folder nowhere"),
    (["--data-dir", "empty"], "empty has no captions.txt"),
    (["--device", "cuda"], "--device cpu"),
    (["--image-encoder", "resnet5000"], "'resnet5000'"),
])
def test_what_cannot_be_ends_in_one_line(workplace, train_flags, flags, complaint):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    (workplace / "empty").mkdir(exist_ok=True)
    before = sorted(workplace.rglob("*"))
    process = run_script("train.py", *train_flags, *flags, cwd=workplace, check=False)
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2 and len(errors) == 1 and complaint in errors[0]
    assert "Traceback" not in process.stderr and sorted(workplace.rglob("*")) == before


def test_broken_and_missing_photos_are_named_and_left_out(tmp_path, sample_dir, train_flags):
    shutil.copytree(sample_dir, tmp_path / "data")
    names = (tmp_path / "data" / "Flickr_8k.trainImages.txt").read_text().split()
    (tmp_path / "data" / "Images" / names[0]).unlink()
    (tmp_path / "data" / "Images" / names[1]).write_bytes(b"broken")
    flags = [*train_flags, "--data-dir", "data", "--epochs", 1, "--run-dir", "run", "--image-encoder", "test_resnet"]
    output = run_script("train.py", *flags, cwd=tmp_path).stdout
    assert "train 94, dev 16, test 16" in output
    assert f"missing, left out: {names[0]}" in output and f"unreadable, left out: data/Images/{names[1]}" in output


def test_frozen_towers_keep_their_weights_through_a_run(workplace, train_flags):
    run_script("train.py", *train_flags, "--epochs", 1, "--freeze", "both", "--run-dir", "runs/frozen", cwd=workplace)
    trained = CLIP.from_pretrained(workplace / "runs" / "frozen" / "last")
    torch.manual_seed(0)  # the seed of the run: towers from scratch start alike
    fresh = CLIP.from_config(trained.config, load_splits(trained.config.data_dir)["train"]["caption"])
    for name, tensor in fresh.state_dict().items():
        same = torch.equal(tensor, trained.state_dict()[name])
        assert same == name.startswith(("image_encoder", "text_encoder")), name
