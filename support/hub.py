"""Models and towers that others have: loaded from a folder or the Hugging Face hub, and a model put there."""

import contextlib
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from support.errors import UserError
from support.files import write_file

HUB_NAME = r"[\w.-]+/[\w.-]+"

# ---------------------------------------------------------------- from it


@contextlib.contextmanager
def loading(tower, name, pretrained):
    """Turn whatever the libraries raise while they load a tower into one line that says what to type instead."""
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()  # it would report each of a dozen retries
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # no network, no such name, no weights, damaged file: each library has its own errors
        reason = " ".join(str(error).split())[:240]
        takes = {"image": "a timm name (timm.list_models() lists them) or local-dir:PATH",
                 "text": "a hub name, or a folder with config.json, safetensors and tokenizer"}[tower]
        hint = pretrained * ("; pretrained weights come from the Hugging Face hub, once: connect, or name a folder, or "
                             "type --no-pretrained for random weights")
        raise UserError(f"the {tower} tower {name!r} cannot be loaded: {reason} ({type(error).__name__}). "
                        f"--{tower}-encoder takes {takes}{hint}") from None


def model_folder(name, revision=None, token=None):
    """Return the folder of a model: `name` itself, or of "OWNER/NAME" or "hf-hub:OWNER/NAME" its copy from the hub.

    Only JSON, text and safetensors are fetched, no code and nothing pickled, and only what is not there yet. Raises
    UserError where that cannot be.
    """
    from huggingface_hub import snapshot_download

    folder, place = Path(name), str(name).removeprefix("hf-hub:")
    if folder.exists() or not re.fullmatch(HUB_NAME, place):
        if str(name) != place:
            raise UserError(f"{name}: hf-hub: is followed by OWNER/NAME, as on the Hugging Face hub")
        return folder
    try:
        return Path(snapshot_download(place, revision=revision, token=token,
                                      allow_patterns=["*.json", "*.txt", "*.md", "*.safetensors"]))
    except Exception as error:  # no network, no such model, not allowed: each has an error of its own
        reason = " ".join(str(error).split())[:240]
        raise UserError(f"{name} is no folder here, nor can the Hugging Face hub give it: {reason}") from None


# ---------------------------------------------------------------- to it


def upload(model, repo_id, card=None, private=None, token=None, message=None):
    """Upload a model to the Hugging Face hub, without the paths of this machine; returns the address of the commit.

    card: its text; None writes one without figures. OWNER/NAME in it becomes the name that the model has there.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    def named(value):  # a path tells about its owner, and nobody else has it
        place = Path(str(value).removeprefix("local-dir:"))
        return type(value)(place.name) if isinstance(value, str | Path) and place.is_absolute() else value

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        replace(model.config, **{name: named(value) for name, value in vars(model.config).items()}).save(
            Path(folder) / "config.json")
        api = HfApi(token=token)
        try:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id  # with the owner, if left out
            write_file(Path(folder) / "README.md", (card or model_card(model.config)).replace("OWNER/NAME", repo_id))
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))
        except (OSError, httpx.HTTPError, HFValidationError) as error:  # of the network, the hub, or the name
            reason = " ".join(str(error).split())[:240]
            raise UserError(f"{repo_id} cannot be written on the Hugging Face hub: {reason}. To sign in: hf auth login"
                            ) from None


def model_card(config, reports=None):
    """Return the text of a model card: what the model is made of, its recall, how to use it.

    reports: {split: what `evaluate.report_of` returns}; without them it says nothing of training and figures.
    """
    from huggingface_hub import EvalResult, ModelCardData

    image, text, data = (Path(str(part)).name for part in (config.image_encoder, config.text_encoder, config.data_dir))
    title, results, rows = f"CLIP of {image} and {text}" + f", trained on {data}" * bool(reports), [], []
    for split, report in (reports or {}).items():
        for direction in ("text_to_image", "image_to_text"):
            words, figures = direction.replace("_", " "), report[direction]
            rows.append(f"| {split}, {report['images']:,} photos, {report['captions']:,} captions | {words} | "
                        + " | ".join(f"{value:.1f}" for value in figures.values()) + " |")
            results += [EvalResult(task_type="image-text-retrieval", dataset_type=data, dataset_name=data,
                                   dataset_split=split, metric_type="recall", metric_name=f"{words} {key}",
                                   metric_value=round(value, 2)) for key, value in figures.items() if key[:2] == "R@"]
    data_card = ModelCardData(model_name=title, pipeline_tag="zero-shot-image-classification",
                              tags=["clip", "image-text-retrieval"], eval_results=results or None)
    table = ["| split | direction | R@1 | R@5 | R@10 | median rank |", "|---|---|---|---|---|---|", *rows]
    return "\n".join([
        "---", data_card.to_yaml(), "---", "", f"# {title}", "",
        f"Two towers, {image} for images of {config.image_size} pixels and {text} for texts, whose projections meet in "
        f"{config.embedding_dim} dimensions" + (f", trained with the `{config.loss}` loss for up to {config.epochs} "
                                                "epochs." if rows else "."), "",
        *(["Recall in percent: how often the right photo is among the first for a caption, and one of a photo's "
           "captions for the photo. Ties count against the model.", "", *table, ""] if rows else []),
        "```", 'python inference.py --checkpoint hf-hub:OWNER/NAME --query "people sitting near the beach"', "```", "",
        "```python", ">>> from models import CLIP", '>>> model = CLIP.from_pretrained("OWNER/NAME")', "```", ""])
