"""Pictures of earlier results lie in a gallery and are no part of it."""

import shutil

import numpy as np
import pytest
from conftest import run_script
from PIL import Image

import support.drawn
from inference import Gallery
from support.drawn import MARK, is_drawn, save_figure, save_picture


@pytest.fixture
def folder(tmp_path, sample_dir):
    """A gallery of six pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, file in enumerate(sorted((sample_dir / "Images").glob("*.jpg"))[:6]):
        shutil.copy(file, folder / f"{number}.jpg")
    return folder


@pytest.mark.parametrize("name", ["beach.png", "beach.jpg", "beach.JPEG", "beach.webp"])
def test_a_picture_of_a_result_is_known_by_its_mark(tmp_path, name):
    pixels = np.random.default_rng(0).integers(256, size=(300, 200, 3), dtype=np.uint8)
    save_picture(Image.fromarray(pixels), tmp_path / name)
    shutil.copy(tmp_path / name, tmp_path / f"copy of {name}")
    assert is_drawn(tmp_path / name) and is_drawn(tmp_path / f"copy of {name}")
    Image.fromarray(pixels).save(tmp_path / f"own {name}")
    assert not is_drawn(tmp_path / f"own {name}") and not is_drawn(tmp_path / "none.png")


@pytest.mark.parametrize("name", ["curves.png", "report.jpg"])
def test_a_chart_is_known_by_it_too(tmp_path, name):
    from matplotlib.figure import Figure

    save_figure(Figure(), tmp_path / name, dpi=50)
    assert is_drawn(tmp_path / name)
    save_figure(Figure(), tmp_path / "report.pdf", dpi=50)
    assert MARK.encode() in (tmp_path / "report.pdf").read_bytes()


def test_earlier_results_are_found_by_no_search(workplace, folder):
    search = ["inference.py", "--query", "a dog", "--gallery", folder]
    for name in ("one.png", "two.jpg", "three.webp"):
        process = run_script(*search, "--output", folder / name, cwd=workplace)
        assert "6 pictures of" in process.stdout and "0 unreadable" in process.stdout and (folder / name).exists()
    (folder / "two.jpg").rename(folder / "a photo.jpg")
    shutil.copy(workplace / "runs" / "first" / "worst-dev.png", folder)
    process = run_script(*search, "--no-picture", cwd=workplace)
    assert "6 pictures of" in process.stdout and "skipped" not in process.stdout
    for name in ("one.png", "a photo.jpg", "three.webp", "worst-dev.png"):
        assert name not in process.stdout


def test_each_is_looked_into_once(folder, checkpoint, monkeypatch):
    save_picture(Image.new("RGB", (50, 50)), folder / "x.png")
    assert len(Gallery(folder, checkpoint, progress=False).files) == 6
    monkeypatch.setattr("search.update.is_drawn", None)  # would fail if it were asked
    again = Gallery(folder, checkpoint, progress=False)
    assert len(again.files) == 6 and not again.skipped and again.embedded == 0
    monkeypatch.setattr("search.update.is_drawn", support.drawn.is_drawn)
    Image.new("RGB", (50, 50), "red").save(folder / "x.png")  # a picture of the user's own in its place
    assert len(Gallery(folder, checkpoint, progress=False).files) == 7
