"""cache.py: many at once equals one by one, and what a frozen tower made is found again, and only then."""

import errno
from dataclasses import replace

import cache
import pandas as pd
import pytest
import torch

from config import PRESETS
from dataset import image_loader, image_path, load_splits, pad, read_square, tokenize
from evaluate import embed_split
from models import CLIP, embed_images, embed_texts
from support.errors import UserError
from support.kept import decoded_photos, memory_map
from train import Cached, frozen_features

SMALL = replace(PRESETS["sample"], pretrained=True, max_tokens=32, precision="fp32", image_size=None)


@pytest.fixture
def model(tower_flags):
    torch.manual_seed(0)
    return CLIP.from_config(replace(SMALL, **tower_flags)).eval()


@pytest.fixture
def data(tmp_path, sample_dir):
    """Twelve pictures and their captions in a folder of their own."""
    table = load_splits(sample_dir)["train"]
    table = table[table["image"].isin(table["image"].unique()[:12])].reset_index(drop=True)
    (tmp_path / "data" / "Images").mkdir(parents=True)
    for name in table["image"].unique():
        image_path(tmp_path / "data", name).write_bytes(image_path(sample_dir, name).read_bytes())
    return tmp_path / "data", table


def test_embed_texts_keeps_the_order(model):
    texts = ["A dog runs through the water .", "a", "Two people sit near the beach . A dog runs .", "dog"]
    together = embed_texts(model, texts, batch_size=2)
    for row, text in enumerate(texts):
        assert torch.allclose(together[row], embed_texts(model, [text])[0], atol=1e-5)
        assert (together @ together[row]).argmax() == row


def test_features_are_what_the_towers_make(model, data):
    folder, table = data
    features = frozen_features(model, table, folder, "both", batch_size=5)
    paths = [image_path(folder, name) for name in table["image"].unique()]
    pixels, _, _ = next(iter(image_loader(paths, model.config.image_size, 12)))
    with torch.no_grad():
        images = model.image_encoder(pixels)
        text = model.text_encoder(*pad(tokenize(model.text_encoder.tokenizer, [table["caption"][7]], 32), 0))
    assert features.images.shape == (12, 1, images.shape[1]) and features.texts.shape == (len(table), text.shape[1])
    assert torch.allclose(features.images[:, 0], images, atol=1e-5)
    assert torch.allclose(features.texts[7], text, atol=1e-5)
    assert frozen_features(model, table, folder, "image").texts is None
    assert frozen_features(model, table, folder, "none") == Cached()


def test_features_are_made_once_and_again_when_anything_changes(model, data, monkeypatch):
    folder, table = data
    made = []

    def watched(name, do):
        return lambda *arguments: (made.append(name), do(*arguments))[1]

    for name in ("embed_images", "embed_texts"):
        monkeypatch.setattr(cache, name, watched(name, getattr(cache, name)))

    def makes(table=table, **changes):
        made.clear()
        model.config = replace(model.config, **changes)
        features = frozen_features(model, table, folder, "both", views=changes.get("cached_views", 1))
        return features, list(made)

    first, calls = makes()
    assert calls == ["embed_images", "embed_texts"]
    again, calls = makes()
    assert calls == [] and torch.equal(first.images, again.images) and torch.equal(first.texts, again.texts)
    assert makes(precision="bf16")[1] == ["embed_images", "embed_texts"]
    assert makes(precision="fp32")[1] == []
    assert makes(cached_views=2)[1] == ["embed_images"] * 2  # the captions are the same
    assert makes(cached_views=2, crop_scale=0.5)[1] == ["embed_images"] * 2
    assert makes(cached_views=1, crop_scale=0.7)[1] == []  # a whole photo knows no crop
    assert makes(table=table.head(30))[1] == ["embed_images", "embed_texts"]
    path = image_path(folder, table["image"][0])
    path.write_bytes(path.read_bytes() + b" ")
    assert makes()[1] == ["embed_images"]
    with torch.no_grad():
        next(model.text_encoder.parameters())[0, 0] += 1
    assert makes()[1] == ["embed_texts"]
    for file in (folder / cache.CACHE_FOLDER).glob("*.safetensors"):
        file.write_bytes(b"damaged")
    assert makes()[1] == ["embed_images", "embed_texts"] and makes()[1] == []


def test_views_are_the_whole_photo_and_crops_of_it(model, data):
    folder, table = data
    whole = frozen_features(model, table, folder, "image").images
    views = frozen_features(model, table, folder, "image", views=3).images
    assert views.shape == (12, 3, whole.shape[2]) and torch.equal(views[:, 0], whole[:, 0])
    assert not torch.allclose(views[:, 1], views[:, 0]) and not torch.allclose(views[:, 1], views[:, 2])


def test_features_spare_the_towers_and_change_nothing(model, data, monkeypatch):
    folder, table = data
    plain = embed_split(model, table, folder)
    features = frozen_features(model, table, folder, "both")
    for tower in (model.image_encoder, model.text_encoder):
        monkeypatch.setattr(tower, "forward", None)  # would fail if it were asked
    quick = embed_split(model, table, folder, cached=features)
    assert torch.allclose(plain.image_embeddings, quick.image_embeddings, atol=1e-5)
    assert torch.allclose(plain.text_embeddings, quick.text_embeddings, atol=1e-5)
    assert torch.equal(plain.image_of_text, quick.image_of_text) and plain.files == quick.files


def test_photos_are_decoded_once_and_again_when_one_changes(data, monkeypatch):
    folder, table = data
    paths = [image_path(folder, name) for name in table["image"].unique()]
    made = []
    monkeypatch.setattr(cache, "read_square", lambda *arguments: (made.append(1), read_square(*arguments))[1])
    file = decoded_photos(table, folder, 48, "train")
    assert len(made) == 12 and memory_map(file, 48).shape == (12, 48, 48, 3)
    assert all((memory_map(file, 48)[row] == read_square(path, 48)).all() for row, path in enumerate(paths))
    assert decoded_photos(table, folder, 48, "train") == file and len(made) == 12
    dev = decoded_photos(table.head(10), folder, 48, "dev")
    paths[3].write_bytes(paths[4].read_bytes())
    changed = decoded_photos(table, folder, 48, "train")
    assert (memory_map(changed, 48)[3] == memory_map(changed, 48)[4]).all() and len(made) == 26
    assert sorted(changed.parent.iterdir()) == sorted([changed, dev])  # the older one of this split is gone


def test_embedding_decoded_photos_equals_embedding_files(model, data):
    folder, table = data
    decoded = decoded_photos(table, folder, model.config.image_size, "dev")
    plain, quick = embed_split(model, table, folder), embed_split(model, table, folder, cached=Cached(decoded))
    assert torch.equal(plain.image_embeddings, quick.image_embeddings)


def test_an_interruption_leaves_no_half_of_a_file(data, monkeypatch):
    folder, table = data

    def interrupted(path, size):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(cache, "read_square", interrupted)
        decoded_photos(table, folder, 48, "train")
    assert not list((folder / cache.CACHE_FOLDER).iterdir())


def test_a_full_disk_is_told_and_photos_are_decoded_every_time(data, monkeypatch, capsys):
    folder, table = data

    def full(path, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "read_square", full)  # as when the row is written
    assert decoded_photos(table, folder, 48, "train") is None
    assert "decoding them anew in every epoch" in capsys.readouterr().out
    assert not list((folder / cache.CACHE_FOLDER).iterdir())


def test_a_file_that_is_deleted_stays_open_for_the_run_that_uses_it(data):
    folder, table = data
    file = decoded_photos(table, folder, 48, "train")
    paths = [image_path(folder, name) for name in table["image"].unique()]
    loader = image_loader(paths, 48, 4, workers=1, decoded=file)
    file.unlink()  # another run has other photos, and has pruned this file
    assert [index for _, indices, faults in loader for index in indices if not faults] == list(range(12))


def test_a_photo_that_vanishes_is_named(model, data):
    folder, table = data
    path = image_path(folder, table["image"][0])
    path.unlink()
    for make in (lambda: frozen_features(model, table, folder, "image"),
                 lambda: decoded_photos(table, folder, 48, "train")):
        with pytest.raises(UserError, match=path.name):
            make()


def test_a_read_only_dataset_keeps_its_features_elsewhere(model, data, tmp_path, monkeypatch):
    folder, table = data
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder.chmod(0o555)
    try:
        frozen_features(model, table, folder, "text")
        assert not (folder / cache.CACHE_FOLDER).exists()
        assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    finally:
        folder.chmod(0o755)


def test_nothing_to_embed_is_an_empty_tensor(model):
    assert embed_images(model, [])[0].shape == (0, model.config.embedding_dim)
    with pytest.raises(UserError, match="can be read"):
        embed_split(model, pd.DataFrame({"image": ["no.jpg"], "caption": ["a dog"]}), "nowhere")
