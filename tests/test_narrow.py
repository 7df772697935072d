"""Which pictures are searched: several folders as one gallery, some paths, some time; and matches by date."""

import json
import os
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conftest import run_script
from PIL import Image

import search.taken
from config import InferenceConfig
from inference import Gallery, find_pictures
from search.index import INDEX_NAME, read_index, write_index
from search.joined import joined
from search.narrow import lies_under, was_taken
from search.nearest import BLOCK, nearest
from search.question import Question
from search.remarks import remarks_on_question
from search.taken import noted_date
from support.dates import day, first_moment, moment_of_file, noted_moment
from support.errors import UserError
from support.files import stamp

TAKEN, DIGITIZED, CHANGED = 0x9003, 0x9004, 0x0132
FILE_TIME = time.mktime((2015, 3, 4, 12, 0, 0, 0, 0, -1))  # on this machine's clock


def save_with_dates(source, path, **dates):
    """Save a picture under another name, with dates in EXIF, and a file time in 2015."""
    with Image.open(source) as picture:
        exif = Image.Exif()
        for tag, words in dates.items():
            if tag == "changed":
                exif[CHANGED] = words
            else:
                exif.get_ifd(0x8769)[{"taken": TAKEN, "digitized": DIGITIZED}[tag]] = words
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, exif=exif.tobytes())
    os.utime(path, (FILE_TIME, FILE_TIME))
    return path


@pytest.fixture
def sources(sample_dir):
    return sorted((sample_dir / "Images").iterdir())


@pytest.fixture
def album(tmp_path, sources):
    """Eight pictures in three folders, with dates about the summer of 2019; two carry none."""
    folder = tmp_path / "album"
    dated = {
        "holiday/sea/1.jpg": {"taken": "2019:05:31 23:59:59"},
        "holiday/sea/2.jpg": {"taken": "2019:06:01 00:00:00"},
        "holiday/3.jpg": {"taken": "0000:00:00 00:00:00", "digitized": "2019:08:31 23:59:59"},
        "holiday/4.jpg": {"changed": "2019:09:01 00:00:00"},
        "home [old]/5.jpg": {},
        "home [old]/6.png": {"taken": "2019:07:15 08:00:00"},
        "7.jpg": {"taken": "never"},
        "8.webp": {"taken": "2019:07:14 08:00:00", "digitized": "2001:01:01 00:00:00"},
    }
    for source, (name, dates) in zip(sources, dated.items(), strict=False):
        save_with_dates(source, folder / name, **dates)
    return folder


def open_gallery(folder, checkpoint):
    return Gallery(folder, checkpoint, progress=False)


def names(matches):
    return {match.file.name for match in matches}


# ---------------------------------------------------------------- the filtered ranking


@pytest.mark.parametrize("kept", [0, 1, 5, BLOCK, BLOCK + 1, 20_000])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_best_of_some_rows_are_those_of_a_full_comparison(kept, parts):
    random = np.random.default_rng(0)
    rows = random.normal(size=(20_000, 16)).astype(np.float16)
    penalties = random.normal(size=20_000).astype(np.float16) / 10
    among = np.sort(random.permutation(20_000)[:kept])
    query = random.normal(size=(1, 16)).astype(np.float32)
    scores, found = nearest(joined(np.array_split(rows, parts)), query, 7, penalties, among)
    exact = rows[among].astype(np.float64) @ query[0].astype(np.float64) - penalties[among]
    order = np.argsort(-exact, kind="stable")[:7]
    assert found[0].tolist() == among[order].tolist()
    assert np.abs(scores[0] - exact[order]).max(initial=0) < 1e-5


def test_joined_rows_are_read_as_one_array():
    arrays = [np.arange(12).reshape(4, 3), np.empty((0, 3), int), 100 + np.arange(6).reshape(2, 3)]
    whole = np.concatenate(arrays)
    rows = joined(arrays)
    assert len(rows) == 6 and rows.shape == (6, 3) and np.array_equal(np.asarray(rows), whole)
    for start in range(7):
        for stop in range(start, 9):
            assert np.array_equal(rows[start:stop], whole[start:stop])
    for chosen in ([], [5, 0, 4, 3], [1, 1]):
        assert np.array_equal(rows[np.array(chosen, int)], whole[chosen])
    assert np.shares_memory(rows[1:3], arrays[0])  # one that lies in one array is not copied
    assert joined(arrays[:1]) is arrays[0]


# ---------------------------------------------------------------- several folders


def test_several_folders_are_ranked_as_one_that_holds_them_all(checkpoint, sources, tmp_path):
    for number, source in enumerate(sources[:9]):
        for folder in ("all", f"part{number % 3}"):
            (tmp_path / folder).mkdir(exist_ok=True)
            shutil.copy(source, tmp_path / folder / source.name)
    one = open_gallery(tmp_path / "all", checkpoint)
    parts = [tmp_path / f"part{number}" for number in range(3)]
    several = open_gallery(parts, checkpoint)
    assert several.embedded == 9 and all((part / INDEX_NAME).is_file() for part in parts)
    assert open_gallery(str(parts[0]), checkpoint).embedded == 0
    expected = one.search("a dog", 9, fold=False)
    matches = several.search("a dog", 9, fold=False)
    assert [match.file.name for match in matches] == [match.file.name for match in expected]
    assert [match.score for match in matches] == pytest.approx([match.score for match in expected], abs=1e-4)
    best = several.search(image=sources[4], top_k=1)[0]
    assert best.file == tmp_path / "part1" / sources[4].name and several.name_of(best.row) == f"part1/{best.file.name}"
    assert np.allclose(several.label_probabilities(["dog", "beach"]).sum(axis=1), 1)


def test_a_folder_in_another_or_named_twice_is_searched_once(checkpoint, sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "a/b", "a/.hidden", "elsewhere"):
        Path(folder).mkdir()
        shutil.copy(sources[len(folder)], Path(folder) / "picture.jpg")
    Path("link").symlink_to(tmp_path / "a" / "b")
    Path("a/out").symlink_to(tmp_path / "elsewhere")
    both = ["a/b", "a", tmp_path / "a", "a/../a", "link"]
    gallery = open_gallery(both, checkpoint)
    assert gallery.files == [Path("a/b/picture.jpg"), Path("a/picture.jpg")]
    # Hidden folders, and links to folders, are no part of a folder: named by themselves they are searched.
    gallery = open_gallery(["a", "a/.hidden", "a/out"], checkpoint)
    assert len(gallery.files) == 4
    for missing in ("nowhere", "a/nowhere", "~nobody-here/a"):
        with pytest.raises(UserError, match=f"--gallery {missing}: there is no such folder"):
            open_gallery(["a", missing], checkpoint)


def test_of_several_folders_a_name_begins_with_its_own(checkpoint, sources, tmp_path, monkeypatch):
    for folder in ("album", "album/.hidden", "card"):
        (tmp_path / folder).mkdir()
        shutil.copy(sources[len(folder)], tmp_path / folder / "picture.jpg")
    monkeypatch.chdir(tmp_path / "album")
    gallery = open_gallery([".", "../card", ".hidden"], checkpoint)
    names_there = [gallery.name_of(row) for row in range(3)]
    assert names_there == ["album/picture.jpg", "card/picture.jpg", ".hidden/picture.jpg"]
    assert gallery.narrow("card").tolist() == [1] and gallery.narrow("card/*").tolist() == [1]
    assert gallery.narrow("picture.jpg") is None  # as its folder knows it
    lines = remarks_on_question(gallery, Question(["a dog"], under=["card"], after="2999"), np.array([], int))
    assert lines[0].startswith("no picture under card was taken from 2999 on: they are from ")
    (line,) = remarks_on_question(gallery, Question(["a dog"], under=["nowhere"]), np.array([], int))
    assert line == "no picture lies under nowhere: the folders of the gallery are .hidden, album, card"


def test_the_command_searches_several_folders(workplace, album, tmp_path, sources):
    card = save_with_dates(sources[10], tmp_path / "card" / "9.jpg").parent
    ask = ["a dog", "--gallery", album, "--gallery", card, "--json", "--no-picture", "--top-k", 20]
    process = run_script("inference.py", *ask, cwd=workplace)
    matches = json.loads(process.stdout)["matches"]
    assert {Path(match["file"]).parent for match in matches} >= {card, album / "holiday"} and len(matches) == 9
    assert f"9 pictures of {album} and {card} (9 embedded now" in process.stderr
    assert all(list(match) == ["rank", "file", "score"] for match in matches)


# ---------------------------------------------------------------- dates


@pytest.mark.parametrize("words, date", [
    ("2019:06:30 14:05:09", "2019-06-30"), ("2019-06-30T14:05:09+02:00", "2019-06-30"), ("2019:06:30", "2019-06-30"),
    ("2019:06:30 23:59:60", "2019-06-30"), ("0000:00:00 00:00:00", None), ("    :  :     :  :  ", None), ("", None),
    ("2019:02:30 00:00:00", None), ("yesterday", None), (None, None), (b"2019:06:30 14:05:09", None), (7, None),
])
def test_what_cameras_note_is_read_or_is_no_date(words, date):
    moment = noted_moment(words)
    assert (None if moment is None else day(moment)) == date


def test_typed_dates_mean_their_first_moment():
    assert first_moment("1970") == 0 and first_moment("1970-01-02") == 86_400
    assert first_moment("2019-6") == first_moment("2019-06-01") == noted_moment("2019:06:01 00:00:00")
    for words in ("2019-13", "19-06", "2019-02-30", "0000", "2019/06", "June 2019", "", "2019-06-01 12:00", "٢٠١٩-99"):
        with pytest.raises(UserError, match="is no date: type a year"):
            first_moment(words)


def test_the_date_of_a_picture_is_what_the_camera_noted_first(album, tmp_path, sources):
    found = {file.name: day(noted_date(file)) for file in album.rglob("?.*")}
    assert found == {"1.jpg": "2019-05-31", "2.jpg": "2019-06-01", "3.jpg": "2019-08-31", "4.jpg": "2019-09-01",
                     "5.jpg": None, "6.png": "2019-07-15", "7.jpg": None, "8.webp": "2019-07-14"}
    assert day(moment_of_file(stamp(album / "7.jpg"))) == "2015-03-04"
    tiff = save_with_dates(sources[0], tmp_path / "a.tiff", changed="2010:10:10 10:10:10")
    assert day(noted_date(tiff)) == "2010-10-10"
    (tmp_path / "bad.jpg").write_bytes((album / "holiday" / "sea" / "1.jpg").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("bad.jpg", "text.jpg", "nowhere.jpg"):
        assert day(noted_date(tmp_path / name)) is None


def test_the_date_of_a_picture_in_a_tar(album, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(album / "holiday" / "sea" / "1.jpg", "1.jpg")
    assert day(noted_date(tmp_path / "shard.tar" / "1.jpg")) == "2019-05-31"


def test_after_is_inclusive_and_before_is_not():
    moments = np.array([noted_moment(words) for words in (
        "2019:05:31 23:59:59", "2019:06:01 00:00:00", "2019:08:31 23:59:59", "2019:09:01 00:00:00")] + [np.nan])
    assert was_taken(moments, "2019-06", "2019-09").tolist() == [False, True, True, False, False]
    assert was_taken(moments, after="2019-06-01").tolist() == [False, True, True, True, False]
    assert was_taken(moments, before="2019-06").tolist() == [True, False, False, False, False]
    assert was_taken(moments, "2019", "2020").tolist() == [True, True, True, True, False]


def test_a_search_between_two_dates_ranks_what_was_taken_then(checkpoint, album):
    gallery = open_gallery(album, checkpoint)
    summer = gallery.search("a dog", after="2019-06", before="2019-09")
    assert names(summer) == {"2.jpg", "3.jpg", "6.png", "8.webp"}
    everything = [match.file for match in gallery.search("a dog") if match.file.name in names(summer)]
    assert [match.file for match in summer] == everything  # the same order
    assert [match.rank for match in summer] == [1, 2, 3, 4]
    assert gallery.search("a dog", 2, after="2019-06", before="2019-09") == summer[:2]  # the best two of these
    assert names(gallery.search("a dog", before="2016")) == {"5.jpg", "7.jpg"}  # by the time of their files
    assert gallery.search("a dog", after="2020") == []


def test_sorted_by_date_the_best_matches_stand_in_their_order(checkpoint, album):
    gallery = open_gallery(album, checkpoint)
    by_score = gallery.search("a dog", 5)
    by_date = gallery.search("a dog", 5, sort="date")
    assert {match.file for match in by_date} == {match.file for match in by_score}
    days = [match.taken for match in by_date]
    assert days == sorted(days) and {match.file: match.rank for match in by_date} == {
        match.file: match.rank for match in by_score}
    assert all(match.taken is None for match in by_score)


def test_dates_are_read_at_embedding_and_never_again(checkpoint, album, monkeypatch):
    open_gallery(album, checkpoint)
    monkeypatch.setattr(search.taken, "noted_date", None)  # would fail if a header had to be read
    gallery = open_gallery(album, checkpoint)
    assert gallery.taken.by_file.sum() == 2 and names(gallery.search("a dog", after="2019-09")) == {"4.jpg"}


def test_an_index_of_an_earlier_version_gets_its_dates_when_they_are_asked_for(checkpoint, album, monkeypatch):
    first = open_gallery(album, checkpoint)
    index = read_index(first.index_path)
    index.taken = None
    write_index(first.index_path, index)
    assert "taken" not in safetensors.numpy.load_file(first.index_path)
    assert len(open_gallery(album, checkpoint).search("a dog")) == 8  # and no header was read:
    assert "taken" not in safetensors.numpy.load_file(first.index_path)

    again = open_gallery(album, checkpoint)
    assert names(again.search("a dog", after="2019-09")) == {"4.jpg"} and again.embedded == 0
    assert np.array_equal(read_index(first.index_path).taken, first.indexes[0].taken, equal_nan=True)
    monkeypatch.setattr(search.taken, "noted_date", None)
    assert names(open_gallery(album, checkpoint).search("a dog", after="2019-09")) == {"4.jpg"}


def test_a_picture_added_to_an_index_without_dates(checkpoint, album, sources):
    first = open_gallery(album, checkpoint)
    index = read_index(first.index_path)
    index.taken = None
    write_index(first.index_path, index)
    save_with_dates(sources[9], album / "0.jpg", taken="2021:01:01 00:00:00")
    gallery = open_gallery(album, checkpoint)
    assert gallery.embedded == 1 and names(gallery.search("a dog", after="2019-09")) == {"0.jpg", "4.jpg"}


@pytest.mark.parametrize("moment", [np.inf, 1e300, -1e300])
def test_dates_that_cannot_be_are_read_again(checkpoint, album, moment):
    first = open_gallery(album, checkpoint)
    index = read_index(first.index_path)
    index.taken = np.full(8, moment)
    write_index(first.index_path, index)
    assert read_index(first.index_path).taken is None and len(read_index(first.index_path).files) == 8
    again = open_gallery(album, checkpoint)
    assert again.embedded == 0 and np.array_equal(again.taken.moments, first.taken.moments)


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("patterns, expected", [
    (["holiday"], "1234"), (["holiday/"], "1234"), (["holiday/*"], "1234"), (["./holiday/sea"], "12"),
    (["*/sea"], "12"), (["holiday/*.jpg"], "1234"), (["*.png", "*.webp"], "68"),
    (["holiday/sea", "home [old]"], "1256"),
    (["home [old]/6.png"], "6"), (["?.jpg"], "7"), (["holi"], ""), (["*"], "12345678"), (["sea"], ""), (["[12]*"], ""),
    (["holiday/sea/[12]*"], "12"),
])
def test_a_path_is_a_pattern_or_a_folder(patterns, expected):
    paths = ["holiday/sea/1.jpg", "holiday/sea/2.jpg", "holiday/3.jpg", "holiday/4.jpg", "home [old]/5.jpg",
             "home [old]/6.png", "7.jpg", "8.webp"]
    fits = lies_under(paths, patterns)
    assert "".join(str(row + 1) for row in np.flatnonzero(fits)) == expected


def test_a_search_under_a_path_and_in_a_time(checkpoint, album):
    gallery = open_gallery(album, checkpoint)
    assert names(gallery.search("a dog", under="holiday")) == {"1.jpg", "2.jpg", "3.jpg", "4.jpg"}
    assert names(gallery.search("a dog", under=["holiday/sea", "*.png"], after="2019-06")) == {"2.jpg", "6.png"}
    everywhere = gallery.narrow(under="*")
    assert everywhere is None  # all of them
    one = gallery.search("a dog", under="7.jpg", threshold=-1)
    assert names(one) == {"7.jpg"} and one[0].rank == 1


# ---------------------------------------------------------------- the command


def test_the_table_shows_dates_where_they_were_asked_for_and_says_which_are_no_dates(workplace, album):
    ask = ["inference.py", "a dog", "--gallery", album, "--no-picture"]
    lines = run_script(*ask, "--sort", "date", "--top-k", 8, cwd=workplace).stdout.splitlines()
    table = lines[lines.index("rank  score  taken       file") + 1:][:8]
    days = [line.split()[2] for line in table]
    assert days == sorted(days) and days[:3] == ["2015-03-04", "2015-03-04", "2019-05-31"] and len(days) == 8
    assert "2 of 8 carry no date, and are dated by the time of their file" in lines
    process = run_script(*ask, "--after", 2019, "--under", "holiday", "--json", cwd=workplace)
    answer = json.loads(process.stdout)
    assert list(answer) == ["query", "matches"] and answer["query"] == "a dog" and len(answer["matches"]) == 4
    assert all(list(match) == ["rank", "file", "score", "taken"] for match in answer["matches"])
    assert "4 of 8 pictures are searched" in process.stderr


@pytest.mark.parametrize("flags, line", [
    (["--under", "nowhere/*"], "no picture lies under nowhere/*: the folders of the gallery are holiday, home [old]"),
    (["--after", "2020"], "no picture was taken from 2020 on: they are from 2015-03-04 to 2019-09-01"),
    (["--before", "2019-06", "--after", "2019-06-01"], "--after 2019-06-01 --before 2019-06 leaves no time"),
    (["--under", "holiday/sea", "--after", "2019-07", "--before", "2020-01-01"],
     "no picture under holiday/sea was taken from 2019-07 on and before 2020-01-01: they are from 2019-05-31 to "
     "2019-06-01"),
])
def test_where_nothing_fits_one_line_says_what_there_is(workplace, album, flags, line):
    ask = ["inference.py", "a dog", "--gallery", album, "--json", "--output", "nothing.png", *flags]
    process = run_script(*ask, cwd=workplace, check=False)
    (said,) = [shown for shown in process.stderr.splitlines() if line in shown]
    assert "Traceback" not in process.stderr and not (workplace / "nothing.png").exists()
    if process.returncode == 0:
        assert said == line and json.loads(process.stdout) == {"query": "a dog", "matches": []}
    else:
        assert process.returncode == 2 and said.startswith("error: --after")


def test_the_best_score_and_the_remarks_are_those_of_what_is_searched(checkpoint, album):
    gallery = open_gallery(album, checkpoint)
    flags = InferenceConfig(query=("a dog",), under=("holiday",), threshold=0.99)
    embedding = gallery.query_embedding("a dog")
    best = max(gallery.embeddings[row].astype(np.float32) @ embedding for row in gallery.narrow("holiday"))
    assert f"no picture scores 0.99 or more: the best is {best:.4f}" in find_pictures(gallery, flags).lines
    gallery.usual_score = 1.0  # which no match reaches
    flags = InferenceConfig(query=("a dog",), under=("holiday",))
    assert not any("nothing here fits" in line for line in find_pictures(gallery, flags).lines)
    assert any("nothing here fits" in line for line in find_pictures(gallery, InferenceConfig(query=("a dog",))).lines)
