"""evaluate.py: recall on matrices worked out by hand, against a naive reference, and against cheating."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import run_script
from PIL import Image

from dataset import split_table
from evaluate import (
    accuracy_report,
    bootstrap_interval,
    class_folders,
    embed_split,
    linear_probe,
    mean_recall,
    modality_gap,
    ranks_of,
    read_templates,
    recall_summary,
    recall_table,
    report_of,
    retrieval_metrics,
)
from models import CLIP
from support.errors import UserError


def naive_ranks(scores, matches):
    """The rank of each row's best match, with loops: one more than the non-matching items that score as much."""
    ranks = []
    for row, wanted in zip(scores, matches, strict=True):
        best = max(score for score, match in zip(row, wanted, strict=True) if match)
        ranks.append(1 + sum(score >= best for score, match in zip(row, wanted, strict=True) if not match))
    return ranks


def naive_metrics(image_embeddings, text_embeddings, image_of_text):
    scores = (text_embeddings @ image_embeddings.T).tolist()
    matches = [[image == other for other in range(len(image_embeddings))] for image in image_of_text.tolist()]

    def summary(ranks):
        recall = {f"R@{k}": 100 * sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
        return {**recall, "median_rank": float(np.median(ranks))}

    return (summary(naive_ranks(scores, matches)),
            summary(naive_ranks(list(zip(*scores, strict=True)), list(zip(*matches, strict=True)))))


def test_three_images_and_four_captions_by_hand():
    # Images are the axes, so a caption's coordinates are its scores against the three images.
    images = torch.eye(3)
    texts = torch.tensor([
        [0.8, 0.6, 0.0],  # of image 0: first
        [0.6, 0.8, 0.0],  # of image 0: second, behind image 1
        [0.0, 0.6, 0.8],  # of image 1: second, behind image 2
        [0.8, 0.5, 0.33],  # of image 2: third
    ])
    text_to_image, image_to_text = retrieval_metrics(images, texts, torch.tensor([0, 0, 1, 2]))
    assert text_to_image == {"R@1": 25.0, "R@5": 100.0, "R@10": 100.0, "median_rank": 2.0}
    # image 0 scores .8 .6 .0 .8: its caption 0 ties with the foreign caption 3, so it is second.
    # image 1 scores .6 .8 .6 .5: its caption 2 is behind caption 1 and ties with caption 0, so it is third.
    # image 2 scores .0 .0 .8 .33: its caption 3 is behind caption 2, so it is second.
    assert image_to_text == {"R@1": 0.0, "R@5": 100.0, "R@10": 100.0, "median_rank": 2.0}


@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_metrics_equal_the_full_matrix_reference(chunk):
    generator = torch.Generator().manual_seed(0)
    # whole numbers, so that equal scores are equal in any order of addition, and there are many ties
    images = torch.randint(-2, 3, (40, 6), generator=generator).float()
    texts = torch.randint(-2, 3, (130, 6), generator=generator).float()
    image_of_text = torch.cat([torch.arange(40), torch.randint(0, 40, (90,), generator=generator)])
    text_to_image, image_to_text = naive_metrics(images, texts, image_of_text)
    found = retrieval_metrics(images, texts, image_of_text)
    assert found[0] == pytest.approx(text_to_image) and found[1] == pytest.approx(image_to_text)
    ranks = ranks_of(texts, images, image_of_text, torch.arange(40), chunk=chunk)
    assert recall_summary(ranks) == pytest.approx(text_to_image)


def test_a_model_that_scores_everything_alike_gets_nothing():
    same = F.normalize(torch.ones(50, 4), dim=1)
    image_of_text = torch.arange(50).repeat_interleave(5)
    text_to_image, image_to_text = retrieval_metrics(same, same[image_of_text], image_of_text)
    assert text_to_image == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "median_rank": 50.0}
    assert image_to_text == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "median_rank": 246.0}


def test_not_a_number_is_no_hit():
    broken = torch.full((20, 4), torch.nan)
    text_to_image, image_to_text = retrieval_metrics(broken, broken, torch.arange(20))
    assert text_to_image["R@10"] == image_to_text["R@10"] == 0.0


def test_a_perfect_model_and_an_image_without_captions():
    images = torch.eye(4)
    text_to_image, image_to_text = retrieval_metrics(images, images[[2, 0, 1]], torch.tensor([2, 0, 1]))
    assert text_to_image["R@1"] == image_to_text["R@1"] == 100.0 and image_to_text["median_rank"] == 1.0


@pytest.mark.parametrize("rows", [[0, 1], [0, 1, 3], [0, 1, -1]])
def test_rows_that_do_not_fit_are_refused(rows):
    with pytest.raises(ValueError, match="image_of_text must hold a row from 0 to 2"):
        retrieval_metrics(torch.eye(3), torch.eye(3), torch.tensor(rows))


def test_mean_recall_leaves_the_ranks_out():
    report = {"text_to_image": {"R@1": 1.0, "R@5": 2.0, "R@10": 3.0, "median_rank": 99.0},
              "image_to_text": {"R@1": 4.0, "R@5": 5.0, "R@10": 9.0, "median_rank": 99.0}}
    assert mean_recall(report) == 4.0
    lines = recall_table(report).splitlines()
    assert lines[0].split() == ["R@1", "R@5", "R@10", "median", "rank"]
    assert lines[1].split() == ["text", "->", "image", "1.0", "2.0", "3.0", "99.0"]


def test_photos_that_cannot_be_read_are_left_out_with_their_captions(tmp_path, sample_dir, checkpoint):
    shutil.copytree(sample_dir, tmp_path / "data")
    table = split_table(tmp_path / "data", "test")
    first, second = table["image"].unique()[:2]
    (tmp_path / "data" / "Images" / first).write_bytes(b"broken")
    (tmp_path / "data" / "Images" / second).unlink()
    split = embed_split(CLIP.from_pretrained(checkpoint), table)
    report = report_of(split)
    assert (report["images"], report["captions"]) == (14, 70)
    assert {path.name for path in split.faults} == {first, second}


# ---------------------------------------------------------------- is it chance?


def test_bootstrap_interval_by_hand():
    # both photos changed from a miss to a hit: every resample says +100
    assert bootstrap_interval([0, 0], [1, 1], [0, 1]) == (100.0, 100.0, 100.0)
    assert bootstrap_interval([1, 0, 1], [1, 0, 1], [0, 0, 1]) == (0.0, 0.0, 0.0)
    # one of four queries got worse and all belong to photos of their own: resamples go from 0 to -100
    difference, low, high = bootstrap_interval([1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 2, 3])
    assert difference == -25.0 and low == -75.0 and high == 0.0  # P(no draw of the first) = (3/4)^4 = 0.32


def test_bootstrap_interval_equals_a_naive_one_and_keeps_a_photos_captions_together():
    generator = np.random.default_rng(1)
    photos = np.repeat(np.arange(30), 5)
    a, b = generator.random((2, 150)) < [[0.3], [0.5]]
    resampled = []
    for _ in range(4000):
        drawn = generator.integers(30, size=30)
        rows = np.concatenate([np.flatnonzero(photos == photo) for photo in drawn])
        resampled.append(100 * (b[rows].mean() - a[rows].mean()))
    difference, low, high = bootstrap_interval(a, b, photos)
    assert difference == pytest.approx(100 * (b.mean() - a.mean()))
    assert [low, high] == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=1.0)
    # five copies of one query are no more evidence than one of them
    once, five = bootstrap_interval(a[::5], b[::5], photos[::5]), bootstrap_interval(
        np.repeat(a[::5], 5), np.repeat(b[::5], 5), photos)
    assert once == pytest.approx(five)


def test_modality_gap_by_hand():
    assert modality_gap(torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[0.0, 1], [0, 1]])) == pytest.approx(2**0.5)


def test_compare_of_a_checkpoint_with_itself_and_with_another(workplace, checkpoint, tmp_path):
    figures = tmp_path / "figures.json"
    shown = run_script("evaluate.py", "--compare", checkpoint, "runs/first/last", "--split", "dev", "--json", figures,
                       cwd=workplace).stdout
    assert "runs/first/last (B) on the dev split" in shown and shown.count("R@10") == 2
    value = json.loads(figures.read_text())["text_to_image"]["R@1"]
    assert value["difference"] == pytest.approx(value["B"] - value["A"]) and value["low"] <= value["difference"]
    same = run_script("evaluate.py", "--compare", checkpoint, checkpoint, cwd=workplace).stdout
    assert same.count("may be chance") == 6 and same.count("+0.0 to +0.0") == 6


# ---------------------------------------------------------------- classification


def test_accuracy_by_hand():
    scores = torch.tensor([
        [0.9, 0.1, 0.0, 0.0, 0.0, 0.0],  # class 0: right
        [0.5, 0.5, 0.0, 0.0, 0.0, 0.0],  # class 0: a tie, which counts as second
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],  # class 5: sixth
    ])
    report = accuracy_report(scores, torch.tensor([0, 0, 5]), list("abcdef"))
    assert report["top_1"] == pytest.approx(100 / 3) and report["top_5"] == pytest.approx(200 / 3)
    assert report["classes"]["a"] == 50.0 and report["classes"]["f"] == 0.0


def test_a_linear_probe_finds_what_can_be_told_apart():
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(3, 8, generator=generator)
    labels = torch.arange(90) % 3
    features = centres[labels] + 0.3 * torch.randn(90, 8, generator=generator)
    scores = linear_probe(features[:60], labels[:60], features[60:], 3)
    assert scores.shape == (30, 3) and (scores.argmax(dim=1) == labels[60:]).all()


@pytest.fixture
def classes(tmp_path, sample_dir):
    """Two class folders, their pictures told apart by what the captions say."""
    table = split_table(sample_dir, "train")
    for place in ("beach", "forest"):
        folder = tmp_path / "classes" / f"the_{place}"
        folder.mkdir(parents=True)
        for name in table[table["caption"].str.contains(place)]["image"].unique()[:8]:
            shutil.copy(sample_dir / "Images" / name, folder)
    return tmp_path / "classes"


def test_zero_shot_and_linear_probe_on_class_folders(workplace, classes, tmp_path):
    (tmp_path / "templates.txt").write_text("people at {} .\n\na dog at {} .\n")
    shown = run_script("evaluate.py", "--zero-shot", classes, "--templates", tmp_path / "templates.txt", "--json",
                       tmp_path / "figures.json", cwd=workplace).stdout
    report = json.loads((tmp_path / "figures.json").read_text())
    assert "zero-shot, 2 templates a class; 16 pictures of 2 classes" in shown and "chance 50.0 %" in shown
    assert set(report["classes"]) == {"the beach", "the forest"} and report["top_5"] == 100.0
    assert report["top_1"] == pytest.approx(sum(report["classes"].values()) / 2)
    with Image.open(workplace / "runs" / "first" / "confusion-zero-shot.png") as picture:
        assert min(picture.size) > 200
    shown = run_script("evaluate.py", "--linear-probe", classes, cwd=workplace).stdout
    assert "linear probe trained on 12 pictures; 4 pictures of 2 classes" in shown


def test_classes_that_say_nothing_to_the_model_are_named(workplace, classes):
    (classes / "the_forest").rename(classes / "雪")
    shown = run_script("evaluate.py", "--zero-shot", classes, cwd=workplace).stdout
    assert "雪: the model does not know: 雪; the ranking means nothing\n" in shown and "the beach: " not in shown
    shown = run_script("evaluate.py", "--linear-probe", classes, cwd=workplace).stdout  # which reads no names
    assert "does not know" not in shown


@pytest.mark.parametrize("arguments, message", [
    (["--zero-shot", "nowhere"], "nowhere is not a folder"),
    (["--zero-shot", "runs"], "at least two class folders with pictures"),
    (["--templates", "t.txt"], "--templates are the prompts of --zero-shot"),
    (["--zero-shot", "x", "--linear-probe", "x"], "one of --compare, --zero-shot and --linear-probe"),
    (["--compare", "a", "b", "--checkpoint", "c"], "leave --checkpoint out"),
])
def test_refusals(workplace, arguments, message):
    process = run_script("evaluate.py", *arguments, cwd=workplace, check=False)
    assert process.returncode == 2 and message in process.stderr and "Traceback" not in process.stderr


def test_two_folders_of_one_class_are_named(tmp_path, sample_dir):
    picture = next((sample_dir / "Images").iterdir())
    for name in ("ice_cream", "ice cream", "dog"):
        (tmp_path / name).mkdir()
        shutil.copy(picture, tmp_path / name)
    with pytest.raises(UserError, match="two folders of the class 'ice cream'"):
        class_folders(tmp_path)


def test_a_class_without_a_readable_picture_is_named(workplace, classes):
    (classes / "the_moon").mkdir()
    (classes / "the_moon" / "x.jpg").write_bytes(b"broken")
    process = run_script("evaluate.py", "--zero-shot", classes, cwd=workplace, check=False)
    assert process.returncode == 2 and "no picture of the class 'the moon'" in process.stderr


def test_compare_refuses_models_that_were_split_differently(workplace, checkpoint, sample_dir, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace('"split_seed": 0', '"split_seed": 1'))
    shutil.copytree(sample_dir, tmp_path / "data")
    flags = ["--compare", checkpoint, tmp_path / "other", "--data-dir", tmp_path / "data"]
    assert "may be chance" in run_script("evaluate.py", *flags, cwd=workplace).stdout  # the lists say what is what
    for file in (tmp_path / "data").glob("Flickr_8k.*"):
        file.unlink()
    process = run_script("evaluate.py", *flags, cwd=workplace, check=False)
    assert process.returncode == 2 and "different --split-seed" in process.stderr


def test_templates_without_a_place_for_the_class_are_refused_by_line(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("a photo of {}\na photo\n")
    with pytest.raises(UserError, match=r"templates.txt line 2: 'a photo' has no \{\}"):
        read_templates(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no templates"):
        read_templates(path)


# ---------------------------------------------------------------- pictures


def test_the_pictures_of_a_split_are_drawn_beside_the_run(workplace):
    shown = run_script("evaluate.py", "--split", "dev", cwd=workplace).stdout
    for name in ("similarity-dev.png", "worst-dev.png"):
        assert f"drew runs/first/{name}" in shown
        with Image.open(workplace / "runs" / "first" / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5  # not blank
