"""Which pictures a gallery has: those of a folder, of tars, or of a split of the data that a model was trained on."""

import hashlib
import json
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from search.index import INDEX_NAME, SPLIT_INDEX_NAME, IndexFile
from support.errors import UserError
from support.files import name_below, stamp
from support.images import pictures_and_links
from support.picture_kinds import IMAGE_SUFFIXES, suffix_of
from support.tars import dataset_folder, is_sharded, tar_pictures

LINK = "link"  # in place of the stamp of a folder: what a link leads to is not searched, and may change


@dataclass
class Pictures:
    """The pictures of a gallery.

    name: what people call it. root: the folder that they all lie in. names: theirs below it, with slashes. index_file:
    where what is made of them is kept. sources: the stamps of all that decides which pictures these are, where that is
    known. Of a split also `splits`, the names of those that the data has. links: to folders in it, which are not
    followed. stamps: {name: stamp} of the pictures where the index is trusted that none has changed, and else None.
    """

    name: str
    root: Path
    names: list
    index_file: IndexFile
    sources: dict = field(default_factory=dict)
    splits: list = field(default_factory=list)
    links: list = field(default_factory=list)
    stamps: dict | None = None


def pictures_of_folder(folder, leave_out=None, trust_index=False):
    """Return the `Pictures` of a folder and the folders in it, or of a pattern of tars.

    leave_out: the absolute path of a file that is none of them. trust_index: where no folder has changed since the
    index was made, take the pictures from it, and believe that none of them has changed.
    """
    name = str(folder)
    folder = Path(os.path.expanduser(folder))
    root = dataset_folder(folder)
    if folder.is_file() and not is_sharded(folder):
        raise UserError(words_on_a_file(folder))
    if not root.is_dir():
        raise UserError(f"--gallery {name}: there is no such folder")
    links = []
    if is_sharded(folder):
        names = [name_below(root, file) for file in tar_pictures(folder)]
        index_name = SPLIT_INDEX_NAME.format(folder.name)
    else:
        index_name = INDEX_NAME
        trusted = trusted_pictures(name, root) if trust_index else None
        if trusted:
            return trusted
        names, links = pictures_and_links(folder)
    where = os.path.abspath(root) + os.sep
    if leave_out is not None and leave_out.startswith(where):
        left_out = leave_out.removeprefix(where).replace(os.sep, "/")
        names = [name for name in names if name != left_out]
    pictures = Pictures(name, root, names, IndexFile(root, index_name), links=links)
    if trust_index and not is_sharded(folder):
        pictures.sources = stamps_of_folders(root, folders_below(root))
    return pictures


def trusted_pictures(name, root):
    """Return the `Pictures` of a folder as an index knows them, or None where a folder has changed since."""
    index_file = IndexFile(root, INDEX_NAME)
    index = index_file.read()
    folders = index.sources.keys() - {""}
    if not index.sources or stamps_of_folders(root, folders) != index.sources:
        return None
    stamps = {}
    for picture, known_stamp, _ in index.files:
        stamps[picture] = known_stamp or stamp(root / picture)  # one that could not be read is looked at again
    links = sorted(str(root / folder) for folder in folders if index.sources[folder] == LINK)
    return Pictures(name, root, list(stamps), index_file, index.sources, links=links, stamps=stamps)


def folders_below(root):
    """Return the names of all folders below a root in which pictures would be found."""
    names = []
    for parent, folders, _ in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [name_below(root, os.path.join(parent, name)) for name in folders]
    return names


def stamps_of_folders(root, folders):
    """Return {folder: stamp} of folders below the root, and what lies in the root itself.

    A folder's time changes when a file in it comes, goes or is renamed. So does that of the root whenever an index is
    written into it: of the root it is the visible names instead, as one hash. A link to a folder has no time here.
    """
    stamps = {}
    for folder in folders:
        path = root / folder
        stamps[folder] = LINK if os.path.islink(path) else stamp(path)
    stamps[""] = hash_of_names(root)
    return stamps


def hash_of_names(folder):
    """Return a hash of the visible names in a folder, which says as its time does whether one has come or gone."""
    visible = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return hashlib.sha256(os.fsencode("/".join(visible))).hexdigest()


def pictures_of_folders(folders, leave_out=None, trust_index=False):
    """Return the `Pictures` of each of some folders, but for those named twice or searched with another one.

    Raises UserError where there is none at all; leave_out, trust_index: as for `pictures_of_folder`.
    """
    if not folders:
        raise UserError("there is no folder to search: name one with --gallery DIR")
    places = {}  # {where it really is: the folder as it was named}
    for folder in folders:
        places.setdefault(Path(os.path.expanduser(folder)).resolve(), folder)
    found = []
    for place, folder in places.items():
        is_part = place.is_dir() and any(searches(other, place) for other in places)
        if not is_part:  # nor is a folder that is not there, which is said
            found.append(pictures_of_folder(folder, leave_out, trust_index))
    return found


def searches(folder, other):
    """Return whether a search of a folder also searches another one, or pattern of tars; both are real paths."""
    if other == folder or is_sharded(other) or not other.is_relative_to(folder):
        return False
    between = other.relative_to(folder).parts
    return not any(part.startswith(".") for part in between)  # hidden folders are left alone


def words_on_a_file(file):
    """Return what to type where a gallery was to be a file."""
    remedy = f"to search its folder type --gallery {shlex.quote(str(file.parent))}"
    if suffix_of(file) in IMAGE_SUFFIXES:
        remedy = f"for pictures like it type python inference.py --image {shlex.quote(str(file))}; {remedy}"
    return f"--gallery {file} is not a folder: {remedy}"


def pictures_of_split(config, split=None, held_out=None):
    """Return the `Pictures` of a split of the data trained on; by default of test, or of dev where there is no test.

    held_out: names of the photos of dev and test, where the run of the model has kept them. An index whose sources are
    unchanged knows which these are, so that the captions need not be read again.
    """
    root = dataset_folder(config.data_dir)
    if config.image_dir and not is_below(str(config.image_dir), root):
        root = config.image_dir
    if not root.is_dir():
        raise UserError(f"the data trained on, {config.data_dir}, is not here: name a folder with --gallery DIR")
    for candidate in [split] if split else ["test", "dev"]:
        index_file = IndexFile(root, SPLIT_INDEX_NAME.format(candidate))
        index = index_file.read()
        is_the_one = candidate == (split or default_split(index.splits))
        if is_the_one and index.sources and index.sources == sources_now(index.sources, config, held_out):
            names = [name for name, _, _ in index.files]
            name = f"{config.data_dir} ({candidate} split)"
            return Pictures(name, root, names, index_file, index.sources, index.splits)
    return read_split(config, root, split, held_out)


def default_split(splits):
    """Return the split that is searched where none is named."""
    return "test" if "test" in splits else "dev"


def sources_now(sources, config, held_out):
    """Return the stamps that the files among the sources of an index have now, and what else decides of a split."""
    now = {}
    for path in sources.keys() - {"split_seed", "held_out"}:
        now[path] = stamp_of_source(path)
    return {**now, **what_decides(config, held_out)}


def stamp_of_source(path):
    """Return a stamp that changes when a file does, or when in a folder, "DIR/", a name comes or goes.

    Not the time of the folder: that changes with the index that may be written into it.
    """
    if not path.endswith("/"):
        return stamp(path)
    return hash_of_names(path) if os.path.isdir(path) else None


def what_decides(config, held_out):
    """Return what decides of a split beside the files: the seed, and a hash of what the run of a model holds out."""
    decided = {"split_seed": config.split_seed}
    if held_out is not None:
        decided["held_out"] = hashlib.sha256(json.dumps(held_out).encode()).hexdigest()
    return decided


def read_split(config, root, split, held_out):
    """Return the `Pictures` of a split, by reading the captions; raises UserError where there are none."""
    from dataset import SPLIT_FILES, split_images, tables_of_splits
    from support.captions import KNOWN_NAMES, read_dataset
    from support.data_report import refuse_if_all_missing

    captions = read_dataset(config.source)
    images = split_images(config.data_dir, captions, config.split_seed, held_out)
    tables = tables_of_splits(captions, images)
    splits = [name for name, table in tables.items() if len(table)]
    split = split or default_split(splits)
    if split not in splits:
        elsewhere = "name a folder with --gallery DIR"
        refuse_if_all_missing(split, images, captions, config.data_dir, held_out, elsewhere)
        choice = f"--split {' or '.join(splits)}, or --gallery DIR" if splits else "--gallery DIR"
        raise UserError(f"{config.data_dir} has no {split} photos: try {choice}")
    files = list(tables[split]["path"].unique())
    if not all(is_below(file, root) for file in files):
        root = Path(os.path.commonpath([os.path.dirname(file) for file in files]))
    names = [name_below(root, file) for file in files]

    # New shards appear in a folder that also changes when an index is written there: their captions are always read.
    sources = {}
    if not is_sharded(config.data_dir):
        folder = dataset_folder(config.data_dir)
        decisive = {str(folder / name) for name in (*KNOWN_NAMES, *SPLIT_FILES.values())}
        decisive |= {str(path) for path in captions.files if path.is_file()}
        for photos in {os.path.dirname(path) for path in captions.paths.values()}:
            holds_the_index = os.path.abspath(photos) == os.path.abspath(root)
            decisive.add(f"{photos}/" if holds_the_index else photos)
        sources = {path: stamp_of_source(path) for path in sorted(decisive)}
        sources |= what_decides(config, held_out)
    index_file = IndexFile(root, SPLIT_INDEX_NAME.format(split))
    return Pictures(f"{config.data_dir} ({split} split)", root, names, index_file, sources, splits)


def is_below(file, folder):
    """Return whether a path, as text, leads into a folder."""
    return os.path.abspath(file).startswith(os.path.abspath(folder) + os.sep)
