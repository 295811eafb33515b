"""Partitions of a set of samples over clients, and train/test splits of one client's samples.

Pure functions of labels and a seed: each device computes the partition for itself and takes its
own part, so the same seed must give the same parts everywhere. Parts are sorted index arrays;
they are disjoint and none is empty, or a DataError says why that cannot be.

>>> labels = np.repeat(np.arange(4), 6)
>>> [sorted(set(labels[part].tolist())) for part in by_class(labels, 2, 2, seed=0)]
[[0, 3], [1, 2]]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from motley.errors import DataError
from motley.seeding import numpy_generator

Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64]


def by_class(labels: Labels, clients: int, classes_per_client: int, seed: int) -> list[Indices]:
    """Give each client samples of `classes_per_client` classes, in shards of equal size.

    Each class is cut into equal shards; each client in turn takes one from each of the classes
    with most shards left, ties at random. QuPeD's split of CIFAR-10 (arXiv 2107.13892, section
    5): 50 clients of 4 classes, 20 shards a class. Where clients x classes per client does not
    divide by the classes, some classes drawn at random are cut into one more.

    Args:
        labels: class of each sample, [N].
        clients: number of parts.
        classes_per_client: distinct classes in each part.
        seed: of the draws.

    Raises:
        DataError: there are fewer classes, or fewer samples of a class, than that takes.
    """
    names = np.unique(labels)
    if not 1 <= classes_per_client <= len(names):
        raise DataError(
            f"{classes_per_client} classes per client; expected 1 to {len(names)}, "
            f"the number of classes in the data"
        )
    _check_clients(clients, len(labels))
    rng = numpy_generator(seed, "partition", "by_class")
    takers = _deal(len(names), clients, classes_per_client, rng)
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for name, clients_of_class in zip(names, takers, strict=True):
        members = _shuffled(np.flatnonzero(labels == name), rng)
        if len(members) < len(clients_of_class):
            raise DataError(
                f"class {name} has {len(members)} samples for {len(clients_of_class)} clients; "
                f"ask for fewer clients or fewer classes per client"
            )
        # Without a taker (fewer shards than classes) the class stays unused.
        shards = np.array_split(members, max(1, len(clients_of_class)))
        for client, shard in zip(clients_of_class, shards, strict=False):
            parts[client].append(shard)
    return [np.sort(np.concatenate(shards)) for shards in parts]


def dirichlet(
    labels: Labels, clients: int, alpha: float, seed: int, minimum: int = 1
) -> list[Indices]:
    """Share each class out in proportions drawn from a symmetric Dirichlet distribution.

    For each class p ~ Dir(alpha, ..., alpha) over the clients (Yurochkin et al., ICML 2019, section
    4): a small alpha leaves each class to few clients, a large one gives all the same mixture. A
    client below `minimum` then gets random samples of the clients that have the most. The one
    draw here that is numpy's own: devices that share a set this way need the same numpy.

    Args:
        labels: class of each sample, [N].
        clients: number of parts.
        alpha: concentration, above 0.
        seed: of the draws.
        minimum: samples that each part has at least.

    Raises:
        DataError: alpha is not positive, or there are too few samples for the minimum.
    """
    if not 0 < alpha < float("inf"):
        raise DataError(f"alpha is {alpha}; expected a number above 0, e.g. 0.5")
    _check_clients(clients, len(labels), max(1, minimum))
    rng = numpy_generator(seed, "partition", "dirichlet")
    names = np.unique(labels)
    shares = rng.dirichlet(np.full(clients, alpha), size=len(names))
    owners = _share_out(labels, names, shares, rng)
    return _topped_up(owners, clients, max(1, minimum), rng)


def like(parts: Sequence[Indices], labels: Labels, others: Labels, seed: int) -> list[Indices]:
    """Share another set out as `parts` shares out the first, class by class.

    A client's share of each class of `others` is its share of that class in `labels`, so that
    it is tested on the classes that it trains on. Samples of classes in no part are left out.

    Args:
        parts: a partition of `labels`.
        labels: class of each sample of the partitioned set, [N].
        others: class of each sample of the other set, [M].
        seed: of the draws.

    Raises:
        DataError: there are fewer samples than clients.
    """
    _check_clients(len(parts), len(others))
    rng = numpy_generator(seed, "partition", "like")
    names = np.unique(labels)
    counts = np.stack([(labels[part][:, None] == names).sum(axis=0) for part in parts], axis=1)
    used = counts.sum(axis=1) > 0
    shares = counts[used] / counts[used].sum(axis=1, keepdims=True)
    owners = _share_out(others, names[used], shares, rng)
    return _topped_up(owners, len(parts), 1, rng)


def by_group(
    groups: npt.NDArray[np.int64], clients: int, groups_per_client: int, seed: int
) -> list[Indices]:
    """Give each client all samples of some natural groups: writers, subjects, roles.

    The clients x groups per client groups with the most samples are dealt out at random.
    QuPeD's FEMNIST (arXiv 2107.13892, section 5): 198 writers, three to a client.

    Args:
        groups: group of each sample, [N].
        clients: number of parts.
        groups_per_client: groups in each part.
        seed: of the draws.

    Raises:
        DataError: there are fewer groups than that.
    """
    names, sizes = np.unique(groups, return_counts=True)
    wanted = clients * groups_per_client
    if clients < 1 or groups_per_client < 1 or wanted > len(names):
        raise DataError(
            f"{clients} clients of {groups_per_client} groups; expected at least one of each and "
            f"at most {len(names)} groups in all"
        )
    largest = names[np.argsort(-sizes, kind="stable")[:wanted]]
    rng = numpy_generator(seed, "partition", "by_group")
    dealt = _shuffled(largest, rng).reshape(clients, groups_per_client)
    return [np.flatnonzero(np.isin(groups, chosen)) for chosen in dealt]


def split(
    indices: Indices, labels: Labels, train: int | float, seed: int
) -> tuple[Indices, Indices]:
    """Cut a client's samples into (train, test), each class in proportion.

    Args:
        indices: the client's samples, [n].
        labels: class of each sample of the whole set, [N].
        train: how many samples train (int), or which fraction (float below 1).
        seed: of the draws.

    Raises:
        DataError: that leaves no sample for training or none for testing.
    """
    count = train if isinstance(train, int) else round(train * len(indices))
    if isinstance(train, float) and 0 < train < 1 and len(indices) >= 2:
        count = min(max(count, 1), len(indices) - 1)
    if not 1 <= count < len(indices):
        raise DataError(
            f"train={train} of {len(indices)} samples leaves none for training or none for "
            f"testing; expected 1 to {len(indices) - 1}, or a fraction between 0 and 1"
        )
    chosen = sample(indices, labels, count, seed)
    return chosen, np.setdiff1d(indices, chosen, assume_unique=True)


def sample(indices: Indices, labels: Labels, count: int, seed: int) -> Indices:
    """Draw `count` of a client's samples, each class in proportion (within one sample).

    Raises:
        DataError: there are fewer than `count`.
    """
    if not 1 <= count <= len(indices):
        raise DataError(
            f"{count} of {len(indices)} samples are asked for; expected 1 to {len(indices)}"
        )
    rng = numpy_generator(seed, "partition", "sample")
    names, sizes = np.unique(labels[indices], return_counts=True)
    # In whole numbers: quota of a class = size * count / n, its remainder decides who rounds up.
    quotas, remainders = np.divmod(sizes * count, len(indices))
    quotas[np.argsort(-remainders, kind="stable")[: count - int(quotas.sum())]] += 1
    drawn = [
        _shuffled(indices[labels[indices] == name], rng)[:quota]
        for name, quota in zip(names, quotas, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def _check_clients(clients: int, samples: int, minimum: int = 1) -> None:
    if clients < 1 or clients * minimum > samples:
        raise DataError(
            f"{clients} clients of at least {minimum} samples out of {samples}; "
            f"expected 1 to {samples // minimum} clients"
        )


def _shuffled(values: Indices, rng: np.random.Generator) -> Indices:
    # By sorting uniform draws: numpy may change how `permutation` uses its stream from one
    # version to the next, and devices with different versions must agree on the parts.
    return values[np.argsort(rng.random(len(values)), kind="stable")]


def _deal(
    classes: int, clients: int, classes_per_client: int, rng: np.random.Generator
) -> list[list[int]]:
    """Return, for each class, the clients that take a shard of it."""
    shards = np.full(classes, clients * classes_per_client // classes)
    extra = clients * classes_per_client % classes
    shards[_shuffled(np.arange(classes), rng)[:extra]] += 1
    takers: list[list[int]] = [[] for _ in range(classes)]
    for client in range(clients):
        # The fraction added to a whole number breaks ties, and nothing but ties.
        order = np.argsort(-(shards + rng.random(classes)), kind="stable")
        for taken in order[:classes_per_client]:
            takers[taken].append(client)
            shards[taken] -= 1
    return takers


def _share_out(
    labels: Labels, names: Labels, shares: npt.NDArray[np.float64], rng: np.random.Generator
) -> Indices:
    """Return the owner of each sample, [N], -1 for none, by `shares` [classes, clients]."""
    owners = np.full(len(labels), -1)
    for name, share in zip(names, shares, strict=True):
        members = _shuffled(np.flatnonzero(labels == name), rng)
        ends = np.rint(np.cumsum(share) * len(members)).astype(np.int64)
        ends[-1] = len(members)
        owners[members] = np.searchsorted(ends, np.arange(len(members)), side="right")
    return owners


def _topped_up(
    owners: Indices, clients: int, minimum: int, rng: np.random.Generator
) -> list[Indices]:
    """Return the parts, after the largest gave samples to those below the minimum."""
    _check_clients(clients, int((owners >= 0).sum()), minimum)
    parts = [_shuffled(np.flatnonzero(owners == client), rng) for client in range(clients)]
    while min(map(len, parts)) < minimum:
        sizes = [len(part) for part in parts]
        giver, taker = sizes.index(max(sizes)), sizes.index(min(sizes))
        count = min(minimum - sizes[taker], sizes[giver] - minimum)
        parts[taker] = np.concatenate([parts[taker], parts[giver][-count:]])
        parts[giver] = parts[giver][:-count]
    return [np.sort(part) for part in parts]
