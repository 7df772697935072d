"""Photos of phones and cameras are read: HEIC, camera RAW, several in one file, huge ones; the rest is counted."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_script
from PIL import Image
from raw_file import dng
from test_checkpoint_v1 import MODEL

from dataset import inspect_dataset, load_usable_splits
from inference import Gallery
from search import update
from search.index import INDEX_NAME, read_index, write_index
from search.pictures import pictures_of_folder
from support import images
from support.errors import UserError
from support.images import picture_names, read_image
from support.picture_kinds import IMAGE_SUFFIXES, readable_suffixes, skipped_lines
from support.tars import PICTURES

images.load_heif()  # so that Pillow writes HEIC
RED, BLUE, BLACK = (255, 0, 0), (0, 0, 255), (0, 0, 0)
INSTALL_RAW = 'type pip install -e ".[raw]"'


def halves(left, width=640, height=400):
    """A picture whose left half has a colour, and whose right half is black."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = left
    return Image.fromarray(pixels)


def saved(image, form, **options):
    image.save(file := io.BytesIO(), form, **options)
    return file.getvalue()


def is_near(pixel, colour):
    return np.abs(pixel.astype(int) - colour).max() < 40  # of a photo that was compressed


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


# ---------------------------------------------------------------- HEIC


@pytest.mark.parametrize("orientation, shape, red, black", [
    (1, (400, 640, 3), (200, 20), (200, -20)), (3, (400, 640, 3), (200, -20), (200, 20)),
    (6, (640, 400, 3), (20, 200), (-20, 200)), (8, (640, 400, 3), (-20, 200), (20, 200)),
])
@pytest.mark.parametrize("name", ["photo.HEIC", "photo.heif", "photo.jpg"])
def test_heic_is_read_whatever_its_name_and_turned_upright_once(tmp_path, name, orientation, shape, red, black):
    (tmp_path / name).write_bytes(saved(halves(RED), "HEIF", exif=turned(orientation)))
    for content in (None, (tmp_path / name).read_bytes()):
        pixels = read_image(tmp_path / name, shrink_to=64, content=content)
        assert pixels.shape == shape and is_near(pixels[red], RED) and is_near(pixels[black], BLACK)


def test_avif_and_heif_are_told_apart_though_they_begin_alike(tmp_path):
    for form in ("AVIF", "HEIF"):
        content = saved(halves(RED), form)
        # "mif1" says that it is a picture of this family, and leaves open of which codec
        (tmp_path / "photo").write_bytes(content[:8] + b"mif1" + content[12:])
        assert is_near(read_image(tmp_path / "photo")[200, 20], RED)


def test_a_damaged_heic_is_one_line(tmp_path):
    content = saved(halves(RED), "HEIF")
    for damaged in (content[:100], content[: len(content) // 2], content[:40] + bytes(100)):
        (tmp_path / "photo.heic").write_bytes(damaged)
        with pytest.raises(OSError, match="photo.heic: ") as error:
            read_image(tmp_path / "photo.heic")
        assert error.value.errno is None


def test_readers_of_phones_and_cameras_are_loaded_only_where_there_is_such_a_file(tmp_path):
    halves(RED).save(tmp_path / "a.jpg")
    code = ("import sys; from support.images import picture_names, read_image; picture_names('.'); "
            "read_image('a.jpg'); sys.exit(bool({'pillow_heif', 'rawpy'} & sys.modules.keys()))")
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.returncode == 0


# ---------------------------------------------------------------- camera RAW


def raw_photo(orientation=1, preview=(480, 300)):
    """A DNG whose sensor saw red on the left, and whose preview is blue there, so that they can be told apart."""
    sensor = np.full((400, 640), 2000, np.uint16)
    sensor[0::2, 0:320:2] = 60_000
    content = saved(halves(BLUE, *preview), "JPEG") if preview else None
    return dng(sensor, orientation, content, preview)


@pytest.mark.parametrize("orientation, left_is_at", [(1, "left"), (3, "right"), (6, "top"), (8, "bottom")])
@pytest.mark.parametrize("preview, longer, shorter, is_blue", [
    ((480, 300), 480, 300, True),
    (None, 320, 200, False),  # no preview: the sensor's 640 x 400 values at half their size
    ((120, 75), 320, 200, False),  # a stamp is no preview
])
def test_raw_is_its_preview_or_developed_and_upright(
    tmp_path, orientation, left_is_at, preview, longer, shorter, is_blue
):
    (tmp_path / "photo.DNG").write_bytes(raw_photo(orientation, preview))
    places = {"left": (0.5, 0.1), "right": (0.5, 0.9), "top": (0.1, 0.5), "bottom": (0.9, 0.5)}
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    for content in (None, (tmp_path / "photo.DNG").read_bytes()):
        pixels = read_image(tmp_path / "photo.DNG", content=content)
        height, width, _ = pixels.shape
        assert (height, width) == ((shorter, longer) if orientation in (1, 3) else (longer, shorter))
        across, down = places[left_is_at]
        bright = pixels[int(across * height), int(down * width)]
        across, down = places[opposite[left_is_at]]
        dark = pixels[int(across * height), int(down * width)]
        assert bright[2 if is_blue else 0] > 200 and bright[0 if is_blue else 2] < 100 and dark.max() < 60


def test_raw_that_is_none_is_one_line_and_a_jpeg_by_its_name_is_read(tmp_path):
    (tmp_path / "text.cr2").write_text("not a picture")
    (tmp_path / "cut.dng").write_bytes(raw_photo(preview=None)[:400])
    for name in ("text.cr2", "cut.dng", "empty.nef"):
        (tmp_path / name).touch()
        with pytest.raises(OSError, match=f"{name}: ") as error:
            read_image(tmp_path / name)
        assert error.value.errno is None and "b'" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "nowhere.arw")
    (tmp_path / "photo.raf").write_bytes(saved(halves(RED), "JPEG"))
    assert read_image(tmp_path / "photo.raf").shape == (400, 640, 3)


def test_raw_under_a_name_that_is_no_text_is_read(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.dng"))
    try:
        path.write_bytes(raw_photo())
    except OSError:
        pytest.skip("this file system has no such names")
    assert read_image(path).shape == (300, 480, 3)


def test_raw_is_developed_in_workers_after_it_was_developed_here(tmp_path):
    """LibRaw's threads do not survive a fork: with several of them, a worker would wait for ever."""
    large = dng(np.full((1200, 1600), 2000, np.uint16))
    (tmp_path / "photo.dng").write_bytes(large)
    code = ("import multiprocessing as m; from support.images import read_image; read_image('photo.dng'); "
            "p = m.get_context('fork').Process(target=read_image, args=('photo.dng',)); p.start(); p.join(60); "
            "code = p.exitcode; p.kill(); raise SystemExit(code != 0)")
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path,
                             env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "4"})
    assert process.returncode == 0


# ---------------------------------------------------------------- several pictures in one file


@pytest.mark.parametrize("name", ["portrait.mpo", "portrait.jpg"])
def test_of_several_jpegs_in_a_file_the_first_is_the_photo(tmp_path, name):
    content = saved(halves(RED), "MPO", save_all=True, append_images=[halves(BLUE)], exif=turned(6))
    (tmp_path / name).write_bytes(content)
    assert Image.open(tmp_path / name).format == "MPO"
    pixels = read_image(tmp_path / name)
    assert pixels.shape == (640, 400, 3) and is_near(pixels[20, 200], RED)
    assert picture_names(tmp_path) == [name]
    assert read_image(tmp_path / name, shrink_to=100).shape == (160, 100, 3)


# ---------------------------------------------------------------- what cannot be read is counted


@pytest.fixture
def without_rawpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "rawpy", None)  # as if it were not installed
    return monkeypatch


def test_what_looks_like_a_picture_is_counted_by_kind_with_what_would_read_it(tmp_path, without_rawpy):
    for number in range(500):
        (tmp_path / f"{number:03}.CR3").write_bytes(b"\0\0\0\x18ftypcrx " + bytes(20))
    (tmp_path / "phone.dng").write_bytes(raw_photo())  # Pillow would open it, as a TIFF, and see its stamp only
    for name in ("a.psd", "b.psd", "c.jxl", "d.jp2", "e.xcf", "f.eps", "g.svg"):
        (tmp_path / name).write_bytes(b"whatever")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "film.mp4").write_bytes(b"whatever")
    halves(RED).save(tmp_path / "z.jpg")
    reasons = {}
    for name in picture_names(tmp_path):
        try:
            read_image(tmp_path / name)
        except OSError as error:
            reasons[tmp_path / name] = str(error)
    assert len(reasons) == 509
    assert reasons[tmp_path / "phone.dng"] == f"{tmp_path / 'phone.dng'}: camera RAW: to read it {INSTALL_RAW}"
    lines = skipped_lines(reasons)
    assert lines[:3] == [
        f"500 .cr3 files, camera RAW: to read them {INSTALL_RAW}",
        "2 .psd files, Photoshop: to find them save them as JPEG",
        "1 .jxl file, JPEG XL: to find it save it as JPEG",
    ]
    assert f"1 .dng file, camera RAW: to read it {INSTALL_RAW}" in lines
    assert lines[-1] == f"{tmp_path / 'text.png'}: not a picture" and len(lines) == 9


def test_a_name_of_another_kind_is_no_hindrance(tmp_path):
    (tmp_path / "photo.psd").write_bytes(saved(halves(RED), "PNG"))
    assert read_image(tmp_path / "photo.psd").shape == (400, 640, 3)


def test_without_the_reader_of_heic_it_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(saved(halves(RED), "PNG"))
    assert read_image(tmp_path / "a.heic").shape == (400, 640, 3)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(OSError, match="a.heic: HEIC: to read it type pip install -e .$"):
        read_image(tmp_path / "a.heic")
    assert ".heic" not in readable_suffixes()


def test_once_its_reader_is_installed_the_next_search_reads_what_was_skipped(tmp_path, without_rawpy):
    (tmp_path / "a.dng").write_bytes(raw_photo())
    (tmp_path / "text.png").write_text("not a picture")
    halves(RED).save(tmp_path / "b.jpg")
    gallery = Gallery(tmp_path, MODEL, progress=False, device="cpu")
    assert [file.name for file in gallery.files] == ["b.jpg"] and len(gallery.skipped) == 2
    again = Gallery(tmp_path, MODEL, progress=False, device="cpu")
    assert again.embedded == 0 and again.skipped == gallery.skipped and not again.embedder.model_is_loaded
    without_rawpy.undo()  # it is installed now
    after = Gallery(tmp_path, MODEL, progress=False, device="cpu")
    assert after.embedded == 1 and [file.name for file in after.files] == ["a.dng", "b.jpg"]
    assert [file.name for file in after.skipped] == ["text.png"]
    last = Gallery(tmp_path, MODEL, progress=False, device="cpu")
    assert last.embedded == 0 and not last.embedder.model_is_loaded


def test_what_an_earlier_version_could_not_read_is_tried_again_once(tmp_path):
    (tmp_path / "a.heic").write_bytes(saved(halves(RED), "HEIF"))
    (tmp_path / "text.png").write_text("not a picture")
    halves(RED).save(tmp_path / "b.jpg")
    Gallery(tmp_path, MODEL, progress=False, device="cpu")
    index = read_index(tmp_path / INDEX_NAME)
    kept = Gallery(tmp_path, MODEL, progress=False, device="cpu")
    # as an earlier version wrote it: it knew nothing of readers, and could not read HEIC
    index.files[0][2] = f"{tmp_path / 'a.heic'}: HEIC cannot be read here: save it as JPEG"
    index.embeddings, index.looks, index.penalties = index.embeddings[1:], index.looks[1:], index.penalties[1:]
    index.readers = None
    write_index(tmp_path / INDEX_NAME, index)
    after = Gallery(tmp_path, MODEL, progress=False, device="cpu")
    assert after.embedded == 1 and after.files == kept.files
    assert np.allclose(after.embeddings.astype(float), kept.embeddings.astype(float), atol=1e-2)
    assert read_index(tmp_path / INDEX_NAME).readers == update.readers()


def test_the_command_counts_them_in_a_line(tmp_path):
    for name in ("a.psd", "b.psd", "c.psd"):
        (tmp_path / name).write_bytes(b"8BPS")
    (tmp_path / "d.heic").write_bytes(saved(halves(RED), "HEIF"))
    shown = run_script("inference.py", "--gallery", tmp_path, "--checkpoint", MODEL, "--query", "a dog",
                       "--no-picture", "--device", "cpu", cwd=tmp_path).stdout
    assert shown.count("skipped: ") == 1
    assert "skipped: 3 .psd files, Photoshop: to find them save them as JPEG" in shown and "d.heic" in shown


def test_a_picture_in_place_of_a_gallery_is_told_what_to_type(tmp_path):
    (tmp_path / "my photo.HEIC").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError) as error:
        pictures_of_folder(tmp_path / "my photo.HEIC")
    assert str(error.value) == (
        f"--gallery {tmp_path / 'my photo.HEIC'} is not a folder: for pictures like it type python inference.py "
        f"--image '{tmp_path / 'my photo.HEIC'}'; to search its folder type --gallery {tmp_path}")
    with pytest.raises(UserError, match=f"notes.txt is not a folder: to search its folder type --gallery {tmp_path}$"):
        pictures_of_folder(tmp_path / "notes.txt")


# ---------------------------------------------------------------- training


def test_photos_of_phones_and_cameras_are_trained_on_and_the_report_counts_the_others(tmp_path, without_rawpy):
    (tmp_path / "Images").mkdir()
    names = [f"{number}.heic" for number in range(8)]
    for number, name in enumerate(names):
        (tmp_path / "Images" / name).write_bytes(saved(halves((200, 20 * number, 0)), "HEIF"))
    for name in ("raw1.dng", "raw2.dng", "raw3.dng"):
        (tmp_path / "Images" / name).write_bytes(raw_photo() + name.encode())
        names.append(name)
    (tmp_path / "captions.txt").write_text("image,caption\n" + "".join(f"{name},A dog\n" for name in names))
    for split, listed in {"train": names[:5] + names[8:], "dev": names[5:8]}.items():
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text("\n".join(listed) + "\n")
    splits, report = load_usable_splits(tmp_path)
    assert f"  unreadable, left out: 3 (3 .dng files, camera RAW: to read them {INSTALL_RAW})" in report.lines
    assert len(splits["train"]) == 5 and len(splits["dev"]) == 3
    without_rawpy.undo()
    assert not inspect_dataset(tmp_path).unreadable

    # in shards: HEIC as it is, and of camera RAW what is trained on
    run_script("data/make_shards.py", tmp_path, tmp_path / "shards", "--photos", 20, cwd=tmp_path)
    report = inspect_dataset(tmp_path / "shards" / "train-00000.tar")
    splits, _ = load_usable_splits(tmp_path / "shards" / "train-00000.tar")
    assert not report.unreadable and {split: len(table) for split, table in splits.items()} == {
        "train": 8, "dev": 3, "test": 0}
    sizes = sorted(read_image(tmp_path / "shards" / name).shape for name in splits["train"]["image"])
    assert sizes == [(300, 480, 3)] * 3 + [(400, 640, 3)] * 5


def test_the_names_in_tars_are_names_of_pictures():
    assert {f".{suffix}" for suffix in PICTURES} < IMAGE_SUFFIXES


# ---------------------------------------------------------------- memory


def jpeg_header(width, height, kind=0xC0, scan=(1, 2, 3), samplings=(0x22, 0x11, 0x11)):
    """A JPEG that says it has this size, and ends where its pixels would begin; kind: 0xC0 baseline, 0xC2 progressive.

    scan: which of its three colours the first scan holds.
    """
    colours = b"".join(bytes([number, sampling, 0]) for number, sampling in enumerate(samplings, start=1))
    frame = struct.pack(">BBHBHHB", 0xFF, kind, 8 + len(colours), 8, height, width, len(samplings)) + colours
    parts = b"".join(bytes([number, 0]) for number in scan)
    start = struct.pack(">BBHB", 0xFF, 0xDA, 6 + len(parts), len(scan)) + parts + bytes([0, 63, 0])
    return b"\xff\xd8" + frame + start


@pytest.mark.parametrize("kind, scan, samplings, is_too_large", [
    (0xC0, (1, 2, 3), (0x22, 0x11, 0x11), False),  # from top to bottom: 900 megapixels at an eighth, 140 MB
    (0xC2, (1, 2, 3), (0x22, 0x11, 0x11), True),  # 900 million, half as many again of the colours, 2 bytes each: 2.7 GB
    (0xC0, (1,), (0x22, 0x11, 0x11), True),  # not called progressive, but its colours come one after the other
])
def test_the_memory_that_a_jpeg_takes_is_known_before_it_is_decoded(tmp_path, kind, scan, samplings, is_too_large):
    (tmp_path / "a.jpg").write_bytes(jpeg_header(30_000, 30_000, kind, scan, samplings))
    with pytest.raises(OSError, match="a.jpg: ") as error:
        read_image(tmp_path / "a.jpg", shrink_to=448)
    words = "a.jpg: its 30,000 x 30,000 pixels take more than 1.3 GB of memory to decode: save it smaller"
    assert str(error.value).endswith(words) == is_too_large


def test_progressive_jpegs_of_200_megapixels_are_within_the_bound_in_full_colour():
    """Two bytes for each of three colours of 199,756,800 pixels, and ten for each of a sixty-fourth of them."""
    for samplings, coefficients in (((0x11,) * 3, 1_198_540_800), ((0x22, 0x11, 0x11), 599_270_400)):
        file = io.BytesIO(jpeg_header(16_320, 12_240, 0xC2, samplings=samplings))
        image, memory = images.open_jpeg(file, shrink_to=448)
        assert image.size == (2040, 1530) and memory == coefficients + 31_212_000 < images.MOST_MEMORY


def test_a_file_that_unpacks_to_30_gigabytes_is_refused(tmp_path):
    content = bytearray(saved(Image.new("RGB", (1, 1)), "PNG"))
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "bomb.png").write_bytes(content)
    for shrink_to in (None, 448):
        with pytest.raises(OSError, match="bomb.png: its pixels are more than 100,000,000: save it smaller, or as"):
            read_image(tmp_path / "bomb.png", shrink_to)


@pytest.mark.parametrize("form, bytes_a_pixel", [("PNG", 13), ("WEBP", 20), ("AVIF", 16), ("HEIF", 13)])
def test_other_formats_are_bounded_by_what_their_decoders_take(tmp_path, monkeypatch, form, bytes_a_pixel):
    (tmp_path / "a").write_bytes(saved(halves(RED), form))
    monkeypatch.setattr(images, "MOST_MEMORY", 640 * 400 * bytes_a_pixel)
    assert read_image(tmp_path / "a").shape == (400, 640, 3)
    monkeypatch.setattr(images, "MOST_MEMORY", 640 * 400 * bytes_a_pixel - 1)
    with pytest.raises(OSError, match="a: its 640 x 400 pixels take more than"):
        read_image(tmp_path / "a", shrink_to=64)


def test_a_jpeg_that_is_too_large_as_a_whole_is_read_at_a_part_of_its_size(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(saved(halves(RED), "JPEG"))
    for part, shape in ((1, (400, 640, 3)), (2, (200, 320, 3)), (8, (50, 80, 3))):
        monkeypatch.setattr(images, "MOST_MEMORY", 10 * 640 * 400 // part**2)
        assert read_image(tmp_path / "a.jpg").shape == shape
    monkeypatch.setattr(images, "MOST_MEMORY", 10 * 80 * 50 - 1)
    with pytest.raises(OSError, match="take more than"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it tells the highest memory of a process")
@pytest.mark.parametrize("progressive, most", [(False, 60), (True, 280)])
def test_a_photo_of_108_megapixels_takes_the_memory_that_was_foreseen(tmp_path, progressive, most):
    """In grey: two bytes a pixel where it is progressive, 216 MB, and hardly anything where it is not."""
    Image.new("L", (12_000, 9000), 90).save(tmp_path / "a.jpg", progressive=progressive)
    code = ("import re, support.images as images\n"
            "def peak(): return int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) / 1000\n"
            "images.formats(); before = peak()\n"
            "pixels = images.read_image('a.jpg', shrink_to=448)\n"
            "print(*pixels.shape, pixels.min(), pixels.max(), peak() - before)")
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                             env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    *about, megabytes = process.stdout.split()
    assert about == ["1125", "1500", "3", "90", "90"]
    assert float(megabytes) < most
