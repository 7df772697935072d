"""Pictures for people: the curves of a run, and what a model mistakes.

Each function draws one file. They stand apart from the scripts that call them, so that these can be read without them.
matplotlib is imported where something is drawn, because it costs half a second, and its `Figure` needs no display.
"""

import re
import textwrap
from collections import Counter
from typing import NamedTuple

import numpy as np

from support.contact_sheet import Tile, draw_sheet, thumbnail
from support.drawn import save_figure
from support.errors import shown

# ---------------------------------------------------------------- a run


def draw_curves(history, chance, path):
    """Draw training loss against chance, recall on dev, the logit scale, and the image-text gap, over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    loss, recall, scale, gap = figure.subplots(1, 4)
    epochs = [row["epoch"] for row in history]

    loss.plot(epochs, [row["train_loss"] for row in history], marker=".")
    if chance:
        loss.axhline(chance, color="C3", linestyle=":", label="chance: ln(batch size)")
        loss.legend(fontsize=6, loc="upper right")
    loss.set(title="training loss", xlabel="epoch", ylim=(0, None))

    for direction, style in (("text_to_image", "-"), ("image_to_text", "--")):
        for key, colour in (("R@1", "C0"), ("R@5", "C1"), ("R@10", "C2")):
            values = [row[direction][key] for row in history]
            recall.plot(epochs, values, style, color=colour, label=f"{direction.replace('_', ' ')} {key}")
    recall.set(title="recall on dev, percent", xlabel="epoch", ylim=(0, 100))
    recall.legend(fontsize=6, loc="lower right")

    scale.plot(epochs, [row["logit_scale"] for row in history], marker=".")
    scale.set(title="logit scale (1 / temperature)", xlabel="epoch")
    gap.plot(epochs, [row["modality_gap"] for row in history], marker=".")
    gap.set(title="gap between images and texts", xlabel="epoch")
    save_figure(figure, path, dpi=110)


# ---------------------------------------------------------------- what a model mistakes


def draw_similarity(split, gap, path, shown=48):
    """Draw the similarities of the first photos with a caption of each, and those of all matching and other pairs.

    split: an `EmbeddedSplit`; gap: its modality gap.
    """
    from matplotlib.figure import Figure

    images = split.image_embeddings  # (N, D)
    texts = split.text_embeddings  # (M, D)
    photos = min(shown, len(images))
    matrix = images[:photos] @ texts[split.first_captions(photos)].T  # row = photo, column = caption
    matching = (images[split.image_of_text] * texts).sum(dim=1).numpy()  # (M,)
    neighbours = images.roll(1, dims=0)  # in the place of each photo another one
    others = (neighbours[split.image_of_text] * texts).sum(dim=1).numpy()  # (M,)

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.colorbar(left.imshow(matrix.numpy(), cmap="viridis"), ax=left, label="cosine")
    left.set(title=f"the first {photos} photos and a caption of each", xlabel="caption", ylabel="photo")

    both = np.concatenate([others, matching])
    bins = np.linspace(both.min(), both.max() + 1e-6, 60)
    right.hist(others, bins, alpha=0.6, label=f"other photos, mean {others.mean():.2f}")
    right.hist(matching, bins, alpha=0.6, label=f"own photo, mean {matching.mean():.2f}")
    right.set(title=f"all captions; image-text gap {gap:.2f}", xlabel="cosine with a photo", ylabel="captions")
    right.legend()
    save_figure(figure, path, dpi=110)


class Mistake(NamedTuple):
    """A caption whose own photo does not come first."""

    caption: str
    rank: int  # of its photo, 1 is best
    own: int  # the row of its photo
    first: list  # the rows of the photos that rank highest, and above it
    scores: object  # (N,) tensor, of all photos


def worst_captions(split, ranks, shown, above):
    """Return the captions whose own photo ranks lowest, the worst first, as `Mistake`s; arguments as below."""
    mistakes = []
    for caption in ranks.argsort(descending=True, stable=True)[:shown].tolist():
        rank = int(ranks[caption])
        own = int(split.image_of_text[caption])
        scores = split.image_embeddings @ split.text_embeddings[caption]  # (N,)
        first = scores.argsort(descending=True)[: min(above, rank - 1)].tolist()
        mistakes.append(Mistake(split.captions[caption], rank, own, first, scores))
    return mistakes


def draw_worst(split, ranks, path, shown=8, above=6):
    """Draw a contact sheet: the captions whose own photo ranks lowest, that photo, and the photos ranked highest.

    split: an `EmbeddedSplit`; ranks: (M,) of the photo of each caption, 1 is best. shown: how many captions; above: how
    many of the other photos.
    """
    sections = []
    for mistake in worst_captions(split, ranks, shown, above):
        label = f"rank {mistake.rank}, {mistake.scores[mistake.own]:.2f}"
        tiles = [Tile(thumbnail(split.files[mistake.own], 160), label, "its photo", "#c62828")]
        for place, photo in enumerate(mistake.first, start=1):
            tiles.append(Tile(thumbnail(split.files[photo], 160), f"rank {place}, {mistake.scores[photo]:.2f}"))
        sections.append((f"“{mistake.caption}”", tiles))
    draw_sheet(sections, above + 1, 160, path)


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
    save_figure(figure, path, dpi=110)


# ---------------------------------------------------------------- a dataset


def draw_data_report(pairs, lengths, sizes, captions, path, most_words=20):
    """Draw nine photos with a caption each, how long captions are, how large photos are, and the commonest words.

    pairs: [((S, S, 3) uint8 pixels, caption)], at most nine. lengths: of all captions, in tokens. sizes: {(width,
    height): photos}. captions: all of them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 10), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[3, 2])
    for axes in left.subplots(3, 3).flat:
        axes.axis("off")
    for axes, (pixels, caption) in zip(left.axes, pairs, strict=False):
        axes.imshow(pixels)
        axes.set_title("\n".join(textwrap.wrap(shown(caption), 34)[:4]), fontsize=9)

    tokens, pixels, words = right.subplots(3, 1, height_ratios=[1, 1, 2])
    tokens.hist(lengths, bins=np.arange(min(lengths), max(lengths) + 2) - 0.5)
    tokens.set(title="tokens of a caption", ylabel="captions")
    widths = [width for width, _ in sizes] or [1]  # of camera RAW no sizes are known
    heights = [height for _, height in sizes] or [1]
    counts = np.array([*sizes.values()] or [0])
    pixels.scatter(widths, heights, 10 + 190 * counts / max(1, counts.max()), alpha=0.5)
    pixels.set(title="sizes of photos in pixels (larger dots: more of them)", xlabel="width", ylabel="height")
    pixels.set(xlim=(0, 1.2 * max(widths)), ylim=(0, 1.2 * max(heights)))

    counts = Counter(word for caption in captions for word in re.findall(r"\w{4,}", caption.lower()))
    common = counts.most_common(most_words)[::-1]
    words.barh([shown(word) for word, _ in common], [count for _, count in common])
    words.set(title="commonest words of four letters or more", xlabel="times")
    save_figure(figure, path, dpi=100)
