"""CLIP: two towers, two projection heads and a contrastive loss.

    pixels    (B, 3, S, S) ─ ImageEncoder ─> features (B, 2048) ─ ProjectionHead ─> embeddings (B, D), unit length
    input_ids (B, T)       ─ TextEncoder ──> features (B,  768) ─ ProjectionHead ─> embeddings (B, D), unit length

    >>> model = CLIP.from_pretrained("runs/NAME/best")
    >>> model.encode_image(pixels) @ model.encode_text(input_ids, attention_mask).T   # (B, B) cosine similarities

Training pulls the B matching pairs of a batch together and pushes the B² - B others apart (Radford et al. 2021).
Features leave a tower; embeddings are projected and of unit length.
"""

import support  # noqa: F401 - first of all, because it keeps the libraries quiet

# isort: split

import math
from dataclasses import replace
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, DistilBertConfig

from config import Config
from dataset import pad, tokenize
from support.big_batch import blockwise_clip_loss, gather_rows
from support.errors import UserError
from support.fast_cpu import Dropout, in_parts_of_like_length
from support.hub import loading, model_folder, upload
from support.model_directory import prove_loadable, read_model, write_model
from support.process import choose_dtype, from_all_processes, process_count, process_number
from support.progress import with_progress
from support.prompts import EVERYDAY, everyday_prompts_for
from support.strangers import check_image_weights, refuse_several_models, timm_model_args
from support.text_towers import (
    class_to_load,
    reading_half,
    refuse_missing_weights,
    refuse_what_reads_no_text,
    text_half,
)
from support.wordpiece import train_tokenizer

MAX_LOGIT_SCALE = 100.0  # a temperature of 0.01; more makes training unstable (Radford et al. 2021, section 2.5)
BLOCKWISE_ABOVE = 4096  # a batch of more pairs has too many similarities to keep them all in memory

# ---------------------------------------------------------------- losses


def clip_loss(image_embeddings, text_embeddings, logit_scale, masked=None):
    """Return the symmetric contrastive loss of a batch of matching pairs, a scalar.

    image_embeddings, text_embeddings: (B, D), unit length, row i of one matches row i of the other.
    logit_scale: the multiplier itself, 1 / temperature. masked: (B, B) bool, True where an image and a text are not to
    be pushed apart, as `false_negatives` tells. Source: Radford et al. 2021, figure 3.
    """
    logits = logit_scale * image_embeddings @ text_embeddings.T  # (B, B): row = image, column = text
    logits = mask_logits(logits, masked)
    labels = torch.arange(len(logits), device=logits.device)  # the match of row i is column i
    which_text = F.cross_entropy(logits, labels)  # a model that knows nothing gets ln B
    which_image = F.cross_entropy(logits.T, labels)
    return (which_text + which_image) / 2


def soft_clip_loss(image_embeddings, text_embeddings, logit_scale, masked=None):
    """Return the contrastive loss against soft targets, a scalar; arguments as for `clip_loss`.

    Two photos of dogs on a beach are not opposites, so a target row is the softmax of the mean of image-image and
    text-text similarity, at the scale of the logits. Targets are detached, or the model would lower its loss by moving
    them; and the rows sum to 1 in both directions, since the mean similarity is symmetric: its softmax serves both.
    """
    logits = mask_logits(logit_scale * image_embeddings @ text_embeddings.T, masked)  # (B, B)
    with torch.no_grad():
        image_likeness = image_embeddings @ image_embeddings.T  # (B, B)
        text_likeness = text_embeddings @ text_embeddings.T  # (B, B)
        targets = mask_logits(logit_scale * (image_likeness + text_likeness) / 2, masked).softmax(dim=1)
    which_text = F.cross_entropy(logits, targets)
    which_image = F.cross_entropy(logits.T, targets)
    return (which_text + which_image) / 2


def siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias, masked=None):
    """Return the pairwise sigmoid loss, a scalar; arguments as for `clip_loss`, and a bias added to every logit.

    Each of the B² pairs is a yes-or-no question of its own; there is no softmax over the batch.
    Source: Zhai et al. 2023, algorithm 1.
    """
    logits = mask_logits(logit_scale * image_embeddings @ text_embeddings.T + logit_bias, masked)  # (B, B)
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1  # +1 for a matching pair, -1 for the others
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def false_negatives(photo_ids, caption_ids):
    """Return where a text is no negative of an image though it is not its own: (B, B) bool, or None for nowhere.

    photo_ids, caption_ids: (B,); photos that are equal byte for byte have one number, and so have equal captions. Where
    two photos have the caption "a dog runs", the loss would push it away from each, as the caption of the other.
    """
    if len(photo_ids.unique()) == len(photo_ids) and len(caption_ids.unique()) == len(caption_ids):
        return None
    same_photo = photo_ids[:, None] == photo_ids  # (B, B)
    same_caption = caption_ids[:, None] == caption_ids  # (B, B)
    return (same_photo | same_caption).fill_diagonal_(False)


def mask_logits(logits, masked):
    """Return (B, B) logits in which masked pairs count for nothing: e to the power of -10,000 is 0."""
    return logits if masked is None else logits.masked_fill(masked, -10_000)


# ---------------------------------------------------------------- towers and heads


class ImageEncoder(nn.Module):
    """Any timm model without its classifier: (B, 3, S, S) pixels -> (B, F) features.

    name: a timm name, or timm's own `local-dir:PATH` for a folder with config.json and weights.
    Size and normalisation are those the weights were trained with: timm keeps them in `pretrained_cfg`.
    """

    def __init__(self, name, pretrained=True, image_size=None):
        super().__init__()
        with loading("image", name, pretrained):  # errors of the libraries become one line for people
            if pretrained and name.startswith("local-dir:"):
                check_image_weights(Path(name.removeprefix("local-dir:")))
            self.backbone = timm.create_model(name, pretrained=pretrained, num_classes=0)
            self.model_args = timm_model_args(name)  # kept for `save_pretrained`

        trained_with = self.backbone.pretrained_cfg
        self.image_size = image_size or trained_with["input_size"][-1]
        if hasattr(self.backbone, "set_input_size"):  # vision transformers: resample the position embeddings
            self.backbone.set_input_size(img_size=(self.image_size, self.image_size))
        self.feature_dim = self.width_of_features(name)
        # channels_last: the memory order in which convolutions are fastest, on CPUs and tensor cores alike
        self.backbone.to(memory_format=torch.channels_last)

        # given for pixels from 0 to 1, kept for pixels from 0 to 255
        mean = 255 * torch.tensor(trained_with["mean"]).view(1, 3, 1, 1)
        std = 255 * torch.tensor(trained_with["std"]).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, pixels):
        """(B, 3, S, S) -> (B, F). uint8 pixels (0 to 255) are normalised here; floats are taken as normalised."""
        if pixels.dtype == torch.uint8:
            pixels = (pixels - self.mean) / self.std
        return self.backbone(pixels)

    def width_of_features(self, name):
        """Return F, which a blank picture shows; raises UserError where the backbone cannot take this size."""
        blank = torch.zeros(1, 3, self.image_size, self.image_size)
        self.backbone.eval()
        try:
            with torch.inference_mode():
                features = self.backbone(blank)  # (1, F)
        except (AssertionError, RuntimeError) as error:
            raise UserError(f"--image-size {self.image_size} does not fit the image tower {name}: {error}") from None
        self.backbone.train()
        return features.shape[1]

    def layers(self):
        """Return the names of the backbone's parameters, a list a layer, from the input to the output."""
        if not hasattr(self.backbone, "group_matcher"):  # timm does not know the layers of every architecture
            return [[name for name, _ in self.backbone.named_parameters()]]
        groups = timm.models.group_parameters(self.backbone, self.backbone.group_matcher(coarse=False))
        return [groups[number] for number in sorted(groups)]


class TextEncoder(nn.Module):
    """Any AutoModel and its tokenizer: (B, T) token ids -> (B, F) features.

    backbone, tokenizer: of transformers; `from_name` finds them.
    pooling: "cls" takes the first token's features, "mean" averages over the caption's tokens, padding left out.
    """

    def __init__(self, backbone, tokenizer, pooling="mean", max_tokens=64):
        super().__init__()
        self.backbone = backbone
        self.backbone.pooler = None  # BERT's extra layer on the first token: unused here, so not carried along
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_tokens = min(max_tokens, tokenizer.model_max_length)
        self.pad_id = tokenizer.pad_token_id or 0  # some tokenizers have none; the mask hides it in any case
        self.feature_dim = backbone.config.hidden_size

    @classmethod
    def from_name(cls, name, pretrained=True, pooling="mean", max_tokens=64, tokenizer=None):
        """Load a tower: `name` is a hub name, or a folder for `AutoModel.from_pretrained`.

        pretrained: with its weights, otherwise with random ones. tokenizer: None takes the one that comes with it. Of a
        model of pictures and texts, or one that reads and writes, it is the half that reads text.
        """
        with loading("text", name, pretrained):  # errors of the libraries become one line for people
            architecture = AutoConfig.from_pretrained(name, trust_remote_code=False)
            if tokenizer is None:
                tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
                architecture = text_half(architecture)
            architecture = refuse_several_models(architecture)
            automatic = class_to_load(architecture)
            # The dtype is named, because transformers 5 otherwise keeps a half-precision model half-precise.
            if pretrained:
                backbone, about = automatic.from_pretrained(
                    name,
                    config=architecture,
                    dtype=torch.float32,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                )
                refuse_missing_weights(about["missing_keys"])
            else:
                backbone = automatic.from_config(
                    architecture, dtype=torch.float32, trust_remote_code=False, attn_implementation=None
                )
            return cls(reading_half(backbone), tokenizer, pooling, max_tokens)

    @classmethod
    def from_scratch(cls, captions, layers, width, pooling="mean", max_tokens=64):
        """Build a small DistilBERT with random weights and a vocabulary trained on captions."""
        tokenizer = train_tokenizer(captions, max_tokens)
        architecture = DistilBertConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=max_tokens,
            n_layers=layers,
            dim=width,
            n_heads=width // 64,
            hidden_dim=4 * width,
            dropout=0.0,  # so small a tower, in so few epochs, has more to learn than to forget
            attention_dropout=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
        return cls(AutoModel.from_config(architecture), tokenizer, pooling, max_tokens)

    def tokens_of(self, texts):
        """Return the token ids (B, T) of texts, cut where they are too long, and their mask (B, T)."""
        return pad(tokenize(self.tokenizer, texts, self.max_tokens), self.pad_id)

    @in_parts_of_like_length  # faster on a CPU; the result is the same
    def forward(self, input_ids, attention_mask):
        """(B, T), (B, T) with 1 for tokens and 0 for padding -> (B, F)."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, T, F)
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


class ProjectionHead(nn.Module):
    """Features of a tower -> the shared space: (B, F) -> (B, D).

    linear, then GELU, linear, dropout, added back to the first linear's output (residual), layer norm.
    """

    def __init__(self, feature_dim, embedding_dim=256, dropout=0.1):
        super().__init__()
        self.projection = nn.Linear(feature_dim, embedding_dim)
        self.hidden = nn.Linear(embedding_dim, embedding_dim)
        self.dropout = Dropout(dropout)  # nn.Dropout, made fast on a CPU
        self.norm = nn.LayerNorm(embedding_dim)
        # The first loss should be that of a model that knows nothing, ln B: all similarities about equal. With a bias
        # of 0 the outputs of a random head point in many directions, and the first loss is up to 10 % above ln B. A
        # random bias turns them all towards one direction.
        nn.init.normal_(self.norm.bias)

    def forward(self, features):
        projected = self.projection(features)  # (B, F) -> (B, D)
        residual = self.dropout(self.hidden(F.gelu(projected)))  # (B, D)
        return self.norm(projected + residual)  # (B, D)


def new_head(feature_dim, config):
    """Return a head with random weights, of the kind that the settings name."""
    if config.head == "linear":
        return nn.Linear(feature_dim, config.embedding_dim)
    return ProjectionHead(feature_dim, config.embedding_dim, config.head_dropout)


# ---------------------------------------------------------------- CLIP


class CLIP(nn.Module):
    """Two towers whose projections meet in one space, and the learned scale of their similarities."""

    def __init__(self, config, image_encoder, text_encoder):
        super().__init__()
        self.config = replace(config, image_size=image_encoder.image_size)
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_head = new_head(image_encoder.feature_dim, config)
        self.text_head = new_head(text_encoder.feature_dim, config)
        self.image_dropout = Dropout(config.image_dropout)
        self.text_dropout = Dropout(config.text_dropout)
        # Kept as a logarithm, as OpenAI does: it stays positive, and a step changes it by a factor. `.exp()` of it is
        # the multiplier that losses take.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        if config.loss == "siglip":  # nearly all pairs are negatives, and the bias says so from the start
            # paper: scale 10, bias -10; here: the scale of --temperature, because one flag should mean one thing
            self.logit_bias = nn.Parameter(torch.tensor(-10.0))
        # (K, D) embeddings of captions, once it is trained: a search finds by them the pictures that are near to every
        # text (support/hubs.py). None: not there.
        self.caption_bank = None
        self.everyday_prompts = EVERYDAY  # for a search: what others score less than fits nothing (search/update.py)

    @property
    def device(self):
        """The torch.device that the model is on."""
        return self.logit_scale.device

    # ------------------------------------------------------------ embedding

    def encode_image(self, pixels):
        """(B, 3, S, S) pixels -> (B, D) unit-length float32."""
        return self.project_image(self.image_encoder(pixels))

    def encode_text(self, input_ids, attention_mask):
        """(B, T) token ids and their mask -> (B, D) unit-length float32."""
        return self.project_text(self.text_encoder(input_ids, attention_mask))

    def project_image(self, features):
        """(B, F) features of the image tower -> (B, D) unit-length float32."""
        return F.normalize(self.image_head(self.image_dropout(features)).float(), dim=-1)

    def project_text(self, features):
        """(B, F) features of the text tower -> (B, D) unit-length float32."""
        return F.normalize(self.text_head(self.text_dropout(features)).float(), dim=-1)

    def forward(self, batch):
        """Return the image embeddings (B, D) and text embeddings (B, K, D) of a `dataset.Batch`: K captions a photo."""
        if batch.image_features is None:
            image_embeddings = self.encode_image(batch.pixels)
        else:  # the tower is frozen, and its features are known
            image_embeddings = self.project_image(batch.image_features)
        if batch.text_features is None:
            photos_and_captions = batch.input_ids.shape[:2]  # B, K
            text_embeddings = self.encode_text(batch.input_ids.flatten(0, 1), batch.attention_mask.flatten(0, 1))
            text_embeddings = text_embeddings.unflatten(0, photos_and_captions)  # (B * K, D) -> (B, K, D)
        else:
            text_embeddings = self.project_text(batch.text_features)
        return image_embeddings, text_embeddings

    def loss(self, image_embeddings, text_embeddings, photo_ids, caption_ids):
        """Return the configured loss of a batch, a scalar; with several processes, over the photos of all of them.

        image_embeddings: (B, D). text_embeddings: (B, K, D). The loss is the mean of K losses: number k is that of all
        photos with their captions number k, (B, B) similarities. So no photo's own caption is among its negatives.
        photo_ids (B,) and caption_ids (B, K): as in a `dataset.Batch`.
        """
        # With several processes B now counts the photos of all, and gradients find their way back to each.
        images = gather_rows(image_embeddings)  # (B, D)
        texts = gather_rows(text_embeddings)  # (B, K, D)
        photo_ids = gather_rows(photo_ids)
        caption_ids = gather_rows(caption_ids)
        losses = []
        for k in range(texts.shape[1]):
            losses.append(self.loss_of_pairs(images, texts[:, k], photo_ids, caption_ids[:, k]))
        return torch.stack(losses).mean()

    def loss_of_pairs(self, images, texts, photo_ids, caption_ids):
        """Return the configured loss of B pairs, a scalar; images, texts: (B, D), a pair a row; ids: (B,)."""
        scale = self.logit_scale.exp()
        if self.config.loss == "clip" and len(images) > BLOCKWISE_ABOVE:
            return blockwise_clip_loss(images, texts, scale, photo_ids, caption_ids)  # the same, in less memory
        masked = false_negatives(photo_ids, caption_ids)
        if self.config.loss == "siglip":
            return siglip_loss(images, texts, scale, self.logit_bias, masked)
        if self.config.loss == "soft":
            return soft_clip_loss(images, texts, scale, masked)
        return clip_loss(images, texts, scale, masked)

    @torch.no_grad()
    def clamp_logit_scale(self):
        """Keep the multiplier at or below 100; called after every optimiser step."""
        self.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    # ------------------------------------------------------------ what trains, and how precisely

    def freeze(self, towers):
        """Fix the towers named (none, image, text or both), and the lowest layers of a pretrained image tower.

        The lowest layers see edges, which need no learning anew. They hold few weights, but work at the highest
        resolution: to train them as well would double the time of a step. How many: --image-depth.
        """
        self.requires_grad_(True)
        if towers in ("image", "both"):
            self.image_encoder.requires_grad_(False)
        if towers in ("text", "both"):
            self.text_encoder.requires_grad_(False)
        if self.config.pretrained:
            layers = self.image_encoder.layers()
            lowest = round((1 - self.config.image_depth) * len(layers))
            if len(layers) == 1:
                lowest = 0  # timm does not know them apart: the tower trains as a whole
            for names in layers[:lowest]:
                for name in names:
                    self.image_encoder.backbone.get_parameter(name).requires_grad_(False)

    def train(self, mode=True):
        """Set training mode, except for frozen layers: these would drop units out and move BatchNorm statistics."""
        super().train(mode)
        for module in self.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        if self.config.pretrained and self.config.fix_batch_norm:
            for module in self.image_encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def compute_dtype(self):
        """Return the dtype of this model's matrix products: the configured one, but no fp16 on a CPU."""
        precision = self.config.precision
        if precision == "fp16" and self.device.type == "cpu":
            precision = "auto"
        return choose_dtype(self.device, precision)

    def autocast(self):
        """Return the context in which this model runs its matrix products in that dtype."""
        dtype = self.compute_dtype()
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    # ------------------------------------------------------------ made, saved, loaded

    @classmethod
    def from_config(cls, config, captions=()):
        """Build a model to train: pretrained or random towers, random heads.

        captions: of train; a scratch tokenizer, and the everyday prompts of another language, are made of them.
        """
        image_encoder = ImageEncoder(config.image_encoder, config.pretrained, config.image_size)
        if config.text_encoder == "scratch":
            text_encoder = TextEncoder.from_scratch(
                captions, config.scratch_layers, config.scratch_width, config.pooling, config.max_tokens
            )
        else:
            text_encoder = TextEncoder.from_name(
                config.text_encoder, config.pretrained, config.pooling, config.max_tokens
            )
            refuse_what_reads_no_text(text_encoder, config.text_encoder)
        model = cls(config, image_encoder, text_encoder)
        model.everyday_prompts = everyday_prompts_for(captions)
        model.freeze(config.freeze)
        return model

    @classmethod
    def from_pretrained(cls, name, revision=None, token=None):
        """Load a model directory, or one of the Hugging Face hub such as "me/my-clip", in eval mode on the CPU.

        Reads nothing outside it, and believes nothing in it unchecked; raises UserError for whatever is wrong with it.
        """
        directory = model_folder(name, revision, token)
        # It calls `Config.load`, then `cls.without_weights`, and then fills in the weights.
        return read_model(directory, Config.load, cls.without_weights)

    @classmethod
    def without_weights(cls, directory, config, tokenizer):
        """Build the model whose settings lie in a model directory, without its weights."""
        image_folder = f"local-dir:{directory / 'image_encoder'}"
        image_encoder = ImageEncoder(image_folder, pretrained=False, image_size=config.image_size)
        text_encoder = TextEncoder.from_name(
            str(directory / "text_encoder"),
            pretrained=False,
            pooling=config.pooling,
            max_tokens=config.max_tokens,
            tokenizer=tokenizer,
        )
        return cls(config, image_encoder, text_encoder)

    def save_pretrained(self, directory):
        """Write a model directory: config.json, model.safetensors, image_encoder/ and text_encoder/.

        And, once a run has ended, caption_bank.safetensors.
        """
        write_model(self, directory)

    def refuse_unloadable(self, folder):
        """Raise UserError unless what `save_pretrained` would write can be loaded again: tried inside a folder."""
        prove_loadable(self, folder, Config.load, CLIP.without_weights)

    def push_to_hub(self, repo_id, card=None, private=None, token=None, commit_message="Upload a CLIP model"):
        """Upload the model directory to the Hugging Face hub; returns the address of the commit.

        card: the file with the model card, such as the README.md that a run writes into best/.
        """
        text = Path(card).read_text(encoding="utf-8") if card else None
        return upload(self, repo_id, text, private, token, commit_message)


# ---------------------------------------------------------------- embedding many


@torch.inference_mode()
def embed_images(model, loader, encode=None, title=None):
    """Embed the pictures of a `dataset.image_loader` with `encode`, by default `model.encode_image`.

    Returns an (N, D) tensor on the CPU of the pictures that could be read, their rows, and a dict of the others,
    {row: OSError}. With a tower as `encode` they are features, (N, F). Several processes share the work, and all get
    all of it. `title` names the progress bar.
    """
    encode = encode or model.encode_image
    outputs = []
    rows = []
    faults = {}
    for pixels, readable, unreadable in with_progress(loader, title, "batches"):
        if pixels is not None:
            with model.autocast():
                outputs.append(encode(pixels.to(model.device)).cpu())
        rows += readable
        faults |= unreadable
    embeddings = torch.cat(outputs) if outputs else torch.empty(0, model.config.embedding_dim)
    if process_count() > 1:
        embeddings, rows = from_all_processes(embeddings, rows, len(loader.dataset), model.device)
        # What another process could not read is read again here, to learn why.
        for row in set(range(len(loader.dataset))) - set(rows):
            _, _, error = loader.dataset[row]
            faults[row] = error or OSError("it could not be read a moment ago")
    return embeddings, rows, faults


@torch.inference_mode()
def embed_texts(model, texts, batch_size=128, encode=None, title=None):
    """Embed texts with `encode`, by default `model.encode_text`: (M, D) on the CPU, or (M, F) of a tower.

    Texts of like length share a batch, so little of it is padding. Several processes share the work. `title`
    names the progress bar.
    """
    encode = encode or model.encode_text
    tower = model.text_encoder
    token_ids = tokenize(tower.tokenizer, texts, tower.max_tokens)
    by_length = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]))
    starts = range(0, len(by_length), batch_size)
    batches = [by_length[start : start + batch_size] for start in starts]
    outputs = []
    rows = []
    for batch in with_progress(batches[process_number() :: process_count()], title, "batches"):
        input_ids, attention_mask = pad([token_ids[row] for row in batch], tower.pad_id)
        with model.autocast():
            outputs.append(encode(input_ids.to(model.device), attention_mask.to(model.device)).cpu())
        rows += batch
    embeddings = torch.cat(outputs) if outputs else torch.empty(0, model.config.embedding_dim)
    # Sorted back into the order of the texts, with one process too.
    embeddings, _ = from_all_processes(embeddings, rows, len(texts), model.device)
    return embeddings
