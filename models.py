"""CLIP: two towers, two projection heads and a contrastive loss.

    pixels    (B, 3, S, S) ─ ImageEncoder ─> features (B, 2048) ─ ProjectionHead ─> embeddings (B, D), unit length
    input_ids (B, T)       ─ TextEncoder ──> features (B,  768) ─ ProjectionHead ─> embeddings (B, D), unit length

    >>> model = CLIP.from_pretrained("runs/sample/best")
    >>> model.encode_image(pixels) @ model.encode_text(input_ids, attention_mask).T   # (B, B) cosine similarities

Training pulls the B matching pairs of a batch together and pushes the B² - B others apart (Radford et al. 2021).
Features leave a tower; embeddings are projected and of unit length. Losses are functions of tensors, below.
"""

import math
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, AutoTokenizer, DistilBertConfig

from cache import Gathered, write_json
from config import UserError, ranks, resolve_dtype
from data.checkpoints import check_image_weights, one_model, read_model, timm_model_args
from data.towers import loading
from dataset import train_tokenizer

MAX_LOGIT_SCALE = 100.0  # a temperature of 0.01; more makes training unstable (Radford et al. 2021, section 2.5)
STREAMED_ROWS = 512  # of the logits that are in memory at a time where a batch is too large for all of them

# ---------------------------------------------------------------- losses


def clip_loss(image_embeddings, text_embeddings, logit_scale):
    """Return the symmetric contrastive loss of a batch of matching pairs, a scalar.

    image_embeddings, text_embeddings: (B, D), unit length, row i of one matches row i of the other.
    logit_scale: the multiplier itself, 1 / temperature. Source: Radford et al. 2021, figure 3.
    """
    logits = logit_scale * image_embeddings @ text_embeddings.T  # (B, B): row = image, column = text
    labels = torch.arange(len(logits), device=logits.device)
    # which text belongs to this image (rows), and which image to this text (columns); chance is ln B
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


class StreamedClipLoss(torch.autograd.Function):
    """`clip_loss` whose (N, N) logits are never in memory at once: only the sums over rows and columns are kept.

    The backward pass makes the logits again, block by block.
    """

    @staticmethod
    def forward(ctx, images, texts, scale):
        rows, columns = [], torch.full_like(images[:, 0], -torch.inf)  # log of the sum of each row and column: (N,)
        for block in images.split(STREAMED_ROWS):
            logits = scale * block @ texts.T  # (n, N)
            rows.append(logits.logsumexp(dim=1))
            columns = torch.logaddexp(columns, logits.logsumexp(dim=0))
        ctx.save_for_backward(images, texts, scale, rows := torch.cat(rows), columns)
        return ((rows + columns) / 2 - scale * (images * texts).sum(dim=1)).mean()

    @staticmethod
    def backward(ctx, gradient):
        images, texts, scale, rows, columns = ctx.saved_tensors
        of_images, of_texts, of_scale = torch.empty_like(images), torch.zeros_like(texts), torch.zeros_like(scale)
        for start in range(0, len(images), STREAMED_ROWS):
            block = slice(start, start + STREAMED_ROWS)
            products = images[block] @ texts.T  # (n, N)
            of_logits = (scale * products - rows[block, None]).exp_()  # the softmax over the texts of each image …
            of_logits += (scale * products - columns).exp_()  # … and over the images of each text
            of_logits.diagonal(start).sub_(2)
            of_logits *= gradient / (2 * len(images))
            of_images[block] = scale * of_logits @ texts
            of_texts.addmm_(of_logits.T, scale * images[block])
            of_scale += torch.dot(of_logits.flatten(), products.flatten())
        return of_images, of_texts, of_scale


def soft_clip_loss(image_embeddings, text_embeddings, logit_scale):
    """Return the contrastive loss against soft targets, a scalar; arguments as for `clip_loss`.

    Two photos of dogs on a beach are not opposites, so a target row is the softmax of the mean of image-image and
    text-text similarity, at the scale of the logits. Targets are detached, or the model would lower its loss by moving
    them; and the rows of each direction sum to 1 (the mean is symmetric, so one matrix serves both).
    """
    logits = logit_scale * image_embeddings @ text_embeddings.T  # (B, B)
    with torch.no_grad():
        likeness = (image_embeddings @ image_embeddings.T + text_embeddings @ text_embeddings.T) / 2
        targets = (logit_scale * likeness).softmax(dim=1)  # (B, B)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias):
    """Return the pairwise sigmoid loss, a scalar; arguments as for `clip_loss`, and a bias added to every logit.

    Each of the B² pairs is a yes-or-no question of its own; there is no softmax over the batch.
    Source: Zhai et al. 2023, algorithm 1.
    """
    logits = logit_scale * image_embeddings @ text_embeddings.T + logit_bias  # (B, B)
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1  # +1 for a matching pair, -1 for the others
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def shared_clip_loss(image_embeddings, text_embeddings, logit_scale):
    """Return this process's part of `clip_loss` over the pairs of all processes; the mean of all parts is the whole."""
    labels = ranks()[0] * len(image_embeddings) + torch.arange(len(image_embeddings), device=logit_scale.device)
    by_image = logit_scale * image_embeddings @ Gathered.apply(text_embeddings).T  # (B, W * B): images of its own
    by_text = logit_scale * text_embeddings @ Gathered.apply(image_embeddings).T
    return (F.cross_entropy(by_image, labels) + F.cross_entropy(by_text, labels)) / 2


# ---------------------------------------------------------------- towers and heads


class ImageEncoder(nn.Module):
    """Any timm model without its classifier: (B, 3, S, S) pixels -> (B, F) features.

    name: a timm name, or timm's own `local-dir:PATH` for a folder with config.json and weights.
    Size and normalisation are those the weights were trained with: timm keeps them in `pretrained_cfg`.
    """

    def __init__(self, name, pretrained=True, image_size=None):
        super().__init__()
        with loading("image", name, pretrained):
            if pretrained and name.startswith("local-dir:"):
                check_image_weights(Path(name.removeprefix("local-dir:")))
            self.backbone = timm.create_model(name, pretrained=pretrained, num_classes=0)
            self.model_args = timm_model_args(name)
        trained_with = self.backbone.pretrained_cfg
        self.image_size = image_size or trained_with["input_size"][-1]
        size = (self.image_size, self.image_size)
        if hasattr(self.backbone, "set_input_size"):  # vision transformers: resample the position embeddings
            self.backbone.set_input_size(img_size=size)
        try:  # a blank picture shows whether the size fits, and how wide the features are
            with torch.inference_mode():
                self.feature_dim = self.backbone.eval()(torch.zeros(1, 3, *size)).shape[1]
        except (AssertionError, RuntimeError) as error:
            raise UserError(f"--image-size {self.image_size} does not fit the image tower {name}: {error}") from None
        # channels_last: the memory order in which convolutions are fastest, on CPUs and tensor cores alike
        self.backbone.train().to(memory_format=torch.channels_last)
        for key in ("mean", "std"):  # given for pixels from 0 to 1
            self.register_buffer(key, 255 * torch.tensor(trained_with[key]).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels):
        """(B, 3, S, S) -> (B, F). uint8 pixels (0 to 255) are normalised here; floats are taken as normalised."""
        if pixels.dtype == torch.uint8:
            pixels = (pixels - self.mean) / self.std
        return self.backbone(pixels.contiguous(memory_format=torch.channels_last))

    def layers(self):
        """Return the names of the backbone's parameters, a list a layer, from the input to the output."""
        if not hasattr(self.backbone, "group_matcher"):  # timm does not know the layers of every architecture
            return [[name for name, _ in self.backbone.named_parameters()]]
        groups = timm.models.group_parameters(self.backbone, self.backbone.group_matcher(coarse=False))
        return [groups[number] for number in sorted(groups)]

    def save_config(self, directory):
        """Write `config.json` in timm's own form, from which `local-dir:` rebuilds the architecture."""
        trained_with = {key: value for key, value in self.backbone.pretrained_cfg.items()
                        if key not in ("architecture", "url", "hf_hub_id", "file", "source")}
        write_json(directory / "config.json", {
            "architecture": self.backbone.pretrained_cfg["architecture"], "num_features": self.backbone.num_features,
            "model_args": self.model_args, "pretrained_cfg": trained_with})


class TextEncoder(nn.Module):
    """Any AutoModel and its tokenizer: (B, T) token ids -> (B, F) features.

    name: a hub name or a folder for `AutoModel.from_pretrained`, or "scratch": a small DistilBERT with random weights
    and a vocabulary trained on `captions`.
    pooling: "cls" takes the first token's features, "mean" averages over the caption's tokens, padding left out.
    """

    def __init__(self, name, pretrained=True, pooling="mean", max_tokens=64, captions=(), layers=None, width=None,
                 tokenizer=None):
        super().__init__()
        if name == "scratch":
            self.tokenizer = train_tokenizer(captions, max_tokens)
            self.backbone = AutoModel.from_config(DistilBertConfig(
                vocab_size=len(self.tokenizer), max_position_embeddings=max_tokens, n_layers=layers, dim=width,
                n_heads=width // 64, hidden_dim=4 * width, pad_token_id=self.tokenizer.pad_token_id))
        else:
            with loading("text", name, pretrained):
                self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(name, trust_remote_code=False)
                # The dtype is named, because transformers 5 otherwise keeps a half-precision model half-precise.
                if pretrained:
                    self.backbone = AutoModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True,
                                                              trust_remote_code=False)
                else:
                    architecture = one_model(AutoConfig.from_pretrained(name, trust_remote_code=False))
                    self.backbone = AutoModel.from_config(architecture, dtype=torch.float32, trust_remote_code=False,
                                                          attn_implementation=None)
        self.backbone.pooler = None  # BERT's extra layer on the first token: unused here, so not carried along
        self.pooling = pooling
        self.max_tokens = min(max_tokens, self.tokenizer.model_max_length)
        self.pad_id = self.tokenizer.pad_token_id or 0  # some tokenizers have none; the mask hides it in any case
        self.feature_dim = self.backbone.config.hidden_size

    def forward(self, input_ids, attention_mask):
        """(B, T), (B, T) with 1 for tokens and 0 for padding -> (B, F)."""
        if input_ids.device.type != "cpu":
            return self.pooled(input_ids, attention_mask)
        # On a CPU padding costs as much as words do: in parts of like length there is little of it, for half the time.
        ends = (attention_mask * torch.arange(1, input_ids.shape[1] + 1)).amax(dim=1)  # (B,) length of each caption
        order = ends.argsort(stable=True)
        parts = [self.pooled(input_ids[rows, : ends[rows[-1]]], attention_mask[rows, : ends[rows[-1]]])
                 for rows in order.split(64)]
        return torch.cat(parts)[order.argsort()]

    def pooled(self, input_ids, attention_mask):
        """Run the backbone and pool what it makes of each token: (B, T), (B, T) -> (B, F)."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, T, F)
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)

    def save_config(self, directory):
        """Write the architecture and the tokenizer, as `AutoModel` and `AutoTokenizer` read them."""
        self.backbone.config.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)


class Dropout(nn.Dropout):
    """`nn.Dropout`; on a CPU with 16 random bits for a number, where torch's 64 would take half the time of a step."""

    def forward(self, features):
        if not self.training or self.p in (0, 1) or features.device.type != "cpu":
            return super().forward(features)
        bits = torch.empty(-(-features.numel() // 4), dtype=torch.int64).random_(-2**63, None).view(torch.int16)
        kept = bits[: features.numel()].view(features.shape) >= self.p * 2**16 - 2**15
        return features * kept / (1 - self.p)


class ProjectionHead(nn.Module):
    """Features of a tower -> the shared space: (B, F) -> (B, D).

    linear, then GELU, linear, dropout, added back to the first linear's output (residual), layer norm.
    """

    def __init__(self, feature_dim, embedding_dim=256, dropout=0.1):
        super().__init__()
        self.projection = nn.Linear(feature_dim, embedding_dim)
        self.hidden = nn.Linear(embedding_dim, embedding_dim)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(embedding_dim)
        # A random head scatters its outputs so widely that at temperature 0.07 the first loss is up to a tenth above
        # chance, ln B. This random shift is common to all outputs of a head, so that the logits differ less.
        nn.init.normal_(self.norm.bias)

    def forward(self, features):
        projected = self.projection(features)  # (B, F) -> (B, D)
        return self.norm(projected + self.dropout(self.hidden(F.gelu(projected))))  # (B, D)


# ---------------------------------------------------------------- CLIP


class CLIP(nn.Module):
    """Two towers whose projections meet in one space, and the learned scale of their similarities."""

    def __init__(self, config, image_encoder, text_encoder):
        super().__init__()
        self.config = replace(config, image_size=image_encoder.image_size)
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.image_head, self.text_head = (
            ProjectionHead(tower.feature_dim, config.embedding_dim, config.head_dropout) if config.head == "mlp"
            else nn.Linear(tower.feature_dim, config.embedding_dim)
            for tower in (image_encoder, text_encoder))
        # Learned as a logarithm, so that it stays positive and a step changes it by a factor.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        if config.loss == "siglip":  # nearly all pairs are negatives, and the bias says so from the start
            # paper: scale 10, bias -10; here: the scale of --temperature, because one flag should mean one thing
            self.logit_bias = nn.Parameter(torch.tensor(-10.0))
        self.feature_dropout = Dropout(config.feature_dropout)

    @classmethod
    def from_config(cls, config, captions=()):
        """Build a model to train: pretrained or random towers, random heads. `captions` feed a scratch tokenizer."""
        model = cls(
            config, ImageEncoder(config.image_encoder, config.pretrained, config.image_size),
            TextEncoder(config.text_encoder, config.pretrained, config.pooling, config.max_tokens, captions,
                        config.scratch_layers, config.scratch_width))
        model.freeze(config.freeze)
        return model

    @classmethod
    def from_pretrained(cls, directory):
        """Load a model directory, in eval mode on the CPU. Reads nothing outside it; raises UserError if damaged."""
        return read_model(directory, lambda folder, config, tokenizer: cls(
            config, ImageEncoder(f"local-dir:{folder / 'image_encoder'}", False, config.image_size),
            TextEncoder(str(folder / "text_encoder"), False, config.pooling, config.max_tokens, tokenizer=tokenizer)))

    def save_pretrained(self, directory):
        """Write a model directory: config.json, model.safetensors, image_encoder/ and text_encoder/."""
        directory = Path(directory)
        for tower in ("image_encoder", "text_encoder"):
            (directory / tower).mkdir(parents=True, exist_ok=True)
            getattr(self, tower).save_config(directory / tower)
        self.config.save(directory / "config.json")
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    def freeze(self, towers):
        """Fix the towers named (none, image, text or both), and the lowest layers of a pretrained image tower.

        These see edges, which need no learning anew, and at the highest resolution: few weights, half of the time.
        """
        self.requires_grad_(True)
        self.image_encoder.requires_grad_(towers not in ("image", "both"))
        self.text_encoder.requires_grad_(towers not in ("text", "both"))
        if self.config.pretrained:
            layers = self.image_encoder.layers()
            for name in chain.from_iterable(layers[:round((1 - self.config.image_depth) * len(layers))]):
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

    def encode_image(self, pixels):
        """(B, 3, S, S) pixels, or (B, F) features that the tower made of them -> (B, D) unit-length float32."""
        features = pixels if pixels.ndim == 2 else self.image_encoder(pixels)  # (B, F)
        return F.normalize(self.image_head(self.feature_dropout(features)).float(), dim=-1)  # (B, D)

    def encode_text(self, input_ids, attention_mask=None):
        """(B, T) token ids and mask, or (B, F) features that the tower made of them -> (B, D) unit-length float32."""
        features = input_ids if attention_mask is None else self.text_encoder(input_ids, attention_mask)  # (B, F)
        return F.normalize(self.text_head(self.feature_dropout(features)).float(), dim=-1)  # (B, D)

    def forward(self, pixels, input_ids, attention_mask):
        """Return the image embeddings (B, D) and the text embeddings (B, D) of a batch of pairs.

        With --micro-batch n the activations of only n pairs are in memory at a time. Each part is embedded for the
        loss, which sees all pairs, and again, with the same dropout, for its gradient. Source: Gao et al. 2021.
        """
        part = self.config.micro_batch
        if not self.training or not 0 < part < len(pixels):
            return self.encode_image(pixels), self.encode_text(input_ids, attention_mask)
        masks = repeat(None) if attention_mask is None else attention_mask.split(part)
        images, texts = zip(*(
            checkpoint(lambda *pairs: (self.encode_image(pairs[0]), self.encode_text(*pairs[1:])), *pairs,
                       use_reentrant=False)
            for pairs in zip(pixels.split(part), input_ids.split(part), masks, strict=False)
        ), strict=True)
        return torch.cat(images), torch.cat(texts)

    def loss(self, image_embeddings, text_embeddings):
        """Return the configured loss of a batch, a scalar; where several processes train, their mean is the loss."""
        pairs, scale, alone = (image_embeddings, text_embeddings), self.logit_scale.exp(), ranks()[1] == 1
        if self.config.loss == "clip":
            one_process = StreamedClipLoss.apply if len(image_embeddings) > 8 * STREAMED_ROWS else clip_loss
            return (one_process if alone else shared_clip_loss)(*pairs, scale)
        if not alone:
            pairs = map(Gathered.apply, pairs)
        return soft_clip_loss(*pairs, scale) if self.config.loss == "soft" else siglip_loss(
            *pairs, scale, self.logit_bias)

    def compute_dtype(self):
        """Return the dtype of this model's matrix products: the configured one, but no fp16 on a CPU."""
        device, precision = self.logit_scale.device, self.config.precision
        return resolve_dtype(device, "auto" if (precision, device.type) == ("fp16", "cpu") else precision)

    def autocast(self):
        """Return the context in which this model runs its matrix products in that dtype."""
        dtype, whole = self.compute_dtype(), not self.config.micro_batch  # else half-precise casts sum the gradients
        return torch.autocast(self.logit_scale.device.type, dtype, dtype != torch.float32, cache_enabled=whole)

    @torch.no_grad()
    def clamp_logit_scale(self):
        """Keep the multiplier at or below 100; called after every optimiser step."""
        self.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
