"""evaluate.py: recall on matrices worked out by hand, against a naive reference, and against cheating."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataset import split_table
from evaluate import evaluate_split, mean_recall, ranks_of, recall_summary, recall_table, retrieval_metrics
from models import CLIP


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
    ranks = ranks_of(texts, images, image_of_text, torch.arange(40), chunk)
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
    report, faults = evaluate_split(CLIP.from_pretrained(checkpoint), table, tmp_path / "data")
    assert (report["images"], report["captions"]) == (14, 70)
    assert set(faults) == {first, second}
