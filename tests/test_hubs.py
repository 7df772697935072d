"""Pictures that are near to every text: their penalties, the bank of captions they come from, and who heeds them."""

import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from config import InferenceConfig
from dataset import split_table
from evaluate import embed_split, report_of, retrieval_metrics
from inference import Gallery, find_pictures
from models import CLIP
from search.index import read_index, write_index
from search.nearest import nearest
from support.errors import UserError
from support.hubs import BANK_FILE, BLOCK, hub_penalties, read_bank, write_bank


@pytest.fixture
def folder(tmp_path, sample_dir):
    """A folder of eight pictures of its own, for a search leaves an index there."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for file in sorted((sample_dir / "Images").glob("*.jpg"))[:8]:
        shutil.copy(file, folder)
    return folder


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# ---------------------------------------------------------------- penalties


def test_a_penalty_worked_out_by_hand():
    bank = unit([[1, 0], [0, 1]])
    pictures = unit([[1, 0], [1, 1]]).astype(np.float16)
    alone = math.log((math.exp(2 * 1) + math.exp(2 * 0)) / 2) / 2
    hub = 2**-0.5  # as near to the one as to the other, so their mean is what each scores
    assert hub_penalties(pictures, bank, logit_scale=2.0) == pytest.approx([alone / 2, hub / 2], abs=1e-3)
    assert hub_penalties(pictures, None, 2.0).tolist() == [0, 0]


def test_penalties_are_those_of_a_naive_loop_in_any_number_of_blocks():
    rng = np.random.default_rng(0)
    pictures, bank = unit(rng.normal(size=(BLOCK + 7, 8))), unit(rng.normal(size=(50, 8)))
    found = hub_penalties(pictures.astype(np.float16), bank, 20.0)
    for row in (0, BLOCK - 1, BLOCK, BLOCK + 6):
        scores = [float(np.dot(pictures[row], caption)) for caption in bank]
        mean = sum(math.exp(20 * score) for score in scores) / len(scores)
        assert found[row] == pytest.approx(math.log(mean) / 20 / 2, abs=1e-3)


def test_a_hub_is_ranked_behind_what_answers_one_prompt_alone():
    hub, other = [0.8, 0.6, 0.0], [0.79, 0.0, math.sqrt(1 - 0.79**2)]
    pictures = unit([hub, other]).astype(np.float16)
    bank = unit([[0, 1, 0], [1, 1, 0], [2, 1, 0]])
    prompt = np.array([[1, 0, 0]], np.float32)
    assert nearest(pictures, prompt, 2)[1].tolist() == [[0, 1]]
    penalties = hub_penalties(pictures, bank, 10.0)
    scores, rows = nearest(pictures, prompt, 2, penalties)
    assert rows.tolist() == [[1, 0]]
    assert scores[0] + penalties[rows[0]] == pytest.approx([0.79, 0.8], abs=1e-3)


def test_rows_of_no_numbers_are_last_with_penalties_too():
    pictures = np.array([[np.nan, 0], [1, 0]], np.float16)
    with np.errstate(all="raise"):  # nor is anything said of them
        penalties = hub_penalties(pictures, unit([[1, 0]]), 10.0)
        assert hub_penalties(pictures, unit([[1, 0]]), 0.0).tolist() == [0, 0]
    assert np.isfinite(penalties).all()
    scores, rows = nearest(pictures, np.array([[1, 0]], np.float32), 2, penalties)
    assert rows.tolist() == [[1, 0]] and scores[0, 1] == -1


# ---------------------------------------------------------------- the bank


def test_a_bank_is_what_was_written_to_half_precision(tmp_path):
    bank = unit(np.random.default_rng(0).normal(size=(5, 8)))
    assert read_bank(tmp_path, 8) is None
    write_bank(tmp_path, bank)
    again = read_bank(tmp_path, 8)
    assert again.dtype == np.float32 and np.abs(again - bank).max() < 1e-3


@pytest.mark.parametrize(
    "tensors",
    [{"captions": unit(np.ones((3, 9)))}, {"captions": np.ones(8, np.float16)}, {"other": unit(np.ones((3, 8)))},
     {"captions": np.full((3, 8), np.nan, np.float16)}, {"captions": np.ones((0, 8), np.float16)},
     {"captions": np.full((3, 8), 60_000, np.float16)}, {"captions": np.eye(8, dtype=np.int64)},
     {"captions": unit(np.ones((10_001, 8)))}, None],
)
def test_what_is_no_bank_is_refused_in_one_line(tmp_path, tensors):
    if tensors is None:
        (tmp_path / BANK_FILE).write_bytes(b"no safetensors")
    else:
        save_file(tensors, tmp_path / BANK_FILE)
    with pytest.raises(UserError, match="is no bank of captions"):
        read_bank(tmp_path, 8)


def test_a_run_leaves_a_bank_of_its_captions_which_moves_with_the_model(checkpoint, sample_dir, tmp_path):
    model = CLIP.from_pretrained(checkpoint)
    captions = set(split_table(sample_dir, "train")["caption"])
    assert model.caption_bank.shape[1] == model.config.embedding_dim and 96 < len(model.caption_bank) <= 3000
    with torch.inference_mode():
        ids, mask = model.text_encoder.tokens_of(sorted(captions))
        embedded = model.encode_text(ids, mask)
    nearest_caption = (model.caption_bank @ embedded.T).amax(dim=1)
    assert (nearest_caption > 0.999).all()  # each is one of them

    model.save_pretrained(tmp_path / "copy")
    assert torch.equal(CLIP.from_pretrained(tmp_path / "copy").caption_bank, model.caption_bank)
    (tmp_path / "copy" / BANK_FILE).unlink()  # as an earlier version wrote it
    assert CLIP.from_pretrained(tmp_path / "copy").caption_bank is None


# ---------------------------------------------------------------- who heeds them


def test_recall_with_penalties_worked_out_by_hand():
    images = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    texts = torch.tensor([[1.0, 0.0], [0.9, math.sqrt(0.19)]])  # the second is of image 1: 0.9 and 0.98
    belongs_to = torch.tensor([0, 1])
    text_to_image, image_to_text = retrieval_metrics(images, texts, belongs_to)
    assert text_to_image["R@1"] == 100 and image_to_text["R@1"] == 100
    penalties = torch.tensor([0.3, 0.0])  # text 0: 0.7 and 0.8
    text_to_image, image_to_text = retrieval_metrics(images, texts, belongs_to, penalties)
    assert text_to_image["R@1"] == 50 and text_to_image["R@5"] == 100
    assert image_to_text["R@1"] == 100  # a photo that looks for a caption has no other photo beside it


def test_evaluation_reports_recall_with_and_without(checkpoint, sample_dir):
    model = CLIP.from_pretrained(checkpoint)
    table = split_table(sample_dir, "test")
    report = report_of(embed_split(model, table))
    model.caption_bank = None
    plain = report_of(embed_split(model, table))
    assert "text_to_image_less_hubs" not in plain
    assert {**plain, "text_to_image_less_hubs": report["text_to_image_less_hubs"]} == report
    assert set(report["text_to_image_less_hubs"]) == set(report["text_to_image"])


def test_a_prompt_is_ranked_with_penalties_and_scored_without(checkpoint, folder):
    gallery = Gallery(folder, checkpoint, progress=False)
    assert np.abs(gallery.penalties).max() > 0
    embedding = gallery.query_embedding("people sitting near the beach")
    cosines = gallery.embeddings.astype(np.float32) @ embedding
    expected = np.argsort(-(cosines - gallery.penalties), kind="stable")
    matches = gallery.search("people sitting near the beach", top_k=len(gallery.files), fold=False)
    assert [match.file for match in matches] == [gallery.files[row] for row in expected]
    assert [match.score for match in matches] == pytest.approx(cosines[expected].tolist(), abs=1e-4)

    flags = InferenceConfig(query=("people sitting near the beach",), top_k=len(gallery.files), fold=False)
    remark = "pictures that score for nearly every prompt are ranked lower than their score says"
    assert remark in find_pictures(gallery, flags).lines
    gallery.penalties = np.zeros_like(gallery.penalties)
    assert remark not in find_pictures(gallery, flags).lines

    for asked in (
        {"image": gallery.files[3]},  # an example is no text
        {"image": gallery.files[3], "query": "a dog"},
        {"query": "a dog", "minus": "snow"},  # nor is what is left of a prompt
    ):
        scores = [match.score for match in gallery.search(**asked, top_k=5, fold=False)]
        assert scores == sorted(scores, reverse=True)


def test_an_index_of_an_earlier_version_gets_penalties_and_keeps_its_embeddings(checkpoint, folder):
    first = Gallery(folder, checkpoint, progress=False)
    path = first.index_path
    index = read_index(path)
    index.penalties = index.bank = None
    write_index(path, index)
    assert "penalties" not in load_file(path)
    again = Gallery(folder, checkpoint, progress=False)
    assert again.embedded == 0 and np.array_equal(again.penalties, first.penalties)
    assert np.array_equal(read_index(path).penalties, first.penalties)


def test_another_bank_gives_other_penalties_and_the_same_embeddings(checkpoint, folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    first = Gallery(folder, model, progress=False)
    write_bank(model, first.embedder.bank[:7])
    second = Gallery(folder, model, progress=False)
    assert second.embedded == 0 and not np.array_equal(second.penalties, first.penalties)
    (model / BANK_FILE).unlink()
    third = Gallery(folder, model, progress=False)
    assert third.embedded == 0 and not third.penalties.any()
    shutil.copy(first.files[0], folder / "another.jpg")
    shutil.copy(checkpoint / BANK_FILE, model / BANK_FILE)
    fourth = Gallery(folder, model, progress=False)
    assert fourth.embedded == 1 and len(fourth.penalties) == 9
    assert np.allclose(sorted(fourth.penalties)[:1], sorted(first.penalties)[:1], atol=1e-3)


@pytest.mark.parametrize("penalty", [np.nan, np.inf, -60_000])
def test_penalties_that_cannot_be_are_not_believed(checkpoint, folder, penalty):
    first = Gallery(folder, checkpoint, progress=False)
    index = read_index(first.index_path)
    index.penalties = np.full(8, penalty, np.float16)
    write_index(first.index_path, index)
    again = Gallery(folder, checkpoint, progress=False)
    assert np.array_equal(again.penalties, first.penalties) and again.embedded == 0


def test_a_threshold_is_of_scores_whatever_the_penalties(checkpoint, folder):
    gallery = Gallery(folder, checkpoint, progress=False)
    embedding = gallery.query_embedding("a dog")
    cosines = gallery.embeddings.astype(np.float32) @ embedding
    gallery.penalties = np.zeros(len(cosines), np.float16)
    gallery.penalties[cosines.argmax()] = 1  # the best is ranked last
    least = float(np.sort(cosines)[-3])
    matches = gallery.rank(embedding, 3, fold=False, threshold=least)
    assert sorted(match.score for match in matches) == pytest.approx(np.sort(cosines)[-3:].tolist(), abs=1e-3)
    assert matches[-1].file == gallery.files[cosines.argmax()]
    flags = InferenceConfig(query=("a dog",), threshold=0.999, fold=False)
    best = gallery.best_score(embedding)
    assert best == pytest.approx(cosines.max(), abs=1e-4)
    assert f"no picture scores 0.999 or more: the best is {best:.4f}" in find_pictures(gallery, flags).lines


def test_a_threshold_is_asked_of_all_pictures_and_not_of_the_best_ranked_alone(checkpoint, monkeypatch):
    monkeypatch.setattr("inference.MOST_COPIES", 0)  # so ten pictures are looked at for one match
    gallery = Gallery(None, checkpoint, progress=False)
    embedding = gallery.query_embedding("a dog")
    cosines = gallery.embeddings.astype(np.float32) @ embedding
    assert len(cosines) == 16
    gallery.penalties = np.zeros(len(cosines), np.float16)
    gallery.penalties[cosines.argmax()] = 1  # the best is ranked last
    least = np.sort(cosines)[-2:].mean()
    (match,) = gallery.search("a dog", top_k=1, threshold=least, fold=False)
    assert match.file == gallery.files[cosines.argmax()]


def test_a_model_without_a_bank_ranks_by_score(checkpoint, folder, tmp_path):
    model = CLIP.from_pretrained(checkpoint)
    model.caption_bank = None
    model.save_pretrained(tmp_path / "earlier")
    gallery = Gallery(folder, tmp_path / "earlier", progress=False)
    scores = [match.score for match in gallery.search("playing soccer", 16)]
    assert not gallery.penalties.any() and scores == sorted(scores, reverse=True)
