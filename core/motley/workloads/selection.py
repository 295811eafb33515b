"""Which samples of a data set are one client's: the options after `?` in a data spec.

| option | meaning |
|---|---|
| `clients`, `client` | so many clients share the set; this device is that one, counted from 0 |
| `classes` | each client holds so many classes, in equal shards; default: all of them |
| `alpha` | instead: each class is shared out by a Dirichlet distribution of this concentration |
| `writers` | instead: each client holds the digits of so many writers; needs `qmnist`, a folder |
| `train`, `test` | samples kept of the client's: a number, or a fraction when below 1 |
| `seed` | of the partition and of every draw; 0 unless given, and the same on all devices |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from motley.data import partition
from motley.data.partition import Indices, Labels
from motley.errors import DataError
from motley.seeding import derive
from motley.workload import DataSpec

Amount = int | float
"""A number of samples, or a fraction when it is a float (then below 1)."""
Part = Literal["train", "test"]
T = TypeVar("T")

WRITERS = 198
"""QuPeD's FEMNIST has 198 writers; `writers=3` alone makes 66 clients of them."""
WRITER_TRAIN = 0.9


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The options of a data spec, checked against each other. None: not given."""

    clients: int | None = None
    client: int | None = None
    classes: int | None = None
    alpha: float | None = None
    writers: int | None = None
    qmnist: str | None = None
    train: Amount | None = None
    test: Amount | None = None
    seed: int = 0

    @classmethod
    def parse(cls, spec: DataSpec, known: Sequence[str]) -> Selection:
        """Read a spec's options; raise DataError at one not in `known` or with a bad value."""
        unknown = [name for name in spec.options if name not in known]
        if unknown:
            raise DataError(
                f"data option {unknown[0]!r} is not known for this workload; "
                f"there are {', '.join(known)}"
            )
        options = spec.options
        writers = _value(options.get("writers"), "writers", _count)
        clients = _value(options.get("clients"), "clients", _count)
        if clients is None and writers is not None:
            clients = max(1, WRITERS // writers)
        return cls(
            clients=clients,
            client=_value(options.get("client"), "client", _index),
            classes=_value(options.get("classes"), "classes", _count),
            alpha=_value(options.get("alpha"), "alpha", _positive),
            writers=writers,
            qmnist=options.get("qmnist"),
            train=_value(options.get("train"), "train", _amount),
            test=_value(options.get("test"), "test", _amount),
            seed=_value(options.get("seed"), "seed", _index) or 0,
        )

    def of_all(self) -> Selection:
        """Return how the set is shared out, whichever client asks."""
        return replace(self, client=None)

    def __post_init__(self) -> None:
        ways = [name for name in ("classes", "alpha", "writers") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise DataError(f"data options {' and '.join(ways)} exclude each other; give one")
        if (self.writers is None) != (self.qmnist is None):
            raise DataError("data options writers and qmnist (a folder) are only given together")
        if self.clients is None and (ways or self.client is not None):
            raise DataError(
                f"data option {(ways or ['client'])[0]} needs clients, the number of them"
            )
        if self.clients is not None and self.client is not None and self.client >= self.clients:
            raise DataError(
                f"data option client={self.client}; expected 0 to {self.clients - 1}, "
                f"as there are clients={self.clients}"
            )


@dataclass(frozen=True)
class Share:
    """One client's samples, as sorted indices."""

    train: Indices
    test: Indices
    test_part: Part = "test"
    """The published part that `test` points into; `train` always points into the training part."""


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
    least = amount + 1 if isinstance(amount, int) else 2
    shares = []
    for client, part in enumerate(_parts(labels, selection, least)):
        seed = derive(selection.seed, "split", client)
        shares.append(Share(*partition.split(part, labels, amount, seed), test_part="train"))
    return shares


def published_shares(train: Labels, test: Labels, selection: Selection) -> list[Share]:
    """Return every client's share of a set that is published in a training and a test part.

    The training part is shared out; the test part likewise, class by class.

    Args:
        train: class of each training sample, [N].
        test: class of each test sample, [M].
        selection: how they are shared out; without clients there is one share, all of both.

    Raises:
        DataError: the set is too small for that.
    """
    parts = _parts(train, selection, 1)
    tests = [np.arange(len(test))]
    if selection.clients is not None:
        tests = partition.like(parts, train, test, selection.seed)
    return [
        Share(
            _limited(part, train, selection.train, derive(selection.seed, "train", client)),
            _limited(others, test, selection.test, derive(selection.seed, "test", client)),
        )
        for client, (part, others) in enumerate(zip(parts, tests, strict=True))
    ]


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
                _limited(train, labels, selection.train, seed),
                _limited(test, labels, selection.test, seed),
                test_part="train",
            )
        )
    return shares


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
        shares[0].test_part,
    )


def _parts(labels: Labels, selection: Selection, minimum: int) -> list[Indices]:
    if selection.clients is None:
        return [np.arange(len(labels))]
    if selection.alpha is not None:
        return partition.dirichlet(
            labels, selection.clients, selection.alpha, selection.seed, minimum
        )
    classes = selection.classes or len(np.unique(labels))
    return partition.by_class(labels, selection.clients, classes, selection.seed)


def _limited(part: Indices, labels: Labels, amount: Amount | None, seed: int) -> Indices:
    if amount is None:
        return part
    count = amount if isinstance(amount, int) else max(1, round(amount * len(part)))
    return partition.sample(part, labels, count, seed)


def _value(text: str | None, name: str, read: Callable[[str], T]) -> T | None:
    try:
        return None if text is None else read(text)
    except ValueError as error:
        raise DataError(f"data option {name}={text}; expected {error}") from None


def _index(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("a whole number, 0 or more")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError("a whole number, 1 or more")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError("a number above 0")
    return value


def _amount(text: str) -> Amount:
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise ValueError("a number of samples, or a fraction above 0 and below 1")
    return value
