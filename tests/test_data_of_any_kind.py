"""Captions files and pictures of any kind: read as they were meant, or refused in one line that says where and why."""

import csv
import io
import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from raw_file import dng
from test_checkpoint_v1 import MODEL

from config import PRESETS
from dataset import inspect_dataset, load_splits, read_captions, read_square
from inference import Gallery
from search.index import INDEX_NAME, read_index
from support.errors import UserError
from support.images import MOST_PIXELS, load_heif, read_image
from train import load_data

# the same examples each time; the folder of a test is used again by all of them
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True, database=None,
                    suppress_health_check=[HealthCheck.function_scoped_fixture])
LETTERS = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp", "Zs"])
NAMES = (st.text(LETTERS, min_size=1, max_size=20).map(str.strip)
         .filter(lambda name: name not in ("", ".", "..") and not set("/\\\0") & set(name))
         .map(lambda name: f"{name}.jpg"))
CAPTIONS = st.one_of(
    st.text(LETTERS | st.sampled_from(' ,"\t\''), max_size=60),
    st.sampled_from(["None", "NA", "nan", "", " ", '"', '""', ",", "\u202eright to left",
                     "\u05e9\u05dc\u05d5\u05dd, \u05e2\u05d5\u05dc\u05dd", "\N{DOG FACE}\u200d", "=1+1",
                     "a" * 10_000, 'a "big" dog, running']))


def fresh(folder):
    """An empty dataset folder in the folder of a test."""
    (folder / "Images").mkdir(exist_ok=True)
    for path in [*(folder / "Images").iterdir(), folder / "captions.txt"]:
        path.unlink(missing_ok=True)
    return folder


# ---------------------------------------------------------------- captions


@EXAMPLES
@given(rows=st.lists(st.tuples(NAMES, CAPTIONS), min_size=1, max_size=12), mark=st.booleans(),
       line_end=st.sampled_from(["\n", "\r\n"]), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_a_well_formed_table_is_read_back_as_it_was_written(tmp_path, rows, mark, line_end, quoting):
    folder, text = fresh(tmp_path), io.StringIO()
    writer = csv.writer(text, lineterminator=line_end, quoting=quoting)
    writer.writerows([("image", "caption"), *rows])
    (folder / "captions.txt").write_bytes(text.getvalue().encode("utf-8-sig" if mark else "utf-8"))
    for name, _ in rows:
        (folder / "Images" / name).touch()
    expected = [(name, caption.strip()) for name, caption in rows if caption.strip()]
    if not expected:
        with pytest.raises(UserError, match="holds no captions"):
            load_splits(folder)
        return
    assert [tuple(row) for row in read_captions(folder)[["image", "caption"]].itertuples(index=False)] == expected
    splits = load_splits(folder)
    read = [(row.image, row.caption) for table in splits.values() for row in table.itertuples()]
    assert sorted(read) == sorted(expected)  # each photo in one split, with all of its captions
    assert sum(table["image"].nunique() for table in splits.values()) == len({name for name, _ in expected})


PIECES = st.lists(st.one_of(
    st.binary(max_size=30), st.sampled_from([
        b"image,caption\n", b"a.jpg,A dog\n", b'"', b",", b"\n", b"\r", b"\0", b"\xef\xbb\xbf", b"\xff\xfe",
        b"../a.jpg,x\n",
        b"/etc/passwd,x\n", b'a.jpg,"', b"a" * 300 + b".jpg,too long a name\n", b"caf\xe9.jpg,x\n", b"x.tar/a.jpg,x\n",
        b"a\0.jpg,x\n",
        "image,caption\na.jpg,b\n".encode("utf-16"), b'"a"b,caption\n', b"a.jpg#0\tA dog\n"])), max_size=8)


@EXAMPLES
@given(start=st.sampled_from([b"", b"image,caption\n"]), pieces=PIECES,
       file=st.sampled_from(["captions.txt", "Flickr8k.token.txt"]))
def test_whatever_bytes_a_captions_file_holds_it_is_a_table_or_one_line(tmp_path, start, pieces, file):
    folder = fresh(tmp_path)
    (folder / "Flickr8k.token.txt").unlink(missing_ok=True)
    (folder / file).write_bytes(start + b"".join(pieces))
    try:
        for table in load_splits(folder).values():
            assert all(row.caption.strip() and row.image for row in table.itertuples())
        inspect_dataset(folder)
    except UserError as error:
        assert file in str(error)


@pytest.mark.parametrize("content, complaint", [
    ("image,caption\na.jpg,b\n".encode("utf-16")[:-1], "captions.txt line 2: not UTF-16"),
    ("image,caption\na.jpg,b\nc.jpg,caf\u00e9\n".encode("latin-1"), "captions.txt line 3: not UTF-8"),
    (b'"image"x,caption\na.jpg,b\n', "captions.txt line 1 "),
    (b"a.jpg,b\n", "line 1 names no image"),
    (b"image,caption\na\0.jpg,b\n", "line 2: .* must be a file name inside"),
    (b"image,caption\nb.jpg," + b"a" * 200_000 + b"\n", "line 2: field larger"),
])
def test_a_file_that_cannot_be_read_is_named_with_its_line(tmp_path, content, complaint):
    (tmp_path / "captions.txt").write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        read_captions(tmp_path)


def test_names_that_differ_by_case_are_two_photos_and_a_name_too_long_is_none(tmp_path):
    fresh(tmp_path)
    (tmp_path / "Images" / "a.jpg").touch()
    (tmp_path / "Images" / "A.jpg").touch()
    (tmp_path / "captions.txt").write_text(f"image,caption\na.jpg,x\nA.jpg,x\na.jpg,x\n{'b' * 300}.jpg,x\n")
    read = [(row.image, row.caption) for table in load_splits(tmp_path).values() for row in table.itertuples()]
    assert sorted(read) == [("A.jpg", "x"), ("a.jpg", "x"), ("a.jpg", "x")]  # a row that stands twice counts twice


# ---------------------------------------------------------------- pictures


load_heif()  # so that Pillow writes HEIC


def bytes_of(image, form, **options):
    image.save(file := io.BytesIO(), form, **options)
    return file.getvalue()


PLAIN = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8))
TURNED = Image.Exif()
TURNED[0x0112] = 6
GOOD = {
    "jpeg.jpg": bytes_of(PLAIN, "JPEG"), "turned.jpg": bytes_of(PLAIN, "JPEG", exif=TURNED),
    "cmyk.jpg": bytes_of(PLAIN.convert("CMYK"), "JPEG"), "grey.jpg": bytes_of(PLAIN.convert("L"), "JPEG"),
    "progressive.jpg": bytes_of(PLAIN, "JPEG", progressive=True),
    "palette.png": bytes_of(PLAIN.convert("P"), "PNG"), "alpha.png": bytes_of(PLAIN.convert("RGBA"), "PNG"),
    "16 bit.png": bytes_of(Image.fromarray(np.arange(768, dtype=np.uint16).reshape(24, 32)), "PNG"),
    "one bit.png": bytes_of(PLAIN.convert("1"), "PNG"), "one pixel.png": bytes_of(Image.new("RGB", (1, 1)), "PNG"),
    "thin.png": bytes_of(Image.new("RGB", (1, 100_000)), "PNG"), "a jpeg.png": bytes_of(PLAIN, "JPEG"),
    "animated.gif": bytes_of(PLAIN, "GIF", save_all=True, append_images=[PLAIN.rotate(90)]),
    "animated.webp": bytes_of(PLAIN, "WEBP", save_all=True, append_images=[PLAIN.rotate(90)]),
    "float.tiff": bytes_of(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"),
    "bitmap.bmp": bytes_of(PLAIN, "BMP"), "\u05e9\u05dc\u05d5\u05dd \N{DOG FACE}.PNG": bytes_of(PLAIN, "PNG"),
    "a\nb.jpg": bytes_of(PLAIN, "JPEG"), "phone.heic": bytes_of(PLAIN, "HEIF", exif=TURNED.tobytes()),
    "portrait.mpo": bytes_of(PLAIN, "MPO", save_all=True, append_images=[PLAIN.rotate(90)]),
    "camera.dng": dng(np.full((24, 32), 2000, np.uint16)),
    "preview.dng": dng(np.full((24, 32), 2000, np.uint16), 6, bytes_of(PLAIN.resize((320, 256)), "JPEG"), (320, 256)),
}


def png_of_size(width, height):
    """A PNG that says it has this size; its pixels are not there."""
    content = bytearray(bytes_of(Image.new("RGB", (1, 1)), "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


BAD = {
    "empty.jpg": b"", "text.png": b"not a picture", "zeros.gif": bytes(1000), "cut.jpg": GOOD["jpeg.jpg"][:400],
    "cut.png": GOOD["alpha.png"][:300], "cut.webp": GOOD["animated.webp"][:100], "cut.gif": GOOD["animated.gif"][:50],
    "bomb.png": png_of_size(10_000, 10_001), "large bomb.png": png_of_size(2**31 - 1, 2**31 - 1),
    "nothing.png": png_of_size(0, 0), "nothing.gif": b"GIF89a" + bytes(7) + b";",
    "a program.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
    "apple.heic": b"\0\0\0\x18ftypheic" + bytes(100),
}


def write(folder, pictures):
    folder.mkdir(exist_ok=True)
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
    return folder


def test_every_good_picture_is_found_and_every_bad_one_listed_once_with_a_reason(tmp_path):
    folder = write(tmp_path / "pictures", {**GOOD, **BAD})
    gallery = Gallery(folder, MODEL, progress=False, device="cpu")
    assert {path.name for path in gallery.files} == set(GOOD) and len(gallery.files) == len(GOOD)
    assert {path.name for path in gallery.skipped} == set(BAD) and all(map(str, gallery.skipped.values()))
    assert len(gallery.search("a dog", top_k=50, fold=False)) == len(GOOD)
    assert Gallery(folder, MODEL, progress=False, device="cpu").embedded == 0


@settings(EXAMPLES, max_examples=200)
@given(name=st.sampled_from(sorted(GOOD)), place=st.floats(0, 1), change=st.binary(max_size=8), cut=st.booleans())
def test_a_damaged_picture_is_pixels_or_an_error_with_its_name(tmp_path, name, place, change, cut):
    content = GOOD[name]
    start = int(place * len(content))
    damaged = content[:start] + change + (b"" if cut else content[start + len(change) :])
    (tmp_path / name).write_bytes(damaged)
    try:
        pixels = read_square(tmp_path / name, 32)
    except OSError as error:
        assert error.errno is None and name in str(error)
        return
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8


def test_a_picture_of_too_many_pixels_is_refused_wherever_it_is_opened(tmp_path):
    write(tmp_path, {"bomb.png": BAD["bomb.png"]})
    assert 10_000 * 10_001 > MOST_PIXELS
    with pytest.raises(OSError, match="bomb.png: its pixels are more than 100,000,000"):
        read_image(tmp_path / "bomb.png")
    with pytest.raises(Image.DecompressionBombError):  # as a library would open it that a script calls
        Image.open(tmp_path / "bomb.png")


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("bad, stops", [(1, False), (10, False), (11, True), (20, True)])
def test_training_leaves_bad_photos_out_and_stops_where_more_than_half_are(tmp_path, capsys, bad, stops):
    names = [f"{number:02}.jpg" for number in range(20)]
    write(tmp_path / "Images", {name: GOOD["jpeg.jpg"] + bytes([number]) for number, name in enumerate(names)})
    lists = {"train": names, "dev": ["dev.jpg", "dev2.jpg"]}
    write(tmp_path / "Images", {name: GOOD["jpeg.jpg"] + name.encode() for name in lists["dev"]})
    for split, listed in lists.items():
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text("\n".join(listed) + "\n")
    for name in names[:bad]:
        (tmp_path / "Images" / name).write_bytes(GOOD["jpeg.jpg"][:400])
    (tmp_path / "captions.txt").write_text(
        "image,caption\n" + "".join(f"{name},A dog\n" for name in names + lists["dev"]))
    config = replace(PRESETS["sample"], data_dir=tmp_path)
    if stops:
        with pytest.raises(UserError, match=f"of 20 photos in train, {bad} are .*00.jpg.*more than 50%"):
            load_data(config)
        return
    splits, _ = load_data(config)
    report = capsys.readouterr().out
    assert len(splits["train"]) == 20 - bad
    assert sum("00.jpg" in line for line in report.splitlines()) == 1 and f"unreadable, left out: {bad}" in report


# ---------------------------------------------------------------- indexes in a stranger's folder


def index_with(path, header=None, **about):
    """Change what an index holds: of its header a tensor's entries, and its description."""
    held = safetensors.numpy.load_file(path)
    kept = json.loads(held["about"].tobytes())
    held["about"] = np.frombuffer(json.dumps({**kept, **about}).encode(), np.uint8)
    content = safetensors.numpy.save(held)
    size = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + size])
    for name, entry in (header or {}).items():
        entries[name] = {**entries[name], **entry}
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@pytest.mark.parametrize("change", [
    {"header": {"embeddings": {"shape": []}}}, {"header": {"embeddings": {"shape": [0]}}},
    {"header": {"embeddings": {"shape": [2]}}}, {"header": {"embeddings": {"shape": [2, 4, 4]}}},
    {"header": {"embeddings": {"shape": [2, 10**12]}}}, {"header": {"embeddings": {"shape": [-2, 16]}}},
    {"header": {"embeddings": {"data_offsets": [-64, 0]}}},
    {"header": {"embeddings": {"data_offsets": [10**15, 10**15]}}},
    {"header": {"about": {"data_offsets": [-5, 10**12]}}}, {"header": {"looks": {"shape": [2, 10**9]}}},
    {"usual": "x"}, {"usual": [1]}, {"sources": 5}, {"splits": 5}, {"splits": None}, {"model_files": None},
    {"files": [["a\0", "1|1", None]]}, {"files": [["../../etc/passwd", None, None]]}, {"model": "../x"}, {"files": 5},
])
def test_a_hostile_index_is_made_anew(tmp_path, change):
    folder = write(tmp_path / "pictures", {name: GOOD[name] for name in ("jpeg.jpg", "alpha.png")})
    expected = Gallery(folder, MODEL, progress=False, device="cpu").search("a dog")
    index_with(folder / INDEX_NAME, **change)
    assert Gallery(folder, MODEL, progress=False, device="cpu").search("a dog") == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_index_of_no_numbers_finds_nothing_and_breaks_nothing(tmp_path, value):
    folder = write(tmp_path / "pictures", {name: GOOD[name] for name in ("jpeg.jpg", "alpha.png", "thin.png")})
    best = Gallery(folder, MODEL, progress=False, device="cpu").search("a dog", fold=False)[0]
    held = safetensors.numpy.load_file(folder / INDEX_NAME)
    names = [name for name, *_ in read_index(folder / INDEX_NAME).files]
    held["embeddings"] = np.where((np.array(names) == best.file.name)[:, None], held["embeddings"], np.float16(value))
    (folder / INDEX_NAME).write_bytes(safetensors.numpy.save(held))
    found = Gallery(folder, MODEL, progress=False, device="cpu").search("a dog", fold=False)
    assert found[0].file == best.file and all(-1 <= match.score <= 1 for match in found)
