"""The result of a search as one picture: the best matches, or pictures sorted into labels."""

import math
import os

from support.contact_sheet import Tile, draw_sheet, save_sheet, sheet_of, thumbnail

MOST_DRAWN = 50  # pictures in one image of a result
LABELS_DRAWN = 20
SIDE = 250  # pixels of each match
LABELLED_SIDE = 160  # and of each picture beneath a label


def draw_matches(matches, title, path, explain=None):
    """Draw matches into a picture file; arguments as for `sheet_of_matches`."""
    save_sheet(sheet_of_matches(matches, title, explain), path)


def sheet_of_matches(matches, title, explain=None):
    """Return at most 50 matches in rows as a picture: the prompt, and under each its rank, score, day and name.

    explain: a function of the file that returns the picture to draw, in place of the file's own.
    """
    tiles = []
    for match in matches[:MOST_DRAWN]:
        name = os.fsencode(match.file.name).decode(errors="replace")
        label = f"{match.rank}.  {match.score:.3f}"
        if match.taken:
            label += f"  {match.taken}"
        tiles.append(Tile(thumbnail(match.file, SIDE, explain), label, name))
    columns = len(tiles) if len(tiles) <= 3 else math.ceil(math.sqrt(len(tiles)))
    return sheet_of([(title, tiles)], columns, SIDE)


def draw_labels(groups, path, columns=6):
    """Draw for each of at most 20 labels how many pictures have it, and the surest of them with their probability.

    groups: {label: [(probability, file), …]}, the surest first; those without pictures are left out.
    """
    sections = []
    for label, pictures in groups.items():
        if not pictures or len(sections) == LABELS_DRAWN:
            continue
        tiles = []
        for probability, file in pictures[:columns]:
            tiles.append(Tile(thumbnail(file, LABELLED_SIDE), f"{probability:.2f}"))
        sections.append((f"{label}: {len(pictures):,}", tiles))
    draw_sheet(sections, columns, LABELLED_SIDE, path)
