"""Text towers of others: which half of a model reads text, and whether what was loaded does."""

import torch
from transformers import AutoModel, AutoModelForTextEncoding
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

from support.errors import UserError, shortened


def text_half(architecture):
    """Return the settings of the part of a model that reads text: of one of pictures and texts, as CLIP, its half."""
    half = getattr(architecture, "text_config", None)
    return architecture if half is None else half


def class_to_load(architecture):
    """Return the Auto class that makes a text tower of these settings: of T5, which also writes, the reading half."""
    reads_alone = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(architecture), None)
    if reads_alone is not None and reads_alone.__name__.endswith("EncoderModel"):
        return AutoModelForTextEncoding
    return AutoModel


def reading_half(backbone):
    """Return the part of a loaded model that reads text: the encoder of BART, which also writes; of others all.

    As a whole it would give the features of the half that writes, where a token has seen only those before it.
    """
    architecture = backbone.config
    reads_alone = type(architecture) in MODEL_FOR_TEXT_ENCODING_MAPPING  # as what `class_to_load` takes of T5
    if architecture.is_encoder_decoder and not reads_alone:
        return backbone.get_encoder()
    return backbone


def refuse_missing_weights(missing):
    """Raise ValueError where weights of a tower were not in its file, and so are random; the pooler is not used."""
    missing = sorted(name for name in missing if "pooler" not in name and not name.endswith("position_ids"))
    if missing:
        raise ValueError(f"its weights lack {len(missing)} tensors of this architecture, such as {missing[0]}")


def refuse_what_reads_no_text(tower, name):
    """Raise UserError where a `models.TextEncoder` makes no features of the shortest and of the longest caption.

    It draws no random number. name: what the tower is called.
    """
    highest = max(*tower.tokenizer.get_vocab().values(), tower.pad_id)
    longest = torch.full((1, tower.max_tokens), highest)  # all other tokens and positions have their places, too
    was_training = tower.training
    tower.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            for input_ids in (longest[:, :3], longest):
                features = tower(input_ids, torch.ones_like(input_ids))
                if features.shape != (1, tower.feature_dim):
                    raise ValueError(f"features of the shape {tuple(features.shape)}")
    except Exception as error:  # each architecture has its own
        positions = getattr(tower.backbone.config, "max_position_embeddings", None)
        if positions and tower.max_tokens > positions:
            raise UserError(
                f"--max-tokens {tower.max_tokens} is more than the text tower {name!r} has positions for: give at most "
                f"{positions}"
            ) from None
        kind = tower.backbone.config.model_type
        raise UserError(
            f"the text tower {name!r} makes no features of a caption of {tower.max_tokens} tokens, as a model of the "
            f"kind {kind!r}: {shortened(error)} ({type(error).__name__}). --text-encoder takes a model of text, and "
            "--max-tokens no more than it has positions for"
        ) from None
    finally:
        tower.train(was_training)
