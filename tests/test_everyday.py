"""Everyday prompts: in the language of the model's own captions, kept with it, and believed only after a look."""

import json
import shutil

import pytest
from conftest import ROOT, run_script

from dataset import load_splits
from inference import Gallery
from models import CLIP
from support.errors import UserError
from support.prompts import EVERYDAY, EVERYDAY_FILE, everyday_prompts_for, read_everyday_prompts

GERMAN = {
    "A": "Ein", "a": "ein", "The": "Der", "the": "der", "on": "auf", "of": "von", "with": "mit", "and": "und",
    "is": "ist", "are": "sind", "in": "im", "dog": "Hund", "man": "Mann", "woman": "Frau", "beach": "Strand",
}


@pytest.fixture(scope="module")
def german(tmp_path_factory, sample_dir):
    """A working directory in which a model was trained, for two epochs, on captions that are not in English."""
    workplace = tmp_path_factory.mktemp("german")
    data = workplace / "daten"
    shutil.copytree(sample_dir, data, ignore=shutil.ignore_patterns(".*"))
    lines = []
    for line in (data / "captions.txt").read_text().splitlines():
        image, _, caption = line.partition(",")
        words = caption.strip('"').split(" ") if image != "image" else [caption]
        lines.append(f"{image}," + " ".join(GERMAN.get(word, word) for word in words).replace(",", ""))
    (data / "captions.txt").write_text("\n".join(lines) + "\n")
    flags = ["sample", "--data-dir", data, "--epochs", 2, "--batch-size", 32, "--run-dir", "runs/de"]
    run_script("train.py", *flags, cwd=workplace)
    return workplace


def test_a_model_of_another_language_compares_with_its_own_captions(german):
    best = german / "runs" / "de" / "best"
    prompts = json.loads((best / EVERYDAY_FILE).read_text(encoding="utf-8"))["prompts"]
    captions = (german / "daten" / "captions.txt").read_text()
    assert len(set(prompts)) == len(EVERYDAY) and all(prompt in captions for prompt in prompts)
    assert list(read_everyday_prompts(best)) == prompts
    assert list(CLIP.from_pretrained(best).everyday_prompts) == prompts

    gallery = Gallery(german / "daten" / "Images", best, progress=False)
    scores = sorted(gallery.search(prompt, top_k=1)[0].score for prompt in prompts)
    assert gallery.usual_score == pytest.approx(scores[2], abs=1e-3)
    (best / EVERYDAY_FILE).rename(german / "aside.json")  # as a model of an earlier version: it loads
    assert read_everyday_prompts(best) == EVERYDAY and CLIP.from_pretrained(best).everyday_prompts == EVERYDAY
    (german / "aside.json").rename(best / EVERYDAY_FILE)


def test_a_model_of_english_keeps_those_that_all_have(checkpoint):
    assert not (checkpoint / EVERYDAY_FILE).exists() and read_everyday_prompts(checkpoint) == EVERYDAY


def test_the_language_is_told_by_small_words():
    assert everyday_prompts_for(EVERYDAY) == EVERYDAY == everyday_prompts_for([])
    german = ["Ein Hund rennt durch das Gras .", "Zwei Männer sitzen an einem Tisch in der Sonne ."]
    assert set(everyday_prompts_for(german)) == set(german) and len(everyday_prompts_for(german)) == len(EVERYDAY)
    french = ["Un chien court dans l'herbe .", "Une femme a une robe rouge et elle sourit ."]
    assert set(everyday_prompts_for(french)) == set(french)
    hungarian = ["Egy kutya fut a fűben", "Két gyerek játszik a vízben", "A nő és a férfi a parton ül"]  # a: the
    assert set(everyday_prompts_for(hungarian)) == set(hungarian)
    assert everyday_prompts_for([*german, "\x1b[2J"]) == everyday_prompts_for(german)  # nothing that steers a terminal


def test_captions_in_english_are_known_as_such(sample_dir):
    captions = list(load_splits(sample_dir)["train"]["caption"])
    assert everyday_prompts_for(captions) == EVERYDAY
    of_flickr8k = ["A child in a pink dress is climbing up a set of stairs in an entry way .",
                   "A girl going into a wooden building .", "A black dog and a spotted dog are fighting"]
    assert everyday_prompts_for(of_flickr8k) == EVERYDAY


@pytest.mark.parametrize("value", [
    "no list", {"prompts": "x"}, {"prompts": ["x"]}, {"prompts": [1] * 32}, {"prompts": [""] * 32},
    {"prompts": ["x" * 2000] * 32}, {"prompts": ["\x1b[2J"] * 32}, {"prompts": ["\ud800"] * 32}, {"other": 1},
])
def test_what_a_stranger_writes_there_is_looked_at(tmp_path, checkpoint, value):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / EVERYDAY_FILE).write_text(json.dumps(value))
    with pytest.raises(UserError, match=EVERYDAY_FILE):
        CLIP.from_pretrained(folder)
    with pytest.raises(UserError, match=EVERYDAY_FILE):
        read_everyday_prompts(folder)


def test_the_guide_names_the_file():
    assert EVERYDAY_FILE in (ROOT / "docs" / "searching.md").read_text(encoding="utf-8")
