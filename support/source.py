"""Where training pairs come from, as the flags name it."""

from pathlib import Path
from typing import NamedTuple


class Source(NamedTuple):
    """A dataset: a folder, a captions file, or a pattern of shards, and what is not known by looking at it."""

    data_dir: Path
    image_dir: Path | None = None  # the folder of the photos; None: found in or beside the dataset folder
    image_column: str | None = None  # of a table, the column that names the photo; None: known by its name
    caption_column: str | None = None  # and the one that holds the caption


def as_source(data):
    """Return a `Source`; `data` is one already, or the path of a dataset."""
    return data if isinstance(data, Source) else Source(Path(data))
