"""Pictures for people: the curves of a run, what a model mistakes, and the result of a search.

Each function draws one file. They stand apart from the scripts that call them, so that these can be read without them.
matplotlib is imported where something is drawn, because it costs half a second, and its `Figure` needs no display.
"""

import math
import os
import textwrap
import warnings

import numpy as np
from PIL import Image

from support.images import read_image

MOST_DRAWN, LABELS_DRAWN = 50, 20  # pictures, and labels, in one image of a result


def draw_curves(history, chance, path):
    """Draw training loss against chance, recall on dev, the logit scale, and the image-text gap, over the epochs."""
    from matplotlib.figure import Figure

    epochs, figure = [row["epoch"] for row in history], Figure(figsize=(13, 3.4), layout="constrained")
    loss, recall, scale, gap = figure.subplots(1, 4)
    loss.plot(epochs, [row["train_loss"] for row in history], marker=".")
    if chance:
        loss.axhline(chance, color="C3", linestyle=":", label="chance: ln(batch size)")
        loss.legend(fontsize=6)
    loss.set(title="training loss", xlabel="epoch", ylim=(0, None))
    for direction, style in (("text_to_image", "-"), ("image_to_text", "--")):
        for key, colour in (("R@1", "C0"), ("R@5", "C1"), ("R@10", "C2")):
            values = [row[direction][key] for row in history]
            recall.plot(epochs, values, style, color=colour, label=f"{direction.replace('_', ' ')} {key}")
    recall.set(title="recall on dev, percent", xlabel="epoch", ylim=(0, 100))
    recall.legend(fontsize=6)
    for axes, key, title in ((scale, "logit_scale", "logit scale (1 / temperature)"),
                             (gap, "modality_gap", "gap between images and texts")):
        axes.plot(epochs, [row[key] for row in history], marker=".")
        axes.set(title=title, xlabel="epoch")
    figure.savefig(path, dpi=110)


def draw_similarity(split, gap, path, shown=48):
    """Draw the similarities of the first photos with a caption of each, and those of all matching and other pairs.

    split: an `EmbeddedSplit`; gap: its modality gap.
    """
    from matplotlib.figure import Figure

    texts = [int((split.image_of_text == row).nonzero()[0, 0]) for row in range(min(shown, len(split.files)))]
    matrix = split.image_embeddings[: len(texts)] @ split.text_embeddings[texts].T  # row = photo, column = caption
    matching = (split.image_embeddings[split.image_of_text] * split.text_embeddings).sum(dim=1).numpy()
    others = (split.image_embeddings.roll(1, dims=0)[split.image_of_text] * split.text_embeddings).sum(dim=1).numpy()
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.colorbar(left.imshow(matrix.numpy(), cmap="viridis"), ax=left, label="cosine")
    left.set(title=f"the first {len(texts)} photos and a caption of each", xlabel="caption", ylabel="photo")
    both = np.concatenate([others, matching])
    bins = np.linspace(both.min(), both.max() + 1e-6, 60)
    right.hist(others, bins, alpha=0.6, label=f"other photos, mean {others.mean():.2f}")
    right.hist(matching, bins, alpha=0.6, label=f"own photo, mean {matching.mean():.2f}")
    right.set(title=f"all captions; image-text gap {gap:.2f}", xlabel="cosine with a photo", ylabel="captions")
    right.legend()
    figure.savefig(path, dpi=110)


def draw_worst(split, ranks, path, shown=8, above=6):
    """Draw a contact sheet: the captions whose own photo ranks lowest, that photo, and the photos ranked highest.

    split: an `EmbeddedSplit`; ranks: (M,) of the photo of each caption, 1 is best.
    """
    from matplotlib.figure import Figure

    worst = ranks.argsort(descending=True, stable=True)[:shown].tolist()
    figure = Figure(figsize=(1.7 * (above + 1), 2.15 * len(worst)), layout="constrained")
    for caption, strip in zip(worst, np.atleast_1d(figure.subfigures(len(worst), 1)), strict=True):
        text = textwrap.shorten(split.captions[caption], 110, placeholder=" …")
        strip.suptitle(f"“{text}”", fontsize=9, parse_math=False)
        own = int(split.image_of_text[caption])
        scores = split.image_embeddings @ split.text_embeddings[caption]  # (N,)
        first = scores.argsort(descending=True)[: min(above, int(ranks[caption]) - 1)].tolist()
        titles = [f"its photo: rank {ranks[caption]}", *(f"rank {rank}" for rank in range(1, len(first) + 1))]
        for axes, photo, title in zip(strip.subplots(1, above + 1).flat, [own, *first], titles, strict=False):
            axes.imshow(read_image(split.files[photo], shrink_to=160))
            axes.set_title(f"{title}, {scores[photo]:.2f}", fontsize=7, color="C3" if photo == own else "black")
        for axes in strip.axes:
            axes.set_axis_off()
    figure.savefig(path, dpi=100)


def draw_confusion(confusion, names, path):
    """Draw how often pictures of each class (row) were given each name (column), in percent of the row."""
    from matplotlib.figure import Figure

    side = 2.5 + 0.3 * min(len(names), 60)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    percent = 100 * confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    figure.colorbar(axes.imshow(percent.numpy(), vmin=0, vmax=100, cmap="Blues"), label="percent of the class")
    axes.set(xlabel="answer", ylabel="class", xticks=range(len(names)), yticks=range(len(names)))
    axes.set_xticklabels(names, rotation=90, parse_math=False)
    axes.set_yticklabels(names, parse_math=False)
    figure.savefig(path, dpi=110)


def draw_labels(groups, path, shown=6):
    """Draw for each of at most 20 labels how many pictures have it, and the surest of them with their probability.

    groups: {label: [(probability, file), …]}, the surest first; those without pictures are left out.
    """
    from matplotlib.figure import Figure

    groups = [(label, pictures) for label, pictures in groups.items() if pictures][:LABELS_DRAWN]
    figure = Figure(figsize=(1.7 * shown, 2.15 * len(groups)), layout="constrained")
    for (label, pictures), strip in zip(groups, np.atleast_1d(figure.subfigures(len(groups), 1)), strict=True):
        strip.suptitle(f"{textwrap.shorten(label, 60, placeholder=' …')}: {len(pictures):,}", parse_math=False)
        for place, axes in enumerate(strip.subplots(1, shown).flat):
            axes.set_axis_off()
            if place < len(pictures):
                probability, file = pictures[place]
                axes.imshow(thumbnail(file, 160))
                axes.set_title(f"{probability:.2f}", fontsize=8)
    save(figure, path)


def draw_matches(matches, title, path, explain=None):
    """Draw at most 50 matches in rows, best first, the prompt as title; under each picture its rank, score and name.

    explain: a function of the file that returns the picture to draw, in place of the file's own.
    """
    from matplotlib.figure import Figure

    matches = matches[:MOST_DRAWN]
    columns = len(matches) if len(matches) <= 3 else math.ceil(math.sqrt(len(matches)))
    rows = math.ceil(len(matches) / columns)
    title = textwrap.fill(title, 20 * columns, max_lines=3, placeholder=" …")
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows + 0.3 * (1 + title.count("\n"))), layout="constrained")
    # parse_math off: a prompt with a dollar sign is a prompt, not a formula
    figure.suptitle(title, fontsize=15, parse_math=False)
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if place < len(matches):
            file = matches[place].file
            axes.imshow(thumbnail(file, 400, explain))
            name = os.fsencode(file.name).decode(errors="replace")
            name = name if len(name) <= 36 else f"{name[:35]}…"
            axes.text(0.5, -0.03, f"{matches[place].rank}.  {matches[place].score:.3f}", transform=axes.transAxes,
                      ha="center", va="top", fontsize=11)
            axes.text(0.5, -0.13, name, transform=axes.transAxes, ha="center", va="top", fontsize=7, parse_math=False)
    save(figure, path)


def thumbnail(file, side, read=None):
    """Return a picture of at most `side` pixels a side; a grey one where its file is gone or damaged by now.

    read: a function of the file that returns what to show in place of it.
    """
    try:
        picture = Image.fromarray(read(file) if read else read_image(file, shrink_to=side))
    except OSError:
        picture = Image.new("RGB", (side, side), "lightgrey")
    picture.thumbnail((side, side))
    return picture


def save(figure, path):
    """Write the picture of a search."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a prompt in letters that the font lacks is drawn as boxes
        figure.savefig(path, dpi=100)
