"""Shards: the format there and back, the same items as from the folder, and runs on shards end to end."""

import io
import json
import re
import shutil
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import run_as_torchrun, run_script

import evaluate
import inference
import train
from config import PRESETS, Config, EvaluateConfig, InferenceConfig
from data.make_shards import write_shards
from dataset import (
    CaptionDataset,
    epoch_draws,
    inspect_dataset,
    load_splits,
    start_epoch,
    train_transform,
    training_loader,
)
from support.errors import UserError
from support.files import file_key
from support.images import read_image
from support.run import Run
from support.stream import ShardStream
from support.tars import contents, dataset_folder, read_tar, shard_files
from support.wordpiece import train_tokenizer


@pytest.fixture(scope="module")
def pattern(tmp_path_factory, sample_dir):
    """Four train shards of 24 photos, a dev and a test shard, as --data-dir names them."""
    folder = tmp_path_factory.mktemp("sharded") / "shards"
    write_shards(sample_dir, folder, photos=24)
    return folder / "train-{00000..00003}.tar"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory, pattern):
    """The same photos under the same names, in the same order, as a dataset folder."""
    folder = tmp_path_factory.mktemp("unpacked")
    splits = load_splits(pattern)
    for split, table in splits.items():
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(table["image"].unique()))
        for name in table["image"].unique():
            (folder / "Images" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "Images" / name).write_bytes(contents(pattern.parent / name))
    lines = [f"{row.image},{row.caption}\n" for table in splits.values() for row in table.itertuples()]
    (folder / "captions.txt").write_text("image,caption\n" + "".join(lines))
    return folder


def write_members(tar, members):
    with tarfile.open(tar, "w") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def changed_copy(pattern, folder, changes):
    """A copy of the shards in which some members have other bytes, or None: {shard: {member: bytes}}."""
    folder.mkdir()
    for path in pattern.parent.glob("*.tar"):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar} | changes.get(path.name, {})
        write_members(folder / path.name, {name: data for name, data in members.items() if data is not None})
    return folder / pattern.name


def pairs_of(data_dir, size=32):
    table = load_splits(data_dir)["train"]
    tokenizer = train_tokenizer(table["caption"], 32)
    return CaptionDataset(table, tokenizer, train_transform(size, 0.75), size, 32)


def items_of(loader, epoch):
    """What an epoch shows, as a list of (pixels, token ids)."""
    start_epoch(loader, epoch)
    return items_in(loader)


def items_in(batches):
    return [(pixels.permute(1, 2, 0).numpy().tobytes(), tuple(ids[mask.bool()].tolist()))
            for batch in batches
            for pixels, (ids,), (mask,) in zip(batch.pixels, batch.input_ids, batch.attention_mask, strict=True)]


def expected_items(pairs, epoch):
    pairs.epoch = epoch
    return items_in(pairs.collate([pairs[row]]) for row in range(len(pairs)))


# ---------------------------------------------------------------- the format


def test_shards_hold_what_the_folder_held(sample_dir, pattern):
    def content(data_dir):
        return {split: sorted((contents(Path(path)), tuple(rows["caption"]))
                              for path, rows in table.groupby("path", sort=False))
                for split, table in load_splits(data_dir).items()}

    assert content(pattern) == content(sample_dir)
    with tarfile.open(pattern.parent / "train-00002.tar") as tar:
        assert tar.getnames()[:2] == ["000048.jpg", "000048.txt"] and len(tar.getnames()) == 48
        assert tar.extractfile("000048.txt").read().decode().count("\n") == 5
    assert [path.name for path in shard_files(pattern)] == [
        *(f"train-0000{number}.tar" for number in range(4)), "dev-00000.tar", "test-00000.tar"]


def test_the_converter_names_what_it_leaves_out_and_overwrites_nothing(tmp_path, sample_dir):
    source, shards = tmp_path / "source", tmp_path / "shards"
    (source / "Images" / "in a.folder").mkdir(parents=True)
    photos = sorted((sample_dir / "Images").iterdir())
    for number in range(12):
        shutil.copy(photos[number], source / "Images" / "in a.folder" / f"{number}.v1.JPG")
    (source / "Images" / "in a.folder" / "3.v1.JPG").write_bytes(b"damaged")
    names = [f"in a.folder/{number}.v1.JPG" for number in range(13)]
    (source / "captions.txt").write_text("image,caption\n" + "".join(f"{name},A  tab\there .\n" for name in names))
    made = run_script("data/make_shards.py", source, shards, "--photos", 5, cwd=tmp_path).stdout
    assert "left out: in a.folder/3.v1.JPG" in made and "left out: in a.folder/12.v1.JPG (missing)" in made
    assert f'python train.py --data-dir "{shards}/train-{{00000..00001}}.tar"' in made
    splits = load_splits(shards / "train-{00000..00001}.tar")
    assert sum(table["image"].nunique() for table in splits.values()) == 11
    assert set(splits["train"]["caption"]) == {"A tab here ."}
    with pytest.raises(UserError, match="shards exists already, and nothing in it is overwritten"):
        write_shards(source, shards)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards", "source"]


@pytest.mark.parametrize("damage, complaint", [
    (lambda source: (source / "Images").rename(source.parent / "photos"),
     "error: source: all 128 photos are missing (scene_"),
    (lambda source: remove_photos(source, "train"), "error: source: all 96 photos in train are missing (scene_"),
])
def test_the_converter_refuses_photos_that_are_not_there_in_one_line(tmp_path, sample_dir, damage, complaint):
    shutil.copytree(sample_dir, tmp_path / "source", ignore=shutil.ignore_patterns(".clip*"))
    damage(tmp_path / "source")
    before = sorted(tmp_path.rglob("*"))
    process = run_script("data/make_shards.py", "source", "shards", cwd=tmp_path, check=False)
    assert process.returncode == 2 and process.stdout == "" and complaint in process.stderr
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(r"was looked for as source/Images/scene_\d+.jpg: put the photos there, or say --image-dir", line)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_converter_refuses_train_photos_of_which_none_can_be_read(tmp_path, sample_dir):
    shutil.copytree(sample_dir, tmp_path / "source", ignore=shutil.ignore_patterns(".clip*"))
    for name in (tmp_path / "source" / "Flickr_8k.trainImages.txt").read_text().split():
        (tmp_path / "source" / "Images" / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match="needs at least 1 usable photos in train: .*unreadable, left out: 96"):
        write_shards(tmp_path / "source", tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def remove_photos(data_dir, split):
    """Remove the photos that the list of a split names."""
    for name in (data_dir / f"Flickr_8k.{split}Images.txt").read_text().split():
        (data_dir / "Images" / name).unlink()


def test_a_path_leads_into_a_tar(pattern):
    path = pattern.parent / "dev-00000.tar/000003.jpg"
    with tarfile.open(pattern.parent / "dev-00000.tar") as tar:
        assert contents(path) == tar.extractfile("000003.jpg").read()
    assert read_image(path).shape == (192, 192, 3)
    key = file_key(path, dataset_folder(pattern))
    assert key.startswith("dev-00000.tar/000003.jpg|") and "missing" not in key
    with pytest.raises(FileNotFoundError, match="no such photo in the tar: .*000099.jpg"):
        contents(pattern.parent / "dev-00000.tar/000099.jpg")


def test_tars_of_other_tools_are_read(tmp_path, sample_dir):
    """As img2dataset and plain tar write them: other suffixes, other files between, ./ before names, halves missing."""
    photo = sorted((sample_dir / "Images").iterdir())[0].read_bytes()
    write_members(tmp_path / "train.tar", {
        "./a.JPEG": photo, "./a.json": b"{}", "./a.txt": b"One .\n\n Two  two .\n", "sub.dir/b.txt": b"Three .",
        "sub.dir/b.png": photo, ".c.jpg": photo, "d.jpg": photo, "e.txt": b"Alone .", "f.jpg": photo, "f.txt": b"\n"})
    table = load_splits(tmp_path / "train.tar")["train"]
    assert list(table[["image", "caption"]].itertuples(index=False, name=None)) == [
        ("train.tar/a.JPEG", "One ."), ("train.tar/a.JPEG", "Two two ."), ("train.tar/sub.dir/b.png", "Three .")]
    report = inspect_dataset(tmp_path / "train.tar")
    assert report.missing == ["train.tar/e"] and not report.unreadable
    assert report.without_captions == ["train.tar/d.jpg", "train.tar/f.jpg"]
    assert report.duplicates == [["train.tar/a.JPEG", "train.tar/sub.dir/b.png"]]
    loader = training_loader(pairs_of(tmp_path / "train.tar"), 2)
    assert len(set(items_of(loader, 1))) == 2 and loader.dataset.skipped.sum() == 0


def test_a_tar_that_is_cut_off_gives_what_comes_before(tmp_path, pattern):
    whole = (pattern.parent / "train-00000.tar").read_bytes()
    for end in (3000, 200_000, 200_192, len(whole) // 2):
        (tmp_path / "cut.tar").write_bytes(whole[:end])
        found = read_tar(str(tmp_path / "cut.tar"), end, 0)
        assert found.fault and len(found.photos) == len(found.places) < 24
    assert read_tar(str(pattern.parent / "train-00000.tar"), len(whole), 0).fault is None
    (tmp_path / "text.tar").write_text("not a tar")
    assert read_tar(str(tmp_path / "text.tar"), 9, 0).fault


# ---------------------------------------------------------------- what --data-dir may be


def test_a_missing_shard_is_named_with_how_many(pattern):
    with pytest.raises(UserError, match=r"no shard .*train-00004.tar \(missing: 6 of 10\): mend the range in"):
        load_splits(pattern.parent / "train-{00000..00009}.tar")
    with pytest.raises(UserError, match=r"a range of shards is train-\{00000..00099\}.tar"):
        load_splits(pattern.parent / "train-{00000..00009.tar")


def test_a_command_in_place_of_a_file_is_not_run(tmp_path, pattern, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("pipe:touch owned; cat x.tar", "pipe:touch owned #.tar"):
        with pytest.raises(UserError, match="no shard"):
            load_splits(Path(command))
    shutil.copy(pattern.parent / "train-00000.tar", "pipe:touch owned #.tar")  # even as the name of a real file
    loader = training_loader(pairs_of(Path("pipe:touch owned #.tar")), 8)
    assert len(items_of(loader, 1)) == 24 and not Path("owned").exists()


def test_no_dev_shard_says_what_to_do(tmp_path, pattern):
    shutil.copy(pattern.parent / "train-00000.tar", tmp_path)
    with pytest.raises(UserError, match="at least 1 usable photos in dev: put some into dev-00000.tar beside it"):
        train.load_data(replace(PRESETS["sample"], data_dir=tmp_path / "train-00000.tar"))


def test_settings_with_a_pattern_survive_being_saved(tmp_path, pattern):
    config = replace(PRESETS["sample"], data_dir=pattern, epoch_shards=2)
    config.save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json") == config


def test_without_the_library_it_says_what_to_install(pattern, monkeypatch):
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    with pytest.raises(UserError, match=r'type pip install -e "\.\[scale\]"'):
        load_splits(pattern)


# ---------------------------------------------------------------- the stream


def test_an_epoch_shows_each_photo_once_as_the_folder_would(pattern, unpacked):
    expected = sorted(expected_items(pairs_of(unpacked), 3))
    for workers in (0, 2, 5):  # five workers, four shards: some share one
        loader = training_loader(pairs_of(pattern), 8, workers)
        assert len(loader) == 12
        shown = items_of(loader, 3)
        assert sorted(shown) == expected and shown != expected
        assert items_of(loader, 3) == shown
    assert items_of(loader, 4) != shown


def test_processes_share_the_shards_and_make_equal_steps(pattern, unpacked, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    pairs, shares = pairs_of(pattern), []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        loader = training_loader(pairs, 16, workers=rank)
        assert len(loader) == 6 and loader.batch_size == 8
        shares.append(items_of(loader, 1))
    assert [len(share) for share in shares] == [48, 48]
    assert sorted(shares[0] + shares[1]) == sorted(expected_items(pairs_of(unpacked), 1))

    three = pairs_of(pattern.parent / "train-{00000..00002}.tar")  # the second of them is shared
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        shares[rank] = items_of(training_loader(three, 20, workers=9), 1)
    assert [len(share) for share in shares] == [30, 30] and len(set(shares[0] + shares[1])) == 60


def test_every_photo_has_its_turn_in_the_last_batch(pattern):
    one = pairs_of(pattern.parent / "train-00000.tar")
    stream, turns = ShardStream(one, 20), set()
    for stream.epoch in range(1, 40):
        reads = stream.stretch(0, 1)
        assert sum(end - first for _, first, end in reads) == 20
        turns |= {place for _, first, end in reads for place in range(first, end)}
    assert len(turns) == 24


def test_shards_of_unequal_size_make_epochs_of_equal_length(tmp_path, pattern, unpacked):
    with tarfile.open(pattern.parent / "train-00000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    names = list(members)
    for number, (start, end) in enumerate(((0, 4), (4, 18), (18, 48))):  # 2, 7 and 15 photos
        write_members(tmp_path / f"train-{number}.tar", {name: members[name] for name in names[start:end]})
    loader = training_loader(pairs_of(tmp_path / "train-{0..2}.tar"), 4, 2, epoch_shards=1)
    assert len(loader) == 2 and [len(items_of(loader, epoch)) for epoch in range(1, 7)] == [8] * 6


def test_epochs_go_round_all_shards_before_one_comes_again(pattern):
    stream = ShardStream(pairs_of(pattern), 8, epoch_shards=1)
    rounds = []
    for epoch in range(1, 13):
        stream.epoch = epoch
        rounds += stream.shards_of_epoch()
    assert all(len(set(rounds[start : start + 4])) == 4 for start in (0, 4, 8))
    assert len({tuple(rounds[start : start + 4]) for start in (0, 4, 8)}) > 1
    assert len(stream) == 24
    row = []
    for epoch in range(1, 9):  # epochs of three go across the ends of rounds, and show no shard twice all the same
        stream.shards_an_epoch, stream.epoch = 3, epoch
        row += stream.shards_of_epoch()
        assert len(set(row[-3:])) == 3
    assert all(len(set(row[start : start + 4])) == 4 for start in range(0, 24, 4))


def test_another_seed_draws_other_captions_crops_and_shards(pattern):
    table = load_splits(pattern)["train"]
    tokenizer = train_tokenizer(table["caption"], 32)
    shown = []
    for seed in (0, 1):
        pairs = CaptionDataset(table, tokenizer, train_transform(32, 0.5), 32, 32, seed)
        stream = ShardStream(pairs, 8)
        stream.epoch = 1
        shards = [stream.shards_of_epoch(), stream.stretch(0, 1)]
        shown.append((items_in([pairs.collate([pairs[0]])]), epoch_draws(seed, 1, len(pairs)).tolist(), shards))
    assert all(one != other for one, other in zip(*shown, strict=True))


def test_bad_samples_are_counted_by_all_workers_and_the_batches_stay_full(tmp_path, pattern, capfd):
    data_dir = changed_copy(pattern, tmp_path / "bad", {
        "train-00000.tar": {"000002.jpg": b"damaged"}, "train-00001.tar": {"000030.jpg": b""},
        "train-00002.tar": {"000050.jpg": None, "000051.txt": None}})
    torn = data_dir.parent / "train-00003.tar"
    torn.write_bytes(torn.read_bytes()[:200_000])
    pairs = pairs_of(data_dir)
    assert 80 < len(pairs) < 94  # two halves of samples and the end of the torn shard have no row
    for workers in (0, 2):
        loader = training_loader(pairs, 1, workers)
        for epoch in (1, 2):
            assert len(items_of(loader, epoch)) == len(pairs)
            assert loader.dataset.skipped[0].sum() == 3
        assert loader.dataset.skipped[1].sum() == 6
    errors = capfd.readouterr().err
    assert "train-00000.tar/000002.jpg: not a picture" in errors and "train-00003.tar: " in errors
    report = inspect_dataset(data_dir, open_train_photos=False)
    assert set(report.unreadable) == {"train-00003.tar"} and report.missing == ["train-00002.tar/000050"]


def test_shards_without_one_sound_photo_end_the_run(tmp_path, pattern):
    bad = {f"{number:06}.jpg": b"bad" for number in range(24)}
    data_dir = changed_copy(pattern, tmp_path / "bad", {"train-00000.tar": bad})
    with pytest.raises(UserError, match="no photo of .*train-00000.tar can be read"):
        items_of(training_loader(pairs_of(data_dir.parent / "train-00000.tar"), 8), 1)


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def calm(tmp_path_factory, tower_flags):
    """Settings of a run whose figures do not depend on the order in a batch: no dropout, one batch an epoch."""
    text = tmp_path_factory.mktemp("calm") / "text"
    shutil.copytree(tower_flags["text_encoder"], text)
    settings = json.loads((text / "config.json").read_text())
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (text / "config.json").write_text(json.dumps(settings))
    calm = {"image_dropout": 0.0, "text_dropout": 0.0, "head_dropout": 0.0, "precision": "fp32"}
    return {"image_encoder": tower_flags["image_encoder"], "text_encoder": str(text), **calm, "batch_size": 96,
            "epochs": 2, "heads_first": 0, "workers": 2, "max_tokens": 32}


def rows_of(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_alike(rows, expected):
    """Equal but for the order of sums; epoch 0 is the heads alone, on features of photos that a path leads to."""
    assert [row.get("skipped") for row in rows] == [None, 0, 0] and len(expected) == 3
    for row, other in zip(rows, expected, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], abs=1e-4)
        assert row["text_to_image"] == other["text_to_image"] and row["image_to_text"] == other["image_to_text"]


def test_training_from_shards_is_training_from_the_folder(tmp_path, pattern, unpacked, calm, monkeypatch, capsys):
    """By the real command in one process and in two; then evaluation and search by the model that was trained."""
    calm = {**calm, "heads_first": 6}
    train.main(replace(PRESETS["flickr8k"], data_dir=unpacked, run_dir=tmp_path / "runs" / "folder", **calm), "")
    expected = rows_of(tmp_path / "runs" / "folder")
    flags = [word for name, value in calm.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    flags = ["flickr8k", "--data-dir", str(pattern), *flags]
    output = run_script("train.py", *flags, "--run-dir", "runs/one", cwd=tmp_path).stdout
    assert f"{pattern}: 640 captions; photos: train 96, dev 16, test 16" in output
    assert_alike(rows_of(tmp_path / "runs" / "one"), expected)
    for process in run_as_torchrun(2, "train.py", *flags, "--run-dir", "runs/two", cwd=tmp_path):
        assert process.returncode == 0, process.stderr
    assert_alike(rows_of(tmp_path / "runs" / "two"), expected)
    assert not list((pattern.parent / ".clip-cache").glob("train-*")), "photos that are streamed are not kept as well"
    assert list((pattern.parent / ".clip-cache").glob("dev-*.rgb")), "those of dev are decoded once"

    monkeypatch.chdir(tmp_path)
    evaluate.main(EvaluateConfig(checkpoint=Path("runs/one"), json=Path("figures.json"), workers=0))
    assert json.loads(Path("figures.json").read_text())["images"] == 16
    for known in (False, True):
        capsys.readouterr()
        inference.main(InferenceConfig(checkpoint=Path("runs/one"), query=("a dog",), top_k=3, json=True, workers=0))
        printed = capsys.readouterr()
        assert ("all known from the index" in printed.err) is known
        found = json.loads(printed.out)["matches"]
        assert len(found) == 3 and all(f"{pattern.parent}/test-00000.tar/" in match["file"] for match in found)
    assert (pattern.parent / ".clip-index-test.safetensors").is_file()
    example = Path(found[0]["file"])
    inference.main(InferenceConfig(checkpoint=Path("runs/one"), image=example, top_k=1, json=True, workers=0))
    assert json.loads(capsys.readouterr().out)["matches"][0]["file"] == str(example)


def test_a_run_goes_on_with_the_next_shards(tmp_path, pattern, calm, monkeypatch):
    config = replace(PRESETS["flickr8k"], data_dir=pattern, **calm)
    config = replace(config, epochs=2, epoch_shards=2, batch_size=16, workers=0, image_dropout=0.4)
    train.main(replace(config, run_dir=tmp_path / "whole"), "")
    keep, config = Run.keep, replace(config, run_dir=tmp_path / "stopped")

    def stop(*arguments):
        keep(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
        patched.setattr(Run, "keep", stop)
        train.main(config, "")
    assert ended.value.code == 130
    assert len(rows_of(tmp_path / "stopped")) == 1
    saved = Config.load(config.run_dir / "last" / "config.json")
    train.main(replace(saved, run_dir=config.run_dir, resume=True), "")
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")


def test_heads_first_leave_bad_photos_out_and_a_stream_skips_them(tmp_path, pattern, calm, capsys):
    data_dir = changed_copy(pattern, tmp_path / "bad", {"train-00000.tar": {"000002.jpg": b"damaged"}})
    config = replace(PRESETS["flickr8k"], data_dir=data_dir, **{**calm, "workers": 0, "epochs": 1, "batch_size": 16})
    train.main(replace(config, heads_first=1, run_dir=tmp_path / "heads"), "")
    printed = capsys.readouterr().out
    assert "train 95" in printed and "unreadable, left out: 1" in printed
    assert [row.get("skipped") for row in rows_of(tmp_path / "heads")] == [None, 0]
    train.main(replace(config, run_dir=tmp_path / "stream"), "")
    assert "1 bad samples skipped" in capsys.readouterr().out
    assert rows_of(tmp_path / "stream")[0]["skipped"] == 1
