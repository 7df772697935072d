"""What need not be computed twice: many at once equals one by one, and what was made is found again, and only then."""

import resource
from dataclasses import replace

import pandas as pd
import pytest
import torch

import dataset
import train
from config import PRESETS
from dataset import Photos, Precomputed, image_loader, load_splits, paths_of, read_square
from evaluate import embed_split
from models import CLIP, embed_images, embed_texts
from support.errors import UserError
from support.kept import CACHE_FOLDER, DecodedPhotos, decode_once
from train import caption_features, photo_features, precompute

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
        (tmp_path / "data" / "Images" / name).write_bytes((sample_dir / "Images" / name).read_bytes())
    table["path"] = [str(tmp_path / "data" / "Images" / name) for name in table["image"]]
    return tmp_path / "data", table


def test_embed_texts_keeps_the_order(model):
    texts = ["A dog runs through the water .", "a", "Two people sit near the beach . A dog runs .", "dog"]
    together = embed_texts(model, texts, batch_size=2)
    for row, text in enumerate(texts):
        assert torch.allclose(together[row], embed_texts(model, [text])[0], atol=1e-5)
        assert (together @ together[row]).argmax() == row


def frozen_features(model, table, folder, frozen, split="train", **changes):
    """What training has beforehand of a table: `Precomputed`."""
    return precompute(model, table, replace(model.config, data_dir=folder, workers=0, **changes), frozen, split)


def decoded_photos(table, folder, size, split):
    return decode_once(Photos(paths_of(table), size), folder, split)


def test_features_are_what_the_towers_make(model, data, monkeypatch):
    folder, table = data
    monkeypatch.setattr(train, "EMBEDDED_AT_ONCE", 5)
    features = frozen_features(model, table, folder, "both")
    paths = [folder / "Images" / name for name in table["image"].unique()]
    pixels, _, _ = next(iter(image_loader(paths, model.config.image_size, 12)))
    with torch.no_grad():
        images = model.image_encoder(pixels)
        text = model.text_encoder(*model.text_encoder.tokens_of([table["caption"][7]]))
    assert features.image_features.shape == (12, images.shape[1])
    assert features.text_features.shape == (len(table), text.shape[1])
    assert torch.allclose(features.image_features, images, atol=1e-5)
    assert torch.allclose(features.text_features[7], text, atol=1e-5)
    assert torch.equal(photo_features(model, table, folder), features.image_features)
    assert torch.equal(caption_features(model, table, folder), features.text_features)


def test_what_is_known_beforehand_depends_on_what_is_frozen(model, data):
    folder, table = data
    for frozen, expected in {
        "none": {"decoded"}, "image": {"image_features"}, "text": {"decoded", "text_features"},
        "both": {"image_features", "text_features"},
    }.items():
        known = frozen_features(model, table, folder, frozen)
        assert {name for name, part in known._asdict().items() if part is not None} == expected
        assert frozen_features(model, table, folder, frozen, cache=False) == Precomputed()


def test_features_are_made_once_and_again_when_anything_changes(model, data, monkeypatch):
    folder, table = data
    made = []

    def watched(name, do):
        return lambda *arguments: (made.append(name), do(*arguments))[1]

    for name in ("embed_images", "embed_texts"):
        monkeypatch.setattr(train, name, watched(name, getattr(train, name)))

    def makes(table=table, **changes):
        made.clear()
        model.config = replace(model.config, **changes)
        return frozen_features(model, table, folder, "both"), list(made)

    first, calls = makes()
    assert calls == ["embed_images", "embed_texts"]
    again, calls = makes()
    assert calls == [] and torch.equal(first.image_features, again.image_features)
    assert torch.equal(first.text_features, again.text_features)
    assert makes(precision="bf16")[1] == ["embed_images", "embed_texts"]
    assert makes(precision="fp32")[1] == []
    assert makes(crop_scale=0.7)[1] == []  # a whole photo knows no crop
    assert makes(table=table.head(30))[1] == ["embed_images", "embed_texts"]
    path = folder / "Images" / table["image"][0]
    path.write_bytes(path.read_bytes() + b" ")
    assert makes()[1] == ["embed_images"]
    with torch.no_grad():
        next(model.text_encoder.parameters())[0, 0] += 1
    assert makes()[1] == ["embed_texts"]
    for file in (folder / CACHE_FOLDER).glob("*.safetensors"):
        file.write_bytes(b"damaged")
    assert makes()[1] == ["embed_images", "embed_texts"] and makes()[1] == []


def test_features_spare_the_towers_and_change_nothing(model, data, monkeypatch):
    folder, table = data
    plain = embed_split(model, table)
    features = frozen_features(model, table, folder, "both")
    for tower in (model.image_encoder, model.text_encoder):
        monkeypatch.setattr(tower, "forward", None)  # would fail if it were asked
    quick = embed_split(model, table, known=features)
    assert torch.allclose(plain.image_embeddings, quick.image_embeddings, atol=1e-5)
    assert torch.allclose(plain.text_embeddings, quick.text_embeddings, atol=1e-5)
    assert torch.equal(plain.image_of_text, quick.image_of_text) and plain.files == quick.files


def test_photos_are_decoded_once_and_again_when_one_changes(data, monkeypatch):
    folder, table = data
    paths = [folder / "Images" / name for name in table["image"].unique()]
    made = []
    monkeypatch.setattr(dataset, "read_square", lambda *arguments: (made.append(1), read_square(*arguments))[1])
    decoded = decoded_photos(table, folder, 48, "train")
    assert len(made) == len(decoded) == 12 and decoded.pixels.shape == (12, 48, 48, 3)
    assert all((decoded[row] == read_square(path, 48)).all() for row, path in enumerate(paths))
    assert decoded_photos(table, folder, 48, "train").path == decoded.path and len(made) == 12
    dev = decoded_photos(table.head(10), folder, 48, "dev")
    paths[3].write_bytes(paths[4].read_bytes())
    changed = decoded_photos(table, folder, 48, "train")
    assert (changed[3] == changed[4]).all() and len(made) == 26
    assert sorted(changed.path.parent.iterdir()) == sorted([changed.path, dev.path])  # the older one is gone


def test_embedding_decoded_photos_equals_embedding_files(model, data):
    folder, table = data
    decoded = decoded_photos(table, folder, model.config.image_size, "dev")
    plain, quick = embed_split(model, table), embed_split(model, table, known=Precomputed(decoded))
    assert torch.equal(plain.image_embeddings, quick.image_embeddings)


def test_an_interruption_leaves_no_half_of_a_file(data, monkeypatch):
    folder, table = data

    def interrupted(path, size, content=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(dataset, "read_square", interrupted)
        decoded_photos(table, folder, 48, "train")
    assert not list((folder / CACHE_FOLDER).iterdir())


def test_a_full_disk_is_told_and_photos_are_decoded_every_time(data, capsys):
    folder, table = data
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # twelve photos need more
    try:
        assert decoded_photos(table, folder, 48, "train") is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().out
    assert "File too large" in said and "decoding them anew in every epoch" in said
    assert not list((folder / CACHE_FOLDER).iterdir())


def test_a_photo_that_is_gone_is_not_taken_for_a_full_disk(data):
    folder, table = data
    (folder / "Images" / table["image"][0]).unlink()
    with pytest.raises(UserError, match="a photo can no longer be read: .*No such file"):
        decoded_photos(table, folder, 48, "train")


@pytest.mark.parametrize("size", [0, 5, 48 * 48 * 3])
def test_a_file_that_was_cut_off_is_made_anew(data, size):
    folder, table = data
    decoded = decoded_photos(table, folder, 48, "train")
    whole = decoded.path.read_bytes()
    decoded.path.write_bytes(whole[:size])
    assert decoded_photos(table, folder, 48, "train").path.read_bytes() == whole


def test_a_file_that_is_deleted_stays_open_for_the_run_that_uses_it(data):
    folder, table = data
    decoded = decoded_photos(table, folder, 48, "train")
    paths = [folder / "Images" / name for name in table["image"].unique()]
    loader = image_loader(paths, 48, 4, workers=1, decoded=decoded)
    decoded.path.unlink()  # another run has other photos, and has pruned this file
    assert [row for _, rows, faults in loader for row in rows if not faults] == list(range(12))


def test_a_worker_that_inherits_no_memory_opens_the_file_itself(data):
    folder, table = data
    decoded = decoded_photos(table, folder, 48, "train")
    kind, arguments = decoded.__reduce__()  # a path and a number travel, not the pixels
    assert kind is DecodedPhotos and arguments == (decoded.path, 48)
    assert (kind(*arguments).pixels == decoded.pixels).all()


def test_a_photo_that_vanishes_is_named(model, data):
    folder, table = data
    path = folder / "Images" / table["image"][0]
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
        assert not (folder / CACHE_FOLDER).exists()
        assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    finally:
        folder.chmod(0o755)


def test_nothing_to_embed_is_an_empty_tensor(model):
    assert embed_images(model, [])[0].shape == (0, model.config.embedding_dim)
    with pytest.raises(UserError, match="can be read"):
        embed_split(model, pd.DataFrame({"image": ["no.jpg"], "caption": ["a dog"], "path": ["nowhere/no.jpg"]}))
