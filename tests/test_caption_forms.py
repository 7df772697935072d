"""Captions in every form in which they lie about: recognised by content, read alike, or refused in one line."""

import json
import os
import unicodedata

import pytest
from PIL import Image

from config import PRESETS
from dataset import load_splits, load_usable_splits, paths_of, read_captions
from support.captions import read_dataset
from support.errors import UserError
from support.kept_splits import held_out_names
from support.source import Source

A, B = "A dog runs .", "Two people, at the sea"
WANTED = [("a.jpg", A), ("b.jpg", B)]


def photos(folder, *names):
    """Write small pictures into a folder, each of a colour of its own."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (20 * number, 90, 200 - 20 * number)).save(path, "JPEG")


def pairs_in(data, **flags):
    """Return the (photo's name, caption) pairs that are read from a dataset."""
    table = read_captions(Source(data, **flags))
    return list(table[["image", "caption"]].itertuples(index=False, name=None))


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize("name, text, form", [
    ("captions.txt", f'image,caption\na.jpg,{A}\nb.jpg,{B}\n', "CSV with the columns image and caption"),
    ("captions.txt", f'id,image,caption\n7,a.jpg,{A}\n8,b.jpg,{B}\n', "CSV with the columns image and caption"),
    ("data.csv", f'filepath,title\na.jpg,{A}\nb.jpg,"{B}"\n', "CSV with the columns filepath and title"),
    ("data.csv", f'caption,image\n{A},a.jpg\n"{B}",b.jpg\n', "CSV with the columns image and caption"),
    ("data.csv", f'sep=;\r\nfile_name;text\r\na.jpg;{A}\r\nb.jpg;{B}\r\n',
     "CSV with semicolons with the columns file_name and text"),
    ("data.tsv", f'filepath\ttitle\na.jpg\t{A}\nb.jpg\t{B}\n', "TSV with the columns filepath and title"),
    ("results.csv", f'image_name| comment_number| comment\na.jpg| 0| {A}\nb.jpg| 4   {B}\n', "Flickr30k's results"),
    ("results_20130124.token", f"a.jpg#0\t{A}\nb.jpg#0\t{B}\n", "tokens, a line like name#0<TAB>caption"),
    ("metadata.jsonl", f'{{"file_name": "a.jpg", "text": "{A}"}}\n\n{{"file_name": "b.jpg", "text": ["{B}"]}}\n',
     "JSON lines"),
    ("pairs.json", json.dumps([{"image": "a.jpg", "caption": A}, {"image": "b.jpg", "caption": [B]}]), "a JSON list"),
    ("pairs.json", json.dumps({"a.jpg": [A], "b.jpg": B}), "a JSON object of photos"),
    ("dataset_flickr8k.json", json.dumps({"images": [
        {"filename": "a.jpg", "split": "train", "sentences": [{"raw": A}]},
        {"filename": "b.jpg", "split": "val", "sentences": [{"raw": B}]}]}), "Karpathy's JSON"),
    ("captions.json", json.dumps({
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 7, "caption": A}, {"image_id": 9, "caption": B}]}), "COCO's JSON"),
])
def test_each_form_is_known_by_its_content(tmp_path, name, text, form):
    photos(tmp_path / "Images", "a.jpg", "b.jpg")
    (tmp_path / name).write_text(text)
    assert pairs_in(tmp_path) == WANTED
    assert pairs_in(tmp_path / name) == WANTED  # and where the file itself is named
    assert read_dataset(tmp_path).description() == f"reading {tmp_path / name} as {form}: 1 caption a photo"


@pytest.mark.parametrize("text", [
    f"image\tcaption\r\na.jpg\t{A}\r\nb.jpg\t{B}\r\n".encode("utf-16"),  # "Unicode text" of a spreadsheet
    f"image,caption\r\na.jpg,{A}\r\nb.jpg,\"{B}\"\r\n".encode("utf-8-sig"),
    f"image;caption\r\na.jpg;{A}\r\nb.jpg;{B}\r\n".encode("utf-16-be").join([b"\xfe\xff", b""]),
])
def test_tables_as_spreadsheets_save_them(tmp_path, text):
    (tmp_path / "captions.csv").write_bytes(text)
    assert pairs_in(tmp_path) == WANTED


def test_columns_that_cannot_be_known_are_asked_for_and_can_be_named(tmp_path):
    (tmp_path / "data.csv").write_text(f'id,picture,title,alt\na.jpg,x,no,{A}\nb.jpg,y,no,"{B}"\n')
    assert pairs_in(tmp_path, image_column="id", caption_column="alt") == WANTED
    (tmp_path / "notes.txt").write_text("first, second and third\n")  # does no harm
    assert pairs_in(tmp_path, image_column="id", caption_column="alt") == WANTED
    with pytest.raises(UserError, match="data.csv line 1 has no column 'nope': 'id,picture,title,alt'; "):
        pairs_in(tmp_path, caption_column="nope")
    (tmp_path / "data.csv").write_text("image,title,text\na.jpg,x,y\n")
    with pytest.raises(UserError, match="'title' and 'text' could both be the caption: .* --caption-column NAME"):
        pairs_in(tmp_path)
    (tmp_path / "data.csv").write_text("one,two\na.jpg,x\n")
    complaint = "data.csv line 1 names no image and no caption column: 'one,two' .*--image-column NAME"
    with pytest.raises(UserError, match=complaint):
        pairs_in(tmp_path)


def test_a_json_key_that_cannot_be_known_is_asked_for(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"image": "a.jpg", "english": "A dog"}\n')
    with pytest.raises(UserError, match="data.jsonl line 1: which of its keys is the caption.*image, english"):
        pairs_in(tmp_path)
    assert pairs_in(tmp_path, caption_column="english") == [("a.jpg", "A dog")]


@pytest.mark.parametrize("name, text, complaint", [
    ("a.json", '{"images": [{"name": 1}]}', "a.json image 1: expected filename, split and sentences"),
    ("a.json", '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 2}]}', "annotation 1"),
    ("a.json", '{"images": [', "a.json line 1: not JSON"),
    ("a.jsonl", '{"image": "a.jpg", "text": "x"}\n{"image', "a.jsonl line 2: not JSON"),
    ("a.jsonl", '{"image": "a.jpg", "text": 7}\n', "a.jsonl line 1: the image's name and the caption must be text"),
    ("a.csv", "id,caption,image\n7,A dog, running,a.jpg\n", "a.csv line 2: 4 columns, and the header has 3"),
    ("a.csv", "id,image,caption\n7,a.jpg\n", "a.csv line 2: 2 columns, and the header has 3"),
    ("a.csv", "image|caption\na.jpg\n", "a.csv line 2: no bar between image and caption"),
    ("a.jsonl", '{"image": "../../a.jpg", "text": "x"}\n', "a.jsonl line 1: '../../a.jpg' must be a file name inside"),
])
def test_what_is_wrong_in_a_file_is_named_with_its_place(tmp_path, name, text, complaint):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_captions(tmp_path)


def test_a_caption_that_is_null_is_none(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"image": "a.jpg", "text": null}\n{"image": "a.jpg", "text": ["x", null]}\n')
    assert pairs_in(tmp_path / "a.jsonl") == [("a.jpg", "x")]
    value = {"images": [{"id": 1, "file_name": "a.jpg"}],
             "annotations": [{"image_id": 1, "caption": None}, {"image_id": 1, "caption": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert pairs_in(tmp_path / "a.json") == [("a.jpg", "x")]
    value["images"][0]["file_name"] = 7
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match="a.json annotation 1: the image's name and the caption must be text"):
        pairs_in(tmp_path / "a.json")


def test_judgements_are_told_from_captions_by_name(tmp_path):
    (tmp_path / "ExpertAnnotations.txt").write_text("a.jpg\tb.jpg#2\t1\t1\t1\n")
    with pytest.raises(UserError, match="ExpertAnnotations.txt holds judgements of how well captions fit"):
        read_captions(tmp_path)
    (tmp_path / "CrowdFlowerAnnotations.txt").write_text("a.jpg\tb.jpg#2\t0.3333\t1\t2\n")
    (tmp_path / "Flickr8k.lemma.txt").write_text(f"a.jpg#0\t{A}\n")
    assert pairs_in(tmp_path) == WANTED[:1]  # beside captions they do no harm


@pytest.mark.parametrize("text", [
    '{"images": null}', '{"images": [], "annotations": 5}', '{"a": ' + "1" * 5000 + "}", "[" * 100_000, "[1, 2]", "7",
    '[{"label": "cat"}]',
])
def test_json_of_any_other_shape_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError):
        read_captions(tmp_path)
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,x\n")  # beside captions it does no harm
    assert pairs_in(tmp_path) == [("a.jpg", "x")]


def test_half_a_character_in_json_is_no_harm(tmp_path):
    photos(tmp_path, "a.jpg")
    lines = ['{"image": "a.jpg", "caption": "A dog \\ud83d"}', '{"image": "a.jpg", "caption": "x"}']
    (tmp_path / "data.json").write_text("\n".join(lines))
    assert pairs_in(tmp_path) == [("a.jpg", "A dog ?"), ("a.jpg", "x")]


def test_several_captions_files_are_not_chosen_from_by_chance(tmp_path):
    photos(tmp_path, "a.jpg")
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("image,caption\na.jpg,x\n")
    complaint = "several files hold captions: name one of them in place of the folder, .*one.csv or .*two"
    with pytest.raises(UserError, match=complaint):
        read_captions(tmp_path)
    assert pairs_in(tmp_path / "one.csv") == [("a.jpg", "x")]


# ---------------------------------------------------------------- splits that the captions name


def names_of_splits(data):
    return {split: sorted(set(table["image"])) for split, table in load_splits(data).items()}


def test_splits_of_karpathys_json(tmp_path):
    splits = ["train", "restval", "val", "test"]
    photos(tmp_path / "Images", *[f"{split}.jpg" for split in splits])
    images = [{"filename": f"{split}.jpg", "split": split, "sentences": [{"raw": "x"}, {"raw": "y"}]}
              for split in splits]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    assert names_of_splits(tmp_path) == {
        "train": ["restval.jpg", "train.jpg"], "dev": ["val.jpg"], "test": ["test.jpg"]}


def test_splits_of_coco_lie_in_two_files_and_two_folders(tmp_path):
    photos(tmp_path / "train2017", "1.jpg", "2.jpg")
    photos(tmp_path / "val2017", "3.jpg")
    (tmp_path / "annotations").mkdir()
    for split, names in (("train", ["1.jpg", "2.jpg"]), ("val", ["3.jpg"])):
        value = {"images": [{"id": name, "file_name": name} for name in names],
                 "annotations": [{"image_id": name, "caption": f"about {name}"} for name in names]}
        (tmp_path / "annotations" / f"captions_{split}2017.json").write_text(json.dumps(value))
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text("{}")
    assert names_of_splits(tmp_path) == {"train": ["1.jpg", "2.jpg"], "dev": ["3.jpg"], "test": []}
    assert [path.parent.name for path in paths_of(read_captions(tmp_path))] == ["train2017", "train2017", "val2017"]


def test_an_image_folder_with_metadata_in_each_split(tmp_path):
    for split in ("train", "validation"):
        photos(tmp_path / split, "0001.jpg")  # of one name, and two photos
        (tmp_path / split / "metadata.jsonl").write_text('{"file_name": "0001.jpg", "text": "in ' + split + '"}\n')
    assert names_of_splits(tmp_path) == {"train": ["train/0001.jpg"], "dev": ["validation/0001.jpg"], "test": []}
    assert dict(pairs_in(tmp_path)) == {"train/0001.jpg": "in train", "validation/0001.jpg": "in validation"}


def test_a_split_column_of_a_table(tmp_path):
    photos(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "data.csv").write_text("image,split,caption\na.jpg,train,x\nb.jpg,val,y\n")
    assert names_of_splits(tmp_path) == {"train": ["a.jpg"], "dev": ["b.jpg"], "test": []}


def test_one_file_called_train_divides_nothing(tmp_path):
    names = [f"{number}.jpg" for number in range(10)]
    photos(tmp_path / "Images", *names)
    (tmp_path / "train.csv").write_text("image,caption\n" + "".join(f"{name},x\n" for name in names))
    assert {split: len(names) for split, names in names_of_splits(tmp_path).items()} == {
        "train": 8, "dev": 1, "test": 1}


def test_tables_of_several_splits_name_them_by_their_files(tmp_path):
    photos(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    for split, name in (("train", "a.jpg"), ("val", "b.jpg"), ("test", "c.jpg")):
        (tmp_path / f"{split}.csv").write_text(f"image,caption\n{name},x\n")
    assert names_of_splits(tmp_path) == {"train": ["a.jpg"], "dev": ["b.jpg"], "test": ["c.jpg"]}
    (tmp_path / "results.csv").write_text("image_name|split|comment\na.jpg|train|x\nb.jpg|val|y\nc.jpg|test|z\n")
    assert names_of_splits(tmp_path / "results.csv") == {"train": ["a.jpg"], "dev": ["b.jpg"], "test": ["c.jpg"]}


def test_a_split_column_that_names_one_split_is_followed(tmp_path):
    photos(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "data.csv").write_text("image,split,caption\na.jpg,test,x\nb.jpg,test,y\n")
    assert names_of_splits(tmp_path) == {"train": [], "dev": [], "test": ["a.jpg", "b.jpg"]}


def test_captions_that_name_train_and_test_alone_get_a_dev_split_from_train(tmp_path):
    photos(tmp_path, *[f"{number}.jpg" for number in range(22)])
    rows = "".join(f"{number}.jpg,{'train' if number < 20 else 'test'},x {number}\n" for number in range(22))
    (tmp_path / "data.csv").write_text("image,split,caption\n" + rows)
    splits, report = load_usable_splits(tmp_path)
    assert {split: len(table) for split, table in splits.items()} == {"train": 18, "dev": 2, "test": 2}
    assert any("no dev photos: a tenth of train is dev" in line for line in report.lines)
    others = [set(load_splits(tmp_path, seed)["dev"]["image"]) for seed in range(1, 5)]
    assert any(dev != set(splits["dev"]["image"]) for dev in others)  # --split-seed decides of dev

    # A run that goes on keeps its dev photos, whatever has come since; and the test photos that the captions name.
    held_out = held_out_names(splits)
    photos(tmp_path, *[f"new{number}.jpg" for number in range(40)])
    rows += "".join(f"new{number}.jpg,train,x {number}\n" for number in range(40))
    (tmp_path / "data.csv").write_text("image,split,caption\n" + rows)
    again = load_splits(tmp_path, 0, held_out)
    assert sorted(again["dev"]["image"]) == held_out["dev"] and len(again["train"]) == 58
    assert load_splits(tmp_path)["dev"]["image"].nunique() == 6  # which would have been drawn


def test_a_photo_whose_rows_name_two_splits_is_kept_out_of_train(tmp_path):
    photos(tmp_path, *[f"{number}.jpg" for number in range(4)])
    (tmp_path / "data.csv").write_text(
        "image,split,caption\n0.jpg,test,x\n0.jpg,train,y\n1.jpg,train,x\n2.jpg,train,x\n3.jpg,val,x\n")
    assert names_of_splits(tmp_path) == {"train": ["1.jpg", "2.jpg"], "dev": ["3.jpg"], "test": ["0.jpg"]}
    _, report = load_usable_splits(tmp_path)
    assert report.in_two_splits == ["0.jpg"]


# ---------------------------------------------------------------- files that hold or accompany photos


def test_pairs_of_a_photo_and_a_text_file(tmp_path):
    photos(tmp_path, "a.jpg", "deep/b.JPG", "alone.jpg")
    (tmp_path / "a.txt").write_text("One .\n\nTwo .\n")
    (tmp_path / "deep" / "b.txt").write_text("Three .\n")
    (tmp_path / "notes.txt").write_text("not of any photo\n")
    (tmp_path / "a.nef").write_bytes(b"raw")  # beside a JPEG
    (tmp_path / "a.psd").write_bytes(b"layers")
    assert pairs_in(tmp_path) == [("a.jpg", "One ."), ("a.jpg", "Two ."), ("deep/b.JPG", "Three .")]
    assert "pairs of a photo and a text file" in read_dataset(tmp_path).description()


def test_photos_without_a_text_are_told(tmp_path):
    photos(tmp_path, *[f"{number:02}.jpg" for number in range(22)])
    for number in range(21):
        (tmp_path / f"{number:02}.txt").write_text("" if number == 20 else f"about {number}")
    splits, report = load_usable_splits(tmp_path)
    assert sum(len(table) for table in splits.values()) == 20
    assert "  without captions, not used: 2 (20.jpg, 21.jpg)" in report.lines


def test_parquet_with_photos_in_it_as_the_hub_has_it(tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    photos(tmp_path / "drawn", *[f"{number}.jpg" for number in range(6)])
    contents = [(tmp_path / "drawn" / f"{number}.jpg").read_bytes() for number in range(6)]
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    for split, numbers in (("train", [0, 1, 2, 3]), ("validation", [4]), ("test", [5])):
        table = pd.DataFrame({
            "image": [{"bytes": contents[number], "path": f"{number}.jpg"} for number in numbers],
            "caption": [[f"first of {number}", f"second of {number}"] for number in numbers]})
        table.to_parquet(data / f"{split}-00000-of-00001.parquet")
    splits = load_splits(tmp_path / "set")
    assert {split: len(paths_of(table)) for split, table in splits.items()} == {"train": 4, "dev": 1, "test": 1}
    assert list(splits["dev"]["caption"]) == ["first of 4", "second of 4"]
    assert paths_of(splits["test"])[0].read_bytes() == contents[5]
    changed = paths_of(splits["test"])[0].stat().st_mtime_ns
    assert paths_of(load_splits(tmp_path / "set")["test"])[0].stat().st_mtime_ns == changed  # not written again

    (tmp_path / "two").mkdir()
    for split, number in (("train", 0), ("validation", 1)):  # files that are called alike
        (tmp_path / "two" / split).mkdir()
        table = pd.DataFrame({"image": [{"bytes": contents[number], "path": None}], "caption": [f"of {split}"]})
        table.to_parquet(tmp_path / "two" / split / "0000.parquet")
    splits = load_splits(tmp_path / "two")
    assert {split: len(table) for split, table in splits.items()} == {"train": 1, "dev": 1, "test": 0}
    assert paths_of(splits["dev"])[0].read_bytes() == contents[1]

    empty = pd.DataFrame({"image": [{"bytes": contents[0], "path": "0.jpg"}] * 3, "caption": ["x", None, "y"]})
    empty.to_parquet(tmp_path / "empty.parquet")
    assert [caption for _, caption in pairs_in(tmp_path / "empty.parquet")] == ["x", "y"]

    numbered = pd.DataFrame({"image": [{"bytes": contents[0], "path": None}], "caption_0": ["x"], "caption_1": ["y"]})
    numbered.to_parquet(tmp_path / "one.parquet")
    assert [caption for _, caption in pairs_in(tmp_path / "one.parquet")] == ["x", "y"]


def test_parquet_photos_are_put_into_the_cache_of_the_dataset_and_never_confused(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    import pandas as pd

    monkeypatch.chdir(tmp_path)  # where the folder of a relative path has no name
    for content in (b"one picture", b"two picture"):  # as long as each other
        table = pd.DataFrame({"image": [{"bytes": content, "path": "/etc/x.jpg"}], "caption": ["x"]})
        table.to_parquet("data.parquet")
        (path,) = paths_of(read_captions("data.parquet"))
        assert path.read_bytes() == content
        assert path.resolve().is_relative_to(tmp_path / ".clip-cache" / "photos")


def test_a_parquet_file_that_is_none(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="train.parquet cannot be read as Parquet"):
        read_captions(tmp_path)


# ---------------------------------------------------------------- where the photos lie


def test_photos_outside_the_dataset_folder(tmp_path):
    photos(tmp_path / "elsewhere", "a.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "captions.txt").write_text("image,caption\na.jpg,x\n")
    table = read_captions(Source(tmp_path / "data", image_dir=tmp_path / "elsewhere"))
    assert paths_of(table) == [tmp_path / "elsewhere" / "a.jpg"]
    with pytest.raises(UserError, match="--image-dir .*nowhere: there is no such folder"):
        read_captions(Source(tmp_path / "data", image_dir=tmp_path / "nowhere"))


@pytest.mark.parametrize("folder, name", [
    ("Images", "a.jpg"), ("images", "a.jpg"), (".", "a.jpg"), ("Flicker8k_Dataset", "a.jpg"),
    ("Images", "Images/a.jpg"),
])
def test_photos_are_found_in_the_folders_that_people_have(tmp_path, folder, name):
    photos(tmp_path / folder, "a.jpg")
    (tmp_path / "captions.txt").write_text(f"image,caption\n{name},x\n")
    captions = read_dataset(tmp_path)
    assert not captions.missing
    assert os.path.samefile(paths_of(read_captions(tmp_path))[0], tmp_path / folder / "a.jpg")


def test_one_photo_named_in_two_ways_is_one_photo(tmp_path):
    photos(tmp_path / "Images", "a.jpg", "b.jpg")
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,x\nImages/a.jpg,y\n./a.jpg,z\nb.jpg,w\n")
    assert pairs_in(tmp_path) == [("a.jpg", "x"), ("a.jpg", "y"), ("a.jpg", "z"), ("b.jpg", "w")]


def test_names_written_on_another_system_are_matched_and_told(tmp_path):
    names = [f"{number}.jpg" for number in range(20)] + ["caf\u00e9.jpg"]
    photos(tmp_path / "Images", *names)
    written = [name.replace(".jpg", ".JPG") for name in names]
    written[-1] = unicodedata.normalize("NFD", names[-1])
    lines = "".join(f"{name},about {name}\n" for name in written)
    (tmp_path / "captions.txt").write_text("image,caption\n" + lines, encoding="utf-8")
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("\n".join(written[:15]), encoding="utf-8")
    (tmp_path / "Flickr_8k.devImages.txt").write_text("\n".join(written[15:]), encoding="utf-8")
    splits, report = load_usable_splits(tmp_path)
    assert {split: len(table) for split, table in splits.items()} == {"train": 15, "dev": 6}
    assert set(splits["dev"]["image"]) == set(names[15:])
    told = "named otherwise than their file, taken all the same: 21 (0.JPG is 0.jpg, "
    assert any(told in line for line in report.lines)


def test_a_missing_photo_named_in_two_ways_is_reported_as_one(tmp_path):
    photos(tmp_path / "Images", "a.jpg")
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,x\n./gone.jpg,y\ngone.jpg,z\n")
    captions = read_dataset(tmp_path)
    assert captions.missing == {"./gone.jpg"} and captions.paths["./gone.jpg"] == str(tmp_path / "Images" / "gone.jpg")


def test_a_bare_name_that_lies_in_two_folders_is_none_of_them(tmp_path):
    photos(tmp_path, "cats/0.jpg", "dogs/0.jpg", "dogs/1.jpg", *[f"deep{number}/{number}.png" for number in range(300)])
    lines = "".join(f"{number}.png,x\n" for number in range(300))
    (tmp_path / "captions.txt").write_text(f"image,caption\n0.jpg,x\n1.jpg,y\ncats/0.jpg,z\n{lines}")
    captions = read_dataset(tmp_path)
    assert captions.missing == {"0.jpg"}
    assert captions.paths["cats/0.jpg"] == str(tmp_path / "cats" / "0.jpg")


def test_lists_of_splits_beside_folders_of_the_same_names(tmp_path):
    for split in ("train", "val"):
        photos(tmp_path / split, "0.jpg")
        (tmp_path / f"{split}.jsonl").write_text('{"image": "0.jpg", "text": "in ' + split + '"}\n')
    assert dict(pairs_in(tmp_path)) == {"train/0.jpg": "in train", "val/0.jpg": "in val"}


def test_names_and_lists_written_on_windows(tmp_path):
    photos(tmp_path / "Images", "a.jpg", "b.jpg")
    (tmp_path / "captions.txt").write_text("image,caption\nImages\\a.jpg,x\nb.jpg,y\n")
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("B.JPG\n")
    (tmp_path / "Flickr_8k.devImages.txt").write_text("images/A.jpg\n")
    assert read_dataset(tmp_path).missing == set()
    assert names_of_splits(tmp_path)["train"] == ["b.jpg"]


def test_a_name_that_two_files_could_mean_is_none_of_them(tmp_path):
    photos(tmp_path / "Images", "a.jpg", "A.jpg", "b.jpg")
    (tmp_path / "captions.txt").write_text("image,caption\na.JPG,x\nb.jpg,y\n")
    assert read_dataset(tmp_path).missing == {"a.JPG"}


# ---------------------------------------------------------------- the flags


def test_the_flags_reach_the_reader():
    config = PRESETS["flickr8k"]
    assert config.source == Source(config.data_dir)
