"""benchmarks/: the ancestors' loss against loops, and the scripts end to end on small towers."""

import math
import time

import torch
from conftest import ROOT, run_script

from benchmarks import (
    ablation,
    busy_machine,
    cold_query,
    contrastive_loss,
    decoding,
    frozen_epoch,
    gallery,
    gpu,
    peers,
    training_step,
)
from benchmarks.seed_recipe import seed_loss
from dataset import Precomputed, load_splits
from models import CLIP
from support.drawn import is_drawn
from support.find_run import checkpoint_dir


def test_the_ancestors_loss_equals_loops():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 4, 3, generator=generator).tolist()

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    def softmax(row):
        return [math.exp(value) / sum(map(math.exp, row)) for value in row]

    targets = [softmax([(dot(images[i], images[j]) + dot(texts[i], texts[j])) / 2 for j in range(4)]) for i in range(4)]
    by_text = [softmax([dot(texts[i], images[j]) for j in range(4)]) for i in range(4)]
    by_image = [softmax([dot(images[i], texts[j]) for j in range(4)]) for i in range(4)]
    loss = 0.0
    for i in range(4):
        loss -= sum(targets[i][j] * math.log(by_text[i][j]) for j in range(4)) / 8
        loss -= sum(targets[j][i] * math.log(by_image[i][j]) for j in range(4)) / 8
    assert abs(seed_loss(torch.tensor(images), torch.tensor(texts)).item() - loss) < 1e-5


def test_means_of_the_largest_values_by_hand():
    values = torch.tensor([[[3.0], [9.0], [1.0], [2.0]], [[5.0], [-1.0], [7.0], [7.0]]])  # (2, 4, 1)
    mask = torch.tensor([[True, False, True, True], [True, True, False, False]])
    means = ablation.means_of_largest(values, mask)  # of the 1, 2, 4, 8, 16 largest, and of all
    assert means.tolist() == [[3, 2.5, 2, 2, 2, 2], [5, 2, 2, 2, 2, 2]]


def test_a_curve_of_the_ablation_is_known_as_drawn(tmp_path):
    ablation.draw_gaps({"our recipe": [1.0, 2.0]}, tmp_path / "gaps.png")
    assert is_drawn(tmp_path / "gaps.png")


def test_both_benchmarks_run_and_their_model_can_be_compared(tmp_path, sample_dir, tower_flags):
    towers = ["--data-dir", sample_dir, "--image-encoder", tower_flags["image_encoder"],
              "--text-encoder", tower_flags["text_encoder"]]
    for freeze in ("both", "none"):
        shown = run_script("benchmarks/seed_recipe.py", *towers, "--epochs", 1, "--freeze", freeze, "--run-dir", freeze,
                           cwd=tmp_path).stdout
        assert "16 photos of the dev split" in shown
    assert CLIP.from_pretrained(checkpoint_dir(tmp_path / "none")).config.pooling == "cls"
    shown = run_script("evaluate.py", "--split", "dev", "--compare", "both", "none", cwd=tmp_path).stdout
    assert "95 % interval" in shown
    shown = run_script("benchmarks/ablation.py", "frozen", *towers, "--epochs", 1, "--seeds", 1, "--output", "table.md",
                       cwd=tmp_path).stdout
    rows = (tmp_path / "table.md").read_text()
    assert rows in shown and rows.count("\n| ") == 30 and "| our recipe |" in rows
    shown = run_script("benchmarks/ablation.py", "towers", *towers, "--epochs", 1, "--seeds", 1, "--only", "text tower",
                       cwd=tmp_path).stdout
    assert "| text tower frozen |" in shown


def test_commands_are_timed_beside_busy_programs(sample_dir, capsys, monkeypatch):
    def run(repository, script, *flags, cwd, environment):  # as the benchmark does, but libraries are imported already
        start = time.perf_counter()
        run_script(repository / script, *flags, cwd=cwd)
        return time.perf_counter() - start

    monkeypatch.setattr(busy_machine, "run", run)
    small = "--image-encoder test_resnet --image-size 32 --batch-size 32"
    busy_machine.main(busy_machine.BusyConfig(sample_dir, ROOT, busy=(1,), rounds=1, epochs=1, towers=small))
    rows = [line.split("|")[2:6] for line in capsys.readouterr().out.splitlines() if "busy programs" in line]
    assert [row[0].strip() for row in rows] == ["this checkout", "the other"]
    assert all(float(cell.split()[0]) > 0 for row in rows for cell in row[1:])


def test_answers_are_timed_with_and_without_their_picture(sample_dir, capsys):
    cold_query.main(cold_query.ColdConfig(sample_dir / "Images", counts=(12,), text_layers=1, rounds=1))
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines() if line.startswith("| 12 ")]
    assert [row[1].strip() for row in rows] == ["ours, with its picture", "ours, without", "ancestors"]
    assert all(float(row[2].split()[0]) > 0 for row in rows)


def test_our_row_beside_the_peers_is_measured(sample_dir, tmp_path):
    peers.write_text_tower(tmp_path, ["A dog runs through the water .", "Two people sit near the beach ."], layers=1)
    flags = peers.PeersConfig(sample_dir, batch_size=4, steps=1, photos=8, image_encoder="test_resnet")
    figures = peers.run(flags, "ours", tmp_path)
    assert set(figures) == set(peers.FIGURES) and all(value > 0 for value in figures.values())


def test_the_benchmarks_of_speed_run(sample_dir, capsys):
    decoding.main(decoding.DecodingConfig(sample_dir / "Images", count=8, size=32, rounds=1))
    table = capsys.readouterr().out
    assert "8 photos at 32 px" in table and "| ancestors |" in table and "| decoded once |" in table
    for way in contrastive_loss.WAYS:
        contrastive_loss.measure(contrastive_loss.LossConfig(pairs=64, dim=8, way=way))
        seconds, megabytes = map(float, capsys.readouterr().out.split())
        assert seconds > 0 and megabytes >= 0
    small = {"batch_size": 4, "micro_batch": 2, "image_encoder": "test_resnet", "text_layers": 1}
    for way in ("ancestors", "ours", "ours, micro-batches"):
        step = training_step.steps(training_step.StepConfig(**small, way=way))
        next(step), next(step)


def test_the_memory_of_a_step_is_kept_within_a_limit(capsys):
    small = {"batch_size": 8, "image_encoder": "test_resnet", "text_layers": 1, "steps": 1}
    training_step.main(training_step.StepConfig(**small, limits=(4.0,)))
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert row[2].strip() == "8 of 8" and 0.3 < float(row[4]) < 4


def test_an_epoch_of_repeated_features_and_a_gallery_are_timed(sample_dir, tower_flags, capsys):
    frozen_epoch.main(frozen_epoch.EpochConfig(sample_dir, **tower_flags, photos=32, pairs=300, steps=1, rounds=1))
    table = capsys.readouterr().out
    assert "300 pairs" in table and "| ours, from cached features |" in table and "for 32 photos" in table
    gallery.main(gallery.GalleryConfig(sample_dir / "Images", 8, "test_resnet", size=32, rounds=1))
    table = capsys.readouterr().out
    assert "8 photos at 32 px" in table and "| ours |" in table


def test_repeated_features_stand_beside_their_captions(sample_dir):
    table = load_splits(sample_dir)["train"].head(15)  # three photos, five captions each
    cached = Precomputed(None, torch.arange(3.0).view(3, 1), torch.arange(15.0).view(15, 1))
    whole, features = frozen_epoch.repeated(table, cached, pairs=7)
    assert features.image_features.flatten().tolist() == [0, 1, 2, 0, 1, 2, 0] and whole["image"].nunique() == 7
    captions = [table["caption"][int(row)] for row in features.text_features]
    assert list(whole["caption"]) == captions and len(captions) == 35


def test_the_gpu_benchmark_says_where_there_is_none_and_its_parts_work(tmp_path, tower_flags, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main(gpu.GpuConfig())
    assert capsys.readouterr().out.startswith("no GPU here")
    flags = gpu.GpuConfig(batch_sizes=(4,), workers=0, photos=8)
    model, (loader,) = gpu.set_up(tmp_path, flags, image_encoder="test_resnet", image_size=32,
                                  text_encoder="scratch", scratch_layers=1, scratch_width=64)
    batch = next(gpu.batches(loader))
    assert batch.pixels.shape == (4, 3, 32, 32) and batch.input_ids.shape == (4, 1, 24)
    assert gpu.rate(model, gpu.batches(loader), steps=1) > 0 and gpu.traffic(model, batch) > 0
    assert all(peak > 0 for peak in gpu.peaks(torch.device("cpu"), size=64))
