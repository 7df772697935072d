"""Links to folders, in galleries and in training alike: not followed, and that is said."""

import shutil

import pytest
from conftest import run_script

from dataset import inspect_dataset, load_splits, load_usable_splits
from evaluate import class_folders
from inference import Gallery
from support.images import lines_on_links, pictures_and_links


@pytest.fixture
def pairs(tmp_path, sample_dir):
    """Pairs photo.jpg and photo.txt, some of them in a linked folder; another link leads back to where it lies."""
    folder, elsewhere = tmp_path / "pairs", tmp_path / "elsewhere"
    for place, first in ((folder, 0), (elsewhere, 40)):
        place.mkdir()
        for photo in sorted((sample_dir / "Images").iterdir())[first : first + 40]:
            shutil.copy(photo, place)
            (place / f"{photo.stem}.txt").write_text(f"a caption of {photo.stem}\n")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "back").symlink_to(folder)
    return folder


def test_links_to_folders_are_named_and_not_followed(pairs):
    names, links = pictures_and_links(pairs)
    assert len(names) == 40 and links == [str(pairs / "back"), str(pairs / "linked")]
    (line,) = lines_on_links(links)
    assert line.startswith(f"links to folders are not followed: {pairs / 'back'}, {pairs / 'linked'};")
    assert lines_on_links(list("abcde"))[0].startswith("links to folders are not followed: a, b, c and 2 more;")
    assert lines_on_links([]) == []


def test_training_says_it(pairs):
    splits, report = load_usable_splits(pairs)
    assert sum(table["image"].nunique() for table in splits.values()) == 40
    assert [line for line in report.lines if str(pairs / "linked") in line]


def test_photos_that_captions_name_are_found_through_a_link(pairs, sample_dir):
    photo = next((pairs / "linked").glob("*.jpg")).name
    (pairs / "captions.txt").write_text(f"image,caption\nlinked/{photo},a dog\n")
    tables = load_splits(pairs)
    assert [path for table in tables.values() for path in table["path"]] == [str(pairs / "linked" / photo)]
    assert not inspect_dataset(pairs).missing


def test_a_search_says_it(pairs, workplace):
    process = run_script("inference.py", "--query", "a dog", "--gallery", pairs, "--no-picture", cwd=workplace)
    assert "40 pictures of" in process.stdout
    assert f"links to folders are not followed: {pairs / 'back'}, {pairs / 'linked'};" in process.stdout


def test_a_search_that_trusts_its_index_says_it_as_well(pairs, checkpoint):
    links = [str(pairs / "back"), str(pairs / "linked")]
    assert Gallery(pairs, checkpoint, trust_index=True).links == links
    (pairs / "linked" / "new.txt").touch()  # nothing in there is searched
    trusted = Gallery(pairs, checkpoint, trust_index=True)
    assert trusted.folders[0].stamps and trusted.links == links and len(trusted.files) == 40


def test_links_in_class_folders_are_named(pairs, tmp_path, capsys):
    root = tmp_path / "classes"
    for name in ("dogs", "cats"):
        (root / name).mkdir(parents=True)
        shutil.copy(next(pairs.glob("*.jpg")), root / name)
    (root / "dogs" / "more").symlink_to(pairs)
    files = class_folders(root)
    assert [len(pictures) for pictures in files.values()] == [1, 1]
    assert f"links to folders are not followed: {root / 'dogs' / 'more'};" in capsys.readouterr().out
