"""Make the tour (docs/tour.md and docs/tour.ipynb): train the sample, measure, draw, write the pages.

    python docs/make_tour.py                    # all of it
    python docs/make_tour.py --again pictures   # draw anew from what was measured, and write the pages
    python docs/make_tour.py --again pages      # write the pages anew, after a change of words or of quoted code

What is measured is written to docs/tour.json, which every number of the pages comes from, and to runs/tour/, what only
the pictures need. The words of the tour lie in docs/tour/source.md. All of it takes four minutes of one core.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.errors import expect_ctrl_c, one_line_errors  # first of all: `support` keeps the libraries quiet

if __name__ == "__main__":
    expect_ctrl_c()  # while the libraries load, too

import cv2
import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tour_pages import execute_notebook, write_pages
from tour_pictures import draw_pictures
from transformers import AutoModel, DistilBertConfig

from config import PRESETS, parse
from data.sample_scenes import CLOTHES, FUR, PLACES
from dataset import (
    captions_of_photos,
    image_loader,
    load_splits,
    paths_of,
    read_square,
    rows_of_images,
    start_epoch,
    tokenize,
    train_transform,
)
from evaluate import embed_split, recall_summary, retrieval_metrics, retrieval_ranks
from inference import Gallery
from models import CLIP, clip_loss, embed_images, new_head, soft_clip_loss
from support.averaging import RunningMean
from support.files import read_json, write_file
from support.kept_splits import held_out_names
from support.plots import worst_captions
from support.process import start_process, usable_cores
from support.run import Run
from train import finish, load_data, make_phase, measure_on_dev, train_and_measure, train_one_epoch

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs"
WORK = Path("runs/tour")
SAMPLE = PRESETS["sample"].data_dir
QUERY = "people sitting near the beach"

# ---------------------------------------------------------------- the model of the tour


def train_sample(folder, keep_after):
    """Train the sample as `python train.py sample` does; returns the dev split as embedded after some epochs, by epoch.

    0 is the model before training.
    """
    config = replace(PRESETS["sample"], run_dir=folder)
    embedded = {}
    with Run(config) as run:
        splits, _ = load_data(config)
        run.held_out = held_out_names(splits, run.held_out)
        torch.manual_seed(config.seed)
        model = CLIP.from_config(config, splits["train"]["caption"])
        model.to(memory_format=torch.channels_last)
        average = RunningMean(model, config.averaging)
        phase = make_phase(model, splits, config, "none", config.epochs)
        run.take_up(model, average, phase)
        embedded[0] = embed_split(model.eval(), splits["dev"])
        for epoch in run.epochs_to_come():
            row = train_and_measure(model, average, phase, run, epoch, splits, config)
            run.keep(row)
            if epoch in keep_after:
                embedded[epoch] = embed_split(average.model, splits["dev"])
        finish(run, average, splits, config)
    return embedded


def untrained_loss(splits, config):
    """Return the loss of the first batch, before the first step, and what ln B is."""
    torch.manual_seed(config.seed)
    model = CLIP.from_config(config, splits["train"]["caption"])
    phase = make_phase(model, splits, config, "none", 1)
    start_epoch(phase.loader, 1)
    batch = next(iter(phase.loader))
    with torch.no_grad():
        images, texts = model.train()(batch)
        loss = model.loss(images, texts, batch.photo_ids, batch.caption_ids)
    return loss.item()


# ---------------------------------------------------------------- chapter by chapter


def scene_and_captions(splits):
    """Return a dev photo that shows a dog in the water, with its captions."""
    table = splits["dev"]
    is_wet = table["caption"].str.contains("dog") & table["caption"].str.contains("through .*(?:sea|water)")
    name = table["image"][is_wet].iloc[0]
    rows = table[table["image"] == name]
    return {"path": rows["path"].iloc[0], "captions": list(rows["caption"])}


def data_figures(splits):
    """Return how many photos and captions there are."""
    figures = {split: table["image"].nunique() for split, table in splits.items()}
    figures["photos"] = sum(figures.values())
    figures["captions"] = sum(len(table) for table in splits.values())
    figures["captions_per_photo"] = len(captions_of_photos(splits["dev"])[0])
    return figures


def what_towers_see(model, scene):
    """Return the pixels of a scene and two crops of it, and the tokens of a caption, and a word in pieces."""
    size = model.config.image_size
    pixels = read_square(scene["path"], size)
    views = {"whole": pixels}
    for preset in ("sample", "flickr8k"):
        config = PRESETS[preset]
        transform = train_transform(size, config.crop_scale, config.flip)
        transform.py_random.seed(3)
        views[preset] = transform(image=pixels)["image"]
    tokenizer = model.text_encoder.tokenizer
    caption = min(scene["captions"], key=len)
    (ids,) = tokenize(tokenizer, [caption], model.text_encoder.max_tokens)
    figures = {
        "caption": caption,
        "ids": ids,
        "tokens": tokenizer.convert_ids_to_tokens(ids),
        "token_count": len(ids),
        "vocabulary": len(tokenizer),
        "size": size,
        "file_size": cv2.imread(scene["path"]).shape[0],
        "numbers": 3 * size * size,
        "crop_percent": 100 * PRESETS["sample"].crop_scale,
        "crop_percent_flickr8k": 100 * PRESETS["flickr8k"].crop_scale,
    }
    return figures, views


def parameter_count(module):
    """Return how many weights a module has, in thousands."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1000


def shapes(model):
    """Return the widths along both towers, and their weights in thousands."""
    return {
        "size": model.config.image_size,
        "image_features": model.image_encoder.feature_dim,
        "text_features": model.text_encoder.feature_dim,
        "embedding_dim": model.config.embedding_dim,
        "image_tower": parameter_count(model.image_encoder),
        "text_tower": parameter_count(model.text_encoder),
        "image_head": parameter_count(model.image_head),
        "text_head": parameter_count(model.text_head),
        "logit_scale": model.logit_scale.exp().item(),
    }


@torch.inference_mode()
def embed_prompts(model, texts):
    """Return the (Q, D) embeddings of some texts."""
    return model.eval().encode_text(*model.text_encoder.tokens_of(texts))


def cosines_of_scene(model, scene):
    """Return the cosines of a photo with its own caption, and with texts that fit less and less; all by name."""
    texts = {
        "own": min(scene["captions"], key=len).rstrip(" ."),
        "less": "a dog at the beach",
        "place": "people sitting near the beach",
        "other": "playing soccer",
    }
    pixels = torch.from_numpy(read_square(scene["path"], model.config.image_size)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        image = model.eval().encode_image(pixels)  # (1, D)
        unprojected = model.image_head(model.image_encoder(pixels)).norm().item()
    scores = (embed_prompts(model, list(texts.values())) @ image.T).flatten()
    figures = dict(zip(texts, scores.tolist(), strict=True))
    angles = {name: math.degrees(math.acos(score)) for name, score in figures.items()}
    return {"texts": texts, "cosine": figures, "angle": angles, "length_before": unprojected}


def pairs_of_places(embedded, splits, count):
    """Return the rows of some dev photos, each of another place, and of one caption of each."""
    photos = []
    captions = []
    for phrases in list(PLACES.values())[:count]:
        for row, caption in enumerate(embedded.captions):
            photo = int(embedded.image_of_text[row])
            if caption.lower().rstrip(" .").endswith(phrases[0]) and photo not in photos:
                photos.append(photo)
                captions.append(row)
                break
    return photos, captions


def pairs_of_one_place(embedded, count):
    """Return the rows of some dev photos of people at the beach, and of one caption of each."""
    photos = []
    captions = []
    for row, caption in enumerate(embedded.captions):
        photo = int(embedded.image_of_text[row])
        at_the_beach = any(phrase in caption.lower() for phrase in PLACES["beach"])
        if at_the_beach and "dog" not in caption and photo not in photos and len(photos) < count:
            photos.append(photo)
            captions.append(row)
    return photos, captions


def matrix_figures(embedded, loss, config):
    """Return the cosines of all dev photos with a caption of each before training, and the first loss."""
    first = embedded.first_captions(len(embedded.files))
    matrix = embedded.image_embeddings @ embedded.text_embeddings[first].T
    return {
        "batch": config.batch_size,
        "chance": math.log(config.batch_size),
        "first_loss": loss,
        "percent_per_text": 100 / config.batch_size,
        "cosine_mean": matrix.mean().item(),
        "cosine_spread": matrix.std().item(),
        "own_mean": matrix.diagonal().mean().item(),
    }


HAND_IMAGES = [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]
HAND_TEXTS = [[0.8, 0.6], [0.6, 0.8], [0.0, 1.0]]
HAND_SCALE = 5.0


def loss_by_hand():
    """Return each step of the loss of three pairs, by nothing but products, exponentials and logarithms."""
    cosines = []
    for image in HAND_IMAGES:
        cosines.append([image[0] * text[0] + image[1] * text[1] for text in HAND_TEXTS])
    logits = [[HAND_SCALE * cosine for cosine in row] for row in cosines]

    def losses(rows):
        return [math.log(sum(math.exp(logit) for logit in row)) - row[place] for place, row in enumerate(rows)]

    row_losses = losses(logits)
    columns = [list(column) for column in zip(*logits, strict=True)]
    column_losses = losses(columns)
    exponentials = [math.exp(logit) for logit in logits[0]]
    return {
        "images": HAND_IMAGES,
        "texts": HAND_TEXTS,
        "scale": HAND_SCALE,
        "cosines": cosines,
        "logits": logits,
        "exponentials": exponentials,
        "sum": sum(exponentials),
        "own_part": 100 * exponentials[0] / sum(exponentials),
        "rows": row_losses,
        "columns": column_losses,
        "row_mean": sum(row_losses) / 3,
        "column_mean": sum(column_losses) / 3,
        "loss": (sum(row_losses) + sum(column_losses)) / 6,
        "chance": math.log(3),
    }


def temperatures(embedded, photos, captions, learned_scale):
    """Return what a softmax makes of one photo's cosines with some captions, at three temperatures, in percent."""
    cosines = embedded.image_embeddings[photos[0]] @ embedded.text_embeddings[captions].T
    parts = {}
    for name, scale in (("one", 1.0), ("start", 1 / 0.07), ("least", 100.0)):
        parts[name] = (100 * (scale * cosines).softmax(dim=0)).tolist()
    return {
        "file": str(embedded.files[photos[0]]),
        "captions": [embedded.captions[caption] for caption in captions],
        "cosines": cosines.tolist(),
        "parts": parts,
        "own": {name: values[0] for name, values in parts.items()},
        "learned_scale": learned_scale,
        "learned": 1 / learned_scale,
        "start": 0.07,
        "start_scale": 1 / 0.07,
        "least": 0.01,
        "most_scale": 100,
    }


def pulls_and_pushes(embedded, photos, captions, scale):
    """Return the gradient of one row of the loss by each of its logits, from autograd, and by the formula."""
    logits = scale * embedded.image_embeddings[photos] @ embedded.text_embeddings[captions].T
    row = logits[0].clone().requires_grad_()
    F.cross_entropy(row[None], torch.tensor([0])).backward()
    by_formula = row.detach().softmax(dim=0)
    by_formula[0] -= 1
    gradient = row.grad
    pushes = gradient[1:]
    hardest = int(pushes.argmax()) + 1
    return {
        "file": str(embedded.files[photos[0]]),
        "gradient": gradient.tolist(),
        "captions": [embedded.captions[caption] for caption in captions],
        "pull": -gradient[0].item(),
        "push": pushes.sum().item(),
        "hardest": hardest,
        "hardest_percent": (100 * pushes.max() / pushes.sum()).item(),
        "hardest_caption": embedded.captions[captions[hardest]],
        "difference": (gradient - by_formula).abs().max().item(),
        "scale": scale,
    }


def training_figures(history):
    """Return the figures of each epoch, and some of them by name."""
    curves = []
    for row in history:
        curves.append([row["epoch"], row["train_loss"], row["text_to_image"]["R@1"], row["text_to_image"]["R@10"]])
    return {
        "curves": curves,
        "epochs": len(history),
        "last_loss": history[-1]["train_loss"],
        "first_epoch_loss": history[0]["train_loss"],
        "gap_after_first": history[0]["modality_gap"],
        "gap_after_last": history[-1]["modality_gap"],
        "recall_after": {str(row["epoch"]): row["text_to_image"]["R@1"] for row in history},
    }


def recalls_of_one_model(test, in_batch=20):
    """Return text-to-image R@1 of one model: measured as it should be, and in ways that flatter it."""
    images, texts, image_of_text = test.image_embeddings, test.text_embeddings, test.image_of_text
    honest, _ = retrieval_metrics(images, texts, image_of_text)

    # only the caption of each photo that serves the model best
    ranks, _ = retrieval_ranks(images, texts, image_of_text)
    best_of_photo = torch.full((len(images),), len(images)).scatter_reduce(0, image_of_text, ranks, "amin")
    best_caption = recall_summary(best_of_photo)

    # a gallery of no more photos than a batch holds
    hits = []
    for start in range(0, len(images), in_batch):
        mine = (image_of_text >= start) & (image_of_text < start + in_batch)
        ranks, _ = retrieval_ranks(images[start : start + in_batch], texts[mine], image_of_text[mine] - start)
        hits += (ranks == 1).tolist()

    # ties counted for the model: one that embeds everything alike
    alike = torch.zeros_like(images)
    alike[:, 0] = 1
    constant, _ = retrieval_metrics(alike, alike[image_of_text], image_of_text)
    return {
        "photos": len(images),
        "queries": len(texts),
        "honest": honest["R@1"],
        "best_caption": best_caption["R@1"],
        "in_batch": 100 * sum(hits) / len(hits),
        "in_batch_photos": in_batch,
        "chance": 100 / len(images),
        "chance_in_batch": 100 / in_batch,
        "constant": constant["R@1"],
        "honest_at_ten": honest["R@10"],
    }


def recall_on_train(model, splits):
    """Return text-to-image R@1 of a model on the photos that it was trained on, among all of them."""
    train = embed_split(model, splits["train"])
    recall, _ = retrieval_metrics(train.image_embeddings, train.text_embeddings, train.image_of_text)
    return recall["R@1"]


def leakage(splits, photos=400, gallery=200, epochs=30):
    """Return R@1 for the fifth captions of photos that a model has seen with four others, and that one has not seen.

    So it is where data is split by caption, and by photo. Both are asked for the same; captions that leave the colour
    out are not asked for.
    """
    config = replace(PRESETS["sample"], cache=False, epochs=epochs)
    names = list(splits["train"]["image"].unique())
    asked = rows_of_images(splits["train"], names[:gallery])
    asked = asked[(asked.groupby("image").cumcount() == 4) & asked["caption"].map(tells_colour)]
    asked = asked.reset_index(drop=True)

    figures = {"trained_on": photos, "gallery": asked["image"].nunique(), "epochs": epochs}
    for name, mine in (("seen", names[:photos]), ("new", names[photos : 2 * photos])):
        table = rows_of_images(splits["train"], mine)
        four = table[table.groupby("image").cumcount() < 4].reset_index(drop=True)
        torch.manual_seed(config.seed)
        model = CLIP.from_config(config, four["caption"])
        trained, _, _ = short_run(model, {**splits, "train": four}, config, f"leakage-{name}", epochs)
        embedded = embed_split(trained.eval(), asked)
        recall, _ = retrieval_metrics(embedded.image_embeddings, embedded.text_embeddings, embedded.image_of_text)
        figures[name] = recall["R@1"]
    return figures


def tells_colour(caption):
    """Return whether a caption of the sample names the colour of what it shows."""
    return bool({*CLOTHES, *FUR} & set(caption.lower().split()))


def search_figures(gallery):
    """Return the cosines of all test pictures with a prompt, and the best of them."""
    embedding = gallery.query_embedding(QUERY)
    scores = gallery.embeddings.astype(np.float32) @ embedding  # (N, D) x (D) -> (N)
    matches = gallery.search(QUERY, top_k=5)
    figures = {
        "query": QUERY,
        "photos": len(scores),
        "width": len(embedding),
        "multiplications": scores.size * embedding.size,
        "best": matches[0].score,
        "median": float(np.median(scores)),
        "lowest": float(scores.min()),
        "files": [str(match.file) for match in matches],
        "match_scores": [match.score for match in matches],
    }
    return figures, scores


HEAT_QUERIES = ["a dog running through water", "playing soccer", "a boy in blue clothes", "under the moon"]


def heat_maps(gallery):
    """Return pictures in which red marks where the answer to some prompts was found."""
    pictures = {}
    for query in HEAT_QUERIES:
        match = gallery.search(query, top_k=1)[0]
        pictures[query] = gallery.explain(match.file, query)
    return pictures


def map_side(model):
    """Return how many fields a side the last feature map of the image tower has."""
    size = model.config.image_size
    return model.image_encoder.backbone.forward_features(torch.zeros(1, 3, size, size)).shape[-1]


def mistakes(test, gallery, shown=3, above=3):
    """Return the captions whose own photo ranks lowest, and what bare scores say of prompts that nothing fits."""
    ranks, _ = test.ranks()
    worst = []
    for mistake in worst_captions(test, ranks, shown, above):
        worst.append({
            "caption": mistake.caption,
            "rank": mistake.rank,
            "own": str(test.files[mistake.own]),
            "own_score": mistake.scores[mistake.own].item(),
            "first": [str(test.files[photo]) for photo in mistake.first],
            "first_scores": mistake.scores[mistake.first].tolist(),
        })
    absurd = "an elephant in a kitchen"
    fitting = gallery.search(QUERY, top_k=1)[0].score
    return {
        "worst": worst,
        "not_first": int((ranks > 1).sum()),
        "queries": len(ranks),
        "absurd": absurd,
        "absurd_best": gallery.search(absurd, top_k=1)[0].score,
        "fitting_best": fitting,
        "usual": gallery.usual_score,
        "own_mean": (test.image_embeddings[test.image_of_text] * test.text_embeddings).sum(dim=1).mean().item(),
    }


# ---------------------------------------------------------------- what breaks it


def short_run(model, splits, config, name, epochs):
    """Train a model for some epochs; returns its recall on dev and its last loss.

    What is broken is broken by the caller, for as long as this takes; dev is measured as ever.
    """
    average = RunningMean(model, config.averaging)
    config = replace(config, run_dir=WORK / "short" / name)
    with Run(config) as run:
        phase = make_phase(model, splits, config, "none", epochs)
        for epoch in range(1, epochs + 1):
            phase.forget_steps()
            figures = train_one_epoch(model, average, phase, run, epoch, config)
    return average.model, phase, figures["train_loss"]


def broken_runs(splits, pretrained, photos=1200, epochs=10):
    """Return {name: {"recall", "loss"}}: text-to-image R@1 on dev after short runs, whole ones and broken ones."""
    config = replace(PRESETS["sample"], cache=False, epochs=epochs)
    names = list(splits["train"]["image"].unique()[:photos])
    few = {**splits, "train": rows_of_images(splits["train"], names)}
    figures = {}

    def run(name, model, breakage=None, **settings):
        settings = replace(config, **settings)
        model.config = replace(settings, image_size=model.config.image_size)
        with breakage or contextlib.nullcontext():
            trained, phase, loss = short_run(model, few, settings, name, settings.epochs)
        recall = measure_on_dev(trained, phase, few["dev"], settings)
        figures[name] = {"recall": recall["text_to_image"]["R@1"], "loss": loss}
        print(f"{name}: {figures[name]}", flush=True)

    def new_model():
        torch.manual_seed(0)
        return CLIP.from_config(config, few["train"]["caption"])

    def with_new_heads():
        model = CLIP.from_pretrained(pretrained)
        torch.manual_seed(0)
        model.image_head = new_head(model.image_encoder.feature_dim, config)
        model.text_head = new_head(model.text_encoder.feature_dim, config)
        model.logit_scale.data.fill_(math.log(1 / config.temperature))
        return model

    run("whole", new_model())
    run("no_unit_length", new_model(), mock.patch("models.F.normalize", lambda embeddings, dim: embeddings))
    run("soft", new_model(), loss="soft")
    run("soft_with_gradient", new_model(), mock.patch("models.soft_clip_loss", moving_targets), loss="soft")
    two = {"captions": 2, "batch_size": 50, "epochs": epochs // 2}  # of half the photos a step: as many steps
    run("two_captions", new_model(), **two)
    run("photo_twice", new_model(), mock.patch.object(CLIP, "loss", every_photo_twice), **two)
    slow = {"lr_image": 2e-4, "lr_text": 2e-4, "lr_heads": 4e-3, "epochs": 1}
    run("rates_apart", with_new_heads(), **slow)
    run("one_rate", with_new_heads(), **{**slow, "lr_image": 4e-3, "lr_text": 4e-3})
    return {**figures, "photos": photos, "epochs": epochs, "floor": math.log(2)}


def moving_targets(*arguments):
    """The loss with soft targets, through which the gradient is allowed to flow."""
    with mock.patch("models.torch.no_grad", contextlib.nullcontext):
        return soft_clip_loss(*arguments)


def every_photo_twice(model, image_embeddings, text_embeddings, photo_ids, caption_ids):
    """The loss of a batch that holds each photo twice, with another caption, as if these were two photos."""
    twice = image_embeddings.repeat_interleave(text_embeddings.shape[1], dim=0)  # (B * K, D)
    return clip_loss(twice, text_embeddings.flatten(0, 1), model.logit_scale.exp())


def batch_norm_in_training_mode(model, table, photos_at_once):
    """Return text-to-image R@1 where photos are embedded so many at a time with BatchNorm in training mode."""
    whole = embed_split(model.eval(), table)
    loader = image_loader(paths_of(table), model.config.image_size, photos_at_once)
    model.image_encoder.backbone.train()
    embeddings, _, _ = embed_images(model, loader)
    model.eval()
    wrong, _ = retrieval_metrics(embeddings, whole.text_embeddings, whole.image_of_text)
    return wrong["R@1"]


# ---------------------------------------------------------------- larger towers


def tower_sizes(model):
    """Return the weights of the sample's towers and of those that Flickr8k is trained with, in thousands."""
    config = PRESETS["flickr8k"]
    resnet = timm.create_model(config.image_encoder, pretrained=False, num_classes=0)
    size = resnet.pretrained_cfg["input_size"][-1]
    distilbert = AutoModel.from_config(DistilBertConfig())  # its defaults are those of distilbert-base-uncased
    return {
        "sample_image": parameter_count(model.image_encoder),
        "sample_text": parameter_count(model.text_encoder),
        "flickr8k_image": parameter_count(resnet),
        "flickr8k_text": parameter_count(distilbert),
        "flickr8k_image_millions": parameter_count(resnet) / 1000,
        "flickr8k_text_millions": parameter_count(distilbert) / 1000,
        "sample_size": model.config.image_size,
        "flickr8k_size": size,
        "flickr8k_map": size // 32,  # a ResNet halves its map five times
        "flickr8k_batch": config.batch_size,
        "flickr8k_chance": math.log(config.batch_size),
        "heads_first": config.heads_first,
    }


# ---------------------------------------------------------------- all of it


def measure():
    """Train and measure all that the tour tells; returns the numbers, and tensors that only pictures need."""
    start = time.perf_counter()
    start_process("cpu")
    config = PRESETS["sample"]
    WORK.mkdir(parents=True, exist_ok=True)
    run_dir = Path(time.strftime("runs/tour-%Y%m%d-%H%M%S"))  # the newest run, which the notebook takes
    embedded = train_sample(run_dir, keep_after=(1, 4, config.epochs))
    seconds_of_training = time.perf_counter() - start

    splits = load_splits(SAMPLE)
    model = CLIP.from_pretrained(run_dir / "best")
    history = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    gallery = Gallery(None, run_dir / "best")
    test = embed_split(model, splits["test"])
    scene = scene_and_captions(splits)
    sees, views = what_towers_see(model, scene)
    photos, captions = pairs_of_places(embedded[0], splits, 6)
    alike = pairs_of_one_place(embedded[0], 6)
    search, scores = search_figures(gallery)
    heat = heat_maps(gallery)
    last = embedded[config.epochs]

    numbers = {
        "data": data_figures(splits),
        "scene": scene,
        "sees": sees,
        "shapes": shapes(model),
        "cosine": cosines_of_scene(model, scene),
        "matrix": matrix_figures(embedded[0], untrained_loss(splits, config), config),
        "hand": loss_by_hand(),
        "temperature": temperatures(last, *alike, model.logit_scale.exp().item()),
        "pull": pulls_and_pushes(embedded[4], *alike, history[3]["logit_scale"]),
        "training": training_figures(history),
        "recall": {**recalls_of_one_model(test), "train": recall_on_train(model, splits)},
        "leakage": leakage(splits),
        "search": search,
        "heat": {"queries": HEAT_QUERIES, "side": map_side(model)},
        "mistakes": mistakes(test, gallery),
        "broken": broken_runs(splits, run_dir / "best"),
        "towers": tower_sizes(model),
        "pairs": {"photos": [str(last.files[photo]) for photo in photos]},
        "settings": settings_of_learning(config),
    }
    numbers["broken"]["batch_norm"] = batch_norm_in_training_mode(model, splits["test"], 4)
    numbers["broken"]["batch_norm_photos"] = 4
    seconds = time.perf_counter() - start
    made = {"seconds": seconds, "seconds_of_training": seconds_of_training, "cpu_seconds": time.process_time()}

    tensors = {"scores": torch.from_numpy(scores)}
    for name, pixels in views.items():
        tensors[f"view {name}"] = torch.from_numpy(pixels.copy())
    for query, picture in heat.items():
        tensors[f"heat {query}"] = torch.from_numpy(picture)
    for epoch, split in embedded.items():
        tensors[f"images {epoch}"] = split.image_embeddings.clone()
        tensors[f"texts {epoch}"] = split.text_embeddings[split.first_captions(len(split.files))]
        tensors[f"pair images {epoch}"] = split.image_embeddings[photos]
        tensors[f"pair texts {epoch}"] = split.text_embeddings[captions]
    return {"made": {**about(), **made}, **numbers}, tensors


def settings_of_learning(config):
    """Return the settings of the sample on which the numbers depend, as plain values: with others they are stale."""
    of_the_machine = ("data_dir", "run_dir", "device", "workers", "cache", "compile")
    return {name: value for name, value in asdict(config).items() if name not in of_the_machine}


def about():
    """Return what the numbers depend on: the commit, the versions of the libraries and the machine."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "*.py", ":!docs", ":!tests"], cwd=ROOT, capture_output=True, text=True
    )
    libraries = ("torch", "timm", "transformers", "tokenizers", "albumentations", "numpy", "matplotlib")
    return {
        "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
        "python": sys.version.split()[0],
        **{library: version(library) for library in libraries},
        "threads": torch.get_num_threads(),
        "cores": usable_cores(),
        "bfloat16": bool(torch.cpu.get_capabilities().get("avx512_bf16")),
    }


@dataclass(frozen=True)
class TourConfig:
    """Make the tour: docs/tour.md, docs/tour.ipynb, docs/tour.json and docs/tour/."""

    again: Literal["all", "pictures", "notebook", "pages"] = "all"  # where to begin; what comes before stays as it is


def main(flags):
    os.chdir(ROOT)
    json_file = FOLDER / "tour.json"
    if flags.again == "all":
        numbers, tensors = measure()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, WORK / "tensors.safetensors")
        write_file(json_file, json.dumps(numbers, indent=1) + "\n")
    numbers = read_json(json_file)
    if flags.again in ("all", "pictures"):
        draw_pictures(numbers, load_file(WORK / "tensors.safetensors"), FOLDER / "tour")
    write_pages(numbers, ROOT)
    if flags.again in ("all", "notebook"):
        execute_notebook(FOLDER / "tour.ipynb", ROOT)
    size = sum(path.stat().st_size for path in (FOLDER / "tour").glob("*.png"))
    print(f"wrote {FOLDER / 'tour.md'} and tour.ipynb; pictures {size / 1e6:.2f} MB")


if __name__ == "__main__":
    with one_line_errors():
        main(parse(TourConfig))
