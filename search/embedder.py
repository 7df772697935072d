"""The two towers of a checkpoint, each loaded when it is first needed: most prompts need not wait for torch."""

import copy
import functools
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open

from config import Config
from search.explain import heat_map
from search.nearest import LOOK, look_of
from search.onnx_text import open_encoder, remarks
from support.errors import UserError
from support.files import fingerprint
from support.find_run import checkpoint_dir
from support.images import read_image
from support.process import process_count, start_process
from support.prompts import EVERYDAY


class Towers:
    """The two towers of a checkpoint, each loaded when it is first needed: a prompt need not wait for torch.

    checkpoint: a model directory; None takes best/ of the newest run. Raises UserError where it cannot be used.
    """

    def __init__(self, checkpoint=None, device="auto", batch_size=64, workers=0):
        self.checkpoint, self.device = checkpoint_dir(checkpoint and Path(checkpoint)), device
        self.config, self.loading = Config.load(self.checkpoint / "config.json"), (batch_size, workers)

    @functools.cached_property
    def hash(self):
        """The fingerprint of the checkpoint."""
        return fingerprint(self.checkpoint)

    @functools.cached_property
    def model(self):
        """The CLIP model; loaded only where pictures are to be embedded, or its text tower is not ready as a file."""
        from models import CLIP

        return CLIP.from_pretrained(self.checkpoint).to(start_process(self.device))

    @functools.cached_property
    def encoder(self):
        """The `PromptEncoder` of the model, or None where there is none yet, or where a GPU was asked for by name."""
        return open_encoder(self.hash) if self.device != "cuda" and process_count() == 1 else None

    @functools.cached_property
    def logit_scale(self):
        """What cosines are multiplied by before a softmax makes probabilities of them; read without the model."""
        with safe_open(self.checkpoint / "model.safetensors", "numpy") as tensors:
            return float(np.exp(tensors.get_tensor("logit_scale")))

    @functools.cached_property
    def everyday(self):
        """The (Q, D) embeddings of the `EVERYDAY` prompts."""
        return self.embed_prompts(EVERYDAY)

    def embed_files(self, files, progress=None):
        """Return (n, D) float16 embeddings and (n, 192) looks of the readable files, and {place: OSError} of others."""
        import torch

        from dataset import image_loader
        from models import embed_images

        def both(pixels):
            return torch.cat([self.model.encode_image(pixels), look_of(pixels)], dim=1)

        loader = image_loader(files, self.model.config.image_size, *self.loading)
        rows, _, faults = embed_images(self.model, loader, both, progress)
        rows = rows if len(rows) else torch.empty(0, self.config.embedding_dim + LOOK)
        widths = [self.config.embedding_dim, LOOK]  # a model gone wrong finds nothing, and breaks nothing
        return *(part.half().numpy() for part in rows.nan_to_num(0, 0, 0).split(widths, dim=1)), faults

    def embed_prompts(self, prompts):
        """Return the (Q, D) float32 embeddings of prompts: in float32 on every device, so that all give the same."""
        if self.encoder:
            return self.encoder(prompts)
        import torch

        rows = []
        with torch.inference_mode():
            for start in range(0, len(prompts), 128):
                input_ids, mask = self.model.text_encoder.tokens_of(prompts[start : start + 128])
                rows.append(self.model.encode_text(input_ids.to(self.model.device), mask.to(self.model.device)).cpu())
        return torch.cat(rows).numpy()

    def remarks(self, prompt):
        """Return what a person should know about a prompt: that it is too long, or of words the model does not know."""
        if self.encoder:
            return remarks(self.encoder.whole, self.encoder.max_tokens, prompt)
        tower = self.model.text_encoder
        whole = copy.deepcopy(tower.tokenizer.backend_tokenizer)
        whole.no_truncation()
        whole.no_padding()
        return remarks(whole, tower.max_tokens, prompt)

    def wanted(self, query=(), image=None, minus=()):
        """Return the unit-length float32 (D,) embedding of what is asked for; arguments as for `Gallery.search`."""
        queries, minus = ([texts] if isinstance(texts, str) else list(texts) for texts in (query, minus))
        if not queries and image is None:
            raise UserError("say what to look for: a prompt, or an example picture")
        parts = [self.embed_prompts(queries)] if queries else []
        if image is not None:
            example, _, faults = self.embed_files([image])
            if faults:
                raise UserError(f"the example picture cannot be read: {faults[0]}")
            parts.append(example.astype(np.float32))
        wanted = np.concatenate(parts).mean(axis=0)  # (D,)
        if minus:  # by half: all texts are a little alike, and that much is not meant
            wanted -= self.embed_prompts(minus).mean(axis=0) / 2
        return wanted / np.linalg.norm(wanted)

    def explain(self, file, query=(), image=None, minus=(), wanted=None):
        """Return a picture (H, W, 3) uint8 in which red marks what answers the prompt or example.

        Raises UserError for an image tower without a feature map, such as a vision transformer, and as `wanted` does;
        OSError where the picture cannot be read.
        """
        from dataset import read_square

        wanted = self.wanted(query, image, minus) if wanted is None else wanted
        wanted = wanted - self.everyday.mean(axis=0)  # what is special about it
        pixels, picture = read_square(file, self.model.config.image_size), read_image(file, shrink_to=400)
        heat = heat_map(self.model, pixels, wanted)
        heat = Image.fromarray(np.uint8(255 * heat)).resize(picture.shape[1::-1], Image.Resampling.BICUBIC)
        share = np.asarray(heat, np.float32)[..., None] / 255 * 0.6
        return np.uint8((1 - share) * picture + share * np.array([255, 30, 0]))
