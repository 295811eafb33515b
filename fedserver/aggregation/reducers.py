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
    """Return sum_k w_k values[k] / sum_k w_k, in the dtype of `values`.

    w are the weights over the largest of them: equal weights are exactly 1, the sum of K values
    then divided by K, and sample counts cannot push a sum out of range.
    """
    relative = (weights / weights.max()).astype(values.dtype)
    total: Tile = values[0] * relative[0]
    for row, weight in zip(values[1:], relative[1:], strict=True):
        total += row * weight
    total /= relative.sum(dtype=values.dtype)
    return total


REDUCERS: dict[str, Reducer] = {"weighted_mean": weighted_mean}
