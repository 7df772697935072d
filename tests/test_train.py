"""train.py: the arithmetic of a step, and the real command: a run, a kill, a resume, and what it refuses."""

import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, run_script, with_flags
from PIL import Image
from safetensors.torch import load_file

import train
from config import PRESETS, Config
from dataset import load_splits, load_usable_splits
from evaluate import embed_split, report_of
from models import CLIP
from support.averaging import RunningMean
from support.console import warning_at_chance
from support.errors import UserError, quoted
from support.files import replacing
from support.interruptions import repair
from support.run import Run
from train import load_data, lr_factor, main, make_phase, parameter_groups, train_one_epoch


def lines_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def without_times(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# ---------------------------------------------------------------- arithmetic


def test_learning_rate_rises_and_falls_by_hand():
    # 12 steps of which a quarter warm up: 1/3, 2/3, 1, then half a cosine over the other 9
    factors = [lr_factor(step, 12, 0.25) for step in range(12)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert factors[3] == 1.0 and factors[6] == pytest.approx(0.75)  # cos(pi / 3) = 1/2
    assert factors[11] == pytest.approx(0.5 * (1 + math.cos(math.pi * 8 / 9)))
    assert lr_factor(0, 1, 0.0) == 1.0


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
    model = torch.nn.BatchNorm1d(2)
    average = RunningMean(model, 0.75)
    model.weight.data.fill_(4.0)
    model.running_var.fill_(2.0)
    model.bias.requires_grad_(False).fill_(4.0)
    average.follow(model)
    average.update(26)  # from here on 27/36 and more are not below 3/4
    assert average.model.weight.tolist() == [1.75, 1.75]  # 3/4 of 1 and 1/4 of 4
    assert average.model.running_var.tolist() == [1.25, 1.25]
    assert average.model.bias.tolist() == [0.0, 0.0]  # it does not learn
    average.put_statistics_back()
    assert model.running_var.tolist() == [1.25, 1.25]
    assert model.weight.tolist() == [4.0, 4.0]  # what trains stays where training has put it

    average.decay = 0.0
    model.running_var.fill_(2.0)
    average.follow(model.eval())
    average.update(26)
    assert average.model.weight.tolist() == [4.0, 4.0]
    assert average.model.running_var.tolist() == [1.25, 1.25]  # nor do statistics that stand still


def test_the_average_looks_back_over_few_steps_while_there_have_been_few():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = RunningMean(model, 0.97)
    average.follow(model)
    model.weight.data.fill_(11.0)
    average.update(0)
    assert average.model.weight.item() == pytest.approx(9.9)  # 1/10 of 0 and 9/10 of 11
    model.weight.data.fill_(0.0)
    average.update(1)
    assert average.model.weight.item() == pytest.approx(1.8)  # 2/11 of 9.9


def test_a_loss_at_chance_is_reported():
    at = [{"train_loss": loss} for loss in (4.6, 4.59, 3.0)]
    warning = warning_at_chance(at[:2], 4.605)
    assert "4.61" in warning and "nothing has been learned yet" in warning
    assert warning_at_chance(at, 4.605) is None
    assert warning_at_chance(at[:1], 4.605) is None
    assert warning_at_chance(at[:2], None) is None
    assert warning_at_chance([{"train_loss": 5.2}, {"train_loss": 4.6}], 4.605) is None  # it falls


SMALL = replace(PRESETS["sample"], image_encoder="test_resnet", image_size=32, scratch_layers=1, scratch_width=64,
                batch_size=32, crop_scale=1.0)


def small_set_up(sample_dir, config=SMALL):
    """A small model and what trains it: (model, its average, a phase of 3 steps an epoch)."""
    splits = load_splits(sample_dir)
    torch.manual_seed(0)
    model = CLIP.from_config(config, splits["train"]["caption"])
    phase = make_phase(model, splits, replace(config, data_dir=sample_dir), "none", config.epochs)
    return model, RunningMean(model, config.averaging), phase


def first_epoch(model, average, phase, config=SMALL):
    return train_one_epoch(model, average, phase, Run(config), 1, config)


def test_the_average_follows_every_step_and_nothing_else(sample_dir):
    model, average, phase = small_set_up(sample_dir)
    mean, steps = [parameter.detach().clone() for parameter in model.parameters()], []

    def follow(*_):  # the mean as its formula says: 1/10 of the old at first, then 2/11, 3/12, …
        old = min(SMALL.averaging, (1 + len(steps)) / (10 + len(steps)))
        for value, parameter in zip(mean, model.parameters(), strict=True):
            value.copy_(old * value + (1 - old) * parameter.detach())
        steps.append(old)

    phase.optimizer.register_step_post_hook(follow)
    first_epoch(model, average, phase)
    assert len(steps) == 3
    averaged = list(average.model.parameters())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mean, averaged, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(averaged, model.parameters(), strict=True))


def test_an_epoch_follows_the_schedule_clips_gradients_and_clamps_the_scale(sample_dir):
    config = replace(SMALL, epochs=2, warmup=0.5, grad_clip=0.01, lr_image=1e-3, lr_text=2e-3, lr_heads=4e-3)
    model, average, phase = small_set_up(sample_dir, config)
    model.logit_scale.data.fill_(9.0)
    rates, norms = [], []

    def watch(optimizer, *_):
        rates.append({group["part"]: group["lr"] for group in optimizer.param_groups})
        norms.append(torch.stack([p.grad.norm() for group in optimizer.param_groups for p in group["params"]
                                  if p.grad is not None]).norm().item())

    phase.optimizer.register_step_pre_hook(watch)
    # A scaler that multiplies the loss by 1024: gradients must be divided again before they are clipped.
    phase.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    first_epoch(model, average, phase, config)
    for step, rate in enumerate(rates):  # 3 of 6 steps, all of them warm-up
        assert rate == pytest.approx({part: peak * (step + 1) / 3
                                      for part, peak in (("heads", 4e-3), ("image", 1e-3), ("text", 2e-3))})
    assert len(rates) == 3 and norms == pytest.approx([0.01] * 3, rel=1e-2)
    assert 4.5 < model.logit_scale.item() < math.log(100) + 1e-6  # 9.0 would have been a multiplier of 8103
    assert rates[-1]["heads"] == 4e-3


@pytest.mark.parametrize("poison, scaled", [("loss", False), ("loss", True), ("gradient", False)])
def test_a_number_that_is_not_finite_stops_the_run(tmp_path, sample_dir, poison, scaled):
    (tmp_path / "last").mkdir()
    model, average, phase = small_set_up(sample_dir)
    if poison == "loss":
        model.text_head.norm.bias.data.fill_(torch.nan)
    else:
        model.text_head.norm.bias.register_hook(lambda gradient: gradient * torch.inf)
    before = model.image_head.projection.weight.clone()
    phase.scaler = torch.amp.GradScaler("cpu", init_scale=1.0, enabled=scaled)
    with pytest.raises(UserError, match=rf"step 1 .*learning rates heads .*image .*text .*{tmp_path}/last"):
        first_epoch(model, average, phase, replace(SMALL, run_dir=tmp_path))
    assert torch.equal(before, model.image_head.projection.weight)  # nothing was spoilt


def test_an_overflow_under_a_scaler_skips_steps_but_not_for_ever(sample_dir):
    model, average, phase = small_set_up(sample_dir)
    model.text_head.norm.bias.register_hook(lambda gradient: gradient * torch.inf)
    before = model.image_head.projection.weight.clone()
    statistics = [buffer.clone() for buffer in model.image_encoder.buffers()]
    phase.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    figures = first_epoch(model, average, phase)
    assert torch.equal(before, model.image_head.projection.weight)  # three steps skipped, the scale is 8 by now
    assert figures["skipped_steps"] == 3
    for buffer, known in zip(model.image_encoder.buffers(), statistics, strict=True):
        assert not buffer.is_floating_point() or torch.equal(buffer, known)  # not moved by what was skipped
    phase.forget_steps()
    phase.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with pytest.raises(UserError, match="stopped at step 3"):
        first_epoch(model, average, phase)


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "last"
    with replacing(target) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(KeyboardInterrupt), replacing(target) as folder:
        (folder / "a").write_text("second")
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "first"
    target.rename(tmp_path / ".last.old")  # a kill between the two renames leaves this
    repair(tmp_path)
    assert (target / "a").read_text() == "first"
    with replacing(target) as folder:
        (folder / "b").write_text("third")
    assert [path.name for path in tmp_path.rglob("*")] == ["last", "b"]


# ---------------------------------------------------------------- the command


def test_a_run_leaves_what_it_promises(workplace):
    run_dir = workplace / "runs" / "first"
    rows = lines_of(run_dir)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.5
    with Image.open(run_dir / "curves.png") as curves:
        assert curves.format == "PNG" and curves.width > 800
    suffixes = {path.suffix for path in run_dir.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors", ".png", ".md"}  # nothing pickled, no temporary left
    pictures = {"curves.png", "similarity-dev.png", "worst-dev.png"}  # other commands may have drawn more since
    assert {"best", "last", "metrics.jsonl"} | pictures <= {path.name for path in run_dir.iterdir()}


def test_the_first_loss_of_a_run_is_that_of_chance(workplace, sample_dir):
    config = Config.load(workplace / "runs" / "first" / "last" / "config.json")
    splits = load_splits(sample_dir)
    torch.manual_seed(config.seed)  # as train.py makes its model
    model = CLIP.from_config(config, splits["train"]["caption"]).to(memory_format=torch.channels_last)
    phase = make_phase(model, splits, config, config.freeze, config.epochs)
    figures = first_epoch(model, RunningMean(model, config.averaging), phase, config)
    assert abs(phase.losses[0] / math.log(32) - 1) < 0.05  # chance: unlike pairs, a model that knows nothing
    row = lines_of(workplace / "runs" / "first")[0]
    assert figures["train_loss"] == pytest.approx(row["train_loss"], abs=1e-5)  # these are the steps of that run


def test_a_run_says_what_it_does(workplace, sample_dir):
    output = (workplace / "train.log").read_text().splitlines()
    assert output[0] == "preset sample"
    assert f"{sample_dir}: 640 captions; photos: train 96, dev 16, test 16, all of 192 x 192 pixels" in output
    assert any(line.startswith("epoch   4/4") and "dev R@1/5/10" in line for line in output)
    assert [line.startswith("epoch   1/4") for line in output if line.endswith(" to go")] == [True]
    assert "  dev has only 16 photos: its recall means little, and picks the best epoch by chance" in output
    assert any("16 photos of the test split" in line for line in output)


def test_evaluate_shows_the_figures_that_training_showed(workplace):
    printed = run_script("evaluate.py", "--split", "test", "--json", "figures.json", cwd=workplace).stdout
    figures = json.loads((workplace / "figures.json").read_text())
    names = ["split", "images", "captions", "text_to_image", "image_to_text", "text_to_image_less_hubs"]
    assert list(figures) == names
    assert (figures["split"], figures["images"], figures["captions"]) == ("test", 16, 80)
    assert list(figures["text_to_image"]) == ["R@1", "R@5", "R@10", "median_rank"]
    table = [line for line in (workplace / "train.log").read_text().splitlines() if " -> " in line]
    assert len(table) == 3 and all(line in printed for line in table)
    assert table[0].split()[3] == f"{figures['text_to_image']['R@1']:.1f}"


def test_best_holds_the_epoch_with_the_highest_mean_recall_on_dev(workplace):
    rows = lines_of(workplace / "runs" / "first")
    best = max(rows, key=lambda row: row["mean_recall"])
    run_script("evaluate.py", "--split", "dev", "--json", "dev.json", cwd=workplace)
    figures = json.loads((workplace / "dev.json").read_text())
    assert figures["text_to_image"] == best["text_to_image"] and figures["image_to_text"] == best["image_to_text"]
    assert json.loads((workplace / "runs/first/last/trainer.json").read_text())["best"] == best["mean_recall"]


def test_a_killed_run_resumes_to_the_same_figures(workplace, train_flags, tmp_path):
    run_dir = tmp_path / "runs" / "killed"
    command = [sys.executable, str(ROOT / "train.py"), *map(str, train_flags), "--run-dir", "runs/killed"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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

    resumed = run_script("train.py", "--resume", "--run-dir", "runs/killed", cwd=tmp_path).stdout
    assert resumed.splitlines()[0] == "resuming runs/killed"
    assert f"going on after epoch {finished} of 4" in resumed
    assert without_times(lines_of(run_dir)) == without_times(lines_of(workplace / "runs" / "first"))
    for part in ("best", "last"):
        assert ((run_dir / part / "model.safetensors").read_bytes()
                == (workplace / "runs" / "first" / part / "model.safetensors").read_bytes())


@pytest.mark.parametrize("flags, complaint", [
    (["--run-dir", "runs/first"], "runs/first already holds a run: add --resume"),
    (["--run-dir", "runs/first", "--resume", "--loss", "soft"], "other settings (loss clip -> soft): drop these flags"),
    (["--run-dir", "runs/none", "--resume"], "there is no folder runs/none/last: name a run"),
    (["--run-dir", "train.log"], "--run-dir train.log is a file"),
    (["--data-dir", "nowhere"], "there is no dataset folder nowhere"),
    (["--data-dir", "empty"], "empty has no captions: expected captions.txt with the header image,caption"),
    (["--device", "cuda"], "--device cpu"),
    (["--image-encoder", "resnet5000"], "'resnet5000'"),
])
def test_what_cannot_be_ends_in_one_line(workplace, train_flags, flags, complaint):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    (workplace / "empty").mkdir(exist_ok=True)
    before = sorted(workplace.rglob("*"))
    process = run_script("train.py", *with_flags(train_flags, *flags), cwd=workplace, check=False)
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2 and len(errors) == 1 and complaint in errors[0]
    assert "Traceback" not in process.stderr and sorted(workplace.rglob("*")) == before


def test_curves_that_cannot_be_drawn_lose_no_epoch(tmp_path, sample_dir, capsys, monkeypatch):
    monkeypatch.setattr("support.run.CURVES_EVERY", 0)
    config = replace(SMALL, data_dir=sample_dir, run_dir=tmp_path / "run", epochs=1, precision="fp32")
    (config.run_dir / "curves.png").mkdir(parents=True)
    main(config)
    assert f"could not draw {config.run_dir / 'curves.png'}" in capsys.readouterr().out
    assert (config.run_dir / "last" / "trainer.json").exists() and len(lines_of(config.run_dir)) == 1


@pytest.mark.parametrize("damage, complaint", [
    (lambda data: (data / "Images").rename(data.parent / "photos"),
     r"scene_\d+.jpg was looked for as .*scene_\d+.jpg: put the photos there, or say --image-dir DIR"),
    (lambda data: (data / "captions.txt").write_text((data / "captions.txt").read_text().replace(".jpg,", ",")),
     r"the captions speak of 'scene_\d+', and the photo is called 'scene_\d+.jpg'"),
])
def test_two_reasons_why_all_photos_are_missing_are_told(tmp_path, sample_dir, damage, complaint):
    shutil.copytree(sample_dir, tmp_path / "data")
    damage(tmp_path / "data")
    with pytest.raises(UserError, match=complaint):
        load_usable_splits(tmp_path / "data")


def test_no_control_character_of_a_name_reaches_the_terminal(tmp_path, sample_dir, capsys):
    shutil.copytree(sample_dir, tmp_path / "data")
    with (tmp_path / "data" / "captions.txt").open("a") as file:
        file.write("\x1b]0;owned\x07.jpg,A dog .\n")
    load_data(replace(SMALL, data_dir=tmp_path / "data"))
    said = capsys.readouterr().out
    assert "owned" in said and "\x1b" not in said and "\x07" not in said


@pytest.mark.parametrize("words, typed", [
    ("a dog runs , fast .", '"a dog runs , fast ."'),
    ("a dog; rm -rf $HOME", "'a dog; rm -rf $HOME'"),
    ('it is "here"', "'it is \"here\"'"),
])
def test_a_prompt_is_quoted_as_a_shell_takes_it(words, typed):
    assert quoted(words) == typed and shlex.split(typed) == [words]


def test_shards_an_epoch_are_refused_where_there_are_none(sample_dir):
    with pytest.raises(UserError, match="--epoch-shards counts shards, and .* is a folder"):
        load_data(replace(SMALL, data_dir=sample_dir, epoch_shards=2))


def test_broken_photos_and_unused_weights_are_named(tmp_path, sample_dir, train_flags, tower_flags):
    shutil.copytree(sample_dir, tmp_path / "data")
    names = (tmp_path / "data" / "Flickr_8k.trainImages.txt").read_text().split()
    (tmp_path / "data" / "Images" / names[0]).unlink()
    (tmp_path / "data" / "Images" / names[1]).write_bytes(b"broken")
    flags = with_flags(train_flags, "--data-dir", "data", "--epochs", 1, "--run-dir", "run",
                       "--image-encoder", tower_flags["image_encoder"])
    output = run_script("train.py", *flags, cwd=tmp_path).stdout
    assert "(random weights) and scratch (random weights); frozen: none" in output
    assert "the weights of the towers named are not used: add --pretrained" in output
    assert "train 94, dev 16, test 16" in output
    assert f"missing, left out: 1 ({names[0]})" in output and "unreadable, left out: 1 (data/Images/" in output


def test_pretrained_towers_of_the_users_own_stay_as_they_are_when_frozen(tmp_path, sample_dir, tower_flags):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in tower_flags.items()]
    output = run_script("train.py", "flickr8k", "--data-dir", sample_dir, *flags, "--freeze", "both", "--epochs", 1,
                        "--batch-size", 32, "--workers", 2, "--run-dir", "runs/frozen", cwd=tmp_path).stdout
    assert "{image_encoder} (pretrained) and {text_encoder} (pretrained)".format(**tower_flags) in output
    trained = CLIP.from_pretrained(tmp_path / "runs" / "frozen" / "last")
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


def test_the_heads_learn_alone_first_and_leave_the_towers_as_they_are(tmp_path, sample_dir, tower_flags, monkeypatch):
    config = small_run(tmp_path, sample_dir, tower_flags, heads_first=30, image_dropout=0.0,
                       text_dropout=0.0)
    torch.manual_seed(config.seed)  # as train.py makes its model
    before = CLIP.from_config(config).state_dict()
    train_one_epoch, losses = train.train_one_epoch, []

    def watch(model, average, phase, *arguments):
        if phase.epochs != 30:  # the towers are about to join
            raise KeyboardInterrupt
        figures = train_one_epoch(model, average, phase, *arguments)
        losses.append(phase.losses)
        return figures

    monkeypatch.setattr(train, "train_one_epoch", watch)
    with pytest.raises(SystemExit):
        train.main(config)
    (row,) = lines_of(tmp_path)
    assert len(losses) == 30 and row["epoch"] == 0
    assert row["train_loss"] < 0.9 * math.log(32) < losses[0][0]
    assert row["train_loss"] == pytest.approx(sum(losses[-1]) / len(losses[-1]))
    for trained in ("weights.safetensors", "model.safetensors"):  # the weights and their average
        after = load_file(tmp_path / "last" / trained)
        assert set(after) == set(before)
        changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        assert changed == {"image_head", "text_head", "logit_scale"}


def test_a_run_stopped_after_the_heads_goes_on_as_if_it_had_not_been(tmp_path, sample_dir, tower_flags, monkeypatch):
    whole = small_run(tmp_path / "whole", sample_dir, tower_flags)
    train.main(whole)
    stopped, train_one_epoch = replace(whole, run_dir=tmp_path / "stopped"), train.train_one_epoch

    def stop_at_the_first_epoch(model, average, phase, *arguments):
        if phase.epochs == 2:  # that of the towers
            raise KeyboardInterrupt
        return train_one_epoch(model, average, phase, *arguments)

    monkeypatch.setattr(train, "train_one_epoch", stop_at_the_first_epoch)
    with pytest.raises(SystemExit) as ended:
        train.main(stopped)
    assert ended.value.code == 130
    monkeypatch.setattr(train, "train_one_epoch", train_one_epoch)
    assert [row["epoch"] for row in lines_of(stopped.run_dir)] == [0]
    saved = Config.load(stopped.run_dir / "last" / "config.json")
    train.main(replace(saved, run_dir=stopped.run_dir, resume=True))
    assert without_times(lines_of(whole.run_dir)) == without_times(lines_of(stopped.run_dir))
    for folder in ("best", "last"):
        assert (whole.run_dir / folder / "model.safetensors").read_bytes() == (
            stopped.run_dir / folder / "model.safetensors").read_bytes()


def test_last_is_the_model_that_was_measured(tmp_path, sample_dir, tower_flags, capsys):
    config = small_run(tmp_path / "run", sample_dir, tower_flags)
    train.main(config, "")
    split = embed_split(CLIP.from_pretrained(config.run_dir / "last"), load_splits(sample_dir)["dev"], 64)
    assert report_of(split)["text_to_image"] == lines_of(config.run_dir)[-1]["text_to_image"]
    (config.run_dir / "last" / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="a run of another version"):
        train.main(replace(config, resume=True, epochs=3), "")


def test_without_a_test_split_the_figures_are_said_to_be_of_dev(tmp_path, sample_dir, tower_flags, capsys):
    shutil.copytree(sample_dir, tmp_path / "data")
    (tmp_path / "data" / "Flickr_8k.testImages.txt").unlink()
    train.main(small_run(tmp_path / "run", tmp_path / "data", tower_flags, freeze="both", epochs=1), "")
    shown = capsys.readouterr().out
    assert "on the 16 photos of the dev split" in shown and "for crops add --no-cache" in shown
