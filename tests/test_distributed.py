"""Several processes against one: the loss and its gradients, embeddings, and a whole run by torchrun."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import ROOT, fork_context, run_as_torchrun, run_script, save_image_tower, save_text_tower, with_flags
from torch.multiprocessing.spawn import start_processes

from config import PRESETS
from dataset import CaptionDataset, image_loader, load_splits, training_loader
from models import CLIP, embed_images, embed_texts
from search.index import INDEX_NAME
from support.errors import UserError


def joined(rank, job, world, place, out, *arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}  # as torchrun does
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
    torch.save(job(*arguments), f"{out}/{rank}.pt")
    dist.destroy_process_group()


def in_processes(tmp_path, world, job, *arguments):
    """Run `job` in several processes; returns what each of them returned."""
    folder = tmp_path / f"{job.__name__}-{world}"
    folder.mkdir()
    start_processes(joined, (job, world, f"file://{folder / 'meeting'}", str(folder), *arguments), world,
                    start_method=fork_context().get_start_method())
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.fixture
def model(tower_flags):
    torch.manual_seed(0)
    config = replace(PRESETS["sample"], pretrained=True, max_tokens=32, precision="fp32", image_size=None)
    return CLIP.from_config(replace(config, **tower_flags)).eval()


# ---------------------------------------------------------------- loss and gradients


# Of eight photos with two captions each. Two photos are equal, which different processes hold, and two captions.
PHOTO_IDS = torch.tensor([0, 1, 2, 3, 4, 5, 1, 7])
CAPTION_IDS = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [0, 1], [2, 5], [4, 3]])
IDS = (PHOTO_IDS, CAPTION_IDS)


def share_of_loss(model, images, texts):
    """The loss of this process's rows and its gradients: of the rows themselves and of the logit scale."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = [tensor.chunk(world)[rank].clone().requires_grad_() for tensor in (images, texts)]
    loss = model.loss(*mine, *(ids.chunk(world)[rank] for ids in IDS))
    return [loss.detach(), *torch.autograd.grad(loss, [*mine, model.logit_scale])]


@pytest.mark.parametrize(("world", "loss"), [(2, "clip"), (4, "clip"), (2, "soft"), (2, "siglip")])
def test_loss_and_gradients_of_several_processes_are_those_of_one(tmp_path, tower_flags, world, loss):
    model = CLIP.from_config(replace(PRESETS["sample"], pretrained=True, loss=loss, max_tokens=32, **tower_flags))
    images = F.normalize(torch.randn(8, 16), dim=-1).requires_grad_()
    texts = F.normalize(torch.randn(8, 2, 16), dim=-1).requires_grad_()
    whole = model.loss(images, texts, *IDS)
    expected = torch.autograd.grad(whole, [images, texts, model.logit_scale])
    shares = in_processes(tmp_path, world, share_of_loss, model, images.detach(), texts.detach())
    losses, of_images, of_texts, of_scale = zip(*shares, strict=True)
    assert torch.allclose(torch.stack(losses).mean(), whole, atol=1e-6)
    # the gradients of the parameters are averaged over the processes, so those of the rows count 1 / world
    assert torch.allclose(torch.cat(of_images) / world, expected[0], atol=1e-6)
    assert torch.allclose(torch.cat(of_texts) / world, expected[1], atol=1e-6)
    assert torch.allclose(torch.stack(of_scale).mean(), expected[2], atol=1e-6)


# ---------------------------------------------------------------- embedding


def embedded(model, paths, texts):
    images, indices, faults = embed_images(model, image_loader(paths, model.config.image_size, 4))
    return [images, torch.tensor(indices), sorted(faults), embed_texts(model, texts, 3)]


@pytest.mark.parametrize("world", [2, 4])
def test_embeddings_made_together_are_in_order_and_complete_everywhere(tmp_path, sample_dir, model, world):
    table = load_splits(sample_dir)["dev"]
    paths = [sample_dir / "Images" / name for name in table["image"].unique()[:9]]
    paths[5] = tmp_path / "gone.jpg"
    alone = embedded(model, paths, list(table["caption"][:11]))
    assert alone[1].tolist() == [0, 1, 2, 3, 4, 6, 7, 8] and alone[2] == [5]
    for mine in in_processes(tmp_path, world, embedded, model, paths, list(table["caption"][:11])):
        assert mine[1].equal(alone[1]) and mine[2] == alone[2]
        assert torch.allclose(mine[0], alone[0], atol=1e-6) and torch.allclose(mine[3], alone[3], atol=1e-6)


def test_fewer_photos_than_processes_are_one_line(monkeypatch, sample_dir, model):
    monkeypatch.setenv("WORLD_SIZE", "4")
    table = load_splits(sample_dir)["dev"].head(15)  # the captions of three photos
    pairs = CaptionDataset(table, model.text_encoder.tokenizer, None, 32, 32)
    with pytest.raises(UserError, match="3 training photos are too few for 4 processes"):
        training_loader(pairs, 32)


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def calm_towers(tmp_path_factory):
    """Flags for towers without dropout, whose run does not depend on the number of processes."""
    folder = tmp_path_factory.mktemp("calm")
    save_image_tower(folder / "image")
    save_text_tower(folder / "text", ["Two people sit near the beach .", "A dog runs through the water ."])
    config = json.loads((folder / "text" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "text" / "config.json").write_text(json.dumps(config))
    return [f"--image-encoder=local-dir:{folder / 'image'}", f"--text-encoder={folder / 'text'}"]


def flags_of_run(data_dir, towers, *flags):
    calm = ["--image-dropout", "0", "--text-dropout", "0", "--head-dropout", "0", "--precision", "fp32"]
    return ["flickr8k", "--data-dir", str(data_dir), *towers, *calm,
            "--batch-size", "32", "--heads-first", "3", "--workers", "1", *map(str, flags)]


def test_two_processes_train_as_one_and_one_goes_on_where_two_stopped(tmp_path, sample_dir, calm_towers):
    run = flags_of_run(sample_dir, calm_towers, "--epochs", 3)
    first, second = run_as_torchrun(2, "train.py", *run, "--run-dir", "runs/two", "--freeze", "none", cwd=tmp_path)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.count("in 2 processes") == 1 and first.stdout.count("next: python inference.py") == 1
    assert second.stdout == ""
    run_script("train.py", *run, "--run-dir", "runs/one", cwd=tmp_path)
    rows, expected = ([json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").open()]
                      for name in ("two", "one"))
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    for row, other in zip(rows, expected, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], abs=1e-4)
        assert row["text_to_image"] == other["text_to_image"]
    again = ["--resume", "--run-dir", "runs/two", "--epochs", 4]
    resumed = run_script("train.py", *again, cwd=tmp_path).stdout
    assert "going on after epoch 3 of 4" in resumed and "in 2 processes" not in resumed


def test_a_process_of_torchrun_that_dies_ends_the_run_and_leaves_the_checkpoint(tmp_path, sample_dir, calm_towers):
    run = flags_of_run(sample_dir, calm_towers, "--run-dir", "runs/dies", "--epochs", 500)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen([*start, str(ROOT / "train.py"), *run], cwd=tmp_path, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    last = tmp_path / "runs" / "dies" / "last" / "trainer.json"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(max(children, key=int)), 9)
    output, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "go on with: torchrun --nproc-per-node=2 train.py --resume --run-dir runs/dies" in output + errors
    CLIP.from_pretrained(tmp_path / "runs" / "dies" / "best")


def test_a_batch_that_cannot_be_shared_is_one_line(tmp_path, sample_dir, calm_towers):
    run = with_flags(flags_of_run(sample_dir, calm_towers), "--batch-size", 33)
    for process in run_as_torchrun(2, "train.py", *run, cwd=tmp_path):
        assert process.returncode == 2
        assert "--batch-size 33 is shared by 2 processes: give a multiple of 2" in process.stderr
        assert process.stdout == ""  # before anything is read


def test_a_gallery_embedded_by_two_processes_is_searched_as_one(tmp_path, sample_dir, checkpoint):
    gallery = ["--gallery", sample_dir / "Images", "--checkpoint", checkpoint, "--json", "--device", "cpu"]
    ask = ["inference.py", *gallery, "--query", "a dog", "--no-picture"]
    index = sample_dir / "Images" / INDEX_NAME
    index.unlink(missing_ok=True)
    alone = json.loads(run_script(*ask, cwd=tmp_path).stdout)["matches"]
    index.unlink()
    together, silent = run_as_torchrun(2, *ask, cwd=tmp_path)
    assert "128 embedded now" in together.stderr and silent.stdout == ""
    together = json.loads(together.stdout)["matches"]
    assert [match["file"] for match in together] == [match["file"] for match in alone]
    assert [match["score"] for match in together] == pytest.approx([match["score"] for match in alone], abs=1e-2)

    example = next((sample_dir / "Images").iterdir())
    explain = ["--image", example, "--explain", "--threshold", 0.99]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*start, ROOT / "inference.py", *gallery, *explain]
    drawn = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)  # by torchrun itself
    assert drawn.returncode == 0 and json.loads(drawn.stdout)["matches"][0]["file"] == str(example), drawn.stderr
    index.unlink()
