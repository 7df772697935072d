"""Hubs: pictures that are near to every text, and would answer every prompt. They are ranked a little lower.

A model keeps a bank: embeddings of captions that it was trained with. What a picture scores for these captions in
general says nothing about one prompt, so half of it is taken off its score before pictures are ranked. Half, because
prompts are not drawn from these captions; from 0.3 to 1, recall on Flickr8k's dev hardly depends on it.
Source: Bogolin et al. 2022. They divide exp(scale * score) by its mean over a bank of texts, for each picture; in
logarithms, that is to subtract what is subtracted here. An example picture is no text: its scores lie elsewhere.
"""

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from support.errors import UserError
from support.files import BANK_FILE, stamp, write_file

BANK_SIZE = 3_000  # captions; with a third of them the gain varies, with all 30,000 of Flickr8k it is the same
MOST_IN_BANK = 10_000  # of a stranger's model
PART_TAKEN_OFF = 0.5
BLOCK = 4_096  # pictures looked at together


def hub_penalties(embeddings, bank, logit_scale):
    """Return what is to be taken off the scores of N pictures, (N,) float32; all 0 without a bank.

    embeddings: (N, D), unit length. bank: (K, D), unit length, or None. Of a picture's scores s for the captions it is
    half of log(mean(exp(scale * s))) / scale, which lies between their mean and the highest of them.
    """
    penalties = np.zeros(len(embeddings), np.float32)
    if bank is None:
        return penalties
    for start in range(0, len(embeddings), BLOCK):
        rows = slice(start, start + BLOCK)
        with np.errstate(all="ignore"):  # of rows that hold no numbers, or a stranger's scale
            logits = logit_scale * (embeddings[rows].astype(np.float32) @ bank.T)  # (n, K)
            highest = logits.max(axis=1, keepdims=True)
            mean = np.exp(logits - highest).mean(axis=1)
            penalties[rows] = (highest[:, 0] + np.log(mean)) / logit_scale
    return PART_TAKEN_OFF * np.nan_to_num(penalties, nan=0, posinf=0, neginf=0)


def bank_stamp(directory):
    """Return a stamp that changes when the bank of a model directory does, or None where it has none."""
    return stamp(directory / BANK_FILE)


def write_bank(directory, bank):
    """Write a bank (K, D) into a model directory, in half precision."""
    write_file(directory / BANK_FILE, save({"captions": bank.astype(np.float16)}))


def read_bank(directory, width):
    """Return the bank (K, D) float32 of a model directory, D = width, or None where it has none.

    Raises UserError for a file that holds something else.
    """
    path = directory / BANK_FILE
    if not path.is_file():  # the model of an earlier version, or of a run that has not ended
        return None
    try:
        with safe_open(path, "numpy") as file:
            captions = file.get_slice("captions")
            count, its_width = captions.get_shape()
            if its_width != width or not 1 <= count <= MOST_IN_BANK or captions.get_dtype() not in ("F16", "F32"):
                raise ValueError(f"{count:,} embeddings of width {its_width}, {captions.get_dtype()}")
            bank = file.get_tensor("captions").astype(np.float32)
        if not (np.abs(np.linalg.norm(bank, axis=1) - 1) < 0.01).all():
            raise ValueError("they are not of unit length")
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is no bank of captions: {error}: delete it, and pictures are ranked without") from None
    return bank
