"""The real Flickr8k and real towers, where they are at hand: set FLICKR8K_DIR and TOWERS_DIR to run these.

TOWERS_DIR holds `mobilenetv2_100` (timm's local-dir form) and `minilm-l6` (a BERT in half precision).
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from config import PRESETS
from dataset import image_loader, inspect_dataset, load_splits, paths_of, read_captions, split_images
from models import CLIP, embed_images, embed_texts
from support.caption_tables import read_text, token_rows
from support.captions import read_dataset

FLICKR8K, TOWERS = (os.environ.get(name) for name in ("FLICKR8K_DIR", "TOWERS_DIR"))
needs_photos = pytest.mark.skipif(not FLICKR8K, reason="FLICKR8K_DIR is not set")
needs_towers = pytest.mark.skipif(not (FLICKR8K and TOWERS), reason="FLICKR8K_DIR or TOWERS_DIR is not set")


@needs_photos
def test_both_captions_files_say_the_same():
    table = read_captions(FLICKR8K)
    token_file = Path(FLICKR8K) / "Flickr8k.token.txt"
    original = {(image, caption.strip()) for _, image, caption, _ in token_rows(read_text(token_file), token_file)}
    assert set(table[["image", "caption"]].itertuples(index=False, name=None)) == {
        (image, caption) for image, caption in original if not image.endswith(".1")}
    assert (table["image"].value_counts() == 5).all()
    assert table["caption"].str.contains(",").sum() > 1000


@needs_photos
def test_the_official_splits_and_the_known_faults():
    listed = split_images(FLICKR8K, read_dataset(FLICKR8K))
    assert len(listed["train"]) == 6000 and len(listed["dev"]) == 1000
    splits = load_splits(FLICKR8K)
    assert not set(splits["train"]["image"]) & set(splits["dev"]["image"])
    report = inspect_dataset(FLICKR8K)
    assert report.duplicates == [["2851198725_37b6027625.jpg", "3050606344_af711c726c.jpg"]]
    assert not (report.missing or report.unreadable or report.in_two_splits or report.without_captions)


@needs_towers
def test_pretrained_towers_through_the_flags_and_back(tmp_path):
    config = replace(PRESETS["flickr8k"], data_dir=Path(FLICKR8K), freeze="both",
                     image_encoder=f"local-dir:{TOWERS}/mobilenetv2_100", text_encoder=f"{TOWERS}/minilm-l6")
    torch.manual_seed(0)
    model = CLIP.from_config(config).eval()
    assert (model.image_encoder.feature_dim, model.text_encoder.feature_dim) == (1280, 384)
    model.save_pretrained(tmp_path)
    table = load_splits(FLICKR8K)["dev"].head(20)
    paths = paths_of(table)
    again = CLIP.from_pretrained(tmp_path)
    assert torch.equal(embed_texts(model, table["caption"]), embed_texts(again, table["caption"]))
    images = [embed_images(clip, image_loader(paths, 224, 4))[0] for clip in (model, again)]
    assert torch.equal(*images) and len(images[0]) == 4
