"""Prompts that are not the user's: for the names of classes, and for what most people have pictures of."""

import re

import numpy as np

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

TEMPLATES = "a photo of a {}.", "a picture of a {}.", "a {}."  # for the name of a class: a mean is steadier than one


def class_embeddings(embed, names, templates=TEMPLATES):
    """Return (K, D) unit-length embeddings: for each class the mean over its prompts (Radford et al. 2021, 3.1.4).

    embed: a function of Q texts that returns their (Q, D) embeddings. An article before a name is left out.
    """
    nouns = [re.sub(r"^(a|an|the)\s+", "", name, flags=re.IGNORECASE) for name in names]
    prompts = [template.replace("{}", noun) for noun in nouns for template in templates]
    embeddings = embed(prompts).reshape(len(names), len(templates), -1).mean(axis=1)  # (K, D)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
