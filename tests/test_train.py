"""train.py: the arithmetic of a step, and the real command: a run, a kill, a resume, and what it refuses."""

import copy
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
from support.progress import new_progress

import train
from config import PRESETS, Config
from dataset import CaptionDataset, load_splits, train_transform, training_loader
from evaluate import embed_split, report_of
from models import CLIP
from support.errors import UserError
from support.files import recover, replacing
from train import lr_share, moving_weights, parameter_groups, stuck, train_one_epoch, update_average


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
    config = replace(PRESETS["sample"], lr_heads=1.0, lr_image=2.0, lr_text=3.0, weight_decay=0.5)
    model = CLIP.from_config(config, captions)
    model.text_encoder.requires_grad_(False)
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


def test_heads_that_learn_alone_have_a_rate_of_their_own(tower_flags):
    config = replace(PRESETS["flickr8k"], **tower_flags, max_tokens=32)
    model = CLIP.from_config(config)
    rates = {group["peak_lr"] for group in parameter_groups(model, config) if group["part"] == "heads"}
    assert rates == {config.lr_heads}
    model.freeze("both")
    groups = parameter_groups(model, config)
    assert {(group["part"], group["peak_lr"]) for group in groups} == {("heads", config.lr_heads_alone)}


def test_the_average_by_hand():
    model, average = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    model.weight.data.fill_(4.0)
    model.running_var.fill_(2.0)
    model.bias.requires_grad_(False).fill_(4.0)
    update_average(*moving_weights(average, model), 0.75)
    assert average.weight.tolist() == [1.75, 1.75]  # 3/4 of 1 and 1/4 of 4
    assert average.running_var.tolist() == [1.25, 1.25]
    assert average.bias.tolist() == [0.0, 0.0]  # it does not learn
    update_average(*moving_weights(average, model.eval()), 0.0)
    assert average.weight.tolist() == [4.0, 4.0]
    assert average.running_var.tolist() == [1.25, 1.25]  # nor do statistics that stand still


def test_a_loss_at_chance_is_reported():
    at = [{"train_loss": loss} for loss in (4.6, 4.59, 3.0)]
    assert "4.61" in stuck(at[:2], 4.605) and "nothing has been learned yet" in stuck(at[:2], 4.605)
    assert stuck(at, 4.605) is stuck(at[:1], 4.605) is stuck(at[:2], None) is None


SMALL = replace(PRESETS["sample"], image_encoder="test_resnet", image_size=32, scratch_layers=1, scratch_width=64)


def small_set_up(sample_dir, config=SMALL):
    """A small model and what trains it: (model, its average, loader of 3 batches, optimizer)."""
    table = load_splits(sample_dir)["train"]
    torch.manual_seed(0)
    model = CLIP.from_config(config, table["caption"])
    pairs = CaptionDataset(table, sample_dir, model.text_encoder.tokenizer, train_transform(32), 32, 64)
    return model, copy.deepcopy(model), training_loader(pairs, 32), torch.optim.AdamW(parameter_groups(model, config))


def test_the_average_follows_every_step_and_nothing_else(sample_dir):
    model, average, loader, optimizer = small_set_up(sample_dir)
    mean, steps = [parameter.detach().clone() for parameter in model.parameters()], []

    def follow(*_):  # the mean as its formula says: 1/10 of the old at first, then 2/11, 3/12, …
        share = min(SMALL.averaging, (1 + len(steps)) / (10 + len(steps)))
        for value, parameter in zip(mean, model.parameters(), strict=True):
            value.copy_(share * value + (1 - share) * parameter.detach())
        steps.append(share)

    optimizer.register_step_post_hook(follow)
    stage, scaler = (loader, optimizer, model, None), torch.amp.GradScaler(enabled=False)
    train_one_epoch(model, average, stage, scaler, SMALL, 1, new_progress())
    assert len(steps) == 3
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mean, average.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(average.parameters(), model.parameters(), strict=True))


def test_an_epoch_follows_the_schedule_clips_gradients_and_clamps_the_scale(sample_dir):
    config = replace(SMALL, epochs=2, warmup=0.5, grad_clip=0.01, lr_image=1e-3, lr_text=2e-3, lr_heads=4e-3)
    model, average, loader, optimizer = small_set_up(sample_dir, config)
    model.logit_scale.data.fill_(9.0)
    rates, norms = [], []

    def watch(optimizer, *_):
        rates.append({group["part"]: group["lr"] for group in optimizer.param_groups})
        norms.append(torch.stack([p.grad.norm() for group in optimizer.param_groups for p in group["params"]
                                  if p.grad is not None]).norm().item())

    optimizer.register_step_pre_hook(watch)
    # A scaler that multiplies the loss by 1024: gradients must be divided again before they are clipped.
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    row = train_one_epoch(model, average, (loader, optimizer, model, None), scaler, config, 1, new_progress())
    for step, rate in enumerate(rates):  # 3 of 6 steps, all of them warm-up
        assert rate == pytest.approx({part: peak * (step + 1) / 3
                                      for part, peak in (("heads", 4e-3), ("image", 1e-3), ("text", 2e-3))})
    assert len(rates) == 3 and norms == pytest.approx([0.01] * 3, rel=1e-2)
    assert 4.5 < model.logit_scale.item() < math.log(100) + 1e-6  # 9.0 would have been a multiplier of 8103
    assert row["lr_heads"] == 4e-3 and row["samples_per_second"] > 0


@pytest.mark.parametrize("poison, scaled", [("loss", False), ("loss", True), ("gradient", False)])
def test_a_number_that_is_not_finite_stops_the_run(tmp_path, sample_dir, poison, scaled):
    (tmp_path / "last").mkdir()
    model, average, loader, optimizer = small_set_up(sample_dir)
    if poison == "loss":
        model.text_head.norm.bias.data.fill_(torch.nan)
    else:
        model.text_head.norm.bias.register_hook(lambda gradient: gradient * torch.inf)
    before = model.image_head.projection.weight.clone()
    with pytest.raises(UserError, match=rf"step 1 .*learning rates heads .*image .*text .*{tmp_path}/last"):
        scaler, config = torch.amp.GradScaler("cpu", init_scale=1.0, enabled=scaled), replace(SMALL, run_dir=tmp_path)
        train_one_epoch(model, average, (loader, optimizer, model, None), scaler, config, 1, new_progress())
    assert torch.equal(before, model.image_head.projection.weight)  # nothing was spoilt


def test_an_overflow_under_a_scaler_skips_steps_but_not_for_ever(sample_dir):
    model, average, loader, optimizer = small_set_up(sample_dir)
    model.text_head.norm.bias.register_hook(lambda gradient: gradient * torch.inf)
    before = model.image_head.projection.weight.clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    statistics = [buffer.clone() for buffer in model.image_encoder.buffers()]
    row = train_one_epoch(model, average, (loader, optimizer, model, None), scaler, SMALL, 1, new_progress())
    assert torch.equal(before, model.image_head.projection.weight)  # three steps skipped, the scale is 8 by now
    assert row["skipped_steps"] == 3
    for buffer, known in zip(model.image_encoder.buffers(), statistics, strict=True):
        assert not buffer.is_floating_point() or torch.equal(buffer, known)  # not moved by what was skipped
    with pytest.raises(UserError, match="stopped at step 3"):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        train_one_epoch(model, average, (loader, optimizer, model, None), scaler, SMALL, 1, new_progress())


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "last"
    with replacing(target) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(KeyboardInterrupt), replacing(target) as folder:
        (folder / "a").write_text("second")
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "first"
    target.rename(tmp_path / ".last.old")  # a kill between the two renames leaves this
    recover(tmp_path)
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
    with Image.open(run_dir / "curves.png") as curves:
        assert curves.format == "PNG" and curves.width > 800
    suffixes = {path.suffix for path in run_dir.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors", ".png", ".md"}  # nothing pickled, no temporary left
    pictures = {"curves.png", "similarity-dev.png", "worst-dev.png"}  # other commands may have drawn more since
    assert {"best", "last", "metrics.jsonl"} | pictures <= {path.name for path in run_dir.iterdir()}


def test_a_run_says_what_it_does(workplace, sample_dir):
    output = (workplace / "train.log").read_text().splitlines()
    assert output[0] == "preset sample"
    assert f"{sample_dir}: 640 captions; photos: train 96, dev 16, test 16" in output
    assert any(line.startswith("epoch   4/4") and "dev R@1/5/10" in line for line in output)
    assert "  dev has only 16 of them: its recall means little, and picks the best epoch by chance" in output
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


def test_best_holds_the_epoch_with_the_highest_mean_recall_on_dev(workplace):
    rows = lines_of(workplace / "runs" / "first")
    best = max(rows, key=lambda row: row["mean_recall"])
    run_script("evaluate.py", "--split", "dev", "--json", "dev.json", cwd=workplace)
    figures = json.loads((workplace / "dev.json").read_text())
    assert figures["text_to_image"] == best["text_to_image"] and figures["image_to_text"] == best["image_to_text"]
    assert json.loads((workplace / "runs/first/last/trainer.json").read_text())["best"] == best["mean_recall"]


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
    (run_dir / "metrics.jsonl").open("a").write('{"epoch": 4, "tra')  # a line torn by the kill
    shutil.rmtree(run_dir / ".last.old", ignore_errors=True)
    (run_dir / "last").rename(run_dir / ".last.old")  # as if it had come between the two renames

    resumed = run_script("train.py", "--resume", "--run-dir", "runs/killed", cwd=workplace).stdout
    assert resumed.splitlines()[0] == "resuming runs/killed"
    assert f"going on after epoch {finished} of 4" in resumed
    assert without_times(lines_of(run_dir)) == without_times(lines_of(workplace / "runs" / "first"))
    for part in ("best", "last"):
        assert ((run_dir / part / "model.safetensors").read_bytes()
                == (workplace / "runs" / "first" / part / "model.safetensors").read_bytes())


@pytest.mark.parametrize("flags, complaint", [
    (["--run-dir", "runs/first"], "runs/first already holds a run: add --resume"),
    (["--run-dir", "runs/first", "--resume", "--loss", "soft"], "other settings (loss clip -> soft): drop these flags"),
    (["--run-dir", "runs/none", "--resume"], "runs/none/last is not a model directory"),
    (["--run-dir", "train.log"], "--run-dir train.log is a file"),
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


def test_broken_photos_and_unused_weights_are_named(tmp_path, sample_dir, train_flags, tower_flags):
    shutil.copytree(sample_dir, tmp_path / "data")
    names = (tmp_path / "data" / "Flickr_8k.trainImages.txt").read_text().split()
    (tmp_path / "data" / "Images" / names[0]).unlink()
    (tmp_path / "data" / "Images" / names[1]).write_bytes(b"broken")
    flags = [*train_flags, "--data-dir", "data", "--epochs", 1, "--run-dir", "run",
             "--image-encoder", tower_flags["image_encoder"]]
    output = run_script("train.py", *flags, cwd=tmp_path).stdout
    assert "(random weights) and scratch (random weights); frozen: none" in output
    assert "the weights of the towers named are not used: add --pretrained" in output
    assert "train 94, dev 16, test 16" in output
    assert f"missing, left out: 1 ({names[0]})" in output and "unreadable, left out: 1 (data/Images/" in output


def test_pretrained_towers_of_the_users_own_stay_as_they_are_when_frozen(workplace, sample_dir, tower_flags):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in tower_flags.items()]
    output = run_script("train.py", "flickr8k", "--data-dir", sample_dir, *flags, "--freeze", "both", "--epochs", 1,
                        "--batch-size", 32, "--workers", 2, "--run-dir", "runs/frozen", cwd=workplace).stdout
    assert "{image_encoder} (pretrained) and {text_encoder} (pretrained)".format(**tower_flags) in output
    trained = CLIP.from_pretrained(workplace / "runs" / "frozen" / "last")
    torch.manual_seed(0)  # the seed of the run: heads start alike
    fresh = CLIP.from_config(trained.config)
    for name, tensor in fresh.state_dict().items():
        same = torch.equal(tensor, trained.state_dict()[name])
        assert same == name.startswith(("image_encoder", "text_encoder")), name


def test_the_two_commands_of_the_readme_in_an_empty_folder(tmp_path):
    output = run_script("train.py", "--epochs", 1, cwd=tmp_path).stdout
    assert output.startswith("preset sample, because there is no data/flickr8k")
    assert "data/sample: 14,000 captions; photos: train 2,400, dev 200, test 200" in output
    assert len(list(tmp_path.glob("runs/sample-*/best/model.safetensors"))) == 1
    found = run_script("inference.py", "--query", "people sitting near the beach", cwd=tmp_path).stdout
    assert "on 200 pictures of data/sample (test split)" in found and (tmp_path / "matches.png").exists()


# ---------------------------------------------------------------- pretrained towers


def flags_of(tower_flags):
    return [word for name, value in tower_flags.items() for word in (f"--{name.replace('_', '-')}", value)]


def test_heads_learn_first_and_then_the_upper_layers_join(tmp_path, sample_dir, tower_flags):
    shown = run_script("train.py", "flickr8k", "--data-dir", sample_dir, *flags_of(tower_flags), "--epochs", 2,
                       "--heads-first", 3, "--batch-size", 32, "--run-dir", "run", cwd=tmp_path).stdout
    rows = lines_of(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [0, 1, 2] and "epoch   0/2" in shown
    assert all(row["modality_gap"] >= 0 for row in rows)
    for name in ("curves.png", "similarity-dev.png", "worst-dev.png"):
        assert (tmp_path / "run" / name).is_file()
    config = replace(PRESETS["flickr8k"], **tower_flags)
    start, end = CLIP.from_config(config).state_dict(), CLIP.from_pretrained(tmp_path / "run" / "last").state_dict()
    moved = {name for name in start if "encoder" in name and not torch.equal(start[name], end[name])}
    assert any("layer4" in name for name in moved) and any("embeddings" in name for name in moved)
    assert not any("backbone.conv1" in name or "running" in name for name in moved)


def small_run(tmp_path, sample_dir, tower_flags, **changes):
    settings = {"data_dir": sample_dir, "batch_size": 32, "epochs": 2, "heads_first": 4, "workers": 0, "max_tokens": 32,
                **tower_flags, **changes}
    return replace(PRESETS["flickr8k"], run_dir=tmp_path, **settings)


@pytest.mark.parametrize("freeze", ["image", "text", "both"])
def test_training_from_cached_features_equals_training_without(tmp_path, sample_dir, tower_flags, freeze):
    config = small_run(tmp_path, sample_dir, tower_flags, freeze=freeze, crop_scale=1.0, flip=False, precision="fp32",
                       heads_first=0)
    for cache in (True, False):
        train.main(replace(config, cache=cache, run_dir=tmp_path / str(cache)), "")
    for row, other in zip(lines_of(tmp_path / "True"), lines_of(tmp_path / "False"), strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
        assert row["text_to_image"] == other["text_to_image"]


def test_the_heads_stage_trains_the_heads_and_leaves_the_towers_alone(tmp_path, sample_dir, tower_flags):
    config = small_run(tmp_path, sample_dir, tower_flags, heads_first=30, feature_dropout=0.0)
    torch.manual_seed(0)
    model = CLIP.from_config(config)
    average, before = copy.deepcopy(model), {name: value.clone() for name, value in model.state_dict().items()}
    row = train.train_heads_first(
        model, average, torch.amp.GradScaler(enabled=False), load_splits(sample_dir), config)
    assert row["epoch"] == 0 and row["train_loss"] < 0.9 * math.log(32) < row["first_loss"]
    for trained in (model.state_dict(), average.state_dict()):
        changed = {name.split(".")[0] for name in before if not torch.equal(before[name], trained[name])}
        assert changed == {"image_head", "text_head", "logit_scale"}


def test_a_run_stopped_after_the_heads_goes_on_as_if_it_had_not_been(tmp_path, sample_dir, tower_flags, monkeypatch):
    whole = small_run(tmp_path / "whole", sample_dir, tower_flags)
    train.main(whole, "")
    stopped, epoch_row = replace(whole, run_dir=tmp_path / "stopped"), train.epoch_row

    def stop_at_the_first_epoch(*arguments):
        if arguments[5].epochs == 2:  # the towers' stage
            raise KeyboardInterrupt
        return epoch_row(*arguments)

    monkeypatch.setattr(train, "epoch_row", stop_at_the_first_epoch)
    with pytest.raises(KeyboardInterrupt):
        train.main(stopped, "")
    monkeypatch.setattr(train, "epoch_row", epoch_row)
    assert [row["epoch"] for row in lines_of(stopped.run_dir)] == [0]
    saved = Config.load(stopped.run_dir / "last" / "config.json")
    train.main(replace(saved, run_dir=stopped.run_dir, resume=True), "")
    assert without_times(lines_of(whole.run_dir)) == without_times(lines_of(stopped.run_dir))
    for folder in ("best", "last"):
        assert (whole.run_dir / folder / "model.safetensors").read_bytes() == (
            stopped.run_dir / folder / "model.safetensors").read_bytes()


def test_last_is_the_model_that_was_measured(tmp_path, sample_dir, tower_flags, capsys):
    config = small_run(tmp_path / "run", sample_dir, tower_flags)
    train.main(config, "")
    split = embed_split(CLIP.from_pretrained(config.run_dir / "last"), load_splits(sample_dir)["dev"], sample_dir, 64)
    assert report_of(split)["text_to_image"] == lines_of(config.run_dir)[-1]["text_to_image"]
    (config.run_dir / "last" / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="a run of another version"):
        train.main(replace(config, resume=True, epochs=3), "")


def test_without_a_test_split_the_figures_are_said_to_be_of_dev(tmp_path, sample_dir, tower_flags, capsys):
    shutil.copytree(sample_dir, tmp_path / "data")
    (tmp_path / "data" / "Flickr_8k.testImages.txt").unlink()
    train.main(small_run(tmp_path / "run", tmp_path / "data", tower_flags, freeze="both", epochs=1), "")
    shown = capsys.readouterr().out
    assert "on the 16 photos of the dev split" in shown and "for crops add --cached-views" in shown
