"""Measure a checkpoint: how often is the right picture, or the right caption, among the first 1, 5 and 10?

    python evaluate.py --split dev                    # best/ of the newest run, on its own data
    python evaluate.py --checkpoint DIR --data-dir DIR --split test --json figures.json
    python evaluate.py --compare runs/A runs/B        # is B better than A, or is it chance?
    python evaluate.py --zero-shot DIR                # name the class of each picture; DIR/CLASS/*.jpg
    python evaluate.py --linear-probe DIR             # how well do the image tower's features tell the classes apart?

Recall@k follows the literature on Flickr8k: the gallery is the photos of one split and no others; every caption is
a query of its own; an image finds *any* of its captions. Ties count against the model, so one that gives all pairs
the same score gets nothing. The metrics are functions of tensors; the CLI is at the end.
"""

import json

from config import EvaluateConfig, parse
from support.errors import UserError, one_line_errors

if __name__ == "__main__":
    FLAGS = parse(EvaluateConfig)  # before torch is imported, so that --help and a mistyped flag answer at once

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from dataset import NOTHING_KNOWN, has_split_lists, image_loader, image_path, paths_of, split_table
from models import CLIP, embed_images, embed_texts
from support.captions import read_text
from support.find_run import checkpoint_dir
from support.images import picture_files
from support.plots import draw_confusion, draw_similarity, draw_worst
from support.process import is_first_process, start_process
from support.prompts import TEMPLATES, class_embeddings

DIRECTIONS = {"text_to_image": "text -> image", "image_to_text": "image -> text"}

# ---------------------------------------------------------------- recall


def ranks_of(query_embeddings, gallery_embeddings, photo_of_query, photo_of_item, chunk=1024):
    """Return the rank (Q,) of each query's best match in the gallery, 1 is best.

    query_embeddings (Q, D) and gallery_embeddings (N, D) are of unit length; an item matches a query when both belong
    to one photo, photo_of_query (Q,) and photo_of_item (N,). The rank counts the items of *other* photos that score at
    least as much as the best match. Works through `chunk` queries at a time: memory is chunk x N, not Q x N.
    """
    ranks = []
    for start in range(0, len(query_embeddings), chunk):
        rows = slice(start, start + chunk)
        scores = query_embeddings[rows] @ gallery_embeddings.T  # (chunk, N)
        match = photo_of_query[rows].unsqueeze(1) == photo_of_item.unsqueeze(0)  # (chunk, N)
        best = scores.masked_fill(~match, -torch.inf).amax(dim=1, keepdim=True)  # (chunk, 1)
        # "not below" rather than "at or above": a NaN must not win by comparing False with everything
        ranks.append(1 + (~(scores < best) & ~match).sum(dim=1))
    return torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.long)


def recall_summary(ranks):
    """Return {"R@1", "R@5", "R@10"} in percent and {"median_rank"} of ranks (Q,) that start at 1."""
    ranks = ranks.cpu().numpy()
    summary = {f"R@{k}": 100 * float(np.mean(ranks <= k)) for k in (1, 5, 10)}
    return {**summary, "median_rank": float(np.median(ranks))}


def retrieval_ranks(image_embeddings, text_embeddings, image_of_text):
    """Return the ranks of all captions (M,) and of all images that have captions (A,), in the order of their rows.

    Arguments and errors as for `retrieval_metrics`.
    """
    images = torch.arange(len(image_embeddings), device=image_embeddings.device)
    image_of_text = torch.as_tensor(image_of_text, device=image_embeddings.device)
    if image_of_text.shape != (len(text_embeddings),) or not torch.isin(image_of_text, images).all():
        raise ValueError(f"image_of_text must hold a row from 0 to {len(images) - 1} for each of the "
                         f"{len(text_embeddings)} captions")
    if len(text_embeddings) == 0:
        raise ValueError("there are no captions to measure with")
    asked = image_of_text.unique()
    return (ranks_of(text_embeddings, image_embeddings, image_of_text, images),
            ranks_of(image_embeddings[asked], text_embeddings, asked, image_of_text))


def retrieval_metrics(image_embeddings, text_embeddings, image_of_text):
    """Return two dictionaries, text_to_image and image_to_text, as in the JSON of the command.

    image_embeddings (N, D) and text_embeddings (M, D) are of unit length; image_of_text (M,) holds the row of each
    caption's image, from 0 to N - 1. Images without a caption are in the gallery but are no queries.
    Raises ValueError for shapes or rows that do not fit.
    """
    text_to_image, image_to_text = retrieval_ranks(image_embeddings, text_embeddings, image_of_text)
    return recall_summary(text_to_image), recall_summary(image_to_text)


def mean_recall(report):
    """Return the mean of the six recalls, by which the best checkpoint of a run is chosen."""
    return float(np.mean([value for direction in DIRECTIONS
                          for key, value in report[direction].items() if key.startswith("R@")]))


def modality_gap(image_embeddings, text_embeddings):
    """Return the distance between the mean image embedding and the mean text embedding (Liang et al. 2022)."""
    return (image_embeddings.mean(dim=0) - text_embeddings.mean(dim=0)).norm().item()


def bootstrap_interval(hits_a, hits_b, photo_of_query, samples=2000, seed=0):
    """Return (difference, low, high): B's recall minus A's in percent, and the bounds that hold 95 % of resamples.

    hits_a, hits_b: (Q,) bool, whether each query found its match with A and with B: paired, both answered the same
    queries. photo_of_query: (Q,) the row of each query's photo. Photos are drawn with replacement, each with all of
    its queries: five captions of a photo are not five independent trials.
    """
    photos, photo_of_query = np.unique(np.asarray(photo_of_query), return_inverse=True)
    change = np.asarray(hits_b, dtype=float) - np.asarray(hits_a, dtype=float)
    change_of_photo = np.bincount(photo_of_query, change, len(photos))
    queries_of_photo = np.bincount(photo_of_query, minlength=len(photos))
    draws = np.random.default_rng(seed).multinomial(len(photos), np.full(len(photos), 1 / len(photos)), samples)
    resampled = 100 * (draws @ change_of_photo) / (draws @ queries_of_photo)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return 100 * float(change.mean()), float(low), float(high)


# ---------------------------------------------------------------- a checkpoint on a split


@dataclass(frozen=True)
class EmbeddedSplit:
    """A captions table, embedded: photos in the order in which they first appear, captions in the table's order."""

    files: list  # N paths
    captions: list  # M texts
    image_embeddings: torch.Tensor  # (N, D), unit length
    text_embeddings: torch.Tensor  # (M, D), unit length
    image_of_text: torch.Tensor  # (M,), the row of each caption's photo
    faults: dict  # {path: OSError} of the photos that could not be read; they are left out with their captions


def embed_split(model, table, data_dir, batch_size=128, workers=0, known=NOTHING_KNOWN):
    """Return the `EmbeddedSplit` of a captions table. What is `known` of it spares work.

    Raises UserError where none of its photos can be read.
    """
    paths = paths_of(table, data_dir)
    if known.image_features is None:
        loader = image_loader(paths, model.config.image_size, batch_size, workers, known.decoded)
        image_embeddings, readable, faults = embed_images(model, loader)
    else:
        image_embeddings = project(model, model.project_image, known.image_features)
        readable = range(len(paths))
        faults = {}
    if not readable:
        raise UserError(f"none of the {len(paths):,} photos in {data_dir} can be read: {next(iter(faults.values()))}")

    # A photo that cannot be read is left out with its captions; the others move up.
    row_of_path = {paths[place]: row for row, place in enumerate(readable)}
    rows = [row_of_path.get(image_path(data_dir, name), -1) for name in table["image"]]
    captions = [caption for caption, row in zip(table["caption"], rows, strict=True) if row >= 0]
    rows = torch.tensor(rows)
    if known.text_features is None:
        text_embeddings = embed_texts(model, captions, batch_size)
    else:
        text_embeddings = project(model, model.project_text, known.text_features[rows >= 0])
    return EmbeddedSplit(
        files=[paths[place] for place in readable],
        captions=captions,
        image_embeddings=image_embeddings,
        text_embeddings=text_embeddings,
        image_of_text=rows[rows >= 0],
        faults={paths[place]: error for place, error in faults.items()},
    )


@torch.inference_mode()
def project(model, head, features):
    """Return the (N, D) embeddings, on the CPU, of (N, F) features that a tower has made before."""
    with model.autocast():
        return head(features.to(model.device)).cpu()


def ranks_in(split):
    """Return the ranks of the captions (M,) and of the photos (N,) of an `EmbeddedSplit`."""
    return retrieval_ranks(split.image_embeddings, split.text_embeddings, split.image_of_text)


def report_of(split):
    """Return {"images", "captions", "text_to_image", "image_to_text"} of an `EmbeddedSplit`."""
    metrics = retrieval_metrics(split.image_embeddings, split.text_embeddings, split.image_of_text)
    return {"images": len(split.files), "captions": len(split.captions), **dict(zip(DIRECTIONS, metrics, strict=True))}


def recall_table(report):
    """Return the figures of a report as lines of text."""
    frame = pd.DataFrame({name: report[direction] for direction, name in DIRECTIONS.items()}).T
    return frame.rename(columns={"median_rank": "median rank"}).to_string(float_format="{:.1f}".format)


def compare(first, second):
    """Return a table (text) and its figures: recall of two `EmbeddedSplit`s, the difference and its 95 % interval.

    The interval is over photos, for these two checkpoints: other training seeds are another source of chance.
    """
    if first.files != second.files or first.captions != second.captions:
        raise UserError("the two checkpoints could not read the same photos: mend the photos listed above")
    photo_of_query = first.image_of_text, first.image_of_text.unique()
    figures, rows = {}, []
    for direction, ranks_a, ranks_b, photos in zip(
            DIRECTIONS, ranks_in(first), ranks_in(second), photo_of_query, strict=True):
        figures[direction] = {}
        for k in (1, 5, 10):
            hits_a, hits_b = (ranks_a <= k).numpy(), (ranks_b <= k).numpy()
            difference, low, high = bootstrap_interval(hits_a, hits_b, photos)
            sure = len(first.files) >= 20 and (low > 0 or high < 0)  # a few photos prove nothing
            verdict = ("B is better" if difference > 0 else "A is better") if sure else "may be chance"
            a, b = 100 * hits_a.mean(), 100 * hits_b.mean()
            figures[direction][f"R@{k}"] = {"A": a, "B": b, "difference": difference, "low": low, "high": high}
            rows.append([DIRECTIONS[direction], f"R@{k}", a, b, f"{difference:+.1f}", f"{low:+.1f} to {high:+.1f}",
                         verdict])
    frame = pd.DataFrame(rows, columns=["", "", "A", "B", "B - A", "95 % interval", ""])
    return frame.to_string(index=False, float_format="{:.1f}".format), figures


# ---------------------------------------------------------------- classification


def accuracy_report(scores, labels, names):
    """Return {"top_1", "top_5", "classes": {name: top-1}} in percent, of scores (N, K), labels (N,); ties miss."""
    own = scores.gather(1, labels.unsqueeze(1))  # (N, 1)
    ranks = (~(scores < own)).sum(dim=1)  # the own class is one of these
    hits = ranks <= 1
    per_class = {name: 100 * hits[labels == label].float().mean().item() for label, name in enumerate(names)}
    return {"top_1": 100 * hits.float().mean().item(), "top_5": 100 * (ranks <= 5).float().mean().item(),
            "classes": per_class}


def linear_probe(features, labels, test_features, classes):
    """Return (N, K) scores of test features by logistic regression on features (M, F) with labels (M,).

    Features are standardised; the weight penalty is the best of five on a fifth of the training pictures, and the
    final fit uses all of them. paper: Radford et al. 2021, A.3, the same with scikit-learn and a finer search.
    """
    mean, std = features.mean(dim=0), features.std(dim=0) + 1e-6
    features, test_features = (features - mean) / std, (test_features - mean) / std

    def fit(rows, penalty):
        layer = torch.nn.Linear(features.shape[1], classes)
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def loss():
            optimizer.zero_grad()
            value = F.cross_entropy(layer(features[rows]), labels[rows]) + penalty * layer.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        return layer

    held_out = torch.arange(len(labels)) % 5 == 0

    def accuracy(penalty):
        return (fit(~held_out, penalty)(features[held_out]).argmax(dim=1) == labels[held_out]).float().mean().item()

    best = max((1e-4, 1e-3, 1e-2, 1e-1, 1.0), key=accuracy)
    return fit(torch.ones_like(held_out), best)(test_features).detach()


def classify(model, flags):
    """Return the report of --zero-shot or --linear-probe, its (K, K) confusion counts, and the class names.

    Classes are the folders in the folder given; a class is called like its folder, with spaces for underscores. The
    probe trains on three quarters of each class and measures on the rest.
    """
    root = flags.zero_shot or flags.linear_probe
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: name one that holds a folder of pictures for each class")
    files = {folder.name: picture_files(folder) for folder in sorted(root.iterdir()) if folder.is_dir()}
    files = {name: pictures for name, pictures in files.items() if pictures}
    if len(files) < 2:
        raise UserError(f"{root} needs at least two class folders with pictures in them, and has {len(files)}")
    names = [name.replace("_", " ") for name in files]
    paths = [path for pictures in files.values() for path in pictures]
    labels = torch.tensor([label for label, pictures in enumerate(files.values()) for _ in pictures])
    loader = image_loader(paths, model.config.image_size, flags.batch_size, flags.workers)
    encode = model.image_encoder if flags.linear_probe else model.encode_image
    images, readable, faults = embed_images(model, loader, encode)
    for error in faults.values():
        print(f"left out: {error}")
    images, labels = images.float(), labels[readable]
    if empty := [name for label, name in enumerate(names) if not (labels == label).any()]:
        raise UserError(f"no picture of the class {empty[0]!r} in {root} can be read: mend or remove its folder")
    if flags.zero_shot:
        templates = read_templates(flags.templates) if flags.templates else TEMPLATES
        classes = class_embeddings(lambda prompts: embed_texts(model, prompts).numpy(), names, templates)  # (K, D)
        scores = images @ torch.from_numpy(classes).T  # (N, K)
        used = f"zero-shot, {len(templates)} templates a class"
    else:
        place = torch.cat([torch.arange(int(count)) for count in torch.bincount(labels, minlength=len(names))])
        test = place % 4 == 3
        if any(not (labels[test] == label).any() for label in range(len(names))):
            raise UserError(f"a linear probe needs at least 4 readable pictures in every class folder of {root}")
        scores = linear_probe(images[~test], labels[~test], images[test], len(names))
        labels, used = labels[test], f"linear probe trained on {int((~test).sum()):,} pictures"
    print(f"{used}; {len(labels):,} pictures of {len(names)} classes in {root}, chance {100 / len(names):.1f} %")
    confusion = torch.zeros(len(names), len(names), dtype=torch.long)
    confusion.index_put_((labels, scores.argmax(dim=1)), torch.tensor(1), accumulate=True)
    return {"folder": str(root), "pictures": len(labels), **accuracy_report(scores, labels, names)}, confusion, names


def read_templates(path):
    """Return the prompt templates of a text file: a line each, with {} where the name of the class goes."""
    if not path.is_file():
        raise UserError(f"--templates {path} is not a file: write one, a prompt a line, like: a photo of a {{}}.")
    templates = [line.strip() for line in read_text(path) if line.strip()]
    for number, template in enumerate(templates, start=1):
        if "{}" not in template:
            raise UserError(f"{path} line {number}: {template!r} has no {{}}, where the name of the class goes")
    if not templates:
        raise UserError(f"{path} holds no templates: write a prompt a line, like: a photo of a {{}}.")
    return templates


# ---------------------------------------------------------------- pictures


def draw_pictures(split, folder, mark):
    """Draw similarity-MARK.png and worst-MARK.png of an `EmbeddedSplit` into a folder."""
    gap, (ranks, _) = modality_gap(split.image_embeddings, split.text_embeddings), ranks_in(split)
    drawn(folder / f"similarity-{mark}.png", draw_similarity, split, gap)
    drawn(folder / f"worst-{mark}.png", draw_worst, split, ranks)


def drawn(path, draw, *arguments):
    """Draw one picture and say so; the figures matter more, so a picture that cannot be drawn is only reported."""
    try:
        if is_first_process():  # several processes may have shared the work
            draw(*arguments, path)
        print(f"drew {path}")
    except OSError as error:
        print(f"could not draw {path}: {error}")


# ---------------------------------------------------------------- the command


def run_folder(checkpoint):
    """Return where pictures about a checkpoint go: the run that it belongs to, or else its own folder."""
    return checkpoint.parent if checkpoint.name in ("best", "last") else checkpoint


def main(flags):
    if flags.json and (flags.json.is_dir() or not flags.json.parent.is_dir()):
        raise UserError(f"--json {flags.json} cannot be written: name a file in a folder that exists")
    directories = [checkpoint_dir(given) for given in flags.compare or [flags.checkpoint]]
    device = start_process(flags.device)
    models = [CLIP.from_pretrained(directory).to(device) for directory in directories]
    folder = run_folder(directories[0])
    if flags.zero_shot or flags.linear_probe:
        print(f"{directories[0]} ({device})")
        result, confusion, names = classify(models[0], flags)
        kind = "zero-shot" if flags.zero_shot else "linear-probe"
        width = max(map(len, names))
        print("\n".join(f"  {name:<{width}}  {value:5.1f}" for name, value in result["classes"].items()))
        print(f"top-1 {result['top_1']:.1f} %" + (f", top-5 {result['top_5']:.1f} %" if len(names) > 5 else ""))
        drawn(folder / f"confusion-{kind}.png", draw_confusion, confusion, names)
    else:
        config = models[0].config
        data_dir = flags.data_dir or config.data_dir
        table = split_table(data_dir, flags.split, config.split_seed)
        print(f"{' (A) and '.join(map(str, directories))}{' (B)' if flags.compare else ''} on the {flags.split} split "
              f"of {data_dir} ({device})")
        if len({model.config.split_seed for model in models}) > 1 and not has_split_lists(data_dir):
            raise UserError("the two were trained with different --split-seed, so one has seen photos of this split: "
                            f"write split lists in {data_dir}, and train both on them")
        splits = [embed_split(model, table, data_dir, flags.batch_size, flags.workers) for model in models]
        for error in splits[0].faults.values():
            print(f"left out with its captions: {error}")
        report = report_of(splits[0])
        print(f"{report['images']:,} photos, {report['captions']:,} captions; recall in percent")
        if flags.compare:
            lines, figures = compare(*splits)
            print(lines)
            result = {"split": flags.split, "A": str(directories[0]), "B": str(directories[1]), **figures}
        else:
            print(recall_table(report))
            result = {"split": flags.split, **report}
            mark = "-last" if directories[0].name == "last" else ""
            draw_pictures(splits[0], folder, f"{flags.split}{mark}")
    if flags.json and is_first_process():
        flags.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {flags.json}")


if __name__ == "__main__":
    with one_line_errors():
        main(FLAGS)
