"""The words of a command line, before they are read as flags: what they mean, and what cannot be meant.

A flag given twice is refused, and so is a pattern of shards that the shell has expanded: only the last would count. In
`--output=~/x` no shell replaces `~`, so it is done here. Prompts that are not UTF-8 are read as Latin-1, and that is
said.
"""

import os
import re
import sys
from collections import Counter, defaultdict
from typing import NamedTuple, get_type_hints

import tyro

from support.errors import UserError, expect_ctrl_c, shown

PROMPTS = {"query", "plus", "minus", "labels"}  # flags that take words; what others take may be a path
PATTERNS = {"under"}  # of names inside a gallery, where a folder may be called ~old
AT_HOME = re.compile(r"(local-dir:)?(~|~[\w.-]*[/\\].*)", re.DOTALL)  # what lies in somebody's home: ~/x, or ~ann/x
HALF_CHARACTER = re.compile("[\udc80-\udcff]")
NUMBERED = re.compile(r"(.*?)(\d+)\.tar", re.DOTALL)


def read_flags(kind, arguments=None, **options):
    """Return what `tyro.cli` makes of a class of flags, or of a function whose arguments they are.

    arguments: the words of the command line; None: those of this process. Raises UserError for what cannot be meant.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    expect_ctrl_c()
    return tyro.cli(kind, args=as_meant(arguments, repeatable_flags(kind)), **options)


def repeatable_flags(kind):
    """Return the names of the flags of a class, or a function, that may be given several times."""
    names = set()
    for name, annotation in get_type_hints(kind, include_extras=True).items():
        markers = getattr(annotation, "__metadata__", ())
        if any("UseAppendAction" in repr(marker) for marker in markers):
            names.add(name.replace("_", "-"))
    return names


def as_meant(arguments, repeatable=()):
    """Return the words of a command line with `~` and odd bytes replaced; raises UserError for what cannot be meant.

    repeatable: names of the flags that may be given several times.
    """
    words = words_of(arguments)
    refuse_expanded_shards(words, repeatable)
    refuse_flags_given_twice(words, repeatable)
    return [word.begin + meant_value(word) for word in words]


def meant_value(word):
    """Return the value of a `Word`: as text where it is words, and with its home where it is a path."""
    if word.flag in PROMPTS:
        return as_text(word.value, f"--{word.flag}")
    may_be_a_prompt = word.flag is None and word.value != "~" and not word.value.startswith("~/")
    if word.flag in PATTERNS or may_be_a_prompt:
        return word.value
    return with_home(word.value)


class Word(NamedTuple):
    """One word of a command line."""

    flag: str | None  # that it gives, or belongs to; --no-fold is --fold too
    number: int  # of that flag on the command line: 1 for the first
    begin: str  # "--output=", or "--output" where its value is the next word; "" of a value
    value: str


def words_of(arguments):
    """Return the `Word`s of a command line."""
    words = []
    flag = None
    number = 0
    for argument in arguments:
        if not argument.startswith("--"):
            words.append(Word(flag, number, "", argument))
            continue
        name, equals, value = argument.partition("=")
        flag = name.removeprefix("--").replace("_", "-").removeprefix("no-")
        number += 1
        words.append(Word(flag, number, name + equals, value))
    return words


def refuse_flags_given_twice(words, repeatable):
    """Raise UserError where a flag stands twice: the first would not count."""
    times = Counter(word.flag for word in words if word.begin)
    for flag, count in times.items():
        if count > 1 and flag not in repeatable:
            raise UserError(f"--{shown(flag)} is given {count} times, and only one can count: leave the others out")


def refuse_expanded_shards(words, repeatable):
    """Raise UserError where one place holds several tars: the shell has made them of a pattern without quotes."""
    tars = defaultdict(list)
    for word in words:
        place = (word.flag, word.number) if word.flag in repeatable else word.flag
        if word.value.endswith(".tar"):
            tars[place].append(word.value)
    for names in tars.values():
        if len(names) > 1:
            raise UserError(
                f"{len(names)} shards stand where one pattern of them does, {names[0]} to {names[-1]}, for the shell "
                f"replaces a pattern without quotes: type {pattern_in_quotes(names)}"
            )


def pattern_in_quotes(names):
    """Return the pattern of shards that the shell has expanded to these names, as it should have been typed."""
    first = NUMBERED.fullmatch(names[0])
    last = NUMBERED.fullmatch(names[-1])
    if not first or not last or first[1] != last[1]:
        return '"…train-{00000..00099}.tar", with quotes'
    return f'"{first[1]}{{{first[2]}..{last[2]}}}.tar", with quotes'


def with_home(value):
    """Return a value in which `~` at the beginning of a path is replaced; raises UserError where no home is known."""
    found = AT_HOME.fullmatch(value)
    if not found:
        return value
    path = os.path.expanduser(found[2])
    if path == found[2]:
        raise UserError(f"{value}: there is no home that ~ could stand for; write the path in full")
    return (found[1] or "") + path


def as_text(words, what):
    """Return words from outside as text: no tokenizer takes half a character, as which Python keeps an odd byte.

    In a locale of ASCII alone they are read as UTF-8, and what is not UTF-8 as Latin-1; says so, of `what`.
    """
    if not HALF_CHARACTER.search(words):
        return words
    content = os.fsencode(words)
    try:
        return content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
        print(f"{what} is not UTF-8, and is read as Latin-1: {shown(text)}", file=sys.stderr)
        return text
