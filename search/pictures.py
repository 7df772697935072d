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


@dataclass
class Pictures:
    """The pictures of a gallery.

    name: what people call it. root: the folder that they all lie in. names: theirs below it, with slashes. index_file:
    where what is made of them is kept. Of a split also `sources`, the stamps of all that decides which photos it has,
    and `splits`, the names of those that the data has. links: to folders in it, which are not followed.
    """

    name: str
    root: Path
    names: list
    index_file: IndexFile
    sources: dict = field(default_factory=dict)
    splits: list = field(default_factory=list)
    links: list = field(default_factory=list)


def pictures_of_folder(folder, leave_out=None):
    """Return the `Pictures` of a folder and the folders in it, or of a pattern of tars.

    leave_out: the absolute path of a file that is none of them.
    """
    name = str(folder)
    folder = Path(folder).expanduser()
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
        names, links = pictures_and_links(folder)
        index_name = INDEX_NAME
    where = os.path.abspath(root) + os.sep
    if leave_out is not None and leave_out.startswith(where):
        left_out = leave_out.removeprefix(where).replace(os.sep, "/")
        names = [name for name in names if name != left_out]
    return Pictures(name, root, names, IndexFile(root, index_name), links=links)


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
    decided = what_decides(config, held_out)
    return {**{path: stamp(Path(path)) for path in sources if path not in ("split_seed", "held_out")}, **decided}


def what_decides(config, held_out):
    """Return what decides of a split beside the files: the seed, and a hash of what the run of a model holds out."""
    decided = {"split_seed": config.split_seed}
    if held_out is not None:
        decided["held_out"] = hashlib.sha256(json.dumps(held_out).encode()).hexdigest()
    return decided


def read_split(config, root, split, held_out):
    """Return the `Pictures` of a split, by reading the captions."""
    from dataset import SPLIT_FILES, split_images, tables_of_splits
    from support.captions import KNOWN_NAMES, captions_of

    captions = captions_of(config.source)
    images = split_images(config.data_dir, captions, config.split_seed, held_out)
    tables = tables_of_splits(captions, images)
    splits = [name for name, table in tables.items() if len(table)]
    split = split or default_split(splits)
    if split not in splits:
        choice = " or ".join(splits)
        raise UserError(f"{config.data_dir} has no {split} photos: try --split {choice}, or --gallery DIR")
    files = list(tables[split]["path"].unique())
    if not all(is_below(file, root) for file in files):
        root = Path(os.path.commonpath([os.path.dirname(file) for file in files]))
    names = [name_below(root, file) for file in files]

    # New shards appear in a folder that also changes when an index is written there: their captions are always read.
    sources = {}
    if not is_sharded(config.data_dir):
        folder = dataset_folder(config.data_dir)
        decisive = {folder / name for name in (*KNOWN_NAMES, *SPLIT_FILES.values())}
        decisive |= set(captions.files)
        decisive |= {Path(os.path.dirname(path)) for path in captions.paths.values()}
        sources = {str(path): stamp(path) for path in sorted(decisive)}
        sources |= what_decides(config, held_out)
    index_file = IndexFile(root, SPLIT_INDEX_NAME.format(split))
    return Pictures(f"{config.data_dir} ({split} split)", root, names, index_file, sources, splits)


def is_below(file, folder):
    """Return whether a path, as text, leads into a folder."""
    return os.path.abspath(file).startswith(os.path.abspath(folder) + os.sep)
