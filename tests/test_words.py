"""What is typed: words without a flag, weights before prompts, words that a model does not know."""

import json
from pathlib import Path

import pytest
from conftest import run_script

from config import InferenceConfig, parse, switches_of
from support.errors import UserError
from support.words import with_flags


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with two files that are pictures by their names."""
    monkeypatch.chdir(tmp_path)
    for name in ("dog.jpg", "my dog.JPG"):
        (tmp_path / name).touch()
    return tmp_path


# ---------------------------------------------------------------- words without a flag


@pytest.mark.parametrize("typed, meant", [
    (["people on a beach"], ["--query", "people on a beach"]),
    (["dog.jpg"], ["--image", "dog.jpg"]),
    (["my dog.JPG"], ["--image", "my dog.JPG"]),
    (["dog.jpg", "in the snow"], ["--image", "dog.jpg", "--query", "in the snow"]),
    (["--top_k", "3", "dog.jpg", "--json", "snow"],
     ["--top_k", "3", "--image", "dog.jpg", "--json", "--query", "snow"]),
    (["--top-k=3", "dog.jpg"], ["--top-k=3", "--image", "dog.jpg"]),
    (["--no_picture", "snow", "--query", "dog.jpg"], ["--no_picture", "--query", "snow", "--query", "dog.jpg"]),
    (["a sentence about dog.jpg"], ["--query", "a sentence about dog.jpg"]),
    (["--image", "dog.jpg"], ["--image", "dog.jpg"]),
])
def test_a_bare_word_is_a_picture_that_is_there_or_else_a_prompt(here, typed, meant):
    assert with_flags(typed, switches_of(InferenceConfig)) == meant


def test_a_picture_that_is_not_there_and_a_second_one_are_refused(here):
    for typed, complaint in (["cat.png"], "there is no picture cat.png"), (["dog.jpg", "my dog.JPG"], "one at a time"):
        with pytest.raises(UserError, match=complaint):
            with_flags(typed, {"--json"})


def test_words_flags_and_underscores_are_read_alike(here):
    meant = InferenceConfig(query=("snow",), image=Path("dog.jpg"), top_k=4, fold=False)
    assert parse(InferenceConfig, ["dog.jpg", "snow", "--top_k", "4", "--no_fold"]) == meant
    assert parse(InferenceConfig, ["--top-k", "4", "--query", "snow", "--no-fold", "--image", "dog.jpg"]) == meant


def test_the_command_takes_words_without_a_flag(workplace, sample_dir):
    picture = min((sample_dir / "Images").iterdir())
    ask = ["--no-picture", "--json"]
    bare = run_script("inference.py", picture, "in the snow", *ask, "--top_k", 3, cwd=workplace)
    flags = run_script("inference.py", "--image", picture, "--query", "in the snow", *ask, "--top-k", 3, cwd=workplace)
    assert json.loads(bare.stdout) == json.loads(flags.stdout) and len(json.loads(bare.stdout)["matches"]) == 3
    process = run_script("inference.py", "nowhere.jpg", cwd=workplace, check=False)
    assert process.returncode == 2 and process.stderr == (
        'error: there is no picture nowhere.jpg: mend its path, or type --query "nowhere.jpg" if it is a prompt\n')
