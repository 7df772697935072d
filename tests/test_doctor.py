"""The doctor: what captions and photos say about training on them, each finding worked out by hand."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from conftest import run_script, save_text_tower
from PIL import Image, ImageEnhance
from transformers import AutoTokenizer

from config import Config, DatasetConfig
from dataset import load_usable_splits
from support.data_report import DataReport
from support.doctor import (
    MOST_TOKENS,
    equal_pairs_in_a_batch,
    findings_on_equal_captions,
    findings_on_sizes,
    findings_on_the_batch,
    findings_on_tokens,
)
from support.errors import UserError
from support.looks import ALIKE, look_of_picture
from support.wordpiece import train_tokenizer


def table_of(captions_of_photos):
    """The captions table of photos called 0, 1, 2, …, from a list of captions for each."""
    rows = [(str(photo), caption) for photo, captions in enumerate(captions_of_photos) for caption in captions]
    return pd.DataFrame(rows, columns=["image", "caption"])


# ---------------------------------------------------------------- equal captions


def test_equal_pairs_of_a_batch_are_counted_as_by_drawing():
    """Photos 0 and 1 share one of two captions each: 1/4 of all draws; photos 2 and 3 have but one caption: always."""
    table = table_of([["a", "b"], ["a", "c"], ["d"], ["d"]])
    assert equal_pairs_in_a_batch(table, 4) == pytest.approx(1 / 4 + 1)
    assert equal_pairs_in_a_batch(table, 2) == pytest.approx((1 / 4 + 1) / 6)  # one of six pairs
    assert equal_pairs_in_a_batch(table, 256) == pytest.approx(1 / 4 + 1)  # a batch holds no more than there are
    drawn = np.random.default_rng(0)
    equal = 0
    for _ in range(4000):
        first, second = drawn.choice(4, 2, replace=False)
        captions = [["a", "b"], ["a", "c"], ["d"], ["d"]]
        equal += drawn.choice(captions[first]) == drawn.choice(captions[second])
    assert equal / 4000 == pytest.approx(equal_pairs_in_a_batch(table, 2), abs=0.03)


def test_captions_that_photos_share_are_told_before_the_loss_is():
    (line,) = findings_on_equal_captions(table_of([["A dog runs"]] * 50 + [["a dog runs"]] * 50 + [["Snow"]]), 101)
    pairs = 100 * 99 // 2
    assert f"{pairs:,} pairs of an average batch of 101 are equal" in line
    assert "('a dog runs' is of 100 photos)" in line and "--linear-probe" in line
    assert findings_on_equal_captions(table_of([[f"caption {photo}"] for photo in range(500)]), 256) == []
    with pytest.raises(UserError, match="all photos have the same caption, 'a dog runs': there is nothing to tell"):
        findings_on_equal_captions(table_of([["A dog runs"]] * 100), 32)


def test_training_on_one_caption_for_all_photos_stops_before_the_first_step(tmp_path, sample_dir):
    names = sorted(path.name for path in (sample_dir / "Images").iterdir())[:30]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "Images").symlink_to(sample_dir / "Images")
    lines = "".join(f"{name},a dog runs\n" for name in names)
    (tmp_path / "data" / "captions.txt").write_text("image,caption\n" + lines)
    process = run_script("train.py", "sample", "--data-dir", "data", cwd=tmp_path, check=False)
    assert process.returncode == 2 and "all photos have the same caption, 'a dog runs'" in process.stderr


def test_a_batch_of_more_photos_than_there_are():
    table = table_of([["a", "b"]] * 40)
    assert findings_on_the_batch(table, 40) == []
    (line,) = findings_on_the_batch(table, 41)
    assert "--batch-size 41 is more than the 40 of train" in line and "--batch-size 10 makes several steps" in line


# ---------------------------------------------------------------- captions and the text tower


def test_captions_that_are_cut_are_counted(tmp_path):
    captions = ["a dog", "a dog a dog a dog", "a dog a dog"]
    tokenizer = train_tokenizer(captions, 64)  # a word is a token; start and end are two more
    (line,) = findings_on_tokens(captions, tokenizer, 5)
    assert line.startswith("captions longer than 5 tokens: 2 of 3 are cut, the longest has 8: --max-tokens 8 reads all")
    assert findings_on_tokens(captions, tokenizer, 8) == []
    tokenizer.model_max_length = 5
    assert "the text tower reads no more" in findings_on_tokens(captions, tokenizer, 5)[0]
    assert "--max-tokens 8 reads all" in findings_on_tokens(captions, tokenizer, 5, is_scratch=True)[0]


@pytest.mark.parametrize("is_scratch", [False, True])
def test_no_more_tokens_are_advised_than_the_flag_takes(is_scratch):
    captions = ["a dog " * 2100, "a dog"]
    tokenizer = train_tokenizer(captions, 10_000)
    (line,) = findings_on_tokens(captions, tokenizer, 64, is_scratch)
    assert line.endswith(f"the longest has 4,202: --max-tokens {MOST_TOKENS} reads more")
    (line,) = findings_on_tokens(captions, tokenizer, MOST_TOKENS, is_scratch)
    assert line.endswith("the longest has 4,202: the text tower reads no more")
    for kind in (Config, DatasetConfig):
        assert kind(max_tokens=MOST_TOKENS)
        with pytest.raises(UserError, match="--max-tokens"):
            kind(max_tokens=MOST_TOKENS + 1)


def test_captions_in_a_language_that_the_tower_does_not_know(tmp_path):
    english = ["Two people sit near the beach .", "A dog runs through the water ."]
    save_text_tower(tmp_path, english)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert findings_on_tokens(english, tokenizer, 32) == []
    (line,) = findings_on_tokens(["Два человека сидят у моря ."], tokenizer, 32)
    assert "does not know: 83% of all tokens" in line and "distilbert-base-multilingual-cased" in line
    (line,) = findings_on_tokens(["sierra arnes rot"], train_tokenizer(["s i e r a n o t", *english], 32), 32)
    assert "only in pieces: " in line and "--text-encoder scratch" in line


# ---------------------------------------------------------------- photos


def test_photos_smaller_than_what_the_tower_sees():
    (line,) = findings_on_sizes(DataReport(sizes=Counter({(28, 28): 60, (640, 480): 40})), 224)
    assert "60 of 100 (most have 28 x 28): --image-size 32" in line
    (line,) = findings_on_sizes(DataReport(sizes=Counter({(28, 28): 30, (60, 64): 31, (640, 480): 39})), 224)
    assert "61 of 100 (most have 60 x 64): --image-size 64" in line
    assert findings_on_sizes(DataReport(sizes=Counter({(28, 28): 40, (640, 480): 60})), 224) == []
    assert findings_on_sizes(DataReport(sizes=Counter({(220, 220): 100})), 224) == []


def photo_of(seed, size=(160, 120)):
    """A picture of large coloured fields, like no other."""
    fields = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(fields).resize(size, Image.Resampling.BICUBIC)


def test_looks_are_alike_of_one_photo_saved_otherwise_and_of_no_other():
    look = look_of_picture(np.array(photo_of(0))).astype(np.float32)
    assert np.linalg.norm(look) == pytest.approx(1, abs=1e-3)
    brighter = ImageEnhance.Brightness(photo_of(0, (640, 480))).enhance(1.2)
    assert look @ look_of_picture(np.array(brighter)) > ALIKE
    assert all(look @ look_of_picture(np.array(photo_of(seed))) < 0.8 for seed in range(1, 30))
    assert not look_of_picture(np.full((20, 30, 3), 90, np.uint8)).any()


def test_a_split_that_separates_photos_that_look_the_same_is_told(tmp_path):
    (tmp_path / "Images").mkdir()
    names = [f"{number:02}.png" for number in range(20)]
    for number, name in enumerate(names):
        photo_of(number).save(tmp_path / "Images" / name)
    photo_of(3, (320, 240)).save(tmp_path / "Images" / "19.png")  # of dev; its like is in train
    (tmp_path / "captions.txt").write_text("image,caption\n" + "".join(f"{name},about {name}\n" for name in names))
    for split, some in (("train", names[:16]), ("dev", names[16:])):
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text("\n".join(some))
    _, report = load_usable_splits(tmp_path)
    assert report.leaks == [("19.png", "03.png")] and report.alike == 0
    assert any("flatters recall: 1 (19.png (dev) and 03.png (train))" in line for line in report.lines)


def test_photos_that_are_nearly_all_alike_are_told(tmp_path):
    (tmp_path / "Images").mkdir()
    names = [f"{number:02}.png" for number in range(20)]
    for number, name in enumerate(names):
        photo_of(number % 2, (160 + number, 120)).save(tmp_path / "Images" / name)  # frames of two films
    (tmp_path / "captions.txt").write_text("image,caption\n" + "".join(f"{name},about {name}\n" for name in names))
    _, report = load_usable_splits(tmp_path)
    assert report.alike == 1
    assert any("look alike: 100% of the train photos" in line for line in report.lines)
    assert report.sizes == Counter({(160 + number, 120): 1 for number in range(20)})


# ---------------------------------------------------------------- the command


def test_the_report_counts_captions_that_training_would_cut(tmp_path, sample_dir):
    """The tower is made for 32 tokens, fewer than --max-tokens."""
    save_text_tower(tmp_path / "tower", ["a dog runs"])
    names = sorted(path.name for path in (sample_dir / "Images").iterdir())[:30]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "Images").symlink_to(sample_dir / "Images")
    lines = "".join(f"{name},{number} {'a dog ' * 20}\n" for number, name in enumerate(names))  # 43 tokens each
    (tmp_path / "data" / "captions.txt").write_text("image,caption\n" + lines)
    said = run_script("dataset.py", "data", "--text-encoder", "tower", cwd=tmp_path).stdout
    assert "captions longer than 32 tokens: 24 of 24 are cut" in said and "the text tower reads no more" in said


def test_the_report_without_training(tmp_path, sample_dir):
    process = run_script("dataset.py", sample_dir, "--batch-size", 32, cwd=tmp_path)
    assert process.stdout.startswith(f"reading {sample_dir}/captions.txt as CSV with the columns image and caption")
    assert "photos: train 96, dev 16, test 16, all of 192 x 192 pixels" in process.stdout
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size == (1600, 1000)
    process = run_script("dataset.py", sample_dir, "--output", "report.txt", cwd=tmp_path, check=False)
    assert process.returncode == 2 and "it must be a name that ends in .png" in process.stderr
    process = run_script("dataset.py", sample_dir, "--image-size", 0, cwd=tmp_path, check=False)
    assert process.returncode == 2 and "--image-size 0 cannot be" in process.stderr
    photo = next((sample_dir / "Images").iterdir())
    before = photo.read_bytes()
    process = run_script("dataset.py", sample_dir, "--output", photo, cwd=tmp_path, check=False)
    assert process.returncode == 2 and "is a photo of the dataset" in process.stderr and photo.read_bytes() == before
    process = run_script("dataset.py", "nowhere", cwd=tmp_path, check=False)
    assert process.returncode == 2 and "there is no dataset folder nowhere" in process.stderr
