"""Draws that all partitions are made of: order, shares, and parts that are too small.

They use uniform draws alone and sort them, because numpy may change how `permutation` uses its
stream from one version to the next, and devices with different versions must agree on the parts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from motley.errors import DataError

Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64]


def shuffled(values: Indices, rng: np.random.Generator) -> Indices:
    """Return values in random order."""
    return values[np.argsort(rng.random(len(values)), kind="stable")]


def share_out(
    labels: Labels, names: Labels, shares: npt.NDArray[np.float64], rng: np.random.Generator
) -> Indices:
    """Return the owner of each sample, [N], -1 for none, by `shares` [classes, clients]."""
    owners = np.full(len(labels), -1)
    for name, share in zip(names, shares, strict=True):
        members = shuffled(np.flatnonzero(labels == name), rng)
        ends = np.rint(np.cumsum(share) * len(members)).astype(np.int64)
        ends[-1] = len(members)
        owners[members] = np.searchsorted(ends, np.arange(len(members)), side="right")
    return owners


def topped_up(
    owners: Indices, clients: int, minimum: int, rng: np.random.Generator
) -> list[Indices]:
    """Return the parts, after the largest gave samples to those below the minimum."""
    check_clients(clients, int((owners >= 0).sum()), minimum)
    parts = [shuffled(np.flatnonzero(owners == client), rng) for client in range(clients)]
    while min(map(len, parts)) < minimum:
        sizes = [len(part) for part in parts]
        giver, taker = sizes.index(max(sizes)), sizes.index(min(sizes))
        count = min(minimum - sizes[taker], sizes[giver] - minimum)
        parts[taker] = np.concatenate([parts[taker], parts[giver][-count:]])
        parts[giver] = parts[giver][:-count]
    return [np.sort(part) for part in parts]


def check_clients(clients: int, samples: int, minimum: int = 1) -> None:
    """Raise DataError unless so many clients can have the minimum of samples each."""
    if clients < 1 or clients * minimum > samples:
        raise DataError(
            f"{clients} clients of at least {minimum} samples out of {samples}; "
            f"expected 1 to {samples // minimum} clients"
        )
