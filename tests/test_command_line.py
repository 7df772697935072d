"""support/command_line.py: what a command line means, and what cannot be meant."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_script

from config import AppConfig, DatasetConfig, EvaluateConfig, InferenceConfig, parse, parse_train
from support.command_line import as_meant, with_home
from support.errors import UserError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def complaint_of(read, *arguments, capsys):
    """Return the one line in which reading a command line ends, with exit status 2."""
    with pytest.raises(SystemExit) as stop:
        read(*arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    return line


# ---------------------------------------------------------------- a flag given twice


@pytest.mark.parametrize("kind, flags, twice", [
    (EvaluateConfig, ["--split", "dev", "--batch-size", "8", "--split=test"], "split"),
    (EvaluateConfig, ["--batch-size", "8", "--batch_size", "9"], "batch-size"),
    (InferenceConfig, ["--query", "a dog", "--fold", "--no-fold"], "fold"),
    (InferenceConfig, ["--labels", "a,b", "--labels", "c,d"], "labels"),
    (AppConfig, ["--port", "1", "--port", "1"], "port"),
    (DatasetConfig, ["data", "--output", "a.png", "--output", "b.png"], "output"),
])
def test_a_flag_given_twice_is_refused(kind, flags, twice, capsys):
    line = complaint_of(parse, kind, flags, capsys=capsys)
    assert line == f"error: --{twice} is given 2 times, and only one can count: leave the others out"


def test_a_flag_given_twice_is_refused_in_training_too(capsys):
    line = complaint_of(parse_train, ["sample", "--epochs", "3", "--seed", "1", "--epochs", "9"], capsys=capsys)
    assert "--epochs is given 2 times" in line


def test_some_flags_may_be_given_several_times():
    flags = parse(InferenceConfig, ["--query", "a", "--query=b", "--minus", "c", "--minus", "d", "--plus", "e"])
    assert (flags.query, flags.minus, flags.plus) == (("a", "b"), ("c", "d"), ("e",))


@pytest.mark.parametrize("script, flags", [
    ("data/sample_scenes.py", ["--seed", "1", "--seed", "2"]),
    ("data/make_shards.py", ["data", "out", "--photos", "1", "--photos", "2"]),
    ("data/download_flickr8k.py", ["--out", "a", "--out", "b"]),
    ("benchmarks/large_library.py", ["--new", "1", "--new", "2"]),
    ("docs/make_tour.py", ["--again", "pages", "--again", "pages"]),
])
def test_commands_with_flags_of_their_own_refuse_it_as_well(script, flags, tmp_path):
    process = run_script(script, *flags, cwd=tmp_path, check=False)
    assert process.returncode == 2 and "is given 2 times" in process.stderr
    assert process.stderr.startswith("error: ") and not list(tmp_path.iterdir())


# ---------------------------------------------------------------- a pattern that the shell has expanded


TARS = [f"shards/train-{number:05}.tar" for number in range(4)]


@pytest.mark.parametrize("read, flags", [
    (parse_train, ["sample", *(f"--data-dir={tar}" for tar in TARS)]),
    (parse_train, ["sample", "--epochs", "3", "--data-dir", *TARS]),
    (lambda flags: parse(EvaluateConfig, flags), ["--data-dir", *TARS, "--split", "dev"]),
    (lambda flags: parse(InferenceConfig, flags), ["--query", "a dog", "--gallery", *TARS]),
    (lambda flags: parse(DatasetConfig, flags), TARS),
])
def test_an_expanded_pattern_of_shards_names_the_quotes(read, flags, capsys):
    line = complaint_of(read, flags, capsys=capsys)
    assert line.startswith("error: 4 shards stand where one pattern") and "shards/train-00003.tar" in line
    assert line.endswith('type "shards/train-{00000..00003}.tar", with quotes')


def test_the_shell_really_does_it(tmp_path):
    command = f"{sys.executable} {ROOT / 'train.py'} sample --data-dir=train-{{00000..00003}}.tar"
    process = subprocess.run(["bash", "-c", command], cwd=tmp_path, text=True, capture_output=True)
    assert process.returncode == 2 and '"train-{00000..00003}.tar", with quotes' in process.stderr


def test_one_tar_each_for_a_flag_that_may_be_repeated_is_meant():
    words = ["--gallery", "a-1.tar", "--gallery=a-2.tar"]
    assert as_meant(words, {"gallery"}) == words
    with pytest.raises(UserError, match="2 shards stand"):
        as_meant(["--gallery", "a-1.tar", "a-2.tar"], {"gallery"})


# ---------------------------------------------------------------- ~


def test_a_home_is_found_where_no_shell_has_replaced_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = parse_train(["sample", "--data-dir=~/photos", "--run-dir", "~/runs/a", "--image-encoder=local-dir:~/i",
                          "--text-encoder=~/t"]).config
    assert (config.data_dir, config.run_dir) == (Path("/home/me/photos"), Path("/home/me/runs/a"))
    assert (config.image_encoder, config.text_encoder) == ("local-dir:/home/me/i", "/home/me/t")
    flags = parse(EvaluateConfig, ["--compare", "~/a", "~/b", "--json=~/figures.json"])
    assert flags.compare == (Path("/home/me/a"), Path("/home/me/b")) and flags.json == Path("/home/me/figures.json")
    assert parse(DatasetConfig, ["~", "--output=~/x.png"]).output == Path("/home/me/x.png")


def test_a_home_is_found_in_benchmarks_as_well(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    process = run_script("benchmarks/large_library.py", "--photos=~/photos", cwd=tmp_path, check=False)
    assert f"--photos {tmp_path / 'photos'} holds no pictures" in process.stderr


def test_without_a_home_no_folder_called_so_is_made():
    code = ("import os, sys; sys.path.insert(0, sys.argv[1]); os.path.expanduser = lambda path: path\n"
            "from support.command_line import with_home\nwith_home('~/x')")
    process = subprocess.run([sys.executable, "-c", code, ROOT], text=True, capture_output=True)
    assert "UserError: ~/x: there is no home that ~ could stand for; write the path in full" in process.stderr
    with pytest.raises(UserError, match="~nobody-here/x: there is no home that ~ could stand for"):
        with_home("~nobody-here/x")
    assert with_home("~old") == "~old"  # the name of a file
    assert as_meant(["--under", "~old/*", "~3/4 view of a car"]) == ["--under", "~old/*", "~3/4 view of a car"]


def test_a_prompt_is_no_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse(InferenceConfig, ["--query", "~/x"]).query == ("~/x",)
    assert as_meant(["--labels=~"]) == ["--labels=~"]


# ---------------------------------------------------------------- bytes that are not UTF-8


def test_a_prompt_that_is_not_utf8_is_read_as_latin1_and_that_is_said(capsys):
    odd = os.fsdecode(b"d\xf6g")
    flags = parse(InferenceConfig, ["--query", odd, f"--minus={odd}", "--output", f"{odd}.png"])
    assert flags.query == flags.minus == ("dög",)
    assert flags.output == Path(f"{odd}.png")  # the name of a file is bytes
    assert capsys.readouterr().err.splitlines() == [
        "--query is not UTF-8, and is read as Latin-1: dög", "--minus is not UTF-8, and is read as Latin-1: dög"]
    assert parse(InferenceConfig, ["--labels", f"{odd},cat"]).label_names() == ["dög", "cat"]


def test_a_prompt_in_utf8_is_read_in_a_locale_without_umlauts():
    code = ("import sys; sys.path.insert(0, sys.argv.pop(1))\nfrom config import InferenceConfig, parse\n"
            "print(ascii(parse(InferenceConfig).query), sys.getfilesystemencoding())")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, ROOT, "--query", "dög"]
    process = subprocess.run(command, env=plain, text=True, capture_output=True)
    assert process.stdout.split() == [ascii(("dög",)).replace(" ", ""), "ascii"], process.stderr
    assert not process.stderr


def test_such_prompts_are_searched(workplace, sample_dir, tmp_path):
    for file in sorted((sample_dir / "Images").glob("*.jpg"))[:6]:  # of its own, for an index is left there
        shutil.copy(file, tmp_path)
    gallery = ["--gallery", tmp_path, "--no-picture"]
    for flags in (["--query", b"d\xf6g"], ["--query", "a dog", b"--minus=d\xf6g"], ["--labels", b"d\xf6g,cat"]):
        process = subprocess.run([sys.executable, ROOT / "inference.py", *flags, *gallery], cwd=workplace,
                                 text=True, capture_output=True)
        assert process.returncode == 0, process.stderr
        assert "is not UTF-8, and is read as Latin-1: d" in process.stderr


def test_names_of_classes_need_not_be_utf8(workplace, sample_dir, tmp_path):
    for name in (b"d\xf6g", b"cat"):
        folder = tmp_path / os.fsdecode(name)
        folder.mkdir()
        (folder / "a.jpg").write_bytes(next((sample_dir / "Images").iterdir()).read_bytes())
    process = run_script("evaluate.py", "--zero-shot", tmp_path, cwd=workplace, check=False)
    assert process.returncode == 0 and "d\xf6g" in process.stdout, process.stderr
