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

from motley.data.draws import Indices, Labels, check_clients, share_out, shuffled, topped_up
from motley.errors import DataError
from motley.seeding import numpy_generator


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
    _check_classes(classes_per_client, len(names))
    check_clients(clients, len(labels))
    rng = numpy_generator(seed, "partition", "by_class")
    takers = _deal(len(names), clients, classes_per_client, rng)
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for name, clients_of_class in zip(names, takers, strict=True):
        members = shuffled(np.flatnonzero(labels == name), rng)
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


def cyclic(labels: Labels, clients: int, classes_per_client: int, seed: int) -> list[Indices]:
    """Give client c equal amounts of the classes c, c + 1, ... (mod the number of classes).

    FedP3's class-wise split (arXiv 2404.09816): 100 clients, 5 classes each (15 of CIFAR-100's).
    All clients have as many samples, and as many of each of their classes; what does not divide
    so stays unused.

    Args:
        labels: class of each sample, [N].
        clients: number of parts.
        classes_per_client: distinct classes in each part.
        seed: of the draws.

    Raises:
        DataError: there are fewer classes, or fewer samples of a class, than that takes.
    """
    names, sizes = np.unique(labels, return_counts=True)
    _check_classes(classes_per_client, len(names))
    check_clients(clients, len(labels))
    held = [
        [(client + step) % len(names) for step in range(classes_per_client)]
        for client in range(clients)
    ]
    holders = np.bincount(np.concatenate(held), minlength=len(names))
    each = int((sizes[holders > 0] // holders[holders > 0]).min())
    if each < 1:
        worst = int(np.argmin(sizes - holders))
        raise DataError(
            f"class {names[worst]} has {sizes[worst]} samples for {holders[worst]} clients; "
            f"ask for fewer clients or fewer classes per client"
        )
    rng = numpy_generator(seed, "partition", "cyclic")
    members = [shuffled(np.flatnonzero(labels == name), rng) for name in names]
    given = np.zeros(len(names), np.int64)
    parts = []
    for classes in held:
        taken = [members[c][given[c] : given[c] + each] for c in classes]
        given[classes] += each
        parts.append(np.sort(np.concatenate(taken)))
    return parts


def iid(labels: Labels, clients: int, seed: int) -> list[Indices]:
    """Share samples out at random, whatever their class; sizes differ by one at most.

    Args:
        labels: class of each sample, [N]; only their number counts.
        clients: number of parts.
        seed: of the draws.

    Raises:
        DataError: there are fewer samples than clients.
    """
    check_clients(clients, len(labels))
    order = shuffled(np.arange(len(labels)), numpy_generator(seed, "partition", "iid"))
    return [np.sort(part) for part in np.array_split(order, clients)]


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
    check_clients(len(parts), len(others))
    rng = numpy_generator(seed, "partition", "like")
    names = np.unique(labels)
    counts = np.stack([(labels[part][:, None] == names).sum(axis=0) for part in parts], axis=1)
    used = counts.sum(axis=1) > 0
    shares = counts[used] / counts[used].sum(axis=1, keepdims=True)
    owners = share_out(others, names[used], shares, rng)
    return topped_up(owners, len(parts), 1, rng)


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
    dealt = shuffled(largest, rng).reshape(clients, groups_per_client)
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
        shuffled(indices[labels[indices] == name], rng)[:quota]
        for name, quota in zip(names, quotas, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def _check_classes(classes_per_client: int, classes: int) -> None:
    if not 1 <= classes_per_client <= classes:
        raise DataError(
            f"{classes_per_client} classes per client; expected 1 to {classes}, "
            f"the number of classes in the data"
        )


def _deal(
    classes: int, clients: int, classes_per_client: int, rng: np.random.Generator
) -> list[list[int]]:
    """Return, for each class, the clients that take a shard of it."""
    shards = np.full(classes, clients * classes_per_client // classes)
    extra = clients * classes_per_client % classes
    shards[shuffled(np.arange(classes), rng)[:extra]] += 1
    takers: list[list[int]] = [[] for _ in range(classes)]
    for client in range(clients):
        # The fraction added to a whole number breaks ties, and nothing but ties.
        order = np.argsort(-(shards + rng.random(classes)), kind="stable")
        for taken in order[:classes_per_client]:
            takers[taken].append(client)
            shards[taken] -= 1
    return takers
