"""inference.py: which of some labels fits each picture of a gallery, and which captions fit a picture."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import run_script
from PIL import Image

from config import InferenceConfig
from inference import Gallery
from models import CLIP, embed_texts
from search.caption_list import read_caption_list
from search.kept_text_tower import open_text_tower
from support.errors import UserError
from support.prompts import TEMPLATES

LABELS = ["beach", "forest", "a snowy street"]


def test_probabilities_are_the_softmax_of_scaled_cosines(checkpoint):
    gallery, model = Gallery(None, checkpoint, progress=False), CLIP.from_pretrained(checkpoint)
    expected = []
    for label in LABELS:
        prompts = embed_texts(model, [template.format(label.removeprefix("a ")) for template in TEMPLATES])
        mean = prompts.mean(dim=0)
        expected.append(torch.from_numpy(gallery.embeddings).float() @ (mean / mean.norm()))
    expected = (model.logit_scale.exp() * torch.stack(expected, dim=1)).softmax(dim=1).detach()
    found = gallery.label_probabilities(LABELS)
    assert found.shape == (16, 3) and found.sum(axis=1) == pytest.approx(np.ones(16))
    assert found == pytest.approx(expected.numpy(), abs=0.01)  # texts in bfloat16 here, in float32 there
    assert gallery.embedder.logit_scale == pytest.approx(model.logit_scale.exp().item())


def test_labels_as_table_json_csv_and_picture(workplace, checkpoint):
    labels = ["--labels", " beach,forest , a snowy street,beach,"]
    process = run_script("inference.py", *labels, "--output", "labels.png", "--json", cwd=workplace)
    said = json.loads(process.stdout)
    assert said["labels"] == LABELS and len({row["file"] for row in said["pictures"]}) == 16
    for row in said["pictures"]:
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
    counts = {label: sum(row["label"] == label for row in said["pictures"]) for label in LABELS}
    assert all(f"{label}: {count}\n" in process.stderr for label, count in counts.items())
    with Image.open(workplace / "labels.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5

    shown = run_script("inference.py", *labels, "--top-k", 1, "--output", "labels.csv", cwd=workplace).stdout
    best = {label: max((row["probabilities"][label], row["file"]) for row in said["pictures"] if row["label"] == label)
            for label in LABELS if counts[label]}
    assert all(f"{probability:>11.3f}  {file}\n" in shown for probability, file in best.values())
    assert all(f"and {count - 1} more" in shown for count in counts.values() if count > 1)
    with open(workplace / "labels.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "label", "probability", *(f"p({label})" for label in LABELS)]
    for row, known in zip(rows, said["pictures"], strict=True):
        assert row[:2] == [known["file"], known["label"]] and float(row[2]) == max(map(float, row[3:]))
        assert list(map(float, row[3:])) == pytest.approx(list(known["probabilities"].values()), abs=1e-5)


def test_captions_are_ranked_against_a_picture(workplace, checkpoint, sample_dir):
    picture, model = sorted((sample_dir / "Images").iterdir())[3], CLIP.from_pretrained(checkpoint)
    captions = list(dict.fromkeys(read_caption_list(sample_dir / "captions.txt")))
    assert len(captions) > 300
    process = run_script("inference.py", "--image", picture, "--captions", sample_dir / "captions.txt", "--json",
                         "--top-k", 4, cwd=workplace)
    found = json.loads(process.stdout)
    assert found["query"] == str(picture) and [match["rank"] for match in found["matches"]] == [1, 2, 3, 4]
    [example], _, _ = Gallery(None, checkpoint, progress=False).embedder.embed_files([picture])
    scores = embed_texts(model, captions) @ torch.from_numpy(example).float()
    best = scores.sort(descending=True).values[:4].tolist()
    assert [match["score"] for match in found["matches"]] == pytest.approx(best, abs=2e-3)
    for match in found["matches"]:
        assert match["score"] == pytest.approx(scores[captions.index(match["caption"])].item(), abs=2e-3)
        assert f"{match['rank']:>4}  {match['score']:.3f}  {match['caption']}\n" in process.stderr


def test_labels_that_say_nothing_to_the_model_are_named(workplace):
    flags = ["--labels", "雪,beach", "--output", "unknown.csv", "--no-picture"]
    process = run_script("inference.py", *flags, cwd=workplace)
    assert "the model does not know: 雪" in process.stdout
    assert "beach: the" not in process.stdout and (workplace / "unknown.csv").exists()  # a table is no picture


def test_captions_that_say_nothing_to_the_model_are_counted(workplace, sample_dir, tmp_path):
    picture = next((sample_dir / "Images").iterdir())
    (tmp_path / "texts.txt").write_text("A dog runs .\nLeute am Strand\nA man at the beach .\n雪\n", encoding="utf-8")
    flags = ["--image", picture, "--captions", tmp_path / "texts.txt"]
    shown = run_script("inference.py", *flags, cwd=workplace).stdout
    assert "2 of them hold words that the model does not know\n" in shown
    (tmp_path / "texts.txt").write_text("A dog runs .\nA man at the beach .\n")
    shown = run_script("inference.py", *flags, cwd=workplace).stdout
    assert "captions for" in shown and "does not know" not in shown


def test_labels_may_hold_commas_and_are_told_apart_by_their_letters_alone():
    assert InferenceConfig(labels='dog, "a dog, running" ,Dog, cat').label_names() == ["Dog", "a dog, running", "cat"]


def test_many_labels_take_little_memory_and_give_the_same(checkpoint):
    embedder = Gallery(None, checkpoint, progress=False).embedder
    prompts = [f"{count} dogs" for count in range(300)] + ["a dog " * 60]
    together = embedder.embed_prompts(prompts)
    assert together.shape == (301, 256)
    for rows in (slice(0, 3), slice(126, 131), slice(299, 301)):
        assert np.abs(embedder.embed_prompts(prompts[rows]) - together[rows]).max() < 1e-5
    if not embedder.has_text_tower_ready:
        embedder.keep_text_tower()
    assert np.abs(open_text_tower(embedder.fingerprint).embed(prompts) - together).max() < 1e-5


def test_a_picture_that_cannot_be_read_has_no_captions(workplace, tmp_path):
    (tmp_path / "notes.jpg").write_text("hello")
    (tmp_path / "texts.txt").write_text("a dog\na cat\n")
    process = run_script("inference.py", "--image", tmp_path / "notes.jpg", "--captions", tmp_path / "texts.txt",
                         cwd=workplace, check=False)
    assert process.returncode == 2 and "notes.jpg: not a picture" in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("content", [
    'image,caption\n1.jpg,"Two dogs, one ball ."\n1.jpg,A cat .\n2.jpg,A cat .\n',
    "1.jpg#0\tTwo dogs, one ball .\n1.jpg#1\tA cat .\n",
    "Two dogs, one ball .\n\n  A cat .\nA cat .",
])
def test_captions_are_read_from_any_file_that_holds_some(tmp_path, content):
    (tmp_path / "texts.txt").write_text(content)
    assert read_caption_list(tmp_path / "texts.txt") == ["Two dogs, one ball .", "A cat ."]


@pytest.mark.parametrize("content, complaint", [
    (None, "is not a file"), (b" \n\n", "holds no captions"), (b"\xff\xfe\x00", "line 1: not UTF-16")])
def test_a_file_without_captions_is_named(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "texts.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"texts.txt {complaint}"):
        read_caption_list(tmp_path / "texts.txt")


@pytest.mark.parametrize("flags, complaint", [
    ({"labels": "beach"}, "name at least two"),
    ({"labels": ""}, "name at least two"),
    ({"labels": "a,b", "query": ("a dog",)}, "--labels and --query do not go together"),
    ({"labels": "a,b", "threshold": 0.5}, "--labels and --threshold do not go together"),
    ({"captions": "captions.txt"}, "add --image FILE"),
    ({"captions": "a.txt", "image": "a.jpg", "gallery": "photos"}, "--captions and --gallery do not go together"),
    ({"export": "onnx", "labels": "a,b"}, "--export and --labels do not go together"),
    ({"export": "onnx", "top_k": 3}, "--export and --top-k do not go together"),
    ({"export": "onnx", "output": "a.png"}, "--export and --output do not go together"),
    ({"plus": ("a dog",)}, "say what to look for"),
])
def test_questions_that_do_not_go_together_are_refused(flags, complaint):
    with pytest.raises(UserError, match=complaint):
        InferenceConfig(**flags)
