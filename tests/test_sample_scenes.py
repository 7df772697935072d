"""data/sample_scenes.py: the same bytes for the same seed, held-out combinations, and captions that tell them apart."""

import csv
import hashlib
import os

import cv2
import numpy as np
import pytest

from data import sample_scenes
from data.sample_scenes import PLACES, Scene, all_scenes, captions_of, draw_scene, write_sample
from dataset import load_splits
from support.errors import UserError


def digest(directory):
    content = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        content.update(path.relative_to(directory).as_posix().encode() + path.read_bytes())
    return content.hexdigest()


def test_the_layout_is_that_of_flickr8k(sample_dir):
    splits = load_splits(sample_dir)
    assert {split: table["image"].nunique() for split, table in splits.items()} == {"train": 96, "dev": 16, "test": 16}
    images = {path.name for path in (sample_dir / "Images").iterdir()}
    with open(sample_dir / "captions.txt", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "caption"] and len(rows) == 1 + 5 * 128
    assert {name for name, _ in rows[1:]} == images and len(images) == 128
    picture = cv2.imread(str(sample_dir / "Images" / min(images)))
    assert picture.shape == (192, 192, 3) and picture.std() > 20


def test_the_same_seed_draws_the_same_bytes(tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        write_sample(tmp_path / name, seed=seed, train=8, dev=2, test=2)
    assert digest(tmp_path / "one") == digest(tmp_path / "two") != digest(tmp_path / "three")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"]  # no temporary is left


def test_every_scene_can_be_drawn_and_told():
    scenes = all_scenes()
    assert len(set(scenes)) == len(scenes) > 2800
    for number in range(0, len(scenes), 29):
        scene, random = scenes[number], np.random.default_rng(number)
        picture = draw_scene(scene, random, size=64)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        captions = captions_of(scene, random)
        assert len(set(captions)) == 5
        assert sum(scene.colour in caption.lower().split() for caption in captions) >= 4
        assert all(caption[0].isupper() and caption.endswith(" .") and "  " not in caption for caption in captions)


def test_captions_agree_in_number_and_article():
    for number, scene in enumerate(all_scenes()):
        for caption in captions_of(scene, np.random.default_rng(number)):
            words = f" {caption.lower()} "
            for wrong in (" a orange ", " an blue ", " two people is ", " two men is ", " a dog are ", " a boy are ",
                          " children runs ", " a boy run ", " guy are ", " siting ", " runing ", "{", "}"):
                assert wrong not in words, caption


def test_a_scene_is_never_the_same_picture_twice():
    scene = Scene("beach", "couple", "sitting", "red")
    first, second = (draw_scene(scene, np.random.default_rng(seed)) for seed in (0, 1))
    assert (first != second).mean() > 0.05


def test_the_prompts_of_the_readme_have_true_matches_in_the_full_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_scenes, "draw_scene", lambda *_: np.zeros((8, 8, 3), np.uint8))  # captions are enough
    write_sample(tmp_path / "sample")
    for split, table in load_splits(tmp_path / "sample").items():
        assert table["image"].nunique() == {"train": 2400, "dev": 200, "test": 200}[split]
        told = table.groupby("image")["caption"].apply(" ".join).str.lower()

        def some(*words, told=told):
            return sum(all(any(word in text for word in choice.split("|")) for choice in words) for text in told)

        assert some("people", "sit|rest", "beach|sea") >= 9
        assert some("people", "walk|stroll", "forest|woods") >= 9
        assert some("kick|play") >= 9
        assert some("dog|pupp", "through") >= 3


def test_training_captions_are_sometimes_as_short_as_a_prompt():
    scene = Scene("beach", "couple", "sitting", "red")
    terse = {min(captions_of(scene, np.random.default_rng(seed), terse=True), key=len) for seed in range(200)}
    assert {"People sitting near the beach .", "Sitting on the beach ."} <= terse
    full = {caption for seed in range(50) for caption in captions_of(scene, np.random.default_rng(seed))}
    assert not any(caption.startswith(("People sitting", "Sitting", "Resting")) for caption in full)


def test_dev_and_test_hold_known_words_in_captions_of_their_own(sample_dir):
    splits = load_splits(sample_dir)
    seen = {word for caption in splits["train"]["caption"] for word in caption.lower().split()}
    for split in ("dev", "test"):
        words = [word for caption in splits[split]["caption"] for word in caption.lower().split()]
        assert np.mean([word in seen for word in words]) > 0.98
        assert not set(splits[split]["caption"]) & set(splits["train"]["caption"])
    assert set(PLACES) == {scene.place for scene in all_scenes()}


@pytest.mark.parametrize("counts, complaint", [
    ({"dev": 0}, "each split needs at least one picture"), ({"train": 100_000}, "there are .* different scenes"),
])
def test_impossible_counts_are_refused(tmp_path, counts, complaint):
    with pytest.raises(ValueError, match=complaint):
        write_sample(tmp_path / "sample", **counts)
    assert not list(tmp_path.iterdir())


def test_a_drawing_process_that_dies_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_scenes, "draw_scene", lambda *_: os._exit(1))  # as one that the system has killed
    with pytest.raises(UserError, match="a process that drew scenes was killed"):
        write_sample(tmp_path / "sample", train=20, dev=2, test=2)
    assert not list(tmp_path.iterdir())


def test_nothing_is_drawn_over(sample_dir):
    before = digest(sample_dir)
    with pytest.raises(FileExistsError):
        write_sample(sample_dir)
    assert digest(sample_dir) == before
