"""search/: search is exact, the index is safe, and a prompt to a known gallery needs no torch."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import ROOT, run_script
from PIL import Image
from safetensors.torch import load_file

from config import PRESETS
from dataset import load_splits, read_square
from inference import Gallery
from models import CLIP
from search.embedder import Embedder
from search.explain import heat_map
from search.export import export_onnx
from search.index import Entry, Index, read_index, write_index
from search.kept_text_tower import text_tower_folder
from search.nearest import BLOCK, nearest
from search.onnx_text import PromptEncoder
from search.pictures import pictures_of_split
from support import images
from support.errors import UserError
from support.files import writable, write_file
from support.images import picture_files, read_image

PROMPTS = ["people sitting near the beach", "a dog", "zebra " * 90, "雪の中の犬", "playing soccer, in the rain!"]


def unit_rows(count, width, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# ---------------------------------------------------------------- search


@pytest.fixture(params=["with torch", "without torch"])
def with_or_without_torch(request, monkeypatch):
    """Search as a program does that has imported torch, and as one that has not."""
    if request.param == "without torch":
        monkeypatch.delitem(sys.modules, "torch")


@pytest.mark.parametrize("queries", [1, 3, 20])
def test_search_finds_what_a_full_comparison_in_double_precision_finds(with_or_without_torch, queries):
    rows, asked = unit_rows(40_000, 64).astype(np.float16), unit_rows(queries, 64, seed=1)
    scores, found = nearest(rows, asked, 7)
    exact = asked.astype(np.float64) @ rows.astype(np.float64).T
    expected = np.sort(exact, axis=1)[:, ::-1][:, :7]
    assert scores.shape == found.shape == (queries, 7)
    assert np.abs(scores - expected).max() < 1e-6
    assert np.abs(np.take_along_axis(exact, found, axis=1) - expected).max() < 1e-6


def test_search_is_exact_among_rows_that_half_precision_cannot_tell_apart(with_or_without_torch):
    """A crowd of rows whose scores differ by less than float16 can show, as in a folder of one burst of photos."""
    query = unit_rows(1, 256)
    rows = (query + 0.004 * unit_rows(5_000, 256, seed=2)).astype(np.float16)
    exact = rows.astype(np.float64) @ query[0].astype(np.float64)
    scores, found = nearest(rows, query, 9)
    assert len(np.unique(rows @ query[0].astype(np.float16))) < 10  # what half precision sees
    assert np.abs(scores[0] - np.sort(exact)[::-1][:9]).max() < 1e-6


def test_search_gives_the_same_with_and_without_torch(monkeypatch):
    rows, asked = unit_rows(20_000, 64).astype(np.float16), unit_rows(3, 64, seed=1)
    scores, found = nearest(rows, asked, 1100)
    monkeypatch.delitem(sys.modules, "torch")
    again = nearest(rows, asked, 1100)
    assert np.abs(scores - again[0]).max() < 1e-6
    exact = asked.astype(np.float64) @ rows.astype(np.float64).T
    for one in (found, again[1]):  # where two rows differ by less than float32 shows, their order may differ
        assert np.abs(np.take_along_axis(exact, one, axis=1) - scores).max() < 1e-6


def test_equal_pictures_keep_their_order_and_few_are_all_returned():
    rows = np.repeat(unit_rows(1, 8), 4, axis=0).astype(np.float16)
    scores, found = nearest(rows, rows[:1].astype(np.float32), 10)
    assert found.tolist() == [[0, 1, 2, 3]] and scores.shape == (1, 4)


def test_equal_pictures_keep_their_order_over_the_whole_gallery(with_or_without_torch):
    rows = np.zeros((3 * BLOCK + 5, 4), np.float16)
    rows[:, 1] = 1
    best = [7, BLOCK - 1, BLOCK, 2 * BLOCK + 1, 3 * BLOCK + 4]
    rows[best] = [1, 0, 0, 0]
    scores, found = nearest(rows, np.array([[1, 0, 0, 0]], np.float32), 7)
    assert found.tolist() == [[*best, 0, 1]] and scores.tolist() == [[1, 1, 1, 1, 1, 0, 0]]


@pytest.mark.filterwarnings("error")
def test_rows_that_hold_no_numbers_are_found_after_all_others(with_or_without_torch):
    rows = np.zeros((BLOCK + 3, 2), np.float16)
    rows[:, 0] = 0.5
    rows[3] = np.nan
    rows[5] = np.inf
    rows[BLOCK + 1] = -np.inf
    rows[BLOCK + 2] = [1, 0]
    scores, found = nearest(rows, np.array([[1, 0]], np.float32), len(rows))
    assert found[0, 0] == BLOCK + 2 and found[0, -3:].tolist() == [3, 5, BLOCK + 1]
    assert scores[0, -3:].tolist() == [-1, -1, -1] and np.isfinite(scores).all()


# ---------------------------------------------------------------- files and the index


def test_picture_files_are_sorted_and_hidden_ones_left_alone(tmp_path):
    for name in ("b.JPG", "a/c.png", ".x/d.jpg", ".e.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert picture_files(tmp_path) == [tmp_path / "a" / "c.png", tmp_path / "b.JPG"]
    assert writable(tmp_path / "new" / "x.safetensors") == tmp_path / "new" / "x.safetensors"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as support/images.py has it
def test_a_picture_that_unpacks_to_too_much_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MOST_PIXELS", 50 * 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50 * 40 // 2)
    Image.new("RGB", (50, 40)).save(tmp_path / "most.png")
    Image.new("RGB", (51, 40)).save(tmp_path / "bomb.png")
    assert read_image(tmp_path / "most.png").shape == (40, 50, 3)
    monkeypatch.setattr(Image.Image, "load", None)  # decoding would fail in another way
    with pytest.raises(OSError, match="bomb.png: its pixels are more than 2,000"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_a_very_large_picture_is_reduced_and_looks_the_same(tmp_path, monkeypatch, mode):
    slope = np.linspace(0, 255, 800).astype(np.uint8)
    Image.fromarray(np.stack(np.broadcast_arrays(slope, slope[:400, None], np.uint8(90)), axis=2)).convert(mode).save(
        tmp_path / "large.png")
    whole = read_square(tmp_path / "large.png", 32)
    monkeypatch.setattr(images, "LARGE", 1000)
    assert read_image(tmp_path / "large.png", shrink_to=64).shape == (67, 134, 3)
    assert read_image(tmp_path / "large.png").shape == (400, 800, 3)
    assert np.abs(read_square(tmp_path / "large.png", 32).astype(int) - whole).max() <= 8


def test_an_index_comes_back_as_it_was_and_is_mapped_not_read(tmp_path):
    listed = [["a ☀.jpg", "1|2", None], ["b.jpg", "3|4", "b.jpg: not a picture"], ["c.jpg", None, None]]
    rows = unit_rows(2, 8).astype(np.float16)
    index = Index("ab" * 32, {"config.json": [1, 2, 3, 4]}, listed, rows, unit_rows(2, 192).astype(np.float16),
                  {"x": "1|1"}, ["dev"], 0.25)
    write_index(tmp_path / "index", index)
    again = read_index(tmp_path / "index")
    assert again.about() == index.about() and "embeddings" not in index.about()
    assert np.array_equal(again.embeddings, index.embeddings) and np.array_equal(again.looks, index.looks)
    assert isinstance(again.embeddings, np.memmap)
    assert again.entries() == {
        "a ☀.jpg": Entry("1|2", 0), "b.jpg": Entry("3|4", None, "b.jpg: not a picture"), "c.jpg": Entry(None, 1)}
    assert load_file(tmp_path / "index")["embeddings"].shape == (2, 8)  # the file is plain safetensors


def test_an_index_cut_at_any_place_is_no_index(tmp_path):
    rows = unit_rows(1, 64).astype(np.float16)
    looks = unit_rows(1, 192).astype(np.float16)
    write_index(tmp_path / "whole", Index("ab" * 32, {}, [["a", "1|1", None]], rows, looks))
    assert len(read_index(tmp_path / "whole").files) == 1
    content = (tmp_path / "whole").read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "cut").write_bytes(content[:length])
        assert read_index(tmp_path / "cut").files == []


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    write_file(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        write_file(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_an_interrupted_start_goes_on_where_it_stopped(tmp_path, sample_dir, checkpoint, monkeypatch):
    folder, parts = tmp_path / "many", []
    folder.mkdir()
    source = next((sample_dir / "Images").iterdir())
    for number in range(600):  # more than the 512 after which an index is saved
        os.link(source, folder / f"{number:03}.jpg")
    really = Embedder.embed_files

    def interrupted(self, files, bar=None):
        parts.append(len(files))
        if len(parts) == 2:
            raise KeyboardInterrupt
        return really(self, files, bar)

    monkeypatch.setattr(Embedder, "embed_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Gallery(folder, checkpoint, progress=False)
    gallery = Gallery(folder, checkpoint, progress=False)
    assert parts == [512, 88, 88] and gallery.embedded == 88 and len(gallery.files) == 600


def test_a_split_is_read_again_when_its_captions_or_photos_change(tmp_path, sample_dir, checkpoint):
    data = tmp_path / "sample"
    shutil.copytree(sample_dir, data, ignore=shutil.ignore_patterns(".clip*"))
    model_dir = tmp_path / "model"
    shutil.copytree(checkpoint, model_dir)
    saved = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps({**saved, "data_dir": str(data)}))
    names = list(load_splits(data)["test"]["image"].unique())
    assert len(Gallery(None, model_dir, progress=False).files) == len(names)
    assert Gallery(None, model_dir, progress=False).embedded == 0
    listing = data / "Flickr_8k.testImages.txt"
    listing.write_text("\n".join(names[:5]) + "\n")
    assert [file.name for file in Gallery(None, model_dir, progress=False).files] == names[:5]
    listing.unlink()
    assert Gallery(None, model_dir, progress=False).name == f"{data} (dev split)"
    with pytest.raises(UserError, match="has no test photos"):
        Gallery(None, model_dir, split="test", progress=False)
    (data / "Images").rename(tmp_path / "photos")
    wanted = r"all 128 photos are missing .* looked for as .*Images/scene_\d+.jpg: put the photos there, or name"
    for split in (None, "dev", "test"):
        with pytest.raises(UserError, match=wanted + " a folder with --gallery DIR"):
            Gallery(None, model_dir, split=split, progress=False)


def test_a_split_whose_photos_are_all_missing_says_where_they_were_looked_for(tmp_path, sample_dir):
    data = tmp_path / "sample"
    shutil.copytree(sample_dir, data, ignore=shutil.ignore_patterns(".clip*"))
    names = (data / "Flickr_8k.testImages.txt").read_text().split()
    for name in names:
        (data / "Images" / name).unlink()
    config = replace(PRESETS["sample"], data_dir=data)
    wanted = rf"all 16 photos in test are missing .* looked for as {data}/Images/{min(names)}: put the photos there"
    with pytest.raises(UserError, match=wanted):
        pictures_of_split(config, "test")
    assert pictures_of_split(config).name == f"{data} (dev split)"
    for split in ("train", "dev", "test"):
        (data / f"Flickr_8k.{split}Images.txt").write_text("unknown.jpg\n")
    with pytest.raises(UserError, match="has no dev photos: try --gallery DIR"):
        pictures_of_split(config)


@pytest.mark.parametrize("change", [
    {"model": "x/../../evil"}, {"files": [["../outside.jpg", "1|1", None]]}, {"files": [["/etc/passwd", "1|1", None]]},
    {"files": [[["a"], "1|1", None]]}, {"files": {"a": 1}}, {"format": 1}, {"unknown": 1}])
def test_an_index_that_this_program_would_not_write_is_no_index(tmp_path, change):
    rows = unit_rows(1, 192).astype(np.float16)
    about = {**Index("ab" * 32, files=[["a", "1|1", None]]).about(), **change}
    save = {"embeddings": rows, "looks": rows, "about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    write_file(tmp_path / "index", safetensors.numpy.save(save))
    assert read_index(tmp_path / "index").files == []
    (tmp_path / "deep").write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)
    assert read_index(tmp_path / "deep").files == []


def test_another_split_seed_never_searches_the_photos_of_this_one(tmp_path, sample_dir, checkpoint):
    data, found = tmp_path / "data", []
    shutil.copytree(sample_dir, data, ignore=shutil.ignore_patterns(".clip*", "Flickr_8k*"))
    for seed in (0, 1):
        model_dir = tmp_path / f"model{seed}"
        shutil.copytree(checkpoint, model_dir)
        saved = json.loads((model_dir / "config.json").read_text())
        (model_dir / "config.json").write_text(json.dumps({**saved, "data_dir": str(data), "split_seed": seed}))
        found.append({file.name for file in Gallery(None, model_dir, progress=False).files})
        assert found[-1] == set(load_splits(data, seed)["test"]["image"])
    assert found[0] != found[1]


# ---------------------------------------------------------------- why this picture


class ColourFields(torch.nn.Module):
    """A tower whose last feature map is the picture itself, in 8 x 8 fields of red, green and blue."""

    image_size, feature_dim, num_features = 64, 3, 3
    mean, std = torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), 255.0)

    def __init__(self):
        super().__init__()
        self.backbone = self

    def forward_features(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def forward_head(self, features, pre_logits):
        return features.mean(dim=(2, 3))


def test_a_heat_map_marks_what_was_asked_for_and_nothing_else():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :, 2] = 100  # blue everywhere
    picture[8:24, 40:56] = [200, 0, 0]  # a red square: four fields of the map
    model = SimpleNamespace(image_encoder=ColourFields(), image_head=torch.nn.Identity())
    heat = heat_map(model, picture, np.array([1, 0, 0], np.float32))
    expected = np.zeros((8, 8))
    expected[1:3, 5:7] = 1
    assert np.allclose(heat, expected, atol=1e-6)
    blue = heat_map(model, picture, np.array([0, 0, 1], np.float32))
    assert np.allclose(blue, 1 - expected, atol=1e-6)
    assert not heat_map(model, np.zeros_like(picture), np.array([1, 0, 0], np.float32)).any()


def test_a_heat_map_adds_up_to_the_score(tower_flags):
    """What all fields add, before the negative ones are cut, is the score less that of no activation at all."""
    config = replace(PRESETS["sample"], pretrained=True, image_size=None, max_tokens=32, **tower_flags)
    model = CLIP.from_config(config).eval()
    pixels, wanted = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8), unit_rows(1, 256)[0]
    fields = {}
    torch.Tensor.relu, relu = lambda heat: fields.setdefault("heat", heat), torch.Tensor.relu
    try:
        heat_map(model, pixels, wanted, steps=2000)
    finally:
        torch.Tensor.relu = relu
    with torch.no_grad():
        score = model.encode_image(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0] @ torch.from_numpy(wanted)
        nothing = torch.nn.functional.normalize(model.image_head(torch.zeros(1, model.image_encoder.feature_dim)))[0]
    assert fields["heat"].sum().item() == pytest.approx((score - nothing @ torch.from_numpy(wanted)).item(), abs=1e-2)


# ---------------------------------------------------------------- prompts


def test_the_kept_text_tower_gives_what_the_model_gives(tmp_path, checkpoint, tower_flags):
    pretrained = CLIP.from_config(replace(PRESETS["sample"], pretrained=True, max_tokens=32, **tower_flags))
    for number, model in enumerate([CLIP.from_pretrained(checkpoint), pretrained.eval()]):
        folder = tmp_path / str(number)
        folder.mkdir()
        export_onnx(model, folder, ["text"])
        encoder, tower = PromptEncoder(folder), model.text_encoder
        tokens = tower.tokenizer(PROMPTS, padding=True, truncation=True, max_length=tower.max_tokens,
                                 return_tensors="pt")
        with torch.inference_mode():
            expected = model.encode_text(tokens["input_ids"], tokens["attention_mask"]).numpy()
        assert np.abs(encoder.embed(PROMPTS) - expected).max() < 1e-5
        for prompt, row in zip(PROMPTS, expected, strict=True):
            assert np.abs(encoder.embed([prompt])[0] - row).max() < 1e-5


def test_a_prompt_to_a_known_gallery_imports_no_torch_and_is_answered_the_same(workplace):
    ask = ["--query", "playing soccer", "--json", "--output", "cold.png", "--device", "cpu"]
    first = run_script("inference.py", *ask, cwd=workplace).stdout
    lines = ("import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
             "heavy = {'torch', 'transformers', 'timm', 'pandas', 'albumentations'} & set(sys.modules); "
             "sys.exit(f'imported {heavy}' if heavy else 0)")
    cold = subprocess.run([sys.executable, "-c", lines, str(ROOT / "inference.py"), *ask], cwd=workplace,
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert cold.returncode == 0, cold.stderr
    first, cold = json.loads(first)["matches"], json.loads(cold.stdout)["matches"]
    assert [match["file"] for match in first] == [match["file"] for match in cold]
    assert [match["score"] for match in first] == pytest.approx([match["score"] for match in cold], abs=1e-5)


def test_remarks_are_the_same_with_and_without_the_kept_text_tower(workplace, checkpoint):
    without = Gallery(None, checkpoint, progress=False)
    without.embedder.prompt_encoder = None  # as if none had been found
    kept = Gallery(None, checkpoint, progress=False)
    assert kept.embedder.keep_text_tower() is None and kept.embedder.has_text_tower_ready
    assert not without.embedder.has_text_tower_ready
    for prompt in PROMPTS:
        assert kept.embedder.remarks(prompt) == without.embedder.remarks(prompt)
        assert [match.file for match in kept.search(prompt)] == [match.file for match in without.search(prompt)]


def test_a_text_tower_that_cannot_be_kept_is_said_once_and_still_answers(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gallery = Gallery(None, checkpoint, progress=False)
    before = gallery.search("a dog")
    assert gallery.embedder.model
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("unknown\noperator")))
    assert gallery.embedder.keep_text_tower() == "RuntimeError unknown operator"
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    again = Gallery(None, checkpoint, progress=False)
    assert again.embedder.keep_text_tower() is None  # not tried again
    assert not again.embedder.has_text_tower_ready
    assert again.search("a dog") == before


def test_a_damaged_text_tower_is_thrown_away_and_made_again(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gallery = Gallery(None, checkpoint, progress=False)
    assert gallery.embedder.keep_text_tower() is None
    expected = gallery.search("a dog")
    folder = text_tower_folder(gallery.embedder.fingerprint)
    shutil.copytree(folder, tmp_path / "whole")
    for name in ("text.onnx.data", "tokenizer.json", "text.json"):
        shutil.copytree(tmp_path / "whole", folder, dirs_exist_ok=True)
        (folder / name).unlink()
        again = Gallery(None, checkpoint, progress=False)
        assert not again.embedder.has_text_tower_ready and not folder.exists()
    assert [match.file for match in again.search("a dog")] == [match.file for match in expected]
    assert again.embedder.keep_text_tower() is None
    assert Gallery(None, checkpoint, progress=False).embedder.has_text_tower_ready


def test_a_text_tower_that_can_be_read_and_not_written_is_used(tmp_path, checkpoint, monkeypatch):
    """As in a container whose file system is read-only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Gallery(None, checkpoint, progress=False).embedder.keep_text_tower() is None

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert Gallery(None, checkpoint, progress=False).embedder.has_text_tower_ready


def test_a_full_disk_is_no_reason_never_to_try_again(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gallery = Gallery(None, checkpoint, progress=False)
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", lambda *_, **__: (_ for _ in ()).throw(full))
        assert "No space left" in gallery.embedder.keep_text_tower()
    assert gallery.embedder.keep_text_tower() is None
    assert Gallery(None, checkpoint, progress=False).embedder.has_text_tower_ready


def test_of_many_models_the_newest_are_kept(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gallery = Gallery(None, checkpoint, progress=False)
    for number in range(6):
        old = text_tower_folder(str(number))
        old.mkdir(parents=True)
        os.utime(old, (number, number))
    assert gallery.embedder.keep_text_tower() is None
    kept = {path.name for path in text_tower_folder("x").parent.glob("text-*")}
    assert kept == {text_tower_folder(name).name for name in ("3", "4", "5", gallery.embedder.fingerprint)}


# ---------------------------------------------------------------- large libraries


def write_photos(folder, count):
    """Write so many pictures that look like no other into folders of two."""
    for number in range(count):
        fields = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        path = folder / f"{number // 2:03}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(fields).resize((64, 48), Image.Resampling.BICUBIC).save(path)


def test_two_checkpoints_on_one_folder_keep_an_index_each(tmp_path, checkpoint):
    write_photos(tmp_path / "photos", 6)
    others = []
    for number in range(5):
        others.append(tmp_path / f"model{number}")
        shutil.copytree(checkpoint, others[-1])
        with open(others[-1] / "config.json", "a") as file:
            file.write(" " * number)  # another fingerprint
    assert [Gallery(tmp_path / "photos", other).embedded for other in (*others[:4], *others[:4])] == [6] * 4 + [0] * 4
    assert sorted(path.name for path in (tmp_path / "photos").glob(".clip*")) == [
        ".clip-index-2.safetensors", ".clip-index-3.safetensors", ".clip-index-4.safetensors",
        ".clip-index.safetensors"]
    for place, seconds in enumerate((40, 10, 20, 30)):  # a fifth takes the place of the one that is the oldest
        index = Gallery(tmp_path / "photos", others[place]).index_path
        os.utime(index, (1e9 + seconds, 1e9 + seconds))
    assert Gallery(tmp_path / "photos", others[4]).embedded == 6
    assert [Gallery(tmp_path / "photos", others[place]).embedded for place in (0, 2, 3, 4)] == [0] * 4
    shutil.copytree(others[0], tmp_path / "copied")
    assert Gallery(tmp_path / "photos", tmp_path / "copied").embedded == 0  # a model is known by its content


def test_an_index_that_is_trusted_is_taken_at_its_word_until_a_folder_changes(tmp_path, checkpoint):
    photos = tmp_path / "photos"
    write_photos(photos, 6)
    assert Gallery(photos, checkpoint, trust_index=True).embedded == 6
    first = photos / "000" / "0.png"
    other = (photos / "001" / "2.png").read_bytes()
    first.write_bytes(other)  # in place: the folder's time stays
    trusted = Gallery(photos, checkpoint, trust_index=True)
    assert trusted.embedded == 0 and len(trusted.files) == 6
    assert Gallery(photos, checkpoint).embedded == 1  # unless it is not trusted
    assert Gallery(photos, checkpoint, trust_index=True).embedded == 0

    (photos / "002" / "new.png").write_bytes(other)  # a picture comes …
    assert Gallery(photos, checkpoint, trust_index=True).embedded == 1
    (photos / "001" / "3.png").unlink()  # … and goes
    assert len(Gallery(photos, checkpoint, trust_index=True).files) == 6
    (photos / "more" / "deep").mkdir(parents=True)
    (photos / "more" / "deep" / "new.png").write_bytes(other)  # in a new folder
    assert len(Gallery(photos, checkpoint, trust_index=True).files) == 7
    (photos / "more" / "deep" / "deeper").mkdir()  # and in one below a folder that is known
    (photos / "more" / "deep" / "deeper" / "new.png").write_bytes(other)
    assert len(Gallery(photos, checkpoint, trust_index=True).files) == 8
    assert Gallery(photos, checkpoint, trust_index=True).embedded == 0
    assert Gallery(photos, checkpoint).embedded == 0  # without trust the same index is as good


def test_a_photo_swapped_for_one_of_the_same_size_and_time_is_found_by_check(tmp_path, checkpoint):
    photos = tmp_path / "photos"
    write_photos(photos, 6)
    paths = [photos / "000" / "0.png", photos / "001" / "2.png"]
    size = max(path.stat().st_size for path in paths)
    for path in paths:  # what lies behind the end of a PNG is not looked at
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, (1e9, 1e9))
    Gallery(photos, checkpoint)
    paths[0].write_bytes(paths[1].read_bytes())
    os.utime(paths[0], (1e9, 1e9))
    assert Gallery(photos, checkpoint).embedded == 0
    checked = Gallery(photos, checkpoint, check=True)
    assert checked.embedded == 1
    rows = [checked.files.index(path) for path in paths]
    assert np.allclose(checked.embeddings[rows[0]], checked.embeddings[rows[1]], atol=1e-3)
    assert Gallery(photos, checkpoint, check=True).embedded == 0


def test_pictures_that_look_alike_from_afar_are_told_apart_by_check(tmp_path, checkpoint):
    photos = tmp_path / "photos"
    photos.mkdir()
    pixels = np.full((60, 80, 3), 128, np.uint8)
    pixels[20:40, 20:60] = np.random.default_rng(0).integers(0, 256, (20, 40, 3))
    for number in range(2):  # noise of other pixels has the same look
        Image.fromarray(pixels).save(photos / f"{number}.bmp")
        os.utime(photos / f"{number}.bmp", (1e9, 1e9))
        pixels = pixels[:, ::-1]
    (photos / "black.bmp").write_bytes(b"")
    Image.new("RGB", (80, 60)).save(photos / "black.bmp")
    assert Gallery(photos, checkpoint).embedded == 3
    assert Gallery(photos, checkpoint, check=True).embedded == 0  # also of the black one
    (photos / "0.bmp").write_bytes((photos / "1.bmp").read_bytes())
    os.utime(photos / "0.bmp", (1e9, 1e9))
    assert Gallery(photos, checkpoint).embedded == 0
    assert Gallery(photos, checkpoint, check=True).embedded == 1


def test_pictures_in_a_folder_that_held_none_are_found_where_the_index_is_trusted(tmp_path, checkpoint):
    photos = tmp_path / "photos"
    write_photos(photos, 4)
    (photos / "inbox").mkdir()
    (photos / "inbox" / "notes.txt").write_text("nothing yet")
    assert len(Gallery(photos, checkpoint, trust_index=True).files) == 4
    shutil.copy(photos / "000" / "0.png", photos / "inbox" / "new.png")
    assert len(Gallery(photos, checkpoint, trust_index=True).files) == 5

    shutil.copy(photos / "000" / "0.png", photos / "b.png")  # seen by a search that does not trust …
    assert len(Gallery(photos, checkpoint).files) == 6
    (photos / "b.png").unlink()  # … and gone before one that does
    assert len(Gallery(photos, checkpoint, trust_index=True).files) == 5
