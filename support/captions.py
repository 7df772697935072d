"""Captions in any of the forms in which they lie about, read into rows of one kind.

    CSV                 a header that names both columns   image,caption
                                                           photo.jpg,A dog runs through the water .
    TSV, semicolons     the same between other marks       filepath;title
    Flickr30k           bars between the columns           image_name| comment_number| comment
    Flickr8k            name, number, tab, caption         photo.jpg#0	A dog runs through the water .
    Karpathy's JSON     photos with their sentences        {"images": [{"filename": …, "split": …, "sentences": […]}]}
    COCO's JSON         photos, and captions beside them   {"images": [{"id": …}], "annotations": [{"image_id": …}]}
    JSON lines          an object a line                   {"file_name": "photo.jpg", "text": "A dog runs …"}
    Parquet             as data sets of the hub have it    columns image (with its bytes) and caption
    pairs of files      photo.jpg and photo.txt            a caption a line
    shards              tars of KEY.jpg and KEY.txt        support/tars.py

The forms are told apart by their content. Each has its reader in support/caption_forms.py or support/caption_tables.py;
here the files are found, and where the photos lie.
"""

import functools
import os
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import NamedTuple

from support.caption_forms import (
    JUDGEMENTS,
    PAIRS,
    PARQUET,
    pair_rows,
    picture_text_pairs,
    recognise,
    split_in_name,
)
from support.errors import UserError
from support.files import writable
from support.images import pictures_and_links
from support.picture_kinds import IMAGE_SUFFIXES
from support.source import as_source
from support.tars import dataset_folder, is_sharded, shard_captions, split_of_shard

MADE_BY = {"data/flickr8k": "python data/download_flickr8k.py", "data/sample": "python data/sample_scenes.py"}
KNOWN_NAMES = ("captions.txt", "Flickr8k.token.txt")  # of these the first one that is there holds the captions
SUFFIXES = {".txt", ".csv", ".tsv", ".token", ".json", ".jsonl", ".parquet"}
FOLDERS_OF_CAPTIONS = ("annotations", "data", "train", "validation", "valid", "val", "dev", "test")
SHARDS = "shards"
UNPACKED = ".clip-cache/photos"  # photos that lay in Parquet files
EXPECTED = (
    "expected captions.txt with the header image,caption, another table (CSV, TSV, JSON, JSON lines, Parquet) that "
    "names photos and their captions, or photo.txt beside photo.jpg: data/README.md shows each"
)


class Row(NamedTuple):
    """One caption of one photo."""

    image: str  # the photo's name: its path below the folder of photos
    caption: str
    split: str | None = None  # train, dev or test, where the captions say so


@dataclass
class Captions:
    """All captions of a dataset, and where its photos lie."""

    rows: list  # `Row`s, in the order of the files
    form: str  # what the files are, in words
    files: list  # that were read: paths
    paths: dict  # {image: where the photo lies, as text}, in the order of the rows
    missing: set = field(default_factory=set)  # images whose photo is not there
    renamed: dict = field(default_factory=dict)  # {name as it is written: name of the file}, where these differ
    links: list = field(default_factory=list)  # to folders, which are not followed where files are looked for
    uncaptioned: list = field(default_factory=list)  # of pairs of files: pictures without a text, or with an empty one

    @property
    def lacks_dev(self):
        """Whether the captions name photos of train and none of dev; for shards training says so."""
        named = {row.split for row in self.rows}
        return self.form != SHARDS and "train" in named and "dev" not in named

    def true_name(self, name):
        """Return the name of a photo as it is called here, for one in a list of a split; itself where there is none."""
        if name in self.paths:
            return name
        return self.renamed.get(name) or self.names_like.get(folded(name), name)

    @functools.cached_property
    def names_like(self):
        """The names by how they are compared where they are written otherwise; none that two photos share."""
        counts = Counter(folded(image) for image in self.paths)
        return {folded(image): image for image in self.paths if counts[folded(image)] == 1}

    def description(self):
        """Return what was read, as one line for people."""
        counts = sorted(Counter(row.image for row in self.rows).values())
        usual = counts[len(counts) // 2]
        each = "1 caption a photo" if usual == 1 else f"{usual} captions a photo"
        if counts[0] != counts[-1]:
            each += f" (from {counts[0]} to {counts[-1]})"
        names = ", ".join(str(path) for path in self.files[:3])
        if len(self.files) > 3:
            names += f" and {len(self.files) - 3:,} more"
        return f"reading {names} as {self.form}: {each}"


def read_dataset(data):
    """Return the `Captions` of a dataset, named by its path or by a `Source`.

    Every caption is text: "None" and "NA" too. Rows with an empty caption are left out. Raises UserError with file and
    line for a row that cannot be used, and one that says what is expected where there are no captions.
    """
    source = as_source(data)
    if is_sharded(source.data_dir):
        return captions_of_shards(source)

    found = find_captions(source)
    likely, others = folders_of_photos(source, found)
    rows = []
    for file, read_rows in found.readers.items():
        # One file that happens to be called train.csv divides nothing; train.csv and test.csv do.
        split_of_file = split_in_name(file) if len(found.readers) > 1 else None
        for place, image, caption, split in read_rows():
            if not isinstance(image, str) or not isinstance(caption, str | None):
                raise UserError(f"{file} {place}: the image's name and the caption must be text")
            if not is_inside_folder(image):
                raise UserError(f"{file} {place}: {image!r} must be a file name inside {likely[0]}")
            if caption and caption.strip():
                text = caption.strip().encode("utf-8", "replace").decode()  # JSON may hold half a character
                rows.append(Row(found.prefix(file) + image, text, split or split_of_file))
    if not rows:
        raise UserError(f"{next(iter(found.readers))} holds no captions")

    paths, missing, renamed = find_photos(dict.fromkeys(row.image for row in rows), likely, others)
    if renamed:
        rows = [row._replace(image=renamed.get(row.image, row.image)) for row in rows]
    uncaptioned = []
    if found.form == PAIRS:  # here a picture lies in the folder to be captioned
        (folder,) = found.readers
        names, _ = pictures_and_links(folder)
        uncaptioned = [name for name in names if name not in paths]
    links = []
    if found.form == PAIRS or renamed or missing:  # otherwise each photo was found by its name
        for folder in dict.fromkeys([*likely, *others]):
            if not folder.is_symlink():
                _, inside = pictures_and_links(folder)
                links += inside
    return Captions(rows, found.form, list(found.readers), paths, missing, renamed, sorted(set(links)), uncaptioned)


def captions_of_shards(source):
    """Return the `Captions` of a pattern of shards, whose names say which split they are."""
    folder = dataset_folder(source.data_dir)
    rows = []
    paths = {}
    for image, caption in shard_captions(source.data_dir):
        rows.append(Row(image, caption, split_of_shard(image)))
        paths[image] = str(folder / image)
    return Captions(rows, SHARDS, [source.data_dir], paths)


# ---------------------------------------------------------------- finding the captions


class Found(NamedTuple):
    """The files that hold the captions of a dataset."""

    form: str  # in words
    readers: dict  # {path: a function that yields (place, image, caption, split)}

    def prefix(self, file):
        """Return the folder that is put before the names of photos in one of several files.

        In an image folder of the library `datasets`, train/metadata.jsonl and test/metadata.jsonl each speak of the
        photos beside them; and train.jsonl speaks of those in the folder train beside it.
        """
        if len(self.readers) == 1 or self.form == PARQUET:  # photos in a Parquet file are called after it already
            return ""
        names = [path.name for path in self.readers]
        if names.count(file.name) > 1:
            return f"{file.parent.name}/"
        return f"{file.stem}/" if file.with_suffix("").is_dir() else ""


def find_captions(source):
    """Return the `Found` files of a dataset; raises UserError where there are none, or several could be meant."""
    folder = source.data_dir
    known = [folder / name for name in KNOWN_NAMES if os.path.isfile(folder / name)]
    if os.path.isfile(folder):
        files = [folder]
    elif known:
        files = known[:1]
    elif os.path.isdir(folder):
        files = caption_like_files(folder)
    else:
        maker = MADE_BY.get(folder.as_posix())
        hint = f"type {maker}" if maker else "see data/README.md"
        raise UserError(f"there is no dataset folder {folder}: {hint}, or name another with --data-dir DIR")

    unpacked = folder_of_unpacked_photos(source)
    forms = {}
    readers = {}
    faults = []
    for path in files:
        try:
            forms[path], reader = recognise(path, source, unpacked)
        except UserError as error:  # beside captions it does no harm
            faults.append(error)
            continue
        if reader is not None:
            readers[path] = reader
    if faults and not readers:
        raise faults[0]
    if len(readers) > 1 and not all(split_in_name(path) for path in readers):
        names = " or ".join(str(path) for path in readers)
        raise UserError(f"several files hold captions: name one of them in place of the folder, {names}")
    if readers:
        return Found(forms[next(iter(readers))], readers)

    pairs = picture_text_pairs(folder) if not known and os.path.isdir(folder) else []
    if not pairs:
        raise UserError(f"{folder} has no captions: {seen_instead(forms, source)}{EXPECTED}")
    return Found(PAIRS, {folder: functools.partial(pair_rows, pairs, folder)})


def folder_of_unpacked_photos(source):
    """Return where the photos of Parquet files are put: beside what else is kept of a dataset."""
    inside = writable(dataset_folder(source.data_dir) / UNPACKED / "photo.jpg")  # or in the cache of the user
    return inside.parent


def caption_like_files(folder):
    """Return the files of a dataset folder that could hold captions of many photos, by their names; sorted."""
    inside = list(folder.iterdir())
    pictures = {path.stem for path in inside if path.suffix.lower() in IMAGE_SUFFIXES}
    files = [path for path in inside if path.suffix.lower() in SUFFIXES and path.stem not in pictures]
    for name in FOLDERS_OF_CAPTIONS:
        for path in (folder / name).glob("*"):
            is_coco_captions = path.suffix == ".json" and path.name.startswith("captions_")  # beside instances_….json
            if is_coco_captions or path.suffix == ".parquet" or path.stem == "metadata":
                files.append(path)
    return sorted(path for path in files if path.is_file() and not is_no_caption_file(path))


def is_no_caption_file(path):
    """Return whether a file is known by its name to hold something else: split lists, notes, hidden files."""
    name = path.name.lower()
    return name.endswith("images.txt") or name.startswith((".", "readme", "license", "requirements"))


def seen_instead(forms, source):
    """Return words about files that were looked at and hold no captions: {path: what they hold, or None}."""
    words = ""
    unknown = []
    for path, form in forms.items():
        if form == JUDGEMENTS:
            words += (
                f"{path.name} holds judgements of how well captions fit, as Flickr8k's ExpertAnnotations.txt and "
                "CrowdFlowerAnnotations.txt do, and no captions; "
            )
            continue
        header = first_line(path)
        named = [column for column in (source.image_column, source.caption_column) if column]
        absent = [f"{column!r}" for column in named if column not in header]
        if absent:
            words += f"{path.name} line 1 has no column {' and '.join(absent)}: {header!r}; "
        else:
            unknown.append(f"{path.name} line 1 names no image and no caption column: {header!r}")
    if unknown:
        words += f"{' and '.join(unknown[:3])}; if it is a table, say --image-column NAME --caption-column NAME; "
    return words


def first_line(path):
    """Return the beginning of a file, as text."""
    with path.open("rb") as file:
        return file.readline(120).decode("utf-8", "replace").strip()


# ---------------------------------------------------------------- finding the photos


def is_inside_folder(name):
    """Return whether a name from a captions file leads to a file inside the folder of photos, and nowhere else."""
    path = PurePath(name)
    return bool(name) and not path.anchor and ".." not in path.parts and "\0" not in name


def folders_of_photos(source, found):
    """Return the folders in which photos are looked for: the likely ones, and all of them."""
    if source.image_dir is not None:
        if not source.image_dir.is_dir():
            raise UserError(f"--image-dir {source.image_dir}: there is no such folder")
        return [source.image_dir], [source.image_dir]
    folder = dataset_folder(source.data_dir)
    beside = [path.parent for path in found.readers if path != folder]
    likely = [folder / "Images", folder, *beside]
    if found.form == PARQUET:
        likely = [folder_of_unpacked_photos(source), folder]
    others = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return list(dict.fromkeys(likely)), list(dict.fromkeys([*likely, *others]))


def find_photos(names, likely, others):
    """Return where photos lie: {name: path as text}, the names of those that are nowhere, and {name: true name}.

    likely: the folders of the photos, of which the first that has one counts. others: where one is looked for that is
    in none of these. There it is taken if exactly one file fits: by its name, or else by a name that differs only in
    capitals, in how accents are composed, or in the slash, as names written on another system do.
    """
    paths = {}
    missing = set()
    renamed = {}
    name_of = {}  # {path: name}
    files_like = None
    for name in names:
        places = [os.path.join(folder, name) for folder in likely]
        place = next((place for place in places if os.path.isfile(place)), None)
        if place is None:
            if files_like is None:  # folders are listed only where a name is not found as it is written
                files_like = files_by_folded_name(others)
            alike = files_like[folded(name)]
            exact = [file for file in alike if file[0] == name]
            fitting = {path: name_below for name_below, path in exact or alike}
            if len(fitting) == 1:
                ((place, name_below),) = fitting.items()
                if name_below != name:
                    renamed[name] = name_below
        is_missing = place is None
        place = os.path.normpath(place or places[0])
        if place in name_of:  # "a.jpg" and "Images/a.jpg" are one photo
            renamed[name] = name_of[place]
        true_name = renamed.get(name, name)
        name_of.setdefault(place, true_name)
        paths[true_name] = place
        if is_missing:
            missing.add(true_name)
    return paths, missing, renamed


def files_by_folded_name(folders):
    """Return the files of some folders and those in them: {folded name: [(name below the folder, path)]}."""
    files = defaultdict(list)
    for folder in folders:
        for parent, below, names in os.walk(folder):
            below[:] = [name for name in below if not name.startswith(".")]
            for name in names:
                path = os.path.join(parent, name)
                name_below = os.path.relpath(path, folder).replace(os.sep, "/")
                files[folded(name_below)].append((name_below, path))
    return files


def folded(name):
    """Return a name without regard to capitals, to how its accents are composed, and to which slash is used."""
    return unicodedata.normalize("NFC", name).casefold().replace("\\", "/")
