"""Words of a command line that stand there without a flag: which flag is meant."""

from pathlib import Path

from support.errors import UserError
from support.tars import PICTURES, exists

PICTURE_ENDINGS = tuple(f".{suffix}" for suffix in (*PICTURES, "heic"))


def with_flags(argv, switches):
    """Return a command line in which every bare word has its flag: --image before a picture, --query before a prompt.

    argv: a list of words. switches: the flags that take no value, such as "--json"; each other flag takes the word
    after it. A picture is a file that is there and whose name ends like one's. Raises UserError for a name of one word
    that ends so where there is no such file, and for a second picture.
    """
    completed = []
    pictures = []
    is_value = False  # whether the next word belongs to the flag before it
    for word in argv:
        if is_value:
            completed.append(word)
            is_value = False
        elif word.startswith("-"):
            completed.append(word)
            flag = word.replace("_", "-")
            is_value = "=" not in flag and flag not in switches
        elif is_picture(word):
            completed += ["--image", str(Path(word).expanduser())]
            pictures.append(word)
        else:
            completed += ["--query", word]
    if len(pictures) > 1:
        raise UserError(f"{pictures[0]} and {pictures[1]} are two example pictures: give one at a time")
    return completed


def is_picture(word):
    """Return whether a bare word names a picture that is there; raises UserError where it only looks like one."""
    if not word.lower().endswith(PICTURE_ENDINGS):
        return False
    if exists(Path(word).expanduser()):
        return True
    if len(word.split()) > 1:  # a sentence may end like that, too
        return False
    raise UserError(f'there is no picture {word}: mend its path, or type --query "{word}" if it is a prompt')
