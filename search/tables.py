"""The answers to questions as people read them: lines of text, and a table in a file."""

import csv
import io

from support.errors import shown
from support.files import write_file

COPIES_NAMED = 3  # of the pictures that look like a match; --json names them all


def match_table(matches):
    """Return `inference.Match`es as lines of text, with the day where it is known; nothing of none."""
    if not matches:
        return []
    has_days = any(match.taken for match in matches)
    day_title = "taken       " if has_days else ""
    lines = [f"rank  score  {day_title}file"]
    for match in matches:
        day = f"{match.taken or 'unknown':<12}" if has_days else ""
        line = f"{match.rank:>4}  {match.score:.3f}  {day}{match.file}"
        if match.copies:
            names = [copy.name for copy in match.copies[:COPIES_NAMED]]
            if len(match.copies) > COPIES_NAMED:
                names.append(f"{len(match.copies) - COPIES_NAMED:,} more")
            line += f"  (like it: {', '.join(names)})"
        lines.append(shown(line))
    return lines


def caption_table(matches):
    """Return the captions that fit a picture, [(score, caption)] with the best first, as lines of text."""
    lines = ["rank  score  caption"]
    for rank, (score, caption) in enumerate(matches, start=1):
        lines.append(f"{rank:>4}  {score:.3f}  {shown(caption)}")
    return lines


def label_table(groups, top_k):
    """Return as lines of text how many pictures have each label, and the surest of them.

    groups: {label: [(probability, file), …]}, the surest first.
    """
    lines = ["probability  file"]
    for label, pictures in groups.items():
        lines.append(f"{label}: {len(pictures):,}")
        for probability, file in pictures[:top_k]:
            lines.append(shown(f"{probability:>11.3f}  {file}"))
        if len(pictures) > top_k:
            lines.append(f"{'…':>11}  and {len(pictures) - top_k:,} more")
    return lines


LABEL_COLUMNS = ["file", "label", "probability"]  # with which such a table begins


def write_label_table(path, labels, files, probabilities):
    """Write a CSV file: a line a picture, with its label and the probability of each, as columns "p(LABEL)"."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*LABEL_COLUMNS, *(f"p({label})" for label in labels)])
    for file, chances in zip(files, probabilities, strict=True):
        best = chances.argmax()
        columns = [f"{chance:.6f}" for chance in chances]
        writer.writerow([file, labels[best], columns[best], *columns])
    write_file(path, text.getvalue().encode(errors="surrogateescape"))  # names need not be UTF-8
