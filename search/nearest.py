"""The best rows of many for a query, exactly; and pictures that look the same as one."""

import sys

import numpy as np

# Of looks. Of 500,000 pairs of photos none reached it; a photo does that is saved again, smaller, brighter or grey.
ALIKE = 0.97
LOOK_WIDTH = 192  # numbers that say how a picture looks: 8 x 8 fields of 3 colours
FEW_ROWS = 50_000  # up to so many, or where torch is not imported, numpy searches
# A product of unit-length vectors in half precision errs by up to 2^-11 for the rounded query and 2^-12 for the rounded
# result; this bounds the error of a difference of two.
HALF_ERROR = 2e-3


def search(embeddings, queries, top_k):
    """Return the scores (Q, K) and rows (Q, K) of the best rows for each query, best first; exact. K <= top_k.

    embeddings: (N, D) float16, unit length; queries: (Q, D) float32, unit length. Scores are float32 cosines.
    """
    top_k = min(top_k, len(embeddings))
    if len(embeddings) <= FEW_ROWS or "torch" not in sys.modules:  # to import torch takes longer than a million rows
        starts = range(0, len(embeddings), 8192)
        with np.errstate(invalid="ignore"):  # of rows that are no numbers; `best_of` puts them last
            blocks = [queries @ embeddings[start : start + 8192].astype(np.float32).T for start in starts]
        best = [best_of(scores, np.arange(len(scores)), top_k) for scores in np.concatenate(blocks, axis=1)]
    else:
        find = half_candidates if len(queries) <= 8 else block_candidates
        best = [best_of(embeddings[rows].astype(np.float32) @ query, rows, top_k)
                for query, rows in zip(queries, find(embeddings, queries, top_k), strict=True)]
    scores, rows = zip(*best, strict=True)
    return np.stack(scores), np.stack(rows)


def best_of(scores, rows, top_k):
    """Return the scores (K,) and numbers (K,) of the best of some rows; of equal ones the first comes first."""
    scores = np.nan_to_num(scores, nan=-1, posinf=-1, neginf=-1)  # a stranger's index may hold anything
    if len(scores) > 4 * top_k:  # those that can be among the best, before they are sorted
        least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        scores, rows = scores[scores >= least], rows[scores >= least]
    order = np.lexsort((rows, -scores))[:top_k]
    return scores[order], rows[order]


def half_candidates(embeddings, queries, top_k):
    """Yield for each query the rows that surely hold the best: all that come near enough in half precision."""
    import torch  # its half-precision product reads half of the bytes that float32 has; numpy's is far slower

    rows = torch.from_numpy(embeddings)
    for query in torch.from_numpy(queries):
        scores = (rows @ query.half()).nan_to_num(-1, -1, -1)
        yield (scores >= scores.topk(top_k).values[-1].float() - HALF_ERROR).nonzero().flatten().numpy()


def block_candidates(embeddings, queries, top_k, rows=16_384):
    """Return the best rows of each block of rows for each of many queries: one matrix product a block."""
    import torch

    queries, found = torch.from_numpy(queries), []
    for start in range(0, len(embeddings), rows):
        block = torch.from_numpy(embeddings[start : start + rows]).float()  # stays in the processor's cache
        found.append(start + (queries @ block.T).nan_to_num(-1, -1, -1).topk(min(top_k, len(block)), dim=1).indices)
    return torch.cat(found, dim=1).numpy()


def look_of(pixels):
    """Return (B, 192), what (B, 3, S, S) pictures look like from afar: the colours of 8 x 8 fields, unit length."""
    import torch.nn.functional as F

    fields = F.adaptive_avg_pool2d(pixels.float(), 8).flatten(2)  # (B, 3, 64)
    return F.normalize((fields - fields.mean(dim=2, keepdim=True)).flatten(1), dim=1)


def folded(looks, rows, most):
    """Return the places of rows (K,) in at most `most` groups of pictures that look the same, the best of each first.

    looks: (N, 192), as `look_of` gives it: cosines are correlations.
    """
    groups, firsts = [], np.empty((min(most, len(rows)), looks.shape[1]), np.float32)
    for place, look in enumerate(looks[rows].astype(np.float32)):
        alike = (firsts[: len(groups)] @ look >= ALIKE).nonzero()[0]
        if len(alike):
            groups[alike[0]].append(place)
        elif len(groups) < most:
            firsts[len(groups)] = look
            groups.append([place])
    return groups
