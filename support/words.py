"""What people type: words without a flag, and weights before prompts."""

import os
import re
import shlex

from support.errors import UserError
from support.picture_kinds import IMAGE_SUFFIXES
from support.tars import exists

PICTURE_ENDINGS = tuple(IMAGE_SUFFIXES)
# A weight: a number, a colon, and then no digit, so that "10:30 on a clock" and "16:9" stay words.
WEIGHTED = re.compile(r"\s*([+-]?\d+(?:\.\d*)?|[+-]?\.\d+):(?!\d)\s*(.*)", re.DOTALL)
MOST_WEIGHT = 1000


def with_flags(argv, switches):
    """Return a command line in which every bare word has its flag: --image before a picture, --query before a prompt.

    argv: a list of words. switches: the flags that take no value, such as "--json"; each other flag takes the word
    after it. A picture is a file that is there and whose name ends like one's. Raises UserError for a name of one word
    that ends so where there is no such file, for a second picture, and where quotes seem to be missing.
    """
    completed = []
    pictures = []
    prompts = [[]]  # words without a flag; those after --query WORD with it: they may be one prompt without its quotes
    flag = ""
    is_value = False  # whether the next word belongs to the flag before it
    for word in argv:
        if is_value:
            completed.append(word)
            is_value = False
            if flag == "--query":
                prompts.append([word])
        elif word.startswith("-"):
            completed.append(word)
            flag = word.replace("_", "-")
            is_value = "=" not in flag and flag not in switches
        elif is_folder(word):
            raise UserError(f"{word} is a folder: to search it, type --gallery {shlex.quote(word)}")
        elif is_picture(word):
            completed += ["--image", os.path.expanduser(word)]
            pictures.append(word)
        else:
            completed += ["--query", word]
            prompts[-1].append(word)
    for together in prompts:
        if len(together) > 1 and not any(" " in word for word in together):
            words = " ".join(together)
            raise UserError(
                f'one prompt of several words is typed in quotes, "{words}", and each of several after --query'
            )
    if len(pictures) > 1:
        raise UserError(f"{pictures[0]} and {pictures[1]} are two example pictures: give one at a time")
    return completed


def is_folder(word):
    """Return whether a bare word can only mean a folder: it is there, and has a slash; "beach" may be a prompt."""
    return ("/" in word or os.sep in word) and os.path.isdir(os.path.expanduser(word))


def is_picture(word):
    """Return whether a bare word names a picture that is there; raises UserError where it only looks like one."""
    if not word.lower().endswith(PICTURE_ENDINGS):
        return False
    if exists(os.path.expanduser(word)):
        return True
    if len(word.split()) > 1:  # a sentence may end like that, too
        return False
    raise UserError(f'there is no picture {word}: mend its path, or type --query "{word}" if it is a prompt')


def weight_and_words(prompt):
    """Return the weight of a prompt, 1 where it has none, and its words: (2.0, "snow") of "2:snow".

    Raises UserError for a weight that is not above 0, or more than 1,000.
    """
    found = WEIGHTED.fullmatch(prompt)
    if not found:
        return 1.0, prompt
    number, words = found.groups()
    if not 0 < float(number) <= MOST_WEIGHT:
        raise UserError(f"the weight of {prompt!r:.60} must be above 0, at most 1,000: what is not wanted is --minus")
    return float(number), words


def weights_and_words(prompts):
    """Return the weights of Q prompts, and their words, as two lists."""
    pairs = [weight_and_words(prompt) for prompt in prompts]
    return [weight for weight, _ in pairs], [words for _, words in pairs]
