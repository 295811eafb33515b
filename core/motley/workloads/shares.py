"""Every client's samples of a set, as a `Selection` shares it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from motley.data import partition
from motley.data.dirichlet import dirichlet, dirichlet_capped, dirichlet_equal
from motley.data.draws import Indices, Labels
from motley.errors import DataError
from motley.seeding import derive, numpy_generator
from motley.workloads.options import Amount, Range, amount_of
from motley.workloads.selection import Selection

Part = Literal["train", "test"]
Source = Literal["train", "test", "joined"]
"""What indices point into: a published part, or the training part with the test part behind."""

WRITER_TRAIN = 0.9


@dataclass(frozen=True)
class Share:
    """One client's samples, as sorted indices."""

    train: Indices
    test: Indices
    train_of: Source = "train"
    """What `train` points into."""
    test_of: Source = "test"
    """What `test` points into."""


def pooled_shares(labels: Labels, selection: Selection, train: Amount) -> list[Share]:
    """Return every client's share of a set that is published in one piece.

    Args:
        labels: class of each sample, [N].
        selection: how it is shared out; without clients there is one share, the whole set.
        train: what trains where the selection does not say; the rest is for testing.

    Raises:
        DataError: the set is too small for that.
    """
    amount = selection.train if selection.train is not None else train
    least = amount.low if isinstance(amount, Range) else amount if isinstance(amount, int) else 1
    shares = []
    for client, part in enumerate(_parts(labels, selection, least + 1)):
        count = amount
        if isinstance(count, Range):
            count = amount_of(count, len(part) - 1, _draw(selection, client))
        seed = derive(selection.seed, "split", client)
        chosen, rest = partition.split(part, labels, count, seed)
        shares.append(Share(chosen, rest, test_of="train"))
    return _validated(shares, labels, selection)


def published_shares(train: Labels, test: Labels, selection: Selection) -> list[Share]:
    """Return every client's share of a set that is published in a training and a test part.

    The training part is shared out; the test part likewise, class by class. With `pool` both are
    joined and shared out as one, and each client's samples are cut in two by themselves.

    Args:
        train: class of each training sample, [N].
        test: class of each test sample, [M].
        selection: how they are shared out; without clients there is one share, all of both.

    Raises:
        DataError: the set is too small for that.
    """
    if selection.pool is not None:
        joined = np.concatenate([train, test])
        return _validated(_joined_shares(joined, selection, selection.pool), joined, selection)
    parts = _parts(train, selection, 1)
    tests = [np.arange(len(test))]
    if selection.clients is not None:
        tests = partition.like(parts, train, test, selection.seed)
    shares = [
        Share(
            _limited(part, train, selection.train, selection, client, "train"),
            _limited(others, test, selection.test, selection, client, "test"),
        )
        for client, (part, others) in enumerate(zip(parts, tests, strict=True))
    ]
    return _validated(shares, train, selection)


def writer_shares(
    writers: npt.NDArray[np.int64], labels: Labels, selection: Selection
) -> list[Share]:
    """Return every client's share by writers, 90 % of each writer's samples for training.

    Args:
        writers: writer of each training sample, [N].
        labels: class of each training sample, [N].
        selection: one with `clients` and `writers`.

    Raises:
        DataError: there are too few writers, or one has too few samples.
    """
    clients, per_client = selection.clients or 1, selection.writers or 1
    shares = []
    for client, part in enumerate(partition.by_group(writers, clients, per_client, selection.seed)):
        seed = derive(selection.seed, "split", client)
        cut = [
            partition.split(part[writers[part] == writer], labels, WRITER_TRAIN, seed)
            for writer in np.unique(writers[part])
        ]
        train = np.sort(np.concatenate([chosen for chosen, _ in cut]))
        test = np.sort(np.concatenate([rest for _, rest in cut]))
        shares.append(
            Share(
                _limited(train, labels, selection.train, selection, client, "split"),
                _limited(test, labels, selection.test, selection, client, "split"),
                test_of="train",
            )
        )
    return _validated(shares, labels, selection)


def own_share(shares: Sequence[Share], selection: Selection) -> Share:
    """Return the share of the selection's client; raise DataError when it names none."""
    if selection.clients is None:
        return shares[0]
    if selection.client is None:
        raise DataError(
            f"data option client is missing; expected 0 to {selection.clients - 1}, "
            f"as the set is shared out over {selection.clients} clients"
        )
    return shares[selection.client]


def held_out_share(shares: Sequence[Share], selection: Selection) -> Share:
    """Return the share of the selection's client or, when it names none, all clients' together.

    A server that names the same options as its clients is so tested on what none trains on.
    """
    if selection.client is not None:
        return shares[selection.client]
    return Share(
        np.sort(np.concatenate([share.train for share in shares])),
        np.sort(np.concatenate([share.test for share in shares])),
        shares[0].train_of,
        shares[0].test_of,
    )


def _joined_shares(labels: Labels, selection: Selection, fraction: float) -> list[Share]:
    shares = []
    for client, part in enumerate(_parts(labels, selection, 2)):
        seed = derive(selection.seed, "split", client)
        train, test = partition.split(part, labels, fraction, seed)
        shares.append(
            Share(
                _limited(train, labels, selection.train, selection, client, "train"),
                _limited(test, labels, selection.test, selection, client, "test"),
                "joined",
                "joined",
            )
        )
    return shares


def _parts(labels: Labels, selection: Selection, minimum: int) -> list[Indices]:
    clients, alpha, seed = selection.clients, selection.alpha, selection.seed
    if clients is None:
        return [np.arange(len(labels))]
    if selection.way == "iid":
        return partition.iid(labels, clients, seed)
    if selection.way == "cyclic":
        return partition.cyclic(labels, clients, selection.classes or 1, seed)
    if selection.way == "dirichlet":
        return dirichlet(labels, clients, alpha or 0.0, seed, minimum)
    if selection.way == "dirichlet-equal":
        return dirichlet_equal(labels, clients, alpha or 0.0, seed)
    if selection.way == "dirichlet-capped":
        return dirichlet_capped(labels, clients, alpha or 0.0, seed, minimum)
    classes = selection.classes or len(np.unique(labels))
    return partition.by_class(labels, clients, classes, seed)


def _validated(shares: list[Share], labels: Labels, selection: Selection) -> list[Share]:
    """Return the shares with a part of the training samples in the place of the test samples.

    So settings can be chosen without a look at the test set.
    """
    if selection.validate is None:
        return shares
    cut = []
    for client, share in enumerate(shares):
        seed = derive(selection.seed, "validate", client)
        train, test = partition.split(share.train, labels, 1 - selection.validate, seed)
        cut.append(Share(train, test, share.train_of, share.train_of))
    return cut


def _limited(
    part: Indices,
    labels: Labels,
    amount: Amount | None,
    selection: Selection,
    client: int,
    purpose: str,
) -> Indices:
    """Return what is kept of a client's samples, each class in proportion."""
    if amount is None:
        return part
    count = amount_of(amount, len(part), _draw(selection, client))
    return partition.sample(part, labels, count, derive(selection.seed, purpose, client))


def _draw(selection: Selection, client: int) -> float:
    """Return a client's place in ranges: one for both, so that train and test go together."""
    return float(numpy_generator(selection.seed, "amount", client).random())
