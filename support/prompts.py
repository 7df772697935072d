"""Prompts that are not the user's: for the names of classes, and for what most people have pictures of."""

import random
import re

import numpy as np

from support.errors import CONTROL, UserError
from support.files import read_json, write_json

# Prompts of which most people have pictures: what they reach in a gallery, a prompt that fits does.
EVERYDAY = (
    "a dog runs through the grass", "two dogs play with a ball", "a child plays in the water", "people near the beach",
    "a man rides a bicycle", "a woman walks down the street", "a group of people pose for a photo", "a baby with a toy",
    "children play in the snow", "a boy jumps into a pool", "a man climbs a rock", "a girl in a dress smiles",
    "people at a party", "a football player with the ball", "a person stands on a mountain", "a crowd in the city",
    "a man sits on a bench", "a skateboarder does a trick", "a sailing boat on the lake", "a cat on a sofa",
    "a bird on a branch", "a car on the road", "flowers in a garden", "a plate of food on a table",
    "a building against the sky", "a sunset over the sea", "a horse in a field", "people dance on a stage",
    "a bride and groom", "a market with stalls", "a room with furniture", "a forest in autumn",
)

EVERYDAY_FILE = "everyday.json"  # in the directory of a model for which these are not the prompts
MOST_LETTERS = 1_000  # of a prompt
# Of English, where they are a seventh of all words. "A" is none of them: it is an article in Hungarian and others, too.
SMALL_WORDS = {"the", "of", "with", "and", "is", "are", "on"}
FEWEST_SMALL = 0.06  # of the words of captions in English; of other languages it is 0.03 at most

TEMPLATES = "a photo of a {}.", "a picture of a {}.", "a {}."  # for the name of a class: a mean is steadier than one


def class_embeddings(embed, names, templates=TEMPLATES):
    """Return (K, D) unit-length embeddings: for each class the mean over its prompts (Radford et al. 2021, 3.1.4).

    embed: a function of Q texts that returns their (Q, D) embeddings. An article before a name is left out.
    """
    nouns = [re.sub(r"^(a|an|the)\s+", "", name, flags=re.IGNORECASE) for name in names]
    prompts = [template.replace("{}", noun) for noun in nouns for template in templates]
    embeddings = embed(prompts).reshape(len(names), len(templates), -1).mean(axis=1)  # (K, D)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


# ---------------------------------------------------------------- everyday prompts of a model


def everyday_prompts_for(captions):
    """Return the everyday prompts for a model that is trained on some captions: as many as `EVERYDAY`.

    A model of another language does not know the words of `EVERYDAY`, and would find everything that fits no worse than
    they do: it gets some of its own captions.
    """
    captions = [caption for caption in dict.fromkeys(captions) if len(caption) <= MOST_LETTERS]
    captions = [caption for caption in captions if not re.search(CONTROL, caption)]
    if not captions or is_english(captions):
        return EVERYDAY
    random.Random(0).shuffle(captions)
    return tuple(captions[number % len(captions)] for number in range(len(EVERYDAY)))


def is_english(captions):
    """Return whether captions are in English, by its small words."""
    words = [word for caption in captions for word in re.findall(r"\w+", caption.lower())]
    return sum(word in SMALL_WORDS for word in words) >= FEWEST_SMALL * len(words)


def write_everyday_prompts(directory, prompts):
    """Write the everyday prompts of a model into its directory, where they are its own."""
    if prompts != EVERYDAY:
        write_json(directory / EVERYDAY_FILE, {"prompts": prompts})


def read_everyday_prompts(directory):
    """Return the everyday prompts of a model directory; raises UserError for a file that holds something else."""
    path = directory / EVERYDAY_FILE
    if not path.is_file():
        return EVERYDAY
    prompts = read_json(path).get("prompts")
    is_a_list = isinstance(prompts, list) and len(prompts) == len(EVERYDAY)
    if not is_a_list or not all(map(could_be_prompt, prompts)):
        raise UserError(f"{path} must hold {len(EVERYDAY)} prompts: delete it, and those in English are taken")
    return tuple(prompts)


def could_be_prompt(value):
    """Return whether a JSON value is a prompt: text of one line, and not too long."""
    if not isinstance(value, str) or not 0 < len(value) <= MOST_LETTERS:
        return False
    return not re.search(f"{CONTROL}|[\ud800-\udfff]", value)  # nor half a character, which no tokenizer takes
