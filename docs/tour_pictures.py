"""The pictures of the tour, one a chapter, each for light and for dark pages.

All have one style: as wide as a column of text, letters that can still be read on a phone, few colours.
"""

import textwrap
from dataclasses import dataclass
from io import BytesIO

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from support.drawn import save_picture

WIDTH = 6.4  # inches, of 150 dots: 960 pixels, of which a phone shows every third
DOTS = 150
LETTERS = 13  # points


@dataclass(frozen=True)
class Theme:
    """The colours of a page. `own` is what belongs together, `other` what does not."""

    name: str
    page: str
    ink: str
    faint: str
    own: str = "#2f9e63"
    other: str = "#e4572e"
    image: str = "#4a86e8"
    text: str = "#e69f00"
    matrix: str = "viridis"


THEMES = (Theme("light", "#ffffff", "#1f2328", "#c4cad0"), Theme("dark", "#0d1117", "#e6edf3", "#4a525c"))


def in_style(theme):
    """Return the context in which matplotlib draws for a page of a theme."""
    return matplotlib.rc_context({
        "font.size": LETTERS,
        "axes.titlesize": LETTERS,
        "axes.labelsize": LETTERS,
        "legend.fontsize": LETTERS - 1,
        "xtick.labelsize": LETTERS - 1,
        "ytick.labelsize": LETTERS - 1,
        "figure.facecolor": theme.page,
        "axes.facecolor": theme.page,
        "savefig.facecolor": theme.page,
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "axes.edgecolor": theme.faint,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "lines.linewidth": 2.5,
    })


def draw_pictures(numbers, tensors, folder):
    """Draw every picture into a folder, as NAME-light.png and NAME-dark.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (draw, height) in PICTURES.items():
        for theme in THEMES:
            with in_style(theme):
                figure = Figure(figsize=(WIDTH, height), layout="constrained")
                draw(figure, theme, numbers, tensors)
                save(figure, folder / f"{name}-{theme.name}.png")


def save(figure, path):
    """Write a figure with at most 256 colours, which take a third of the bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS)
    picture = Image.open(buffer).convert("RGB")
    picture = picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    save_picture(picture, path, optimize=True)


def show_picture(axes, picture, title=None, size=LETTERS):
    """Show a picture, from a file or (H, W, 3) uint8, without axes."""
    if isinstance(picture, str):
        picture = Image.open(picture).convert("RGB")
    axes.imshow(np.asarray(picture), interpolation="nearest")
    axes.axis("off")
    if title:
        axes.set_title(title, fontsize=size)


def wrapped(text, width):
    """Return a caption on lines of so many letters, without the full stop that stands apart."""
    return "\n".join(textwrap.wrap(text.rstrip(" ."), width))


# ---------------------------------------------------------------- one picture a chapter


def draw_scene(figure, theme, numbers, tensors):
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    show_picture(left, numbers["scene"]["path"])
    right.axis("off")
    for place, caption in enumerate(numbers["scene"]["captions"]):
        right.text(0, 1 - place / 5, f"“{wrapped(caption, 34)}”", va="top", transform=right.transAxes)


def draw_sees(figure, theme, numbers, tensors):
    sees = numbers["sees"]
    above, below = figure.subfigures(2, 1, height_ratios=[1.75, 1])
    pictures = [
        (numbers["scene"]["path"], f"file\n{sees['file_size']} pixels a side"),
        (tensors["view whole"].numpy(), f"squeezed\n{sees['size']} a side"),
        (tensors["view sample"].numpy(), "a crop\nof the sample"),
        (tensors["view flickr8k"].numpy(), "a crop\nfor photos"),
    ]
    for axes, (picture, title) in zip(above.subplots(1, 4), pictures, strict=True):
        show_picture(axes, picture, title, LETTERS - 1)

    axes = below.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    half = (len(sees["tokens"]) + 1) // 2
    for place, (token, number) in enumerate(zip(sees["tokens"], sees["ids"], strict=True)):
        x = (place % half + 0.5) / half
        y = 0.8 if place < half else 0.25
        axes.text(x, y, token, ha="center", color=theme.text, weight="bold")
        axes.text(x, y - 0.2, str(number), ha="center")


def draw_towers(figure, theme, numbers, tensors):
    shapes = numbers["shapes"]
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 10))
    axes.axis("off")

    def box(x, y, words, colour):
        axes.add_patch(FancyBboxPatch((x - 1.9, y - 0.6), 3.8, 1.2, boxstyle="round,pad=0.1", fc=theme.page, ec=colour,
                                      lw=2.5))
        axes.text(x, y, words, ha="center", va="center")

    def arrow(x, y, to_x, to_y):
        axes.annotate("", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "-|>", "color": theme.ink, "lw": 1.5})

    for x, colour, steps in (
        (2.3, theme.image, [f"pixels\n3 × {shapes['size']} × {shapes['size']}", "image tower",
                            f"{shapes['image_features']} features", "image head"]),
        (7.7, theme.text, ["token ids\nT numbers", "text tower", f"{shapes['text_features']} features", "text head"]),
    ):
        for place, words in enumerate(steps):
            y = 9.2 - 2.05 * place
            if place % 2:
                box(x, y, words, colour)
            else:
                axes.text(x, y, words, ha="center", va="center")
            if place < 3:
                arrow(x, y - 0.75, x, y - 1.3)
        arrow(x, 2.25, 5 + (x - 5) * 0.3, 1.35)
    axes.add_patch(FancyBboxPatch((1.4, 0.15), 7.2, 1.0, boxstyle="round,pad=0.1", fc=theme.own, ec=theme.own))
    axes.text(5, 0.65, f"one space: {shapes['embedding_dim']} numbers, unit length", ha="center", va="center",
              color="white", weight="bold")


def draw_cosine(figure, theme, numbers, tensors):
    cosine = numbers["cosine"]
    axes = figure.subplots()
    axes.set(xlim=(-0.3, 2.35), ylim=(-0.12, 1.12), aspect="equal")
    axes.axis("off")
    turn = np.linspace(0, np.pi / 1.8, 100)
    axes.plot(np.cos(turn), np.sin(turn), color=theme.faint, lw=1.5)

    def arrow(angle, colour):
        tip = (np.cos(np.radians(angle)), np.sin(np.radians(angle)))
        axes.annotate("", tip, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 3, "shrinkA": 0,
                                                   "shrinkB": 0})
        return tip

    arrow(0, theme.image)
    axes.text(1.04, -0.03, "the photo", color=theme.image, va="center", weight="bold")
    heights = {"own": 0.5, "less": 0.74, "place": 0.93, "other": 1.08}
    for name, words in cosine["texts"].items():
        tip = arrow(cosine["angle"][name], theme.text)
        y = heights[name]
        x = max(tip[0], 0) + 0.12 if name != "own" else 0.9
        axes.plot([tip[0] + 0.02, x], [tip[1], y], color=theme.faint, lw=1)
        axes.text(x + 0.03, y, f"{cosine['cosine'][name]:.2f}  {wrapped(words, 26)}", va="center")


def draw_matrix(figure, theme, numbers, tensors):
    matrix = tensors["pair images 0"] @ tensors["pair texts 0"].T
    draw_pair_matrix(figure, theme, numbers, matrix)


def draw_pair_matrix(figure, theme, numbers, matrix):
    """Draw the cosines of some photos, the rows, with a caption of each, the columns."""
    count = len(matrix)
    left, right = figure.subplots(1, 2, width_ratios=[1, count])
    left.axis("off")
    photos = [Image.open(path).convert("RGB").resize((96, 96)) for path in numbers["pairs"]["photos"]]
    strip = np.concatenate([np.asarray(photo) for photo in photos])
    left.imshow(strip, extent=(0, 1, 0, count), aspect="equal")
    right.imshow(matrix.numpy(), vmin=-0.4, vmax=1, cmap="Blues" if theme.name == "light" else "Blues_r",
                 extent=(0, count, 0, count))
    for row in range(count):
        for column in range(count):
            value = matrix[row, column].item()
            is_pale = (value < 0.4) == (theme.name == "light")
            right.text(column + 0.5, count - row - 0.5, f"{value:.2f}", ha="center", va="center",
                       color="#1f2328" if is_pale else "white", weight="bold" if row == column else "normal")
    right.set(xticks=np.arange(count) + 0.5, yticks=[])
    right.set_xticklabels([f"caption {place}" for place in range(1, count + 1)], fontsize=LETTERS - 3)
    right.spines[:].set_visible(False)
    right.tick_params(length=0)


def draw_hand(figure, theme, numbers, tensors):
    hand = numbers["hand"]
    axes = figure.subplots()
    axes.set(xlim=(0, 6.2), ylim=(0, 5.2))
    axes.axis("off")
    for place in range(3):
        axes.text(1.7 + place, 4.75, f"text {place + 1}", ha="center", color=theme.text, weight="bold")
        axes.text(0.55, 3.95 - place, f"image {place + 1}", ha="center", va="center", color=theme.image, weight="bold")
        for column in range(3):
            is_own = place == column
            axes.add_patch(FancyBboxPatch((1.25 + column, 3.55 - place), 0.9, 0.8, boxstyle="round,pad=0",
                                          fc=theme.own if is_own else theme.page, ec=theme.faint))
            axes.text(1.7 + column, 3.95 - place, f"{hand['logits'][place][column]:.1f}", ha="center", va="center",
                      color="white" if is_own else theme.ink, weight="bold" if is_own else "normal")
        axes.text(4.75, 3.95 - place, f"{hand['rows'][place]:.3f}", ha="center", va="center")
        axes.text(1.7 + place, 0.95, f"{hand['columns'][place]:.3f}", ha="center", va="center")
    axes.text(4.75, 4.75, "row loss", ha="center")
    axes.text(0.55, 0.95, "column\nloss", ha="center", va="center")
    axes.text(5.75, 2.95, f"mean\n{hand['row_mean']:.3f}", ha="center", va="center")
    axes.text(4.75, 0.95, f"mean\n{hand['column_mean']:.3f}", ha="center", va="center")
    axes.text(5.75, 0.95, f"loss\n{hand['loss']:.3f}", ha="center", va="center", weight="bold", color=theme.own)


def draw_temperature(figure, theme, numbers, tensors):
    temperature = numbers["temperature"]
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.5])
    photo, words = above.subplots(1, 2, width_ratios=[1, 3.6])
    show_picture(photo, temperature["file"])
    words.axis("off")
    for place, caption in enumerate(temperature["captions"]):
        line = textwrap.shorten(caption.rstrip(" ."), 50, placeholder=" …")
        score = temperature["cosines"][place]
        words.text(0, 1 - place / 6, f"{place + 1}  {score:.2f}  {line}", va="top", fontsize=LETTERS - 1.5,
                   weight="bold" if place == 0 else "normal", transform=words.transAxes)

    titles = {"one": "temperature 1", "start": "0.07, the start", "least": "0.01, the least"}
    panels = below.subplots(1, 3, sharey=True)
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        parts = temperature["parts"][name]
        colours = [theme.own] + [theme.other] * (len(parts) - 1)
        axes.bar(range(1, len(parts) + 1), parts, color=colours)
        axes.set(title=title, ylim=(0, 108), xticks=range(1, len(parts) + 1))
    panels[0].set_ylabel("percent")
    below.supxlabel("caption", fontsize=LETTERS)


def draw_pull(figure, theme, numbers, tensors):
    pull = numbers["pull"]
    above, axes = figure.subplots(1, 2, width_ratios=[1, 2.6])
    show_picture(above, pull["file"])
    places = np.arange(len(pull["gradient"]))
    moves = -np.array(pull["gradient"])
    axes.barh(places, moves, color=[theme.own if move > 0 else theme.other for move in moves], height=0.34)
    for place, caption in enumerate(pull["captions"]):
        line = textwrap.shorten(caption.rstrip(" ."), 46, placeholder=" …")
        axes.text(-1, place - 0.38, line, fontsize=LETTERS - 2, va="center",
                  weight="bold" if place == 0 else "normal")
        axes.text(0.04 if moves[place] < 0 else -0.04, place, f"{moves[place]:+.3f}", va="center",
                  ha="left" if moves[place] < 0 else "right", fontsize=LETTERS - 2)
        axes.plot([0, 0], [place - 0.19, place + 0.19], color=theme.faint, lw=1)
    axes.set(xlim=(-1.02, 1.02), ylim=(len(places) - 0.5, -0.7), xticks=[])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlabel("pushed away  ←      →  pulled near")


def draw_training(figure, theme, numbers, tensors):
    curves = np.array(numbers["training"]["curves"])
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[1, 1.12, 1.12])
    loss, recall = top.subplots(1, 2)
    loss.plot(curves[:, 0], curves[:, 1], color=theme.other)
    chance = numbers["matrix"]["chance"]
    loss.axhline(chance, color=theme.faint, linestyle="--")
    loss.text(curves[-1, 0], chance - 0.1, "ln B", ha="right", va="top", fontsize=LETTERS - 1)
    loss.set(title="loss", ylim=(0, 5), xlabel="epoch")
    recall.plot(curves[:, 0], curves[:, 3], color=theme.image, label="R@10")
    recall.plot(curves[:, 0], curves[:, 2], color=theme.own, label="R@1")
    recall.legend(loc="lower right")
    recall.set(title="recall on dev, %", ylim=(0, 103), xlabel="epoch")

    after = sorted(int(name.removeprefix("images ")) for name in tensors if name.startswith("images "))[1:]
    middle.suptitle("cosines of 24 photos with a caption of each", fontsize=LETTERS)
    for axes, epoch in zip(middle.subplots(1, 3), after, strict=True):
        matrix = tensors[f"images {epoch}"][:24] @ tensors[f"texts {epoch}"][:24].T
        axes.imshow(matrix.numpy(), vmin=-0.4, vmax=1, cmap="Blues" if theme.name == "light" else "Blues_r")
        axes.set(xticks=[], yticks=[], title=f"epoch {epoch}")
        axes.spines[:].set_visible(False)

    bottom.suptitle("the two clouds, in two dimensions", fontsize=LETTERS)
    for axes, epoch in zip(bottom.subplots(1, 3), after, strict=True):
        images = tensors[f"images {epoch}"]
        texts = tensors[f"texts {epoch}"]
        flat = in_two_dimensions(torch.cat([images, texts]))
        images, texts = flat[: len(images)], flat[len(images) :]
        for image, text in list(zip(images, texts, strict=True))[::4]:
            axes.plot(*zip(image, text, strict=True), color=theme.faint, lw=0.8, zorder=0)
        axes.scatter(*images.T, s=9, color=theme.image)
        axes.scatter(*texts.T, s=9, color=theme.text)
        axes.set(xlim=(-1, 1), ylim=(-1, 1), xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_visible(True)
        axes.set_title(f"epoch {epoch}")
    bottom.supxlabel("blue: photos, orange: captions, a line: a pair", fontsize=LETTERS)


def in_two_dimensions(points):
    """Return points (N, D) in the two directions in which they differ most, (N, 2): principal components."""
    centred = points - points.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return (centred @ directions[:2].T).numpy()


def draw_bars(axes, theme, bars, limit=100, unit=""):
    """Draw bars that lie, each with its words above it: [(words, value, colour), …], the first on top."""
    for place, (words, value, colour) in enumerate(bars):
        axes.barh(place, max(value, limit / 300), color=colour, height=0.36)
        axes.text(0, place - 0.4, words, va="center")
        axes.text(value + limit / 60, place, f"{value:.1f}{unit}", va="center", weight="bold")
    axes.set(xlim=(0, 1.14 * limit), ylim=(len(bars) - 0.6, -0.75), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.axvline(0, color=theme.faint, lw=1)


def draw_recall(figure, theme, numbers, tensors):
    recall = numbers["recall"]
    leakage = numbers["leakage"]
    draw_bars(figure.subplots(), theme, [
        (f"R@1: every caption, among all {recall['photos']} photos", recall["honest"], theme.own),
        ("only the best caption of each photo", recall["best_caption"], theme.other),
        (f"among the {recall['in_batch_photos']} photos of a batch", recall["in_batch"], theme.other),
        ("R@10, called “recall”", recall["honest_at_ten"], theme.other),
        (f"a model of {leakage['trained_on']} photos, on others", leakage["new"], theme.own),
        (f"a model of {leakage['trained_on']} photos, on these, by other captions", leakage["seen"], theme.other),
    ])


def draw_search(figure, theme, numbers, tensors):
    search = numbers["search"]
    above, below = figure.subfigures(2, 1, height_ratios=[1.2, 1])
    axes = above.subplots()
    scores = np.sort(tensors["scores"].numpy())[::-1]
    axes.bar(range(len(scores)), scores, width=1.0, color=theme.image)
    axes.bar(range(5), scores[:5], width=1.0, color=theme.own)
    axes.set(xlabel=f"the {len(scores)} pictures, sorted", ylabel="cosine", xticks=[])
    axes.set_title(f"“{search['query']}”")
    panels = below.subplots(1, 5)
    for axes, file, score in zip(panels, search["files"], search["match_scores"], strict=True):
        show_picture(axes, file, f"{score:.2f}")


def draw_heat(figure, theme, numbers, tensors):
    for axes, query in zip(figure.subplots(2, 2).flat, numbers["heat"]["queries"], strict=True):
        show_picture(axes, tensors[f"heat {query}"].numpy(), f"“{query}”")


def draw_mistakes(figure, theme, numbers, tensors):
    worst = numbers["mistakes"]["worst"]
    for part, mistake in zip(figure.subfigures(len(worst), 1), worst, strict=True):
        part.suptitle(f"“{mistake['caption'].rstrip(' .')}”", fontsize=LETTERS)
        panels = part.subplots(1, 4)
        show_picture(panels[0], mistake["own"])
        panels[0].set_title(f"own: rank {mistake['rank']}, {mistake['own_score']:.2f}", color=theme.own,
                            fontsize=LETTERS - 2)
        others = zip(panels[1:], mistake["first"], mistake["first_scores"], strict=True)
        for place, (axes, file, score) in enumerate(others, start=1):
            show_picture(axes, file, f"rank {place}, {score:.2f}", LETTERS - 2)


def draw_broken(figure, theme, numbers, tensors):
    broken = numbers["broken"]
    pairs = [
        ("unit length", "whole", "no unit length", "no_unit_length"),
        ("soft targets, detached", "soft", "with their gradient", "soft_with_gradient"),
        ("two captions a photo, kept apart", "two_captions", "the photo twice", "photo_twice"),
        ("good towers, new heads: small rates", "rates_apart", "one rate for all", "one_rate"),
    ]
    bars = []
    for words, whole, broken_words, name in pairs:
        bars.append((words, broken[whole]["recall"], theme.own))
        bars.append((broken_words, broken[name]["recall"], theme.other))
    bars.append(("BatchNorm when measured: evaluation mode", numbers["recall"]["honest"], theme.own))
    bars.append(("training mode", broken["batch_norm"], theme.other))
    draw_bars(figure.subplots(), theme, bars)


def draw_larger(figure, theme, numbers, tensors):
    towers = numbers["towers"]
    axes = figure.subplots()
    bars = [
        ("sample: image tower", towers["sample_image"], theme.image),
        ("sample: text tower", towers["sample_text"], theme.text),
        ("Flickr8k: image tower, ResNet50", towers["flickr8k_image"], theme.image),
        ("Flickr8k: text tower, DistilBERT", towers["flickr8k_text"], theme.text),
    ]
    for place, (words, thousands, colour) in enumerate(bars):
        axes.barh(place, thousands, color=colour, height=0.36, left=0)
        axes.text(11, place - 0.4, words, va="center")
        count = f"{thousands:.0f} thousand" if thousands < 1000 else f"{thousands / 1000:.0f} million"
        axes.text(thousands * 1.1, place, count, va="center", weight="bold")
    axes.set(xscale="log", xlim=(10, 2e6), ylim=(len(bars) - 0.6, -0.75), yticks=[], xticks=[])
    axes.set_xlabel("weights, on a logarithmic scale")
    axes.tick_params(which="both", bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)


# of each chapter: what draws it, and how high it is, in inches
PICTURES = {
    "scene": (draw_scene, 2.9),
    "sees": (draw_sees, 3.3),
    "towers": (draw_towers, 4.6),
    "cosine": (draw_cosine, 3.2),
    "matrix": (draw_matrix, 5.4),
    "hand": (draw_hand, 3.9),
    "temperature": (draw_temperature, 4.6),
    "pull": (draw_pull, 3.6),
    "training": (draw_training, 8.2),
    "recall": (draw_recall, 4.2),
    "search": (draw_search, 4.2),
    "heat": (draw_heat, 6.4),
    "mistakes": (draw_mistakes, 6.4),
    "broken": (draw_broken, 6.6),
    "larger": (draw_larger, 3.2),
}
