"""Rows of several galleries as one array, without copying them: each may be mapped from a file of its own."""

import numpy as np


def joined(arrays):
    """Return arrays of rows, (n, W) each, as one that is read like an array (N, W); a single one stays what it is."""
    return arrays[0] if len(arrays) == 1 else JoinedRows(arrays)


class JoinedRows:
    """Arrays (n, W), one after the other; a slice, or an array of row numbers, reads only the rows that it names."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.ends = np.cumsum([len(array) for array in arrays])  # the first row behind each array
        self.shape = (int(self.ends[-1]), *arrays[0].shape[1:])

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return self.stretch(start, stop)
        rows = np.asarray(rows)
        chosen = np.empty((len(rows), *self.shape[1:]), self.arrays[0].dtype)
        number = np.searchsorted(self.ends, rows, side="right")  # of the array that each row lies in
        for which, array in enumerate(self.arrays):
            here = number == which
            chosen[here] = array[rows[here] - (self.ends[which] - len(array))]
        return chosen

    def stretch(self, start, stop):
        """Return the rows from `start` to before `stop`: not copied where they lie in one array."""
        pieces = []
        for array, end in zip(self.arrays, self.ends, strict=True):
            first = end - len(array)
            low = max(start, first)
            high = min(stop, end)
            if low < high:
                pieces.append(array[low - first : high - first])
        if not pieces:
            return self.arrays[0][:0]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def __array__(self, dtype=None, copy=None):
        return np.concatenate(self.arrays).astype(dtype or self.arrays[0].dtype, copy=False)
