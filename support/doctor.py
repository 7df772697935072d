"""What captions and photos say about training on them, told before the loss does: a line a finding, with what to type.

Faults of single files, such as a damaged photo, are in support/data_report.py; here it is about the whole.
"""

import re
from collections import Counter

import pandas as pd

from support.errors import UserError, shown

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u9fff\uac00-\ud7af]+|[^\w\s]")
MOST_UNKNOWN = 0.02  # of the tokens of captions that a tower for their language may not know
FEWEST_KNOWN = 0.1  # known tokens a word: of fewer no captions can be told apart
MOST_PIECES = 2.0  # tokens a word: English in a tower for English has 1.1, German in it 2.2
MOST_TOKENS = 4096  # that --max-tokens takes
FEW_CAPTIONS = 50  # different ones, of many photos: rather the names of classes
OTHER_LANGUAGE = (
    "--text-encoder distilbert-base-multilingual-cased reads 104 languages, and --text-encoder scratch learns the "
    "words of your captions"
)


def findings(table, report, tokenizer, is_scratch, max_tokens, batch_size, image_size):
    """Return lines about the captions table of train, a text tower's tokenizer, and photos for an image tower.

    report: the `DataReport`. is_scratch: whether the tower is built for these captions. image_size: pixels a side that
    the image tower looks at.
    """
    return [
        *findings_on_the_batch(table, batch_size),
        *findings_on_equal_captions(table, batch_size),
        *findings_on_tokens(table["caption"], tokenizer, max_tokens, is_scratch),
        *findings_on_sizes(report, image_size),
    ]


def findings_on_the_batch(table, batch_size):
    """Return a line where there are fewer photos than a batch is to hold."""
    photos = table["image"].nunique()
    if photos >= batch_size:
        return []
    return [
        f"too few photos for a batch: --batch-size {batch_size} is more than the {photos:,} of train, so each step "
        f"shows all of them; --batch-size {max(2, photos // 4)} makes several steps of an epoch"
    ]


# ---------------------------------------------------------------- captions that photos share


def equal_pairs_in_a_batch(table, batch_size):
    """Return how many pairs of photos in an average batch are shown with an equal caption.

    Each photo of a batch has one of its captions, drawn at random. Two photos i and j with the shares p and q of a
    caption among their own draw it both with probability p * q.
    """
    photos = table["image"].nunique()
    captions_of_photo = table.groupby("image").size()
    counts = table.groupby(["caption", "image"]).size()
    shares = counts.div(captions_of_photo, level="image")  # of each caption among those of its photo
    sums = shares.groupby("caption").sum()
    squares = (shares**2).groupby("caption").sum()
    expected = ((sums**2 - squares) / 2).sum()  # the sum of p * q over all pairs of photos
    size = min(batch_size, photos)
    return expected * (size * (size - 1)) / (photos * (photos - 1))


def findings_on_equal_captions(table, batch_size):
    """Return a line where so many captions are equal that batches hold several of them.

    Raises UserError where all are: there is nothing to be learned.
    """
    table = pd.DataFrame({"image": table["image"], "caption": table["caption"].str.lower().str.strip()})
    photos_of_caption = table.groupby("caption")["image"].nunique().sort_values(ascending=False)
    commonest = shown(photos_of_caption.index[0])
    if len(photos_of_caption) == 1:
        raise UserError(f"all photos have the same caption, {commonest!r}: there is nothing to tell them apart by")
    pairs = equal_pairs_in_a_batch(table, batch_size)
    if pairs < 1:
        return []
    line = (
        f"captions that photos share: {pairs:,.0f} pairs of an average batch of {batch_size} are equal, so they are no "
        f"negatives of each other ({commonest!r:.60} is of {photos_of_caption.iloc[0]:,} photos): captions that tell "
        "photos apart teach more"
    )
    if len(photos_of_caption) <= FEW_CAPTIONS:
        line += "; for classes, see python evaluate.py --linear-probe DIR"
    return [line]


# ---------------------------------------------------------------- captions and the text tower


def findings_on_tokens(captions, tokenizer, max_tokens, is_scratch=False):
    """Return lines about captions that are cut, and about a tower of another language.

    Raises UserError where next to no word is known, as without the files of a tokenizer: nothing could be learned.
    """
    token_ids = tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]
    lines = []

    lengths = [len(ids) for ids in token_ids]
    cut = sum(length > max_tokens for length in lengths)
    if cut:
        most = MOST_TOKENS if is_scratch else min(MOST_TOKENS, tokenizer.model_max_length)
        limit = min(max(lengths), most)
        what_to_do = "the text tower reads no more"
        if limit > max_tokens:
            what_to_do = f"--max-tokens {limit} reads {'all' if limit == max(lengths) else 'more'}"
        lines.append(
            f"captions longer than {max_tokens} tokens: {cut:,} of {len(lengths):,} are cut, the longest has "
            f"{max(lengths):,}: {what_to_do}"
        )

    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    tokens = sum(token not in special for ids in token_ids for token in ids)
    unknown = sum(token == tokenizer.unk_token_id for ids in token_ids for token in ids)
    words = sum(len(WORD.findall(caption)) for caption in captions)
    if tokens - unknown < FEWEST_KNOWN * words:
        raise UserError(
            f"the tokenizer knows next to none of the captions' words: {tokens - unknown:,} tokens of {words:,} words. "
            "If --text-encoder is a folder, its tokenizer.json or vocab.txt is missing or empty; for another language, "
            f"{OTHER_LANGUAGE}"
        )
    if unknown > MOST_UNKNOWN * tokens:
        lines.append(
            f"words that the text tower does not know: {unknown / tokens:.0%} of all tokens. Is it of another "
            f"language? {OTHER_LANGUAGE}"
        )
    elif tokens > MOST_PIECES * words:
        lines.append(
            f"words that the text tower has only in pieces: {tokens / words:.1f} tokens a word, where a tower of the "
            f"same language has little more than 1. {OTHER_LANGUAGE}"
        )
    return lines


# ---------------------------------------------------------------- photos and the image tower


def findings_on_sizes(report, image_size):
    """Return a line where most photos are smaller than what the image tower looks at."""
    photos = sum(report.sizes.values())
    small = Counter({size: count for size, count in report.sizes.items() if max(size) < image_size})
    if small.total() <= photos / 2:
        return []
    (width, height), _ = small.most_common(1)[0]
    fitting = max(32, 32 * round(max(width, height) / 32))  # the tower halves a picture five times
    if fitting >= image_size:
        return []
    return [
        f"photos smaller than the {image_size} pixels that the image tower looks at: {small.total():,} of {photos:,} "
        f"(most have {width} x {height}): --image-size {fitting} trains faster, and larger photos would show more"
    ]
