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
from support.command_line import as_text
from support.errors import UserError, one_line_errors, shown

if __name__ == "__main__":
    FLAGS = parse(EvaluateConfig)  # before torch is imported, so that --help and a mistyped flag answer at once

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from dataset import NOTHING_KNOWN, image_loader, load_splits, paths_of, split_table
from models import CLIP, embed_images, embed_texts
from support.caption_tables import read_text
from support.files import refuse_to_replace
from support.find_run import checkpoint_dir
from support.hubs import hub_penalties
from support.images import lines_on_links, pictures_and_links
from support.kept_splits import held_out_of_model
from support.plots import draw_confusion, draw_similarity, draw_worst
from support.process import is_first_process, start_process
from support.prompts import TEMPLATES, class_embeddings
from support.unknown_words import cutting_tokenizer, remarks_on

DIRECTIONS = {"text_to_image": "text -> image", "image_to_text": "image -> text"}

# ---------------------------------------------------------------- recall


def retrieval_metrics(image_embeddings, text_embeddings, image_of_text, penalties=None):
    """Return two dictionaries, text_to_image and image_to_text, as in the JSON of the command.

    image_embeddings (N, D) and text_embeddings (M, D) are of unit length; image_of_text (M,) holds the row of each
    caption's image, from 0 to N - 1. Images without a caption are in the gallery but are no queries.
    penalties (N,) are taken off the scores of the images, where a text looks for one.
    Raises ValueError for shapes or rows that do not fit.
    """
    ranks = retrieval_ranks(image_embeddings, text_embeddings, image_of_text, penalties)
    text_to_image_ranks, image_to_text_ranks = ranks
    return recall_summary(text_to_image_ranks), recall_summary(image_to_text_ranks)


def retrieval_ranks(image_embeddings, text_embeddings, image_of_text, penalties=None):
    """Return the rank of its own image for each caption, (M,), and of the best of its own captions for each image.

    The second counts only the images that have any. 1 is the best rank.

    Arguments and errors as for `retrieval_metrics`.
    """
    images = torch.arange(len(image_embeddings), device=image_embeddings.device)
    image_of_text = torch.as_tensor(image_of_text, device=image_embeddings.device)
    if image_of_text.shape != (len(text_embeddings),) or not torch.isin(image_of_text, images).all():
        raise ValueError(
            f"image_of_text must hold a row from 0 to {len(images) - 1} for each of the {len(text_embeddings)} captions"
        )
    if len(text_embeddings) == 0:
        raise ValueError("there are no captions to measure with")
    captioned = image_of_text.unique()
    text_to_image_ranks = ranks_of(text_embeddings, image_embeddings, image_of_text, images, penalties)
    image_to_text_ranks = ranks_of(image_embeddings[captioned], text_embeddings, captioned, image_of_text)
    return text_to_image_ranks, image_to_text_ranks


def ranks_of(query_embeddings, gallery_embeddings, image_of_query, image_of_item, penalties=None, chunk=1024):
    """Return the rank (Q,) of each query's best match in the gallery, 1 is best.

    query_embeddings (Q, D) and gallery_embeddings (N, D) are of unit length; an item matches a query when both belong
    to one photo, image_of_query (Q,) and image_of_item (N,). The rank counts the items of *other* photos that score at
    least as much as the best match. penalties: (N,), taken off the scores of the items. Works through `chunk` queries
    at a time: memory is chunk x N, not Q x N.
    """
    ranks = [torch.empty(0, dtype=torch.long)]
    for start in range(0, len(query_embeddings), chunk):
        rows = slice(start, start + chunk)
        scores = query_embeddings[rows] @ gallery_embeddings.T  # (chunk, N)
        if penalties is not None:
            scores = scores - penalties
        is_match = image_of_query[rows].unsqueeze(1) == image_of_item.unsqueeze(0)  # (chunk, N)
        best = scores.masked_fill(~is_match, -torch.inf).amax(dim=1, keepdim=True)  # (chunk, 1)
        # "not below" rather than "at or above": a NaN must not win by comparing False with everything
        is_above = ~(scores < best) & ~is_match
        ranks.append(1 + is_above.sum(dim=1).cpu())
    return torch.cat(ranks)


def recall_summary(ranks):
    """Return {"R@1", "R@5", "R@10"} in percent and {"median_rank"} of ranks (Q,) that start at 1."""
    ranks = ranks.cpu().numpy()
    summary = {f"R@{k}": 100 * float(np.mean(ranks <= k)) for k in (1, 5, 10)}
    summary["median_rank"] = float(np.median(ranks))
    return summary


def mean_recall(report):
    """Return the mean of the six recalls, by which the best checkpoint of a run is chosen."""
    recalls = []
    for direction in DIRECTIONS:
        recalls += [report[direction][f"R@{k}"] for k in (1, 5, 10)]
    return float(np.mean(recalls))


def modality_gap(image_embeddings, text_embeddings):
    """Return the distance between the mean image embedding and the mean text embedding (Liang et al. 2022)."""
    return (image_embeddings.mean(dim=0) - text_embeddings.mean(dim=0)).norm().item()


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
    penalties: torch.Tensor | None = None  # (N,), of hubs: what a search takes off the scores of photos

    def ranks(self, penalties=None):
        """Return its `retrieval_ranks`: text to image, and image to text."""
        return retrieval_ranks(self.image_embeddings, self.text_embeddings, self.image_of_text, penalties)

    def first_captions(self, photos):
        """Return the rows of the first caption of each of the first so many photos."""
        return [int((self.image_of_text == photo).nonzero()[0, 0]) for photo in range(photos)]


def embed_split(model, table, batch_size=128, workers=0, known=NOTHING_KNOWN, loader=None):
    """Return the `EmbeddedSplit` of a captions table. What is `known` of it spares work.

    loader: a `dataset.image_loader` of its photos, where there is one already; batch_size and workers are its own.
    Raises UserError where none of its photos can be read.
    """
    paths = paths_of(table)
    if known.image_features is None:
        if loader is None:
            loader = image_loader(paths, model.config.image_size, batch_size, workers, known.decoded)
        image_embeddings, readable, faults = embed_images(model, loader, title="embedding photos")
    else:
        image_embeddings = project(model, model.project_image, known.image_features)
        readable = range(len(paths))
        faults = {}
    if not readable:
        raise UserError(f"none of the {len(paths):,} photos can be read: {next(iter(faults.values()))}")

    # A photo that cannot be read is left out with its captions, and the others move up: of three photos of which the
    # second is damaged, the third has row 1.
    row_of_path = {paths[place]: row for row, place in enumerate(readable)}
    unreadable = -1
    rows = [row_of_path.get(Path(path), unreadable) for path in table["path"]]
    captions = [caption for caption, row in zip(table["caption"], rows, strict=True) if row != unreadable]
    rows = torch.tensor(rows)  # a caption each
    if known.text_features is None:
        text_embeddings = embed_texts(model, captions, batch_size, title="embedding captions")
    else:
        text_embeddings = project(model, model.project_text, known.text_features[rows != unreadable])
    penalties = None
    if model.caption_bank is not None:
        scale = model.logit_scale.exp().item()
        penalties = torch.from_numpy(hub_penalties(image_embeddings.numpy(), model.caption_bank.numpy(), scale))
    return EmbeddedSplit(
        files=[paths[place] for place in readable],
        captions=captions,
        image_embeddings=image_embeddings,
        text_embeddings=text_embeddings,
        image_of_text=rows[rows != unreadable],
        faults={paths[place]: error for place, error in faults.items()},
        penalties=penalties,
    )


@torch.inference_mode()
def project(model, head, features):
    """Return the (N, D) embeddings, on the CPU, of (N, F) features that a tower has made before."""
    with model.autocast():
        return head(features.to(model.device)).cpu()


def report_of(embedded):
    """Return {"images", "captions", "text_to_image", "image_to_text"} of an `EmbeddedSplit`.

    And "text_to_image_less_hubs", where the model has a bank of captions (support/hubs.py): inference.py ranks like
    that. The plain figures are those that compare with the literature.
    """
    text_to_image, image_to_text = map(recall_summary, embedded.ranks())
    report = {
        "images": len(embedded.files),
        "captions": len(embedded.captions),
        "text_to_image": text_to_image,
        "image_to_text": image_to_text,
    }
    if embedded.penalties is not None:
        less_hubs, _ = embedded.ranks(embedded.penalties)
        report["text_to_image_less_hubs"] = recall_summary(less_hubs)
    return report


def recall_table(report):
    """Return the figures of a report as lines of text."""
    rows = {name: report[direction] for direction, name in DIRECTIONS.items()}
    if "text_to_image_less_hubs" in report:
        rows["text -> image, as searched"] = report["text_to_image_less_hubs"]
    frame = pd.DataFrame(rows).T
    return frame.rename(columns={"median_rank": "median rank"}).to_string(float_format="{:.1f}".format)


def draw_charts(embedded, folder, mark):
    """Draw similarity-MARK.png and worst-MARK.png of an `EmbeddedSplit` into a folder."""
    gap = modality_gap(embedded.image_embeddings, embedded.text_embeddings)
    text_to_image_ranks, _ = embedded.ranks()
    try_to_draw(folder / f"similarity-{mark}.png", draw_similarity, embedded, gap)
    try_to_draw(folder / f"worst-{mark}.png", draw_worst, embedded, text_to_image_ranks)


def try_to_draw(path, draw, *arguments):
    """Draw one picture and say so; the figures matter more, so a picture that cannot be drawn is only reported."""
    try:
        if is_first_process():  # several processes may have shared the work
            draw(*arguments, path)
        print(f"drew {path}")
    except OSError as error:
        print(f"could not draw {path}: {error}")


# ---------------------------------------------------------------- two checkpoints


def compare(first, second):
    """Return the recall of two `EmbeddedSplit`s, A and B, the difference and its 95 % interval.

    {direction: {"R@1": {"A", "B", "difference", "low", "high"}, …}}. The interval is over photos, for these two
    checkpoints: other training seeds are another source of chance.
    """
    if first.files != second.files or first.captions != second.captions:
        raise UserError("the two checkpoints could not read the same photos: mend the photos listed above")
    ranks_a = first.ranks()
    ranks_b = second.ranks()
    photos = [first.image_of_text, first.image_of_text.unique()]  # of each query, caption or image
    figures = {}
    for place, direction in enumerate(DIRECTIONS):  # in the order in which `retrieval_ranks` returns them
        figures[direction] = {}
        for k in (1, 5, 10):
            hits_a = (ranks_a[place] <= k).numpy()
            hits_b = (ranks_b[place] <= k).numpy()
            difference, low, high = bootstrap_interval(hits_a, hits_b, photos[place])
            figures[direction][f"R@{k}"] = {
                "A": 100 * hits_a.mean(),
                "B": 100 * hits_b.mean(),
                "difference": difference,
                "low": low,
                "high": high,
            }
    return figures


def bootstrap_interval(hits_a, hits_b, photo_of_query, samples=2000, seed=0):
    """Return (difference, low, high): B's recall minus A's in percent, and the bounds that hold 95 % of resamples.

    hits_a, hits_b: (Q,) bool, whether each query found its match with A and with B: paired, both answered the same
    queries. photo_of_query: (Q,) the row of each query's photo. Photos are drawn with replacement, each with all of
    its queries: five captions of a photo are not five independent trials.
    """
    photos, photo_of_query = np.unique(np.asarray(photo_of_query), return_inverse=True)
    change = np.asarray(hits_b, dtype=float) - np.asarray(hits_a, dtype=float)  # (Q,) 1: only B found it, -1: only A
    change_of_photo = np.bincount(photo_of_query, change, len(photos))
    queries_of_photo = np.bincount(photo_of_query, minlength=len(photos))
    equally = np.full(len(photos), 1 / len(photos))
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(samples):
        draw = rng.multinomial(len(photos), equally)  # (photos,) how often each
        resampled.append(100 * (draw @ change_of_photo) / (draw @ queries_of_photo))
    low, high = np.percentile(resampled, [2.5, 97.5])
    return 100 * float(change.mean()), float(low), float(high)


def comparison_table(figures, photos):
    """Return the figures of `compare`, of so many photos, as lines of text with a verdict each."""
    rows = []
    for direction, name in DIRECTIONS.items():
        for key, figure in figures[direction].items():
            difference = figure["difference"]
            low = figure["low"]
            high = figure["high"]
            verdict = "may be chance"
            if photos >= 20 and (low > 0 or high < 0):  # a few photos prove nothing
                verdict = "B is better" if difference > 0 else "A is better"
            interval = f"{low:+.1f} to {high:+.1f}"
            rows.append([name, key, figure["A"], figure["B"], f"{difference:+.1f}", interval, verdict])
    frame = pd.DataFrame(rows, columns=["", "", "A", "B", "B - A", "95 % interval", ""])
    return frame.to_string(index=False, float_format="{:.1f}".format)


# ---------------------------------------------------------------- classification


def class_folders(root):
    """Return {class: its picture files} of a folder of class folders; a class is called like its folder.

    Prints which links to folders in these are not followed. Raises UserError where there are fewer than two classes.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: name one that holds a folder of pictures for each class")
    files = {}
    links = []
    for folder in sorted(root.iterdir()):
        names, links_inside = pictures_and_links(folder)  # a file has none of either
        pictures = [folder / name for name in names]
        links += links_inside
        name = as_text(folder.name, folder).replace("_", " ")
        if pictures and name in files:
            raise UserError(f"{root} has two folders of the class {name!r}, with _ and with a space: make them one")
        if pictures:
            files[name] = pictures
    for line in lines_on_links(links):
        print(shown(line))
    if len(files) < 2:
        raise UserError(f"{root} needs at least two class folders with pictures in them, and has {len(files)}")
    return files


def embed_classes(model, root, files, encode, batch_size, workers):
    """Return what `encode` makes of the readable pictures of all classes, (N, F), and their labels (N,)."""
    paths = []
    labels = []
    for label, pictures in enumerate(files.values()):
        paths += pictures
        labels += [label] * len(pictures)
    loader = image_loader(paths, model.config.image_size, batch_size, workers)
    embeddings, readable, faults = embed_images(model, loader, encode)
    for error in faults.values():
        print(f"left out: {shown(error)}")
    labels = torch.tensor(labels)[readable]
    for label, name in enumerate(files):
        if not (labels == label).any():
            raise UserError(f"no picture of the class {name!r} in {root} can be read: mend or remove its folder")
    return embeddings.float(), labels


def zero_shot_scores(model, images, names, templates):
    """Return (N, K) scores of image embeddings (N, D) for K classes that are only named (Radford et al. 2021, 3.1).

    A class is the mean of the embeddings of its prompts, a template each, such as "a photo of a {}."
    """
    classes = class_embeddings(lambda prompts: embed_texts(model, prompts).numpy(), names, templates)  # (K, D)
    return images @ torch.from_numpy(classes).T


def linear_probe(features, labels, test_features, classes):
    """Return (N, K) scores of test features by logistic regression on features (M, F) with labels (M,).

    Features are standardised; the weight penalty is the best of five on a fifth of the training pictures, and the
    final fit uses all of them. paper: Radford et al. 2021, A.3, the same with scikit-learn and a finer search.
    """
    mean = features.mean(dim=0)
    std = features.std(dim=0) + 1e-6
    features = (features - mean) / std
    test_features = (test_features - mean) / std

    held_out = torch.arange(len(labels)) % 5 == 0
    accuracies = {}
    for penalty in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        layer = logistic_regression(features[~held_out], labels[~held_out], classes, penalty)
        guesses = layer(features[held_out]).argmax(dim=1)
        accuracies[penalty] = (guesses == labels[held_out]).float().mean().item()
    best_penalty = max(accuracies, key=accuracies.get)
    return logistic_regression(features, labels, classes, best_penalty)(test_features).detach()


def logistic_regression(features, labels, classes, penalty):
    """Return the linear layer (F) -> (K) that fits features (M, F) and labels (M,) best, with a penalty on weights."""
    layer = torch.nn.Linear(features.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(layer(features), labels) + penalty * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return layer


def quarter_for_testing(labels, names, root):
    """Return (N,) bool: every fourth picture of each class, on which a linear probe is measured."""
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(len(names)):
        members = (labels == label).nonzero().flatten()
        is_test[members[3::4]] = True
        if len(members) < 4:
            raise UserError(f"a linear probe needs at least 4 readable pictures in every class folder of {root}")
    return is_test


def accuracy_report(scores, labels, names):
    """Return {"top_1", "top_5", "classes": {name: top-1}} in percent, of scores (N, K), labels (N,); ties miss."""
    own = scores.gather(1, labels.unsqueeze(1))  # (N, 1)
    ranks = (~(scores < own)).sum(dim=1)  # the own class is one of these
    hits = (ranks <= 1).float()
    of_class = {}
    for label, name in enumerate(names):
        of_class[name] = 100 * hits[labels == label].mean().item()
    return {
        "top_1": 100 * hits.mean().item(),
        "top_5": 100 * (ranks <= 5).float().mean().item(),
        "classes": of_class,
    }


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


# ---------------------------------------------------------------- the command


def main(flags):
    if flags.json and (flags.json.is_dir() or not flags.json.parent.is_dir()):
        raise UserError(f"--json {flags.json} cannot be written: name a file in a folder that exists")
    if flags.json:
        refuse_to_replace("--json", flags.json, b'{\n  "split"', b'{\n  "folder"')
    device = start_process(flags.device)  # under torchrun the processes meet here; only the first one prints
    if flags.zero_shot or flags.linear_probe:
        result = classify(flags, device)
    else:
        result = measure_recall(flags, device)
    if flags.json and is_first_process():
        flags.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {flags.json}")


def measure_recall(flags, device):
    """Measure a checkpoint on a split, or compare two; prints the table, draws, and returns the figures."""
    directories = [checkpoint_dir(given) for given in flags.compare or [flags.checkpoint]]
    models = [CLIP.from_pretrained(directory).to(device) for directory in directories]
    configs = [model.config for model in models]
    source = flags.source if flags.data_dir else configs[0].source
    held_out = [held_out_of(directory, config, source) for directory, config in zip(directories, configs, strict=True)]
    table = split_table(source, flags.split, configs[0].split_seed, held_out[0])
    named = f"{directories[0]} (A) and {directories[1]} (B)" if flags.compare else str(directories[0])
    print(f"{named} on the {flags.split} split of {source.data_dir} ({device})")
    if flags.compare:
        refuse_other_photos(table, source, flags.split, configs, held_out)

    embedded = [embed_split(model, table, flags.batch_size, flags.workers) for model in models]
    for error in embedded[0].faults.values():
        print(f"left out with its captions: {shown(error)}")
    report = report_of(embedded[0])
    print(f"{report['images']:,} photos, {report['captions']:,} captions; recall in percent")
    if flags.compare:
        figures = compare(*embedded)
        print(comparison_table(figures, report["images"]))
        return {"split": flags.split, "A": str(directories[0]), "B": str(directories[1]), **figures}
    print(recall_table(report))
    mark = f"{flags.split}-last" if directories[0].name == "last" else flags.split
    draw_charts(embedded[0], folder_of_pictures(directories[0]), mark)
    return {"split": flags.split, **report}


def held_out_of(directory, config, source):
    """Return which photos of a dataset the run of a model holds out; None where that is not known, or of other data."""
    is_own_data = source.data_dir.resolve() == config.data_dir.resolve()
    return held_out_of_model(directory) if is_own_data else None


def refuse_other_photos(table, source, split, configs, held_out):
    """Raise UserError where photos of a split as model A has it, a captions table, are in no such split of model B.

    configs, held_out: of A and B. The names that are kept of a run say less than the photos that follow from them: a
    run of an earlier version, or a copy of best/, has none, and yet its split may be the same.
    """
    (config_a, config_b), (held_out_a, held_out_b) = configs, held_out
    if (config_a.split_seed, held_out_a) == (config_b.split_seed, held_out_b):
        return  # the captions need not be read again
    of_a = set(table["image"])
    of_b = set(load_splits(source, config_b.split_seed, held_out_b)[split]["image"])
    if not of_a <= of_b:
        raise UserError(
            f"the two were trained with different --split-seed, or on other photos: {len(of_a - of_b):,} of the "
            f"{len(of_a):,} photos of this split are in none like it for B, which may have seen them: write split "
            f"lists in {source.data_dir}, and train both on them"
        )


def classify(flags, device):
    """Name the class of pictures in class folders; prints the accuracies, draws, and returns the figures."""
    directory = checkpoint_dir(flags.checkpoint)
    model = CLIP.from_pretrained(directory).to(device)
    print(f"{directory} ({device})")
    root = flags.zero_shot or flags.linear_probe
    files = class_folders(root)
    names = list(files)
    encode = model.encode_image if flags.zero_shot else model.image_encoder
    images, labels = embed_classes(model, root, files, encode, flags.batch_size, flags.workers)
    if flags.zero_shot:
        kind = "zero-shot"
        templates = read_templates(flags.templates) if flags.templates else TEMPLATES
        for line in remarks_on_classes(model, names):
            print(shown(line))
        scores = zero_shot_scores(model, images, names, templates)  # (N, K)
        used = f"zero-shot, {len(templates)} templates a class"
    else:
        kind = "linear-probe"
        is_test = quarter_for_testing(labels, names, root)
        scores = linear_probe(images[~is_test], labels[~is_test], images[is_test], len(names))
        labels = labels[is_test]
        used = f"linear probe trained on {int((~is_test).sum()):,} pictures"
    chance = 100 / len(names)
    print(f"{used}; {len(labels):,} pictures of {len(names)} classes in {root}, chance {chance:.1f} %")

    report = accuracy_report(scores, labels, names)
    width = max(len(name) for name in names)
    for name, value in report["classes"].items():
        print(f"  {shown(name):<{width}}  {value:5.1f}")
    top_5 = f", top-5 {report['top_5']:.1f} %" if len(names) > 5 else ""
    print(f"top-1 {report['top_1']:.1f} %{top_5}")
    confusion = torch.zeros(len(names), len(names), dtype=torch.long)  # row = class, column = guess
    confusion.index_put_((labels, scores.argmax(dim=1)), torch.tensor(1), accumulate=True)
    try_to_draw(folder_of_pictures(directory) / f"confusion-{kind}.png", draw_confusion, confusion, names)
    return {"folder": str(root), "pictures": len(labels), **report}


def remarks_on_classes(model, names):
    """Return lines on names of classes that hold words which the model does not know, or that are too long."""
    tokenizer = cutting_tokenizer(model.text_encoder)
    return [f"{name}: {remark}" for name in names for remark in remarks_on(name, tokenizer)]


def folder_of_pictures(checkpoint):
    """Return where pictures about a checkpoint go: the run that it belongs to, or else its own folder."""
    return checkpoint.parent if checkpoint.name in ("best", "last") else checkpoint


if __name__ == "__main__":
    with one_line_errors():
        main(FLAGS)
