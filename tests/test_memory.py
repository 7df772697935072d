"""support/memory.py: bytes counted by hand, parts of like size, and limits as a container sets them."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_train import small_run

import train
from config import PRESETS, Config
from models import CLIP
from support import memory
from support.memory import (
    BEYOND_WHAT_IS_KEPT,
    BYTES_PER_WEIGHT,
    free_in_control_groups,
    kept_for_backward,
    pairs_that_fit,
)


class Small(torch.nn.Module):
    """Keeps for each pair its 10 inputs and the 100 numbers that leave the rectifier, of 4 bytes each."""

    device = torch.device("cpu")
    autocast = contextlib.nullcontext

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(10, 100)
        self.norm = torch.nn.BatchNorm1d(10, affine=False)

    def forward(self, batch):
        with torch.no_grad():
            normed = torch.nn.functional.dropout(self.norm(batch))
        return torch.relu(self.layer(normed))


def batch_of(pairs):
    return torch.ones(pairs, 10)


def test_what_is_kept_by_hand_and_nothing_is_moved():
    model = Small().eval()
    state, numbers = torch.get_rng_state(), model.norm.running_mean.clone()
    four, eight = kept_for_backward(model, batch_of(4)), kept_for_backward(model, batch_of(8))
    assert eight - four == 4 * (10 + 100) * 4
    assert torch.get_rng_state().equal(state) and model.norm.running_mean.equal(numbers)
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("pairs, batch, part", [
    (100, 32, 32),  # all of them
    (32, 32, 32),
    (31.9, 32, 16),  # two parts of like size, not 31 and 1
    (10.5, 32, 8),
    (0.1, 32, 2),  # two at least: of one there is no mean
    (-5, 7, 2),
])
def test_a_batch_is_cut_into_as_few_parts_as_fit(monkeypatch, capsys, pairs, batch, part):
    weights = BYTES_PER_WEIGHT * (10 * 100 + 100)
    room = weights + pairs * BEYOND_WHAT_IS_KEPT * (10 + 100) * 4 + 1  # a byte for rounding
    monkeypatch.setattr(memory, "room_for_training", lambda device: room)
    assert pairs_that_fit(Small(), batch_of, batch) == part
    assert ("may be ended for want of memory" in capsys.readouterr().out) == (pairs < 2)


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_group_counts_without_files_that_nobody_reads(tmp_path, version):
    names = [("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
             ("memory.max", "memory.current", "inactive_file")][version - 1]
    top = tmp_path / "memory" if version == 1 else tmp_path
    for folder, limit, used, cached in ((top / "box" / "job", "1000", 700, 50), (top / "box", "5000", 4900, 100)):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in zip(names, (limit, str(used), None), strict=True):
            if text:
                (folder / name).write_text(text + "\n")
        (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\n")
    if version == 2:
        (tmp_path / "memory.max").write_text("max\n")
    groups = tmp_path / "cgroup"
    groups.write_text("3:cpu:/\n" + ("4:memory:/box/job\n0::/\n" if version == 1 else "0::/box/job\n"))
    assert sorted(free_in_control_groups(tmp_path, groups)) == [200, 350]
    assert free_in_control_groups(tmp_path, tmp_path / "none") == []


def test_a_limit_of_this_process_counts(monkeypatch):
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (3 * 10**9, 0))
    monkeypatch.setattr(memory, "pages_of_this_process", lambda: (10**9, 5 * 10**8))
    assert memory.free_memory() <= 2 * 10**9
    assert memory.room_for_training(torch.device("cpu")) <= 0.6 * 2 * 10**9


def test_a_run_says_its_parts_and_a_resume_keeps_to_them(tmp_path, sample_dir, tower_flags, monkeypatch, capsys):
    config = small_run(tmp_path / "run", sample_dir, tower_flags, heads_first=0)
    monkeypatch.setattr(train, "pairs_that_fit", lambda model, batch_of, size: size // 4)
    train.main(replace(config, epochs=1), "")
    assert "each batch is computed in parts of 8 photos" in capsys.readouterr().out
    saved = Config.load(config.run_dir / "last" / "config.json")
    assert saved.micro_batch == 8
    monkeypatch.setattr(train, "pairs_that_fit", None)  # not to be asked again
    train.main(replace(saved, run_dir=config.run_dir, resume=True, epochs=2), "")
    assert "each batch is computed in parts of 8 photos" in capsys.readouterr().out

    monkeypatch.undo()
    train.main(small_run(tmp_path / "whole", sample_dir, tower_flags, heads_first=0, epochs=1), "")
    assert "in parts" not in capsys.readouterr().out


def test_the_largest_batch_is_the_one_that_is_measured(sample_dir, tower_flags):
    model = CLIP.from_config(replace(PRESETS["sample"], pretrained=True, max_tokens=32, **tower_flags))
    table = train.load_usable_splits(sample_dir)[0]["train"]
    tokenizer = model.text_encoder.tokenizer
    pairs = train.CaptionDataset(table, tokenizer, None, 32, 32, captions_per_photo=3)
    batch = pairs.make_largest_batch(5)
    assert batch.pixels.shape == (5, 3, 32, 32) and batch.pixels.dtype == torch.uint8
    assert batch.input_ids.shape == (5, 3, max(map(len, pairs.token_ids)))
    pairs.known = SimpleNamespace(image_features=torch.ones(96, 7), text_features=torch.ones(480, 3))
    batch = pairs.make_largest_batch(5)
    assert batch.image_features.shape == (5, 7) and batch.text_features.shape == (5, 3, 3) and batch.pixels is None
