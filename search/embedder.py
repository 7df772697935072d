"""What makes embeddings of pictures and prompts: the two towers of a checkpoint, each loaded when first needed."""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors import safe_open

from config import Config
from search.explain import heat_map
from search.kept_text_tower import keep_text_tower, open_text_tower
from search.near_duplicates import look_of
from support.errors import UserError
from support.files import fingerprint, model_stamps
from support.find_run import checkpoint_dir
from support.hubs import bank_stamp, hub_penalties, read_bank
from support.images import read_image
from support.looks import LOOK_WIDTH
from support.process import process_count, start_process
from support.prompts import read_everyday_prompts
from support.unknown_words import cutting_tokenizer, has_unknown_words, remarks_on


class EmbeddedFiles(NamedTuple):
    """What became of n picture files, r of which can be read."""

    embeddings: np.ndarray  # (r, D) float16, of those that can be read, in their order
    looks: np.ndarray  # (r, 192) float16: those of pictures that look the same are near (search/near_duplicates.py)
    faults: dict  # {place among the n files: OSError} of the others


class Embedder:
    """The two towers of a checkpoint, each loaded when it is first needed: most prompts need not wait for torch.

    checkpoint: a model directory; None takes best/ of the newest run. Raises UserError where it cannot be used.
    device: auto, cpu or cuda. batch_size, workers: of the loader of pictures; both may be changed at any time.
    """

    def __init__(self, checkpoint=None, device="auto", batch_size=64, workers=0):
        self.checkpoint = checkpoint_dir(Path(checkpoint) if checkpoint else None)
        self.config = Config.load(self.checkpoint / "config.json")
        self.device = device
        self.batch_size = batch_size
        self.workers = workers

    # ------------------------------------------------------------ prompts and pictures -> embeddings

    def embed_prompts(self, prompts):
        """Return the (Q, D) float32 embeddings of prompts: prompt -> token ids -> text tower -> head -> unit length.

        By the text tower that is kept as a file, or else by `CLIP.encode_text`; in float32 on every device, so that all
        give the same.
        """
        if self.has_text_tower_ready:
            return self.prompt_encoder.embed(prompts)
        import torch

        model = self.model  # loaded before inference mode: `explain` needs weights that have a gradient
        embeddings = []
        with torch.inference_mode():
            for start in range(0, len(prompts), 128):
                input_ids, mask = model.text_encoder.tokens_of(prompts[start : start + 128])
                part = model.encode_text(input_ids.to(model.device), mask.to(model.device))
                embeddings.append(part.cpu())
        return torch.cat(embeddings).numpy()

    def embed_files(self, files, title=None):
        """Return what becomes of picture files, as `EmbeddedFiles`; `title` is what a person who waits is told."""
        import torch

        from dataset import image_loader
        from models import embed_images

        def embedding_and_look(pixels):
            return torch.cat([self.model.encode_image(pixels), look_of(pixels)], dim=1)  # (B, D + 192)

        width = self.config.embedding_dim
        loader = image_loader(files, self.model.config.image_size, self.batch_size, self.workers)
        rows, _, faults = embed_images(self.model, loader, embedding_and_look, title)
        if not len(rows):
            rows = torch.empty(0, width + LOOK_WIDTH)
        rows = rows.nan_to_num(0, 0, 0).half().numpy()  # a model gone wrong finds nothing, and breaks nothing
        return EmbeddedFiles(rows[:, :width], rows[:, width:], faults)

    def embed_example(self, file):
        """Return the (1, D) float32 embedding of a picture file; raises UserError where it cannot be read."""
        example = self.embed_files([file])
        if example.faults:
            raise UserError(f"the example picture cannot be read: {example.faults[0]}")
        return example.embeddings.astype(np.float32)

    def embed_captions(self, captions):
        """Return the (M, D) float16 embeddings of many captions; several processes share the work."""
        from models import embed_texts

        return embed_texts(self.model, captions, title="embedding captions").half().numpy()

    @functools.cached_property
    def everyday_embeddings(self):
        """The (Q, D) embeddings of the model's everyday prompts."""
        return self.embed_prompts(read_everyday_prompts(self.checkpoint))

    def hub_penalties(self, embeddings):
        """Return what is to be taken off the scores of pictures, (N,) float16; embeddings: theirs, (N, D)."""
        return hub_penalties(embeddings, self.bank, self.logit_scale).astype(np.float16)

    @functools.cached_property
    def bank(self):
        """The embeddings (K, D) of captions that show which pictures are near to every text, or None."""
        return read_bank(self.checkpoint, self.config.embedding_dim)

    @functools.cached_property
    def bank_stamp(self):
        """A hash of the bank: another one says that it has changed."""
        return bank_stamp(self.checkpoint)

    # ------------------------------------------------------------ what a person is told

    def remarks(self, prompt):
        """Return lines that a person should read about a prompt: it is too long, or of words that are not known."""
        return remarks_on(prompt, self.tokenizer)

    def has_unknown_words(self, text):
        """Return whether a text holds words that the model does not know."""
        return has_unknown_words(text, self.tokenizer)

    @functools.cached_property
    def tokenizer(self):
        """The tokenizer of the text tower, as `remarks_on` takes it."""
        if self.has_text_tower_ready:
            return self.prompt_encoder.tokenizer
        return cutting_tokenizer(self.model.text_encoder)

    def explain(self, file, query_embedding):
        """Return a picture (H, W, 3) uint8 in which red marks what answers the query, an embedding (D,).

        Raises UserError for an image tower without a feature map, such as a vision transformer; OSError where the
        picture cannot be read.
        """
        from dataset import read_square

        what_is_special = query_embedding - self.everyday_embeddings.mean(axis=0)
        pixels = read_square(file, self.model.config.image_size)
        picture = read_image(file, shrink_to=400)  # (H, W, 3)
        heat = heat_map(self.model, pixels, what_is_special)  # (h, w), from 0 to 1
        height, width, _ = picture.shape
        heat = Image.fromarray(np.uint8(255 * heat)).resize((width, height), Image.Resampling.BICUBIC)
        opacity = np.asarray(heat, np.float32)[:, :, None] / 255 * 0.6  # (H, W, 1)
        red = np.array([255, 30, 0])
        return np.uint8((1 - opacity) * picture + opacity * red)

    # ------------------------------------------------------------ the model, and what is known without loading it

    @functools.cached_property
    def model(self):
        """The CLIP model; loaded only where pictures are embedded, or the text tower is not ready as a file."""
        from models import CLIP

        return CLIP.from_pretrained(self.checkpoint).to(start_process(self.device))

    @property
    def model_is_loaded(self):
        """Whether something has needed the model."""
        return "model" in vars(self)

    @functools.cached_property
    def logit_scale(self):
        """What cosines are multiplied by before a softmax makes probabilities of them; read without the model."""
        with safe_open(self.checkpoint / "model.safetensors", "numpy") as tensors:
            return float(np.exp(tensors.get_tensor("logit_scale")))

    @functools.cached_property
    def fingerprint(self):
        """The fingerprint of the checkpoint: of the content of its files, which are read once."""
        return fingerprint(self.checkpoint)

    def recall_fingerprint(self, stamps, known_fingerprint):
        """Take a fingerprint made earlier, if the stamps of the files say that they are unchanged since."""
        if stamps == model_stamps(self.checkpoint):
            self.fingerprint = known_fingerprint

    # ------------------------------------------------------------ the text tower, ready as a file

    @functools.cached_property
    def prompt_encoder(self):
        """The text tower as it is kept of this model, a `search.onnx_text.PromptEncoder`; None where none is kept.

        It embeds a prompt at once, while torch takes seconds to import. Not used where a GPU was asked for by name.
        """
        if self.device == "cuda" or process_count() > 1:
            return None
        return open_text_tower(self.fingerprint)

    @property
    def has_text_tower_ready(self):
        """Whether prompts are embedded without the model."""
        return self.prompt_encoder is not None

    def keep_text_tower(self):
        """Keep the text tower ready for this and later prompts; returns why that is not possible, or None."""
        reason = keep_text_tower(self.model, self.fingerprint)
        vars(self).pop("prompt_encoder", None)  # looked for again
        return reason
