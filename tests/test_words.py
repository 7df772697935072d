"""What is typed: words without a flag, weights before prompts, words that a model does not know."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_script

from config import InferenceConfig, parse, switches_of
from inference import Gallery
from support.errors import UserError
from support.unknown_words import has_unknown_words, remarks_on
from support.wordpiece import empty_tokenizer, train_tokenizer
from support.words import weight_and_words, with_flags


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


def test_a_folder_without_its_flag_is_not_searched_for_as_words(here):
    (here / "deep").mkdir()
    with pytest.raises(UserError, match="is a folder: to search it, type --gallery"):
        with_flags(["a dog", str(here / "deep")], set())
    assert with_flags(["deep"], set()) == ["--query", "deep"]  # which may be meant as a word


def test_a_prompt_without_its_quotes_after_its_flag_is_named_whole(here):
    with pytest.raises(UserError, match='"people sitting near the beach", and each of several after --query'):
        with_flags(["--query", "people", "sitting", "near", "the", "beach"], set())
    assert with_flags(["--query", "dog", "--query", "snow"], set()) == ["--query", "dog", "--query", "snow"]
    assert with_flags(["--minus", "snow", "dog"], set()) == ["--minus", "snow", "--query", "dog"]


def test_a_long_prompt_with_a_slash_is_no_path(here):
    prompt = "men and/or women " + "who walk and talk " * 20
    assert with_flags([prompt], set()) == ["--query", prompt]


def test_a_picture_in_the_home_of_nobody_is_not_there(here):
    with pytest.raises(UserError, match="there is no picture ~dog.jpg"):
        with_flags(["~dog.jpg"], set())


def test_a_prompt_without_its_quotes_is_not_two_prompts(here):
    with pytest.raises(UserError, match='is typed in quotes, "a dog"'):
        with_flags(["a", "dog"], set())
    assert with_flags(["a dog", "snow"], set()) == ["--query", "a dog", "--query", "snow"]


def test_words_flags_and_underscores_are_read_alike(here):
    meant = InferenceConfig(query=("snow",), image=Path("dog.jpg"), top_k=4, fold=False)
    assert parse(InferenceConfig, ["dog.jpg", "snow", "--top_k", "4", "--no_fold"]) == meant
    assert parse(InferenceConfig, ["--top-k", "4", "--query", "snow", "--no-fold", "--image", "dog.jpg"]) == meant


def test_the_command_takes_words_without_a_flag(workplace, sample_dir):
    picture = min((sample_dir / "Images").iterdir())
    ask = ["--no-picture", "--json"]
    bare = run_script("inference.py", picture, "in the snow", *ask, "--top_k", 3, cwd=workplace)
    flags = run_script("inference.py", "--image", picture, "--query", "in the snow", *ask, "--top-k", 3, cwd=workplace)
    bare, flags = json.loads(bare.stdout), json.loads(flags.stdout)
    files = [match["file"] for match in bare["matches"]]
    assert bare["query"] == flags["query"] == f"pictures like {picture.name} + in the snow"
    assert files == [match["file"] for match in flags["matches"]] and len(files) == 3
    process = run_script("inference.py", "nowhere.jpg", cwd=workplace, check=False)
    assert process.returncode == 2 and process.stderr == (
        'error: there is no picture nowhere.jpg: mend its path, or type --query "nowhere.jpg" if it is a prompt\n')


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("typed, weight, words", [
    ("a dog", 1, "a dog"), ("2:a golden retriever", 2, "a golden retriever"), ("0.5:snow", 0.5, "snow"),
    (" 2: a dog", 2, "a dog"), (".5:snow", 0.5, "snow"), ("3.:snow", 3, "snow"), ("1:2: a", 1, "1:2: a"),
    ("10:30 on a clock", 1, "10:30 on a clock"), ("16:9", 1, "16:9"), ("a dog: 2:3", 1, "a dog: 2:3"),
    ("2:a 3:b", 2, "a 3:b"), ("1,5:snow", 1, "1,5:snow"), ("2 : snow", 1, "2 : snow"), ("two:snow", 1, "two:snow"),
    ("2:", 2, ""), ("2:two\nlines", 2, "two\nlines"),
])
def test_a_weight_is_a_number_and_a_colon_that_no_digit_follows(typed, weight, words):
    assert weight_and_words(typed) == (weight, words)


@pytest.mark.parametrize("flags, complaint", [
    (["0:snow"], "the weight of '0:snow' must be above 0"), (["--query", "a", "--minus", "-1:b"], "must be above 0"),
    (["1001:snow"], "at most 1,000"), (["2:"], "a prompt is empty"), (["a", "--plus", "2: "], "a prompt is empty"),
])
def test_weights_that_cannot_be_are_one_line(flags, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(InferenceConfig, flags)
    assert stop.value.code == 2 and complaint in capsys.readouterr().err


def test_prompts_count_by_their_weights(checkpoint, sample_dir):
    gallery = Gallery(None, checkpoint, progress=False)
    dog, snow, beach = gallery.embedder.embed_prompts(["a dog", "snow", "the beach"])
    picture = gallery.files[3]
    example = gallery.embeddings[3].astype(np.float32)

    def unit(embedding):
        return pytest.approx(embedding / np.linalg.norm(embedding), abs=2e-3)

    assert gallery.query_embedding(["2:a dog", "0.5:snow"]) == unit((2 * dog + 0.5 * snow) / 2.5)
    assert gallery.query_embedding(["3:a dog"], picture) == unit((3 * dog + example) / 4)
    assert gallery.query_embedding("7:a dog") == unit(dog)
    assert gallery.query_embedding("a dog", minus=["2:the beach"]) == unit(dog - beach)
    assert gallery.query_embedding("a dog", minus=["3:the beach", "snow"]) == unit(dog - (3 * beach + snow) / 4)
    assert gallery.query_embedding(["a dog", "snow"]).dtype == np.float32
    with pytest.raises(UserError, match="what is not wanted takes all away that is: weigh it less"):
        gallery.query_embedding("a dog", minus="2:a dog")


def test_the_command_ranks_by_weights_and_repeats_what_was_typed(workplace, checkpoint):
    ask = ["--query", "2:a dog", "--plus", "0.5:snow", "--minus", "10:30", "--no-picture", "--json"]
    answer = json.loads(run_script("inference.py", *ask, cwd=workplace).stdout)
    expected = Gallery(None, checkpoint, progress=False).search(["2:a dog", "0.5:snow"], minus="10:30")
    assert answer["query"] == "2:a dog + 0.5:snow - 10:30"
    assert [Path(match["file"]).name for match in answer["matches"]] == [match.file.name for match in expected]


# ---------------------------------------------------------------- words that are not known


@pytest.fixture(scope="module")
def vocabulary():
    """A vocabulary as a tower from scratch has it: learned from captions, of which there are few."""
    captions = ["two people sit near the beach .", "a dog runs through the water .", "a man walks in the snow !"] * 50
    tokenizer = train_tokenizer(captions, 64).backend_tokenizer
    tokenizer.enable_truncation(64)
    return tokenizer


@pytest.mark.parametrize("prompt, unknown", [
    ("two people near the beach", []), ("TWO People, near the beach!", []),
    ("Leute am Strand", ["Leute", "am", "Strand"]),
    ("people am Strand", ["am", "Strand"]), ("a dog im Schnee, im Schnee", ["im", "Schnee"]), ("люди", ["люди"]),
    ("a giraffe in the snow", ["giraffe"]), ("a dog 犬", ["犬"]), ("dogs", []), ("the snowman", []),
    ("a man walking", ["walking"]),  # only "walks" was in the captions
])
def test_words_of_another_language_are_named(vocabulary, prompt, unknown):
    remarks = remarks_on(prompt, vocabulary)
    known = bool(set(prompt.lower().replace(",", "").split()) - {word.lower() for word in unknown})
    line = f"the model does not know: {', '.join(unknown)}" + ("" if known else "; the ranking means nothing")
    assert remarks == ([line] if unknown else [])
    assert has_unknown_words(prompt, vocabulary) == bool(unknown)


def test_signs_alone_and_many_words(vocabulary):
    assert remarks_on("🐕", vocabulary) == ["the model knows none of this: the ranking means nothing"]
    many = " ".join(f"{letter}{letter}q{letter}" for letter in "bcdfghjklmnp")
    assert remarks_on(many, vocabulary)[0].endswith("kkqk, llql, mmqm and 2 more; the ranking means nothing")


def test_a_pretrained_vocabulary_knows_words_by_their_pieces():
    """Pieces of a real one; what is told is what has come down to single letters, or to the unknown token."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", "skate", "##board", "##ers", "le", "##ute", "с", "##о", "##б", "##а", "##ка"]
    filler = [f"word{number}" for number in range(30_000)]
    tokenizer = empty_tokenizer({piece: number for number, piece in enumerate([*pieces, *filler])})
    tokenizer.add_special_tokens(["[UNK]"])
    assert remarks_on("skateboarders word7 leute", tokenizer) == []
    assert remarks_on("word7 собака 雪", tokenizer) == ["the model does not know: собака, 雪"]


def test_the_command_names_what_the_model_does_not_know(workplace):
    process = run_script("inference.py", "Leute near the beach", "--no-picture", cwd=workplace)
    assert "the model does not know: Leute" in process.stdout.splitlines()
