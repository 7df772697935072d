"""What a person should know about a prompt: words that the model does not know, such as those of another language.

A word that is none of the vocabulary falls to pieces, or becomes the unknown token. Pieces do not say that a word is
unknown: pretrained towers know "skateboarders" as skate, board and ers. But a vocabulary that was learned from captions
holds each of their words whole, and what it has never seen becomes pieces of a letter or two, which mean nothing:
"Strand" is st, ra and nd. A pretrained vocabulary has longer pieces for nearly any word in Latin letters, so with one
only words in another script are named; and none with a vocabulary that is no WordPiece.
"""

import copy

LEARNED_FROM_CAPTIONS = 8192  # pieces at most, by support/wordpiece.py; pretrained vocabularies have 28,000 and more
MOST_NAMED = 10


def cutting_tokenizer(tower):
    """Return the tokenizer of a `models.TextEncoder` as one of `tokenizers` that cuts what is too long for the tower.

    It is a copy: the tower's own stays as it is.
    """
    tokenizer = copy.deepcopy(tower.tokenizer.backend_tokenizer)
    tokenizer.enable_truncation(tower.max_tokens)
    return tokenizer


def remarks_on(prompt, tokenizer):
    """Return lines that a person should read about a prompt: it is too long, or of words the model does not know.

    tokenizer: one that cuts what is too long, as `cutting_tokenizer` gives it.
    """
    encoded = tokenizer.encode(prompt)
    lines = []
    cut_off = [mask for part in encoded.overflowing for mask in part.special_tokens_mask]  # 0 for a token of the text
    if cut_off:
        lines.append(f"the prompt is too long: its last {cut_off.count(0)} tokens are not looked at")

    special = special_tokens(tokenizer)
    words = words_of(prompt, encoded, special)
    unknown = [word for word, pieces in words if is_unknown(pieces, tokenizer)]
    means_nothing = len(unknown) == len(words)
    if unknown:
        names = list(dict.fromkeys(unknown))
        line = f"the model does not know: {', '.join(names[:MOST_NAMED])}"
        if len(names) > MOST_NAMED:
            line += f" and {len(names) - MOST_NAMED:,} more"
        lines.append(f"{line}; the ranking means nothing" if means_nothing else line)
    elif set(encoded.ids) <= special:
        lines.append("the model knows none of this: the ranking means nothing")
    return lines


def has_unknown_words(text, tokenizer):
    """Return whether a text holds words that the model does not know; tokenizer: as for `remarks_on`."""
    words = words_of(text, tokenizer.encode(text), special_tokens(tokenizer))
    return any(is_unknown(pieces, tokenizer) for _, pieces in words)


def special_tokens(tokenizer):
    """Return the numbers of tokens that mean no word; the unknown token is one of these."""
    added = tokenizer.get_added_tokens_decoder()  # {number: token}
    return {number for number, token in added.items() if token.special}


def words_of(prompt, encoded, special):
    """Return the words of an encoded prompt, each with the letters in its pieces: [("Strand", [2, 2, 2]), …].

    special: the numbers of tokens that mean no word; of these a piece has 0 letters. Signs alone are no words.
    """
    starts = {}
    ends = {}
    pieces = {}  # {number of the word: letters in each of its pieces}
    for number, token, (start, end) in zip(encoded.word_ids, encoded.ids, encoded.offsets, strict=True):
        if number is None:  # a start or an end, or padding
            continue
        starts.setdefault(number, start)
        ends[number] = end
        pieces.setdefault(number, []).append(0 if token in special else end - start)
    words = [(prompt[starts[number] : ends[number]], letters) for number, letters in pieces.items()]
    return [(word, letters) for word, letters in words if any(letter.isalnum() for letter in word)]


def is_unknown(pieces, tokenizer):
    """Return whether a word is unknown, by the letters in each of its pieces: it is, where most are in short ones."""
    if 0 in pieces:
        return True
    if len(pieces) == 1 or type(tokenizer.model).__name__ != "WordPiece":
        return False
    letters = sum(pieces)
    if tokenizer.get_vocab_size() <= LEARNED_FROM_CAPTIONS:
        short = 2
    else:
        short = 1
        if letters < 4:  # a word of two or three signs, as in Korean, may well be known by each of them
            return False
    in_long_pieces = sum(piece for piece in pieces if piece > short)
    return 2 * in_long_pieces < letters
