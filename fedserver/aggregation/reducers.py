"""How one tile of all clients' values becomes one tile.

A reducer gets the values [K, T] of the K clients that sent them, in order of name, and their
weights [K] or [K, T], and returns [T]. Sums run over clients in that order, one after another:
the result does not depend on threads or on how a library orders its additions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from motley.runfile import Aggregate

Tile = npt.NDArray[np.floating]
Reducer = Callable[[Tile, npt.NDArray[np.float64]], Tile]

_AT_ONCE = 4096
"""Coordinates of a sparse tile that are put in order together: places and weights of each client's
value take six times what the value does."""


def weighted_mean(values: Tile, weights: npt.NDArray[np.float64]) -> Tile:
    """Return sum_k w_k values[k] / sum_k w_k, in the dtype of `values`.

    w are the weights over the largest of them: equal weights are exactly 1, the sum of K values
    then divided by K, and sample counts cannot push a sum out of range.
    """
    relative = relative_weights(weights, values.dtype)
    total: Tile = values[0] * relative[0]
    for row, weight in zip(values[1:], relative[1:], strict=True):
        total += row * weight
    total /= relative.sum(axis=0, dtype=values.dtype)
    return total


def relative_weights(weights: npt.NDArray[np.float64], dtype: np.dtype[np.floating]) -> Tile:
    """Return weights, of one coordinate or of many, over the largest of them."""
    relative: Tile = (weights / weights.max(axis=0)).astype(dtype)
    return relative


def reduce_present(
    reducer: Reducer,
    values: Tile,
    weights: npt.NDArray[np.float64],
    present: npt.NDArray[np.bool_],
    old: Tile,
) -> Tile:
    """Apply a rule to each coordinate over the clients that sent it; where nobody did, keep `old`.

    Args:
        reducer: the rule.
        values: [K, T], of no meaning where `present` is false.
        weights: [K].
        present: [K, T], which client sent which coordinate.
        old: [T].
    """
    result: Tile = old.copy()
    senders = np.count_nonzero(present, axis=0)
    for count in np.flatnonzero(np.bincount(senders)):
        if not count:
            continue
        alike = np.flatnonzero(senders == count)
        for start in range(0, alike.size, _AT_ONCE):
            columns = alike[start : start + _AT_ONCE]
            # Those who sent a coordinate, in order of name as before.
            found = np.nonzero(present[:, columns].T)[1].reshape(columns.size, count)
            order = np.ascontiguousarray(found.T)
            part = np.take_along_axis(values[:, columns], order, axis=0)
            result[columns] = reducer(part, weights[order])
    return result


def trimmed_mean(values: Tile, weights: npt.NDArray[np.float64], *, trim: float) -> Tile:
    """Return each coordinate's mean without its largest and its smallest values.

    `ceil(trim * K)` values are cut on each side, so that at least one is, and as many as leave
    one. Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018, definition 2 (β is
    `trim`; rounded up here). Weights are not used: they would let a client choose its own say.
    """
    clients = len(values)
    # A hair less: 0.1 * 30 must cut 3, whatever its last bit says.
    cut = min(math.ceil(trim * clients - 1e-9), (clients - 1) // 2)
    kept = np.sort(values, axis=0)[cut : clients - cut]
    total: Tile = kept[0].copy()
    for row in kept[1:]:
        total += row
    total /= values.dtype.type(len(kept))
    return total


def median(values: Tile, weights: npt.NDArray[np.float64]) -> Tile:
    """Return each coordinate's median; of an even number, the mean of the two in the middle.

    Yin et al., ICML 2018, definition 1. Weights are not used.
    """
    middle, is_odd = divmod(len(values), 2)
    ordered = np.sort(values, axis=0)
    half = values.dtype.type(0.5)
    result: Tile = ordered[middle]
    if not is_odd:
        result = ordered[middle - 1] * half + result * half
    return result


REDUCERS: dict[str, Reducer] = {"weighted_mean": weighted_mean, "median": median}
"""Rules by name."""


def reducer_for(own: str, aggregate: Aggregate) -> Reducer:
    """Return the rule that combines a run's updates: the algorithm's `own`, or the run file's."""
    if aggregate.rule == "trimmed_mean":
        return functools.partial(trimmed_mean, trim=aggregate.trim)
    return REDUCERS["median" if aggregate.rule == "median" else own]
