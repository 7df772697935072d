"""Models and towers that others have: loaded from a folder or the Hugging Face hub, and a model put there."""

import contextlib
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from support.errors import UserError, shortened
from support.files import write_file
from support.model_card import model_card

HUB_NAME = r"[\w.-]+/[\w.-]+"
FETCHED = ["*.json", "*.txt", "*.md", "*.safetensors"]  # no code, and nothing that is pickled

WHAT_A_FLAG_TAKES = {
    "image": "a timm name (timm.list_models() lists them) or local-dir:PATH",
    "text": "a hub name, or a folder with config.json, safetensors and tokenizer",
}
WITHOUT_A_NETWORK = (
    "; pretrained weights come from the Hugging Face hub, once: connect, or name a folder, or type --no-pretrained for "
    "random weights"
)

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
        hint = WITHOUT_A_NETWORK if pretrained else ""
        raise UserError(
            f"the {tower} tower {name!r} cannot be loaded: {shortened(error)} ({type(error).__name__}). "
            f"--{tower}-encoder takes {WHAT_A_FLAG_TAKES[tower]}{hint}"
        ) from None


def model_folder(name, revision=None, token=None):
    """Return the folder of a model: `name` itself, or of "OWNER/NAME" or "hf-hub:OWNER/NAME" its copy from the hub.

    Only JSON, text and safetensors are fetched, no code and nothing pickled, and only what is not there yet. Raises
    UserError where that cannot be.
    """
    from huggingface_hub import snapshot_download

    folder = Path(name)
    repo_id = str(name).removeprefix("hf-hub:")
    if folder.exists():
        return folder
    if not re.fullmatch(HUB_NAME, repo_id):
        if str(name).startswith("hf-hub:"):
            raise UserError(f"{name}: hf-hub: is followed by OWNER/NAME, as on the Hugging Face hub")
        return folder  # whoever opens it says that it is not there
    try:
        return Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=FETCHED))
    except Exception as error:  # no network, no such model, not allowed: each has an error of its own
        reason = shortened(error)
        raise UserError(f"{name} is no folder here, nor can the Hugging Face hub give it: {reason}") from None


# ---------------------------------------------------------------- to it


def upload(model, repo_id, card=None, private=None, token=None, message=None):
    """Upload a model to the Hugging Face hub, without the paths of this machine; returns the address of the commit.

    card: its text; None writes one without figures. OWNER/NAME in it becomes the name that the model has there.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    card = card or model_card(model.config)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        without_paths(model.config).save(Path(folder) / "config.json")
        try:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id  # with the owner, if left out
            write_file(Path(folder) / "README.md", card.replace("OWNER/NAME", repo_id))
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))
        except (OSError, httpx.HTTPError, HFValidationError) as error:  # of the network, the hub, or the name
            reason = shortened(error)
            raise UserError(
                f"{repo_id} cannot be written on the Hugging Face hub: {reason}. To sign in: hf auth login"
            ) from None


def without_paths(config):
    """Return settings in which each path is the last part of it: a path tells about its owner, and is nobody else's."""
    names = {}
    for setting, value in vars(config).items():
        if not isinstance(value, str | Path):
            continue
        path = Path(str(value).removeprefix("local-dir:"))
        if path.is_absolute():
            names[setting] = type(value)(path.name)
    return replace(config, **names)
