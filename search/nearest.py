"""The best rows of many for each of some queries, exactly."""

import sys

import numpy as np

BLOCK = 8192  # rows looked at together: few enough to stay in the processor's cache


def nearest(embeddings, queries, top_k, penalties=None, among=None):
    """Return the scores (Q, K) and row numbers (Q, K) of the best rows for each query, best first; K <= top_k.

    embeddings: (N, D) float16, unit length, in memory or mapped from disk; queries: (Q, D) float32, unit length.
    Scores are float32 cosines, less the penalties (N,) where there are any; of equal ones the first row comes first.
    Rows that hold no numbers, as in a stranger's index, score -1. among: the numbers (M,) of the rows that are looked
    at, in their order; None: all of them. No more than a block of rows is ever copied.
    """
    count = len(embeddings) if among is None else len(among)
    top_k = min(top_k, count)
    best_scores = np.full((len(queries), top_k), -np.inf, np.float32)
    best_rows = np.zeros((len(queries), top_k), np.int64)
    if top_k == 0:
        return best_scores, best_rows

    for start in range(0, count, BLOCK):
        block = slice(start, start + BLOCK)
        if among is not None:
            block = among[block]
        scores = cosines(queries, embeddings[block])  # (Q, n)
        if penalties is not None:
            scores = scores - penalties[block]
        scores[~np.isfinite(scores)] = -1

        for query in range(len(queries)):
            # Not those that only equal the last of the best, which comes before them.
            better = np.flatnonzero(scores[query] > best_scores[query, -1])
            if len(better):
                some_scores = np.concatenate([best_scores[query], scores[query, better]])
                rows = start + better if among is None else block[better]
                some_rows = np.concatenate([best_rows[query], rows])
                order = np.argsort(-some_scores, kind="stable")[:top_k]
                best_scores[query] = some_scores[order]
                best_rows[query] = some_rows[order]
    return best_scores, best_rows


def all_cosines(embeddings, query, among=None):
    """Return the cosines of one query (D,) with all rows, (N,), or with those of `among`, (M,), as in `nearest`."""
    count = len(embeddings) if among is None else len(among)
    scores = np.empty(count, np.float32)
    for start in range(0, count, BLOCK):
        block = slice(start, start + BLOCK)
        rows = block if among is None else among[block]
        scores[block] = cosines(query[None], embeddings[rows])[0]
    scores[~np.isfinite(scores)] = -1
    return scores


def cosines(queries, rows):
    """Return the products (Q, n) of float32 queries (Q, D) and float16 rows (n, D), in float32.

    Torch is at least twice as fast, above all at reading float16; but to import it for that would take longer, and
    less than a block is no matter: so in a small gallery scores never depend on what has been imported.
    """
    if "torch" in sys.modules and len(rows) == BLOCK:
        import torch

        return (torch.from_numpy(queries) @ torch.from_numpy(rows).float().T).numpy()
    with np.errstate(invalid="ignore", over="ignore"):  # of rows that hold no numbers
        return queries @ rows.astype(np.float32).T
