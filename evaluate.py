"""Measure a checkpoint: how often is the right picture, or the right caption, among the first 1, 5 and 10?

    python evaluate.py --split dev                    # best/ of the newest run, on its own data
    python evaluate.py --checkpoint DIR --data-dir DIR --split test --json figures.json

Recall@k follows the literature on Flickr8k: the gallery is the photos of one split and no others; every caption is
a query of its own; an image finds *any* of its captions. Ties count against the model, so one that gives all pairs
the same score gets nothing. The metrics are functions of tensors; the CLI is at the end.
"""

import json

from config import EvaluateConfig, UserError, checkpoint_dir, one_line_errors, parse

if __name__ == "__main__":
    FLAGS = parse(EvaluateConfig)  # before torch is imported, so that --help and a mistyped flag answer at once

import numpy as np
import pandas as pd
import torch

from dataset import image_loader, image_path, split_table
from models import CLIP, embed_images, embed_texts, resolve_device


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


def retrieval_metrics(image_embeddings, text_embeddings, image_of_text):
    """Return two dictionaries, text_to_image and image_to_text, as in the JSON of the command.

    image_embeddings (N, D) and text_embeddings (M, D) are of unit length; image_of_text (M,) holds the row of each
    caption's image, from 0 to N - 1. Images without a caption are in the gallery but are no queries.
    Raises ValueError for shapes or rows that do not fit.
    """
    images = torch.arange(len(image_embeddings), device=image_embeddings.device)
    image_of_text = torch.as_tensor(image_of_text, device=image_embeddings.device)
    if image_of_text.shape != (len(text_embeddings),) or not torch.isin(image_of_text, images).all():
        raise ValueError(f"image_of_text must hold a row from 0 to {len(images) - 1} for each of the "
                         f"{len(text_embeddings)} captions")
    if len(text_embeddings) == 0:
        raise ValueError("there are no captions to measure with")
    asked = image_of_text.unique()
    text_to_image = ranks_of(text_embeddings, image_embeddings, image_of_text, images)
    image_to_text = ranks_of(image_embeddings[asked], text_embeddings, asked, image_of_text)
    return recall_summary(text_to_image), recall_summary(image_to_text)


def evaluate_split(model, table, data_dir, batch_size=128, workers=0):
    """Embed a captions table and its photos, and measure.

    Returns a dictionary {"images", "captions", "text_to_image", "image_to_text"} and a dictionary {name: OSError} of
    photos that could not be read, which are left out with their captions.
    """
    names = table["image"].unique()
    loader = image_loader([image_path(data_dir, name) for name in names], model.config.image_size, batch_size, workers)
    image_embeddings, readable, faults = embed_images(model, loader)
    if not readable:
        raise UserError(f"none of the {len(names):,} photos in {data_dir} can be read: {next(iter(faults.values()))}")
    row_of_image = {names[index]: row for row, index in enumerate(readable)}
    table = table[table["image"].isin(row_of_image)]
    text_embeddings = embed_texts(model, table["caption"], batch_size)
    image_of_text = torch.tensor([row_of_image[name] for name in table["image"]])
    text_to_image, image_to_text = retrieval_metrics(image_embeddings, text_embeddings, image_of_text)
    report = {
        "images": len(image_embeddings), "captions": len(table),
        "text_to_image": text_to_image, "image_to_text": image_to_text,
    }
    return report, {names[index]: error for index, error in faults.items()}


def mean_recall(report):
    """Return the mean of the six recalls, by which the best checkpoint of a run is chosen."""
    return float(np.mean([value for direction in ("text_to_image", "image_to_text")
                          for key, value in report[direction].items() if key.startswith("R@")]))


def recall_table(report):
    """Return the figures of a report as lines of text."""
    frame = pd.DataFrame({"text -> image": report["text_to_image"], "image -> text": report["image_to_text"]}).T
    frame = frame.rename(columns={"median_rank": "median rank"})
    return frame.to_string(float_format="{:.1f}".format)


def main(flags):
    if flags.json and (flags.json.is_dir() or not flags.json.parent.is_dir()):
        raise UserError(f"--json {flags.json} cannot be written: name a file in a folder that exists")
    directory = checkpoint_dir(flags.checkpoint)
    device = resolve_device(flags.device)
    model = CLIP.from_pretrained(directory).to(device)
    data_dir = flags.data_dir or model.config.data_dir
    table = split_table(data_dir, flags.split, model.config.split_seed)
    print(f"{directory} on the {flags.split} split of {data_dir} ({device})")
    report, faults = evaluate_split(model, table, data_dir, flags.batch_size, flags.workers)
    for error in faults.values():
        print(f"left out with its captions: {error}")
    print(f"{report['images']:,} photos, {report['captions']:,} captions; recall in percent")
    print(recall_table(report))
    if flags.json:
        flags.json.write_text(json.dumps({"split": flags.split, **report}, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {flags.json}")


if __name__ == "__main__":
    with one_line_errors():
        main(FLAGS)
