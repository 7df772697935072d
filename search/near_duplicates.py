"""Pictures that look the same as one: a photo saved again, smaller, brighter or grey."""

import numpy as np

from support.looks import ALIKE, FIELDS


def look_of(pixels):
    """Return (B, 192), what (B, 3, S, S) pictures look like from afar: the colours of 8 x 8 fields, unit length."""
    import torch.nn.functional as F

    fields = F.adaptive_avg_pool2d(pixels.float(), FIELDS).flatten(2)  # (B, 3, 64)
    differences = fields - fields.mean(dim=2, keepdim=True)  # brightness and tint of the whole do not matter
    return F.normalize(differences.flatten(1), dim=1)


def groups_that_look_the_same(looks, most):
    """Return the places of K pictures in at most `most` groups that look the same, in the order of their first.

    looks: (K, 192), as `look_of` gives it, best match first: their cosines are correlations.
    """
    groups = []
    firsts = np.empty((min(most, len(looks)), looks.shape[1]), np.float32)  # the look of each group's first picture
    for place, look in enumerate(looks.astype(np.float32)):
        alike = np.flatnonzero(firsts[: len(groups)] @ look >= ALIKE)
        if len(alike):
            groups[alike[0]].append(place)
        elif len(groups) < most:
            firsts[len(groups)] = look
            groups.append([place])
    return groups
