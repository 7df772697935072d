"""benchmarks/: the ancestors' loss against loops, and the scripts end to end on small towers."""

import math

import torch
from conftest import run_script

from benchmarks import contrastive_loss, decoding, training_step
from benchmarks.seed_recipe import seed_loss
from config import checkpoint_dir
from models import CLIP


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
    shown = run_script("benchmarks/ablation.py", "frozen", *towers, "--epochs", 1, "--seeds", 2, "--output", "table.md",
                       cwd=tmp_path).stdout
    rows = (tmp_path / "table.md").read_text()
    assert rows in shown and rows.count("\n| ") == 18 and "| our recipe |" in rows
    shown = run_script("benchmarks/ablation.py", "towers", *towers, "--epochs", 1, "--seeds", 1, "--only", "text tower",
                       cwd=tmp_path).stdout
    assert "| text tower frozen |" in shown


def test_the_benchmarks_of_speed_run(sample_dir, capsys):
    decoding.main(decoding.DecodingConfig(sample_dir / "Images", count=8, size=32, rounds=1))
    table = capsys.readouterr().out
    assert "8 photos at 32 px" in table and "| ancestors |" in table and "| decoded once |" in table
    for way in contrastive_loss.WAYS:
        contrastive_loss.measure(contrastive_loss.LossConfig(pairs=64, dim=8, way=way))
        seconds, megabytes = map(float, capsys.readouterr().out.split())
        assert seconds > 0 and megabytes >= 0
    for way in ("ancestors", "ours", "ours, micro-batches"):
        run = training_step.steps(training_step.StepConfig(batch_size=2, micro_batch=1, way=way))
        next(run), next(run)
