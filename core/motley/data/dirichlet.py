"""Partitions with label skew drawn from a Dirichlet distribution, in the three forms in use.

`dirichlet` shares each class out over the clients, `dirichlet_equal` draws each client's mixture of
classes, `dirichlet_capped` shares classes out until a client has its fill. The Dirichlet draws are
numpy's own: devices that share a set in one of these ways need the same numpy.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from motley.data.draws import Indices, Labels, check_clients, share_out, shuffled, topped_up
from motley.errors import DataError
from motley.seeding import numpy_generator

TRIES = 1000
SMALLEST = 0.1
"""Of an equal share: what a client has at least under `dirichlet_capped`."""


def dirichlet(
    labels: Labels, clients: int, alpha: float, seed: int, minimum: int = 1
) -> list[Indices]:
    """Share each class out in proportions drawn from a symmetric Dirichlet distribution.

    For each class p ~ Dir(alpha, ..., alpha) over the clients (Yurochkin et al., ICML 2019, section
    4): a small alpha leaves each class to few clients, a large one gives all the same mixture. A
    client below `minimum` then gets random samples of the clients that have the most.

    Args:
        labels: class of each sample, [N].
        clients: number of parts.
        alpha: concentration, above 0.
        seed: of the draws.
        minimum: samples that each part has at least.

    Raises:
        DataError: alpha is not positive, or there are too few samples for the minimum.
    """
    _check_alpha(alpha)
    check_clients(clients, len(labels), max(1, minimum))
    rng = numpy_generator(seed, "partition", "dirichlet")
    names = np.unique(labels)
    shares = rng.dirichlet(np.full(clients, alpha), size=len(names))
    owners = share_out(labels, names, shares, rng)
    return topped_up(owners, clients, max(1, minimum), rng)


def dirichlet_equal(labels: Labels, clients: int, alpha: float, seed: int) -> list[Indices]:
    """Draw each client's mixture of classes from a Dirichlet distribution; all sizes are equal.

    Client by client p ~ Dir(alpha, ..., alpha) over the classes; then, one sample after another in
    random order, a client draws a class by its p among those that are not used up. FedP3's
    second split (arXiv 2404.09816: alpha 0.5). What does not divide by the clients stays unused.

    Args:
        labels: class of each sample, [N].
        clients: number of parts.
        alpha: concentration, above 0.
        seed: of the draws.

    Raises:
        DataError: alpha is not positive, or there are fewer samples than clients.
    """
    _check_alpha(alpha)
    check_clients(clients, len(labels))
    rng = numpy_generator(seed, "partition", "dirichlet_equal")
    names = np.unique(labels)
    mixtures = rng.dirichlet(np.full(len(names), alpha), size=clients)
    members = [shuffled(np.flatnonzero(labels == name), rng).tolist() for name in names]
    order = shuffled(np.repeat(np.arange(clients), len(labels) // clients), rng)
    parts: list[list[int]] = [[] for _ in range(clients)]
    bounds = _bounds(mixtures, members)
    for client, draw in zip(order.tolist(), rng.random(len(order)).tolist(), strict=True):
        # A draw next to 1 may fall behind the last bound, by rounding.
        taken = min(bisect_right(bounds[client], draw), len(members) - 1)
        if not members[taken]:
            taken = max(c for c, left in enumerate(members) if left)
        parts[client].append(members[taken].pop())
        if not members[taken]:
            bounds = _bounds(mixtures, members)
    return [np.sort(np.array(part, np.int64)) for part in parts]


def dirichlet_capped(
    labels: Labels, clients: int, alpha: float, seed: int, minimum: int = 1
) -> list[Indices]:
    """Share each class out as `dirichlet` does, but to no client that has its fill already.

    Class by class, a client with N / clients samples or more gets none, and the other shares grow
    in proportion; the whole draw is repeated until each client has a tenth of N / clients. FedMPQ's
    split (arXiv 2311.18129, as its released code has it: alpha 0.5 and 0.1).

    Args:
        labels: class of each sample, [N].
        clients: number of parts.
        alpha: concentration, above 0.
        seed: of the draws.
        minimum: samples that each part has at least, where a tenth of an equal share is less.

    Raises:
        DataError: alpha is not positive, or no draw gives each client enough.
    """
    _check_alpha(alpha)
    least = max(1, minimum, int(np.ceil(SMALLEST * len(labels) / clients)) if clients > 0 else 1)
    check_clients(clients, len(labels), least)
    rng = numpy_generator(seed, "partition", "dirichlet_capped")
    names, sizes = np.unique(labels, return_counts=True)
    for _ in range(TRIES):
        shares = rng.dirichlet(np.full(clients, alpha), size=len(names))
        if not _cap(shares, sizes):
            continue
        owners = share_out(labels, names, shares, rng)
        parts = [np.flatnonzero(owners == client) for client in range(clients)]
        if min(map(len, parts)) >= least:
            return parts
    raise DataError(
        f"{TRIES} draws of {clients} clients with alpha={alpha} gave none where each has {least} "
        f"samples; ask for fewer clients or a larger alpha"
    )


def _cap(shares: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64]) -> bool:
    """Take shares [classes, clients] from clients that are full; False when none is left."""
    given = np.zeros(shares.shape[1])
    for share, size in zip(shares, sizes, strict=True):
        share[given >= sizes.sum() / len(given)] = 0
        total = share.sum()
        if total <= 0:
            return False
        share /= total
        given += np.diff(np.rint(np.cumsum(share) * size), prepend=0)
    return True


def _bounds(mixtures: npt.NDArray[np.float64], members: list[list[int]]) -> list[list[float]]:
    """Return each client's cumulated shares of the classes that are left, [clients][classes]."""
    left = np.array([bool(samples) for samples in members])
    shares = mixtures * left
    # Mixtures of a tiny alpha can lie on used-up classes alone: then all others are alike.
    shares[shares.sum(axis=1) <= 0] = left
    totals = np.maximum(shares.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    bounds: list[list[float]] = (np.cumsum(shares, axis=1) / totals).tolist()
    return bounds


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < float("inf"):
        raise DataError(f"alpha is {alpha}; expected a number above 0, e.g. 0.5")
