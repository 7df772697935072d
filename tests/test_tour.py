"""The tour: what it quotes stands in the scripts, what it states was measured, and what it tells to type works."""

import json
import math
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import ROOT, run_script
from matplotlib.figure import Figure
from PIL import Image

import config
from config import PRESETS
from models import clip_loss
from support.drawn import is_drawn
from support.kept_splits import held_out_of_model

sys.path.append(str(ROOT / "docs"))
import make_tour
from tour_pages import CELL, NUMBER, PICTURE, QUOTE, execute_notebook, notebook_of, page_of, quoted_lines
from tour_pictures import save

SOURCE = (ROOT / "docs" / "tour" / "source.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
NUMBERS = json.loads((ROOT / "docs" / "tour.json").read_text(encoding="utf-8"))
MEND = "type: python docs/make_tour.py --again pages"


def blocks(language=""):
    """The fenced blocks of the page in a language, or in none."""
    fenced = re.findall(r"^```([a-z]*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [code for its_language, code in fenced if its_language == language]


# ---------------------------------------------------------------- the pages are what the source says


def test_the_page_is_made_of_its_source_the_scripts_and_the_numbers():
    assert page_of(SOURCE, NUMBERS, ROOT) == PAGE, MEND


def test_the_notebook_is_made_of_the_same():
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    made = notebook_of(SOURCE, NUMBERS, ROOT)
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in made.cells], MEND
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(cell.outputs) for cell in code) >= 12
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    nbformat.validate(notebook)


def test_every_quoted_block_stands_in_its_script_word_for_word():
    quotes = re.findall(r"^From \[(\S+)\]\(\.\./\1\):\n\n```python\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(quotes) == len(QUOTE.findall(SOURCE)) == len(blocks("python"))
    for name, block in quotes:
        script = (ROOT / name).read_text(encoding="utf-8")
        assert any(textwrap.indent(block, " " * indent) in script for indent in range(0, 20, 4)), name


def test_each_chapter_has_a_picture_a_quote_and_an_experiment():
    chapters = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    assert len(chapters) == 15
    for chapter in chapters:
        title = chapter.splitlines()[0]
        assert chapter.count("<picture>") == 1, title
        assert chapter.count("**Try it** (") == 1, title
        code = "\n".join(re.findall(r"```python\n(.*?)\n```", chapter, re.DOTALL))
        assert 5 <= len(code.splitlines()) <= 15, title


@pytest.mark.parametrize("begins, ends, lines", [
    ("def two", "return", "def two():\n    return 2"),
    ("return 1", "1", "return 1"),
])
def test_a_quote_is_cut_out_without_its_indent(begins, ends, lines):
    script = "def one():\n    return 1\n\n\ndef two():\n    return 2\n"
    assert quoted_lines(script, begins, ends, "a.py") == lines


@pytest.mark.parametrize("begins, ends", [("def three", "return"), ("def two", "return 1")])
def test_a_quote_that_is_gone_is_named(begins, ends):
    with pytest.raises(ValueError, match="a.py"):
        quoted_lines("def one():\n    return 1\n\n\ndef two():\n    return 2\n", begins, ends, "a.py")


# ---------------------------------------------------------------- numbers


def test_every_number_that_the_page_states_comes_from_the_json():
    """In the words of the source no digit stands but in names: all others are filled in from the JSON."""
    words = CELL.sub("", SOURCE)
    words = re.sub(r"^```\n.*?^```$", "", words, flags=re.MULTILINE | re.DOTALL)  # commands
    words = QUOTE.sub("", words)
    words = NUMBER.sub("", words)
    words = re.sub(r"`[^`]*`|\]\([^)]*\)", "", words)
    for name in ("Flickr8k", "ResNet50", "R@10", "R@1", "Recall@1", "−ln(1/B)", "2-D", "ln 2 =", "ln 3 ="):
        words = words.replace(name, "")
    assert re.findall(r".*\d.*", words) == []


def test_the_json_says_what_made_it():
    made = NUMBERS["made"]
    assert {"commit", "torch", "timm", "transformers", "seconds", "threads"} <= made.keys()
    assert "+changes" not in made["commit"]


def test_the_numbers_that_follow_from_settings_are_those_of_today():
    sample, flickr8k = PRESETS["sample"], PRESETS["flickr8k"]
    assert len(NUMBERS["settings"]) > 20
    for name, value in NUMBERS["settings"].items():
        assert getattr(sample, name) == value, f"measured with another {name}: type python docs/make_tour.py"
    assert NUMBERS["matrix"]["batch"] == sample.batch_size
    assert NUMBERS["matrix"]["chance"] == pytest.approx(math.log(sample.batch_size))
    assert NUMBERS["training"]["epochs"] == sample.epochs
    assert NUMBERS["shapes"]["embedding_dim"] == sample.embedding_dim
    assert NUMBERS["shapes"]["size"] == sample.image_size
    assert NUMBERS["temperature"]["start"] == sample.temperature
    assert NUMBERS["towers"]["flickr8k_batch"] == flickr8k.batch_size
    assert NUMBERS["towers"]["heads_first"] == flickr8k.heads_first


def test_the_loss_worked_by_hand_is_clip_loss():
    hand = NUMBERS["hand"]
    images = torch.tensor(hand["images"])
    texts = torch.tensor(hand["texts"])
    assert torch.allclose(images.norm(dim=1), torch.ones(3)) and torch.allclose(texts.norm(dim=1), torch.ones(3))
    assert clip_loss(images, texts, hand["scale"]).item() == pytest.approx(hand["loss"], abs=1e-6)
    # on paper: the first row, 4, 3 and 0
    assert hand["rows"][0] == pytest.approx(math.log(math.e**4 + math.e**3 + 1) - 4)


def test_the_gradient_of_a_row_is_the_softmax_less_one_for_the_match():
    pull = NUMBERS["pull"]
    assert pull["difference"] < 1e-6
    assert pull["pull"] == pytest.approx(pull["push"], abs=1e-5)


# What the words of the page say about the numbers: where one of these fails after a new run, mend the words.
def test_the_numbers_say_what_the_words_say():
    recall, leakage, broken = NUMBERS["recall"], NUMBERS["leakage"], NUMBERS["broken"]
    assert recall["honest"] < min(recall["best_caption"], recall["in_batch"], recall["honest_at_ten"])
    assert recall["train"] < recall["honest"]
    assert leakage["new"] < leakage["seen"] - 5 and recall["constant"] == 0
    assert abs(broken["photo_twice"]["recall"] - broken["two_captions"]["recall"]) < 4  # "recall hardly notices"
    assert NUMBERS["mistakes"]["absurd_best"] < NUMBERS["mistakes"]["usual"] < NUMBERS["mistakes"]["fitting_best"]
    assert broken["no_unit_length"]["recall"] < 5 < broken["whole"]["recall"]
    assert broken["soft"]["recall"] < broken["soft_with_gradient"]["recall"] < broken["whole"]["recall"]
    assert broken["soft_with_gradient"]["loss"] < broken["soft"]["loss"]
    assert broken["photo_twice"]["loss"] > max(broken["floor"], broken["two_captions"]["loss"])
    assert broken["one_rate"]["recall"] < broken["rates_apart"]["recall"] - 5
    assert broken["batch_norm"] < recall["honest"] - 20
    pull = NUMBERS["pull"]
    assert pull["captions"][0] == "A young girl in pink clothes is waving hello near the ocean on the sandy beach ."
    assert pull["hardest_caption"].startswith("One man kicks a soccer ball near the ocean on the sandy beach")
    assert pull["gradient"].index(sorted(pull["gradient"])[-2]) == 1  # the second most pushed
    assert pull["captions"][1].startswith("There is a small boy in red clothes greeting with a raised hand")
    assert [mistake["caption"] for mistake in NUMBERS["mistakes"]["worst"]] == [
        "Three friends rest near the beach .", "Near the beach , three people run .",
        "Near the ocean on the sandy beach , two young people sit ."]
    cosines = NUMBERS["cosine"]["cosine"]
    assert cosines["own"] > cosines["less"] > cosines["place"] > cosines["other"]


# ---------------------------------------------------------------- pictures


def test_every_picture_is_there_for_light_and_dark_pages_and_together_they_are_small():
    folder = ROOT / "docs" / "tour"
    wanted = {f"{name}-{theme}.png" for name, _ in PICTURE.findall(SOURCE) for theme in ("light", "dark")}
    assert {path.name for path in folder.glob("*.png")} == wanted
    assert sum((folder / name).stat().st_size for name in wanted) < 2e6
    for name in wanted:
        assert Image.open(folder / name).width >= 900


def test_every_picture_says_in_words_what_it_shows():
    alts = re.findall(r'<img src="[^"]+" alt="([^"]*)">', PAGE)
    assert len(alts) == PAGE.count("<picture>") and all(len(alt) > 40 for alt in alts)


def test_a_picture_of_the_tour_is_known_as_drawn_and_stays_small(tmp_path):
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot([1, 3, 2])
    save(figure, tmp_path / "chart.png")
    assert is_drawn(tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.mode == "P"
    figure.savefig(tmp_path / "plain.png", dpi=150)
    assert (tmp_path / "chart.png").stat().st_size < (tmp_path / "plain.png").stat().st_size


# ---------------------------------------------------------------- the run


def test_the_run_of_the_tour_keeps_which_photos_it_holds_out(tmp_path, sample_dir, monkeypatch):
    small = replace(PRESETS["sample"], data_dir=sample_dir, epochs=1, batch_size=32)
    monkeypatch.setattr(make_tour, "PRESETS", {"sample": small})
    embedded = make_tour.train_sample(tmp_path / "run", keep_after=(1,))
    held_out = held_out_of_model(tmp_path / "run" / "best")
    assert {split: len(names) for split, names in held_out.items()} == {"dev": 16, "test": 16}
    assert set(embedded) == {0, 1}


# ---------------------------------------------------------------- experiments


def commands():
    """The lines of all experiments that call a script, as lists of words."""
    found = []
    for block in blocks():
        found += [shlex.split(line) for line in block.splitlines() if re.match(r"python [a-z_/0-9]+\.py", line)]
    return found


def test_every_experiment_is_a_command_that_parses():
    assert len(commands()) >= 15
    kinds = {
        "dataset.py": config.DatasetConfig,
        "evaluate.py": config.EvaluateConfig,
        "inference.py": config.InferenceConfig,
    }
    for _, script, *flags in commands():
        assert (ROOT / script).is_file()
        if script == "train.py":
            config.parse_train(flags)
        elif script in kinds:
            config.parse(kinds[script], flags)


def test_the_experiments_leave_the_newest_run_as_it_is():
    for _, script, *flags in commands():
        if script == "train.py" and flags not in (["sample"], ["flickr8k"]):
            assert flags[flags.index("--run-dir") + 1].startswith("tries/")


def test_the_experiments_of_the_first_two_chapters_run(tmp_path):
    draw, look = [words for words in commands() if "data/tiny" in words][:2]
    run_script(*draw[1:], cwd=tmp_path)
    assert len(list((tmp_path / "data" / "tiny" / "Images").iterdir())) == 100
    assert len((tmp_path / "data" / "tiny" / "captions.txt").read_text().splitlines()) == 501
    run_script(*look[1:], cwd=tmp_path)
    assert (tmp_path / "report.png").exists()


@pytest.mark.parametrize("place, printed", [(0, "20 2.9957"), (1, "tensor(0.5869)"), (2, "-0.2786")])
def test_the_experiments_in_python_print_what_was_worked_by_hand(place, printed):
    code = [block.removeprefix("python -c '").removesuffix("'\n") for block in blocks() if "python -c" in block]
    assert len(code) == 3
    run = subprocess.run([sys.executable, "-c", code[place]], cwd=ROOT, capture_output=True, text=True)
    assert printed in run.stdout, run.stderr
    assert f"{NUMBERS['hand']['loss']:.4f}" == "0.5869"
    assert f"{NUMBERS['hand']['own_part'] / 100 - 1:.4f}" == "-0.2786"


def test_the_notebook_runs(workplace, tmp_path, monkeypatch):
    path = Path(tmp_path / "tour.ipynb")
    nbformat.write(notebook_of(SOURCE, NUMBERS, ROOT), path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    execute_notebook(path, workplace)
    outputs = [cell.outputs for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert "0.5869" in json.dumps(outputs)
