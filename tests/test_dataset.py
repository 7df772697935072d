"""dataset.py: captions of every kind, splits without leakage, sound photos, and one fresh caption an epoch."""

import os
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dataset import (
    CaptionDataset,
    Precomputed,
    draw_splits,
    epoch_draws,
    image_loader,
    inspect_dataset,
    load_splits,
    load_usable_splits,
    pad,
    read_captions,
    read_square,
    split_table,
    start_epoch,
    tokenize,
    train_transform,
    training_loader,
)
from support.errors import UserError
from support.images import read_image
from support.kept import DecodedPhotos
from support.wordpiece import train_tokenizer


def rows(directory, text, name="captions.txt"):
    """The (image, caption) rows that are read from a captions file with this text or these bytes."""
    (directory / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return [tuple(row) for row in read_captions(directory)[["image", "caption"]].itertuples(index=False)]


# ---------------------------------------------------------------- captions


def test_csv_captions_are_text_whatever_they_hold(tmp_path):
    assert rows(tmp_path, (
        "image,caption\n"
        'a.jpg,"A dog , a cat , and a ""big"" bird ."\n'
        "a.jpg,None\nb.jpg,NA\nb.jpg,nan\nc.jpg,007\nc.jpg,Ein Mädchen läuft 🏃 .\n"
    )) == [
        ("a.jpg", 'A dog , a cat , and a "big" bird .'),
        ("a.jpg", "None"), ("b.jpg", "NA"), ("b.jpg", "nan"), ("c.jpg", "007"), ("c.jpg", "Ein Mädchen läuft 🏃 ."),
    ]


def test_csv_with_byte_order_mark_and_windows_line_ends(tmp_path):
    assert rows(tmp_path, b"\xef\xbb\xbfimage,caption\r\na.jpg,One .\r\n\r\nb.jpg,Two .\r\n") == [
        ("a.jpg", "One ."), ("b.jpg", "Two .")]


def test_commas_without_quotes_stay_in_the_caption(tmp_path):
    assert rows(tmp_path, "image,caption\na.jpg,A dog, running, fast\n") == [("a.jpg", "A dog, running, fast")]


def test_quotes_inside_an_unquoted_caption_stay(tmp_path):
    assert rows(tmp_path, 'image,caption\na.jpg,A "big" dog\n') == [("a.jpg", 'A "big" dog')]


def test_empty_captions_are_left_out(tmp_path):
    assert rows(tmp_path, "image,caption\na.jpg,\na.jpg,A dog\n") == [("a.jpg", "A dog")]


def test_original_token_file(tmp_path):
    text = "a.jpg#0\tA dog , running .\r\na.jpg#1\tNA\n\nb.jpg.1#0\ta # sign\n"
    assert rows(tmp_path, text, "Flickr8k.token.txt") == [
        ("a.jpg", "A dog , running ."), ("a.jpg", "NA"), ("b.jpg.1", "a # sign")]


def test_csv_is_preferred_to_the_token_file(tmp_path):
    (tmp_path / "Flickr8k.token.txt").write_text("b.jpg#0\tTwo\n")
    assert rows(tmp_path, "image,caption\na.jpg,One\n") == [("a.jpg", "One")]


@pytest.mark.parametrize("text, complaint", [
    ("number,words\na.jpg,One\n", "captions.txt line 1 names no image and no caption column: 'number,words'"),
    ("a.jpg,One\n", "line 1 names no image and no caption column.*expected captions.txt with the header image,caption"),
    ("image,caption\na.jpg,One\nb.jpg\n", "line 3: no comma between image and caption: 'b.jpg'"),
    ('image,caption\na.jpg,"One\nb.jpg,Two\n', "line 2: a quote opens here and never closes"),
    ('image,caption\na.jpg,One\nb.jpg,"Two\nc.jpg,Three\nd.jpg,"\n', "line 3: a quote opens here .* line 5"),
    ('image,caption\na.jpg,"Stop" sign\n', "line 2: .*inside quotes, write a quote twice"),
    ("image,caption\n/etc/passwd,One\n", "line 2: '/etc/passwd' must be a file name inside"),
    ("image,caption\na.jpg,One\n../a.jpg,One\n", "line 3: '../a.jpg' must be a file name inside"),
    ("image,caption\n,One\n", "line 2: '' must be a file name inside"),
    ("image,caption\n", "holds no captions"),
    (b"image,caption\na.jpg,caf\xe9\n", "line 2: not UTF-8 text .* at byte"),
])
def test_a_bad_row_is_named_by_file_and_line(tmp_path, text, complaint):
    with pytest.raises(UserError, match=complaint):
        rows(tmp_path, text)


def test_a_bad_token_row_is_named_by_line(tmp_path):
    with pytest.raises(UserError, match="Flickr8k.token.txt line 2: expected name#0<TAB>caption"):
        rows(tmp_path, "a.jpg#0\tOne\na.jpg A dog\n", "Flickr8k.token.txt")


def test_a_folder_without_captions_says_what_is_looked_for(tmp_path):
    with pytest.raises(UserError, match="has no captions: expected captions.txt with the header"):
        read_captions(tmp_path)
    with pytest.raises(UserError, match="nowhere: .* --data-dir DIR"):
        read_captions(tmp_path / "nowhere")


@pytest.mark.parametrize("folder, command", [
    ("data/flickr8k", "python data/download_flickr8k.py"), ("data/sample", "python data/sample_scenes.py")])
def test_a_known_folder_that_is_missing_says_what_makes_it(tmp_path, monkeypatch, folder, command):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"type {command}"):
        read_captions(folder)


# ---------------------------------------------------------------- splits


def write_dataset(directory, lists, images=("a.jpg", "b.jpg", "c.jpg", "d.jpg")):
    (directory / "Images").mkdir(exist_ok=True)
    for name in images:
        (directory / "Images" / name).touch()
    captions = "".join(f"{name},First of {name}\n{name},Second of {name}\n" for name in images)
    (directory / "captions.txt").write_text("image,caption\n" + captions)
    for split, names in lists.items():
        (directory / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names) + "\n")


def test_official_lists_are_followed_and_unlisted_photos_left_out(tmp_path):
    write_dataset(tmp_path, {"train": ["b.jpg"], "dev": ["a.jpg"]})
    splits = load_splits(tmp_path)
    assert {split: list(table["image"]) for split, table in splits.items()} == {
        "train": ["b.jpg", "b.jpg"], "dev": ["a.jpg", "a.jpg"]}
    with pytest.raises(UserError, match="no test photos.*--split train or --split dev"):
        split_table(tmp_path, "test")


def test_photos_that_are_not_there_are_told_from_a_split_that_is_empty(tmp_path):
    write_dataset(tmp_path, {"train": ["b.jpg"], "dev": ["a.jpg"], "test": ["c.jpg", "d.jpg"]})
    for name in ("c.jpg", "d.jpg"):
        (tmp_path / "Images" / name).unlink()
    wanted = rf"all 2 photos in test are missing \(c.jpg, d.jpg\): c.jpg was looked for as {tmp_path}/Images/c.jpg"
    remedy = rf": put the photos there, or say --data-dir {tmp_path} --image-dir DIR"
    with pytest.raises(UserError, match=wanted + remedy):
        split_table(tmp_path, "test")
    assert len(split_table(tmp_path, "dev")) == 2

    for path in tmp_path.glob("Flickr_8k.*"):  # now splits are those of a run, or drawn of the photos that are there
        path.unlink()
    held_out = {"dev": ["a.jpg"], "test": ["c.jpg", "d.jpg", "gone.jpg"]}
    with pytest.raises(UserError, match=wanted + remedy):
        split_table(tmp_path, "test", held_out=held_out)
    shutil.rmtree(tmp_path / "Images")
    wanted = r"all 4 photos are missing \(a.jpg, .*: a.jpg was looked for as .*"
    for names in (None, held_out):
        with pytest.raises(UserError, match=wanted + remedy):
            split_table(tmp_path, "test", held_out=names)


def test_a_list_that_is_not_utf8_is_named(tmp_path):
    write_dataset(tmp_path, {"train": ["a.jpg"]})
    (tmp_path / "Flickr_8k.devImages.txt").write_bytes(b"caf\xe9.jpg\n")
    with pytest.raises(UserError, match="Flickr_8k.devImages.txt line 1: not UTF-8"):
        load_splits(tmp_path)


def test_names_with_spaces_in_the_lists(tmp_path):
    write_dataset(tmp_path, {"train": ["my dog.jpg"], "dev": ["b.jpg"]}, ["my dog.jpg", "b.jpg"])
    assert set(load_splits(tmp_path)["train"]["image"]) == {"my dog.jpg"}


def test_a_photo_in_two_splits_is_kept_out_of_train(tmp_path):
    write_dataset(tmp_path, {"train": ["a.jpg", "b.jpg", "c.jpg"], "dev": ["b.jpg"], "test": ["c.jpg", "d.jpg"]})
    splits = load_splits(tmp_path)
    assert set(splits["train"]["image"]) == {"a.jpg"} and set(splits["dev"]["image"]) == {"b.jpg"}


def test_without_lists_a_seeded_split_by_image():
    names = [f"{number}.jpg" for number in range(200)]
    splits = draw_splits(np.repeat(names, 5), split_seed=0)
    assert {split: len(images) for split, images in splits.items()} == {"train": 160, "dev": 20, "test": 20}
    assert sorted(splits["train"] + splits["dev"] + splits["test"]) == sorted(names)  # each image in one split
    assert splits == draw_splits(names[::-1], split_seed=0)  # whatever the order of the file
    assert splits["dev"] != draw_splits(names, split_seed=1)["dev"]


def test_a_tiny_dataset_still_gets_every_split():
    splits = draw_splits(["a.jpg", "b.jpg", "c.jpg"])
    assert all(len(images) == 1 for images in splits.values())


# ---------------------------------------------------------------- photos


@pytest.fixture
def photos(tmp_path, sample_dir):
    """A dataset folder with one sound photo, its copy, and photos that are damaged each in its own way."""
    images = tmp_path / "Images"
    images.mkdir()
    sound = sorted((sample_dir / "Images").iterdir())[0].read_bytes()
    (images / "sound.jpg").write_bytes(sound)
    (images / "copy.jpg").write_bytes(sound)
    (images / "truncated.jpg").write_bytes(sound[: len(sound) // 2])
    (images / "empty.jpg").write_bytes(b"")
    (images / "text.jpg").write_text("not a picture")
    return tmp_path


def test_a_missing_photo_takes_no_place_in_a_split_by_chance(tmp_path):
    names = [f"{number}.jpg" for number in range(10)]
    write_dataset(tmp_path, {}, names)
    for missing in names:
        (tmp_path / "Images" / missing).unlink()
        splits = load_splits(tmp_path)
        assert {split: table["image"].nunique() for split, table in splits.items()} == {"train": 7, "dev": 1, "test": 1}
        assert not any(missing in set(table["image"]) for table in splits.values())
        (tmp_path / "Images" / missing).touch()


def test_inspection_finds_what_is_not_as_it_should_be(photos):
    write_dataset(photos, {"train": ["sound.jpg", "truncated.jpg", "empty.jpg", "missing.jpg", "told.jpg"],
                           "dev": ["copy.jpg", "text.jpg", "sound.jpg"]},
                  ["sound.jpg", "copy.jpg", "truncated.jpg", "empty.jpg", "text.jpg", "missing.jpg", "in no list.jpg"])
    (photos / "Images" / "missing.jpg").unlink()
    report = inspect_dataset(photos)
    assert report.missing == ["missing.jpg"]
    assert set(report.unreadable) == {"truncated.jpg", "empty.jpg", "text.jpg"}
    assert "truncated" in report.unreadable["truncated.jpg"]
    assert report.duplicates == [["copy.jpg", "sound.jpg"]]
    assert report.in_two_splits == ["sound.jpg"]
    assert report.without_captions == ["told.jpg"]
    assert report.in_no_split == ["in no list.jpg"]


def test_read_image_gives_upright_rgb(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = (255, 0, 0)  # the left half is red
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that this must be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png")
    assert turned.shape == (60, 40, 3) and turned.dtype == np.uint8 and turned.flags.writeable
    assert (turned[:30] == (255, 0, 0)).all() and (turned[30:] == 0).all()  # what was left is on top


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_read_image_takes_every_colour_mode(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode).save(path)
    assert (read_image(path) == 255).all() and read_image(path).shape == (6, 8, 3)


@pytest.mark.parametrize("dtype, mode", [(np.uint16, "I;16"), (np.int32, "I"), (np.float32, "F")])
def test_more_than_eight_bits_are_scaled_not_clipped(tmp_path, dtype, mode):
    ramp = np.tile(np.linspace(0, 60000, 256), (4, 1)).astype(dtype)
    Image.fromarray(ramp).save(tmp_path / "deep.tiff")
    assert Image.open(tmp_path / "deep.tiff").mode == mode
    pixels = read_image(tmp_path / "deep.tiff")
    assert np.abs(pixels[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_transparency_becomes_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()


def test_image_loader_gives_reasons_instead_of_broken_pixels(photos):
    paths = [photos / "Images" / name for name in ("text.jpg", "sound.jpg", "empty.jpg", "missing.jpg")]
    pixels, good, bad = next(iter(image_loader(paths, 48, batch_size=4)))
    assert pixels.shape == (1, 3, 48, 48) and pixels.dtype == torch.uint8 and good == [1]
    assert set(bad) == {0, 2, 3} and all(str(paths[place]) in str(error) for place, error in bad.items())
    assert [bad[place].errno is None for place in (0, 2, 3)] == [True, True, False]  # content, content, a missing file


def test_the_whole_photo_is_squeezed_into_the_square(tmp_path):
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, :6] = 255  # a stripe at the edge, which a centre crop would cut away
    Image.fromarray(image).save(tmp_path / "stripe.png")
    squeezed = read_square(tmp_path / "stripe.png", 50)
    assert squeezed.shape == (50, 50, 3) and (squeezed[:, 0] > 200).all() and (squeezed[:, 5:] == 0).all()


def test_photos_are_not_mirrored_unless_asked_for():
    left = np.zeros((64, 64, 3), np.uint8)
    left[:, :32] = 255

    def brighter_sides(flip):
        transform = train_transform(64, crop_scale=0.75, flip=flip)
        sides = set()
        for seed in range(30):
            transform.set_random_seed(seed)
            image = transform(image=left)["image"]
            assert image.mean() > 64  # a crop of three quarters or more never loses the bright half
            sides.add("left" if image[:, :10].mean() > image[:, -10:].mean() else "right")
        return sides

    assert brighter_sides(flip=False) == {"left"}
    assert brighter_sides(flip=True) == {"left", "right"}


# ---------------------------------------------------------------- pairs and batches


def pairs_of(directory, seed=0, size=32, captions_per_photo=1):
    table = load_splits(directory)["train"]
    tokenizer = train_tokenizer(table["caption"], max_tokens=64)
    transform = train_transform(size, 0.75)
    pairs = CaptionDataset(
        table, tokenizer, transform, size, 64, seed, captions_per_photo=captions_per_photo
    )
    return pairs, table, tokenizer


def batches_of(pairs, epoch, workers=0):
    loader = training_loader(pairs, 32, workers)
    start_epoch(loader, epoch)
    return list(loader)


def equal(first, second):
    """Whether batches are the same: pixels, tokens and the rows of their photos."""
    return len(first) == len(second) and all(
        a.shape == b.shape and (a == b).all() for one, other in zip(first, second, strict=True)
        for a, b in zip(one[:4], other[:4], strict=True))


def test_an_epoch_shows_each_photo_once_with_one_of_its_captions(sample_dir):
    pairs, table, tokenizer = pairs_of(sample_dir)
    assert len(pairs) == 96
    captions_of = table.groupby("image")["caption"].apply(set)
    for index in range(len(pairs)):
        item = pairs[index]
        theirs = captions_of[pairs.photos.paths[index].name]
        (text,) = item.texts
        assert item.photo_row == index and text in tokenize(tokenizer, theirs, 64)
    batches = batches_of(pairs, epoch=1)
    assert [len(batch.pixels) for batch in batches] == [32, 32, 32]
    assert batches[0].pixels.shape == (32, 3, 32, 32) and batches[0].pixels.dtype == torch.uint8
    assert batches[0].image_features is None and batches[0].text_features is None
    assert sorted(torch.cat([batch.photo_rows for batch in batches]).tolist()) == list(range(96))


def test_a_batch_holds_what_its_items_hold_and_parts_of_it_too(sample_dir):
    pairs, _, _ = pairs_of(sample_dir, captions_per_photo=3)
    items = [pairs[row] for row in (5, 2, 9)]
    batch = pairs.collate(items)
    assert batch.photo_rows.tolist() == [5, 2, 9]
    for row, item in enumerate(items):
        assert (batch.pixels[row].permute(1, 2, 0).numpy() == item.image).all()
        assert len(item.texts) == batch.input_ids.shape[1] == 3
        for ids, mask, text in zip(batch.input_ids[row], batch.attention_mask[row], item.texts, strict=True):
            assert ids[mask.bool()].tolist() == text
    first, last = batch.in_parts(2)
    assert first.photo_rows.tolist() == [5, 2] and last.photo_rows.tolist() == [9] and last.image_features is None
    assert torch.equal(torch.cat([first.pixels, last.pixels]), batch.pixels)
    assert equal([batch.to("cpu")], [batch])


def test_known_features_stand_in_for_photos_and_captions(sample_dir):
    table = load_splits(sample_dir)["train"]
    tokenizer = train_tokenizer(table["caption"], 64)
    known = Precomputed(image_features=torch.randn(96, 7), text_features=torch.randn(len(table), 5))
    known_pairs, (pairs, _, _) = (
        CaptionDataset(table, tokenizer, train_transform(32, 0.75), 32, 64, 0, known), pairs_of(sample_dir))
    (batch, *_), (plain, *_) = batches_of(known_pairs, epoch=2), batches_of(pairs, epoch=2)
    assert batch.pixels is None and batch.input_ids is None and batch.attention_mask is None
    assert torch.equal(batch.photo_rows, plain.photo_rows)
    assert torch.equal(batch.image_features, known.image_features[batch.photo_rows])
    token_ids = tokenize(tokenizer, table["caption"], 64)
    assert batch.text_features.shape == (32, 1, 5)
    for (features,), (ids,), (mask,) in zip(batch.text_features, plain.input_ids, plain.attention_mask, strict=True):
        caption = (known.text_features == features).all(dim=1).nonzero().item()  # the one that is drawn without them
        assert token_ids[caption] == ids[mask.bool()].tolist()


def test_captions_are_drawn_anew_each_epoch_and_all_are_used(sample_dir):
    pairs, table, tokenizer = pairs_of(sample_dir)
    captions = table[table["image"] == pairs.photos.paths[0].name]["caption"]
    drawn = set()
    for epoch in range(40):
        pairs.epoch = epoch
        drawn.add(tuple(*pairs[0].texts))
    assert drawn == {tuple(token_ids) for token_ids in tokenize(tokenizer, captions, 64)} and len(drawn) == 5


def test_a_photo_is_shown_with_as_many_captions_as_are_asked_for(sample_dir):
    two, table, tokenizer = pairs_of(sample_dir, captions_per_photo=2)
    one, _, _ = pairs_of(sample_dir)
    all_of_them, _, _ = pairs_of(sample_dir, captions_per_photo=99)
    assert all_of_them.captions_per_photo == 5  # no photo has more
    captions = table[table["image"] == two.photos.paths[7].name]["caption"]
    token_ids = tokenize(tokenizer, captions, 64)
    for epoch in range(10):
        for pairs in (one, two, all_of_them):
            pairs.epoch = epoch
        first, second = two[7].texts
        assert [first] == one[7].texts and first in token_ids and second in token_ids and first != second
        assert sorted(all_of_them[7].texts) == sorted(token_ids)


def test_a_photo_with_fewer_captions_shows_them_again():
    table = pd.DataFrame({"image": list("abaacc"), "caption": ["one", "two", "three", "four", "five", "six"]})
    table["path"] = table["original"] = table["image"]
    tokenizer = train_tokenizer(table["caption"], 16)
    pairs = CaptionDataset(table, tokenizer, None, 32, 16, captions_per_photo=3)
    assert pairs.rows_of_photo == [[0, 2, 3], [1], [4, 5]] and pairs.captions_per_photo == 2  # as most photos have
    assert pairs.drawn_captions(0, 4) == [2, 3] and pairs.drawn_captions(1, 4) == [1, 1]
    assert pairs.drawn_captions(2, 5) == [5, 4]


def test_captions_are_drawn_evenly_and_apart_from_crops():
    draws = np.concatenate([epoch_draws(0, epoch, 400) for epoch in range(20)])
    counts = np.bincount(5 * (draws[:, 0] % 5) + draws[:, 1] % 5)  # caption and crop, five of each
    assert len(counts) == 25 and abs(counts - 320).max() < 90  # five standard deviations
    assert (epoch_draws(0, 1, 50) == epoch_draws(0, 1, 400)[:50]).all()


def test_the_same_epoch_is_the_same_for_any_number_of_workers(sample_dir):
    pairs, _, _ = pairs_of(sample_dir)
    alone = batches_of(pairs, epoch=3)
    assert equal(alone, batches_of(pairs, epoch=3, workers=2))
    assert not equal(alone, batches_of(pairs, epoch=4))
    assert not equal(alone, batches_of(pairs_of(sample_dir, seed=1)[0], epoch=3))


def test_decoded_photos_give_the_same_batches_as_their_files(tmp_path, sample_dir):
    pairs, _, _ = pairs_of(sample_dir)
    decoded, _, _ = pairs_of(sample_dir)
    np.stack([read_square(path, 32) for path in pairs.photos.paths]).tofile(tmp_path / "decoded.rgb")
    decoded.photos.decoded = DecodedPhotos(tmp_path / "decoded.rgb", 32)
    decoded.photos.paths = [tmp_path / "gone.jpg"] * len(pairs)
    assert equal(batches_of(pairs, epoch=3), batches_of(decoded, epoch=3, workers=2))


def test_a_dataset_smaller_than_a_batch_is_one_batch(sample_dir):
    pairs, _, _ = pairs_of(sample_dir)
    loader = training_loader(pairs, batch_size=1000)
    start_epoch(loader, 1)
    assert [len(batch.pixels) for batch in loader] == [96]


def test_padding_reaches_only_the_longest_caption_of_the_batch():
    input_ids, mask = pad([[2, 7, 3], [2, 3], [2, 8, 9, 3]], pad_id=0)
    assert input_ids.tolist() == [[2, 7, 3, 0], [2, 3, 0, 0], [2, 8, 9, 3]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


def test_scratch_tokenizer_knows_its_captions_and_cuts_long_ones():
    captions = ["A dog runs .", "Two dogs run through water ."] * 5
    tokenizer = train_tokenizer(captions, max_tokens=16)
    ids = tokenize(tokenizer, ["a DOG runs ."], 16)[0]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "a", "dog", "runs", ".", "[SEP]"]
    cut = tokenize(tokenizer, ["dog " * 50], 6)[0]
    assert len(cut) == 6 and cut[0] == tokenizer.cls_token_id and cut[-1] == tokenizer.sep_token_id


def test_table_order_and_names_survive_repeated_and_scattered_rows(tmp_path, sample_dir):
    """Captions of one photo need not stand together in the file."""
    names = sorted(path.name for path in (sample_dir / "Images").iterdir())[:2]
    table = pd.DataFrame({"image": [names[1], names[0], names[1]], "caption": ["one", "two", "three"]})
    table["path"] = table["original"] = table["image"]
    tokenizer = train_tokenizer(table["caption"], 16)
    pairs = CaptionDataset(table, tokenizer, train_transform(32), 32, 16)
    assert [path.name for path in pairs.photos.paths] == [names[1], names[0]]
    assert pairs.rows_of_photo == [[0, 2], [1]]
    assert [pairs.token_ids[row] for row in (0, 2, 1)] == tokenize(tokenizer, ["one", "three", "two"], 16)


def test_image_loader_reads_nested_and_odd_names(tmp_path, sample_dir):
    source = sorted((sample_dir / "Images").iterdir())[0]
    odd = tmp_path / "sub folder" / "café 'n' 🐕.jpg"
    odd.parent.mkdir()
    shutil.copy(source, odd)
    pixels, good, bad = next(iter(image_loader([odd], 32, 1)))
    expected = cv2.resize(read_image(source), (32, 32), interpolation=cv2.INTER_AREA)
    assert good == [0] and not bad
    assert (pixels[0].permute(1, 2, 0).numpy().astype(int) - expected).__abs__().mean() < 2
    assert os.path.exists(odd)


def test_a_batch_says_which_photos_and_captions_are_equal(tmp_path, sample_dir):
    """For the loss, which must not push them apart: equal to the tower, and so without regard to capitals here."""
    source = sorted((sample_dir / "Images").iterdir())
    (tmp_path / "Images").mkdir()
    for name, original in (("a.jpg", 0), ("b.jpg", 0), ("c.jpg", 1), ("d.jpg", 2), ("e.jpg", 3)):
        shutil.copy(source[original], tmp_path / "Images" / name)
    captions = ["A dog runs", "Two cats", "a dog runs", "Snow", "Snow on a hill"]
    rows_of_file = "".join(f"{name}.jpg,{caption}\n" for name, caption in zip("abcde", captions, strict=True))
    (tmp_path / "captions.txt").write_text("image,caption\n" + rows_of_file)
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("a.jpg\nb.jpg\nc.jpg\nd.jpg\n")
    (tmp_path / "Flickr_8k.devImages.txt").write_text("e.jpg\n")

    splits, _ = load_usable_splits(tmp_path)
    pairs = CaptionDataset(splits["train"], train_tokenizer(captions, 16), train_transform(32), 32, 16)
    batch = pairs.collate([pairs.item(row) for row in range(4)])
    assert batch.photo_ids.tolist() == [0, 0, 1, 2]
    assert batch.caption_ids.tolist() == [[0], [1], [0], [2]]
