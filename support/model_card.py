"""The README.md of a model directory, which the Hugging Face hub shows as its model card."""

from pathlib import Path

DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}

HOW_TO_USE = """\
```
python inference.py --checkpoint hf-hub:OWNER/NAME --query "people sitting near the beach"
```

```python
>>> from models import CLIP
>>> model = CLIP.from_pretrained("OWNER/NAME")
```
"""

WHAT_RECALL_IS = (
    "Recall in percent: how often the right photo is among the first for a caption, and one of a photo's captions for "
    "the photo. Ties count against the model."
)


def model_card(config, reports=None):
    """Return the text of a model card: what the model is made of, its recall, how to use it.

    reports: {split: what `evaluate.report_of` returns}; without them it says nothing of training and figures.
    """
    from huggingface_hub import ModelCardData

    image = Path(str(config.image_encoder)).name
    text = Path(str(config.text_encoder)).name
    data = Path(str(config.data_dir)).name
    title = f"CLIP of {image} and {text}"
    made_of = (
        f"Two towers, {image} for images of {config.image_size} pixels and {text} for texts, whose projections meet in "
        f"{config.embedding_dim} dimensions"
    )
    parts = [made_of + "."]
    results = None
    if reports:
        title += f", trained on {data}"
        trained = f"{made_of}, trained with the `{config.loss}` loss for up to {config.epochs} epochs."
        parts = [trained, WHAT_RECALL_IS, recall_rows(reports)]
        results = eval_results(reports, data)

    for_the_hub = ModelCardData(
        model_name=title,
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "image-text-retrieval"],
        eval_results=results,
    )
    return "\n\n".join([f"---\n{for_the_hub.to_yaml()}\n---", f"# {title}", *parts, HOW_TO_USE])


def recall_rows(reports):
    """Return a Markdown table of the recall in both directions on each split."""
    rows = ["| split | direction | R@1 | R@5 | R@10 | median rank |", "|---|---|---|---|---|---|"]
    for split, report in reports.items():
        measured_on = f"{split}, {report['images']:,} photos, {report['captions']:,} captions"
        for direction, words in DIRECTIONS.items():
            figures = " | ".join(f"{value:.1f}" for value in report[direction].values())
            rows.append(f"| {measured_on} | {words} | {figures} |")
    return "\n".join(rows)


def eval_results(reports, data):
    """Return the same recall in the form in which the hub collects results."""
    from huggingface_hub import EvalResult

    results = []
    for split, report in reports.items():
        for direction, words in DIRECTIONS.items():
            for key in ("R@1", "R@5", "R@10"):
                result = EvalResult(
                    task_type="image-text-retrieval",
                    dataset_type=data,
                    dataset_name=data,
                    dataset_split=split,
                    metric_type="recall",
                    metric_name=f"{words} {key}",
                    metric_value=round(report[direction][key], 2),
                )
                results.append(result)
    return results
