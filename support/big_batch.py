"""Batches that are too large: for one process, for the memory of one pass, for all similarities at once.

Each gives what the plain way gives: the same loss, the same gradients.
"""

import contextlib

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from support.process import process_count

ROWS_AT_ONCE = 512  # of the (N, N) similarities that `blockwise_clip_loss` has in memory

# ---------------------------------------------------------------- for one process


def gather_rows(rows):
    """(B, …) of each of W processes -> (W * B, …) of all, in their order; gradients find the way back.

    With one process these are the rows themselves. Each process computes the loss of all pairs; since gradients of
    parameters are averaged over the processes, the whole is that of one process with the whole batch.
    """
    return rows if process_count() == 1 else Gathered.apply(rows)


class Gathered(torch.autograd.Function):
    """The rows of all processes; see `gather_rows`."""

    @staticmethod
    def forward(ctx, rows):
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)  # every process's loss looks at these rows
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


# ---------------------------------------------------------------- for the memory of one pass


class MicroBatches(nn.Module):
    """A CLIP model that embeds a batch in parts, so that the activations of only `pair_count` pairs are in memory.

    Each part is embedded for the loss, which sees all pairs, and embedded again, with the same dropout, for its
    gradient. Source: Gao et al. 2021, gradient cache.
    """

    def __init__(self, model, pair_count):
        super().__init__()
        self.model = model
        self.pair_count = pair_count

    def forward(self, batch):
        device = self.model.device.type
        # Half-precise copies of the weights, which autocast keeps, would add up the gradients in half precision.
        context = torch.autocast(
            device,
            torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        )
        images = []
        texts = []
        with context:
            for part in batch.in_parts(self.pair_count):
                image_part, text_part = checkpoint(self.model, part, use_reentrant=False, context_fn=self.contexts)
                images.append(image_part)
                texts.append(text_part)
        return torch.cat(images), torch.cat(texts)

    def contexts(self):
        """Return the contexts in which a part is embedded for the loss, and for its gradient."""
        return contextlib.nullcontext(), statistics_stand_still(self.model)


@contextlib.contextmanager
def statistics_stand_still(model):
    """Let BatchNorm that learns leave its running statistics alone: it has seen these photos a moment ago."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


# ---------------------------------------------------------------- for all similarities at once


def blockwise_clip_loss(image_embeddings, text_embeddings, logit_scale, photo_ids, caption_ids):
    """Return `models.clip_loss` of (N, D) embeddings without having all (N, N) logits in memory.

    photo_ids, caption_ids: (N,); off the diagonal, pairs with an equal one count for nothing.
    """
    return BlockwiseClipLoss.apply(image_embeddings, text_embeddings, logit_scale, photo_ids, caption_ids)


class BlockwiseClipLoss(torch.autograd.Function):
    """The loss from the sums over rows and columns alone; the backward pass makes the logits again, block by block."""

    @staticmethod
    def forward(ctx, images, texts, scale, photo_ids, caption_ids):
        rows = []  # log of the sum over each row, (n,) a block
        columns = torch.full_like(images[:, 0], -torch.inf)  # log of the sum over each column, (N,)
        for start in range(0, len(images), ROWS_AT_ONCE):
            block = slice(start, start + ROWS_AT_ONCE)
            logits = scale * images[block] @ texts.T  # (n, N)
            logits.masked_fill_(masked_in_block(photo_ids, caption_ids, block), -torch.inf)
            rows.append(logits.logsumexp(dim=1))
            columns = torch.logaddexp(columns, logits.logsumexp(dim=0))
        rows = torch.cat(rows)  # (N,)
        ctx.save_for_backward(images, texts, scale, rows, columns, photo_ids, caption_ids)
        matching = scale * (images * texts).sum(dim=1)  # (N,) the diagonal
        return ((rows + columns) / 2 - matching).mean()

    @staticmethod
    def backward(ctx, gradient):
        images, texts, scale, rows, columns, photo_ids, caption_ids = ctx.saved_tensors
        of_images = torch.empty_like(images)
        of_texts = torch.zeros_like(texts)
        of_scale = torch.zeros_like(scale)
        for start in range(0, len(images), ROWS_AT_ONCE):
            block = slice(start, start + ROWS_AT_ONCE)
            products = images[block] @ texts.T  # (n, N)
            of_logits = (scale * products - rows[block, None]).exp_()  # the softmax over the texts of each image …
            of_logits += (scale * products - columns).exp_()  # … and over the images of each text
            of_logits.masked_fill_(masked_in_block(photo_ids, caption_ids, block), 0)
            of_logits.diagonal(start).sub_(2)
            of_logits *= gradient / (2 * len(images))
            of_images[block] = scale * of_logits @ texts
            of_texts.addmm_(of_logits.T, scale * images[block])
            of_scale += torch.dot(of_logits.flatten(), products.flatten())
        return of_images, of_texts, of_scale, None, None


def masked_in_block(photo_ids, caption_ids, block):
    """Return which pairs of n rows and all N columns are no pairs of the batch and yet belong together: (n, N) bool."""
    same_photo = photo_ids[block, None] == photo_ids  # (n, N)
    same_caption = caption_ids[block, None] == caption_ids  # (n, N)
    masked = same_photo | same_caption
    masked.diagonal(block.start).fill_(False)
    return masked
