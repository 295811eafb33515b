"""How one tile of all clients' values becomes one tile.

A reducer gets the values [K, T] of the K clients that sent them, in order of name, and their
weights [K], and returns [T]. Sums run over clients in that order, one after another: the result
does not depend on threads or on how a library orders its additions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Tile = npt.NDArray[np.floating]
Reducer = Callable[[Tile, npt.NDArray[np.float64]], Tile]


def weighted_mean(values: Tile, weights: npt.NDArray[np.float64]) -> Tile:
    """Return sum_k weights[k] * values[k] / sum_k weights[k], in the dtype of `values`."""
    total: Tile = np.multiply(values[0], weights[0], dtype=values.dtype)
    for row, weight in zip(values[1:], weights[1:], strict=True):
        total += np.multiply(row, weight, dtype=values.dtype)
    total /= values.dtype.type(weights.sum())
    return total


REDUCERS: dict[str, Reducer] = {"weighted_mean": weighted_mean}
