"""Which samples of a data set are one client's: the options after `?` in a data spec.

| option | meaning |
|---|---|
| `clients`, `client` | so many clients share the set; this device is that one, counted from 0 |
| `split` | how they share it, one of `SPLITS`; without it, what the options below imply |
| `classes` | `shards`, `cyclic`: classes of each client; default of `shards`: all of them |
| `alpha` | `dirichlet`, `dirichlet-equal`, `dirichlet-capped`: the concentration |
| `writers` | `writers`: writers of each client, 3 unless given; needs `qmnist`, a folder |
| `pool` | the published parts are joined first; this fraction of a client's samples trains |
| `train`, `test` | samples kept of the client's: a number, a fraction, or a range `203-336` |
| `validate` | this fraction of the client's training samples takes the place of its test samples |
| `seed` | of the partition and of every draw; 0 unless given, and the same on all devices |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Literal, TypeVar, get_args

from motley.errors import DataError
from motley.workload import DataSpec

T = TypeVar("T")
Split = Literal[
    "shards", "cyclic", "iid", "dirichlet", "dirichlet-equal", "dirichlet-capped", "writers"
]
SPLITS: tuple[Split, ...] = get_args(Split)
TAKES: dict[str, tuple[Split, ...]] = {
    "classes": ("shards", "cyclic"),
    "alpha": ("dirichlet", "dirichlet-equal", "dirichlet-capped"),
    "writers": ("writers",),
}
"""The splits that an option belongs to; given alone, it stands for the first of them."""
NEEDS: dict[str, str] = {"cyclic": "classes"} | dict.fromkeys(TAKES["alpha"], "alpha")
"""The option that a split cannot do without."""

WRITERS, PER_CLIENT = 198, 3
"""QuPeD's FEMNIST has 198 writers, three to a client: `split=writers` makes 66 clients of them."""


@dataclass(frozen=True)
class Range:
    """A number of samples that is drawn anew for each client, both ends included."""

    low: int
    high: int


Amount = int | float | Range
"""A number of samples, a fraction when it is a float (then below 1), or a range of numbers."""


def amount_of(amount: Amount, available: int, draw: float) -> int:
    """Return the number of samples that an amount means for a client that has `available`.

    Args:
        amount: what was asked for.
        available: samples that the client has.
        draw: the client's place in a range, 0 to below 1; a range is cut at what is there.

    Raises:
        DataError: a range starts above what is there.
    """
    if isinstance(amount, float):
        return max(1, round(amount * available))
    if isinstance(amount, int):
        return amount
    if available < amount.low:
        raise DataError(
            f"a client has {available} samples, and {amount.low}-{amount.high} of them are asked "
            f"for; start the range at {available} or below"
        )
    return min(available, amount.low + floor(draw * (amount.high - amount.low + 1)))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The options of a data spec, checked against each other. None: not given."""

    clients: int | None = None
    client: int | None = None
    split: Split | None = None
    classes: int | None = None
    alpha: float | None = None
    writers: int | None = None
    qmnist: str | None = None
    pool: float | None = None
    train: Amount | None = None
    test: Amount | None = None
    validate: float | None = None
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
        split = _split(options.get("split"), known)
        writers = _value(options.get("writers"), "writers", _count)
        if writers is None and split == "writers":
            writers = PER_CLIENT
        clients = _value(options.get("clients"), "clients", _count)
        if clients is None and writers is not None:
            clients = max(1, WRITERS // writers)
        return cls(
            clients=clients,
            client=_value(options.get("client"), "client", _index),
            split=split,
            classes=_value(options.get("classes"), "classes", _count),
            alpha=_value(options.get("alpha"), "alpha", _positive),
            writers=writers,
            qmnist=options.get("qmnist"),
            pool=_value(options.get("pool"), "pool", _fraction),
            train=_value(options.get("train"), "train", _amount),
            test=_value(options.get("test"), "test", _amount),
            validate=_value(options.get("validate"), "validate", _fraction),
            seed=_value(options.get("seed"), "seed", _index) or 0,
        )

    def of_all(self) -> Selection:
        """Return how the set is shared out, whichever client asks."""
        return replace(self, client=None)

    @property
    def way(self) -> Split:
        """How the set is shared out: what was named, or what the other options imply."""
        if self.split is not None:
            return self.split
        given = [name for name in TAKES if getattr(self, name) is not None]
        return TAKES[given[0]][0] if given else "shards"

    def __post_init__(self) -> None:
        ways = [name for name in TAKES if getattr(self, name) is not None]
        if len(ways) > 1:
            raise DataError(f"data options {' and '.join(ways)} exclude each other; give one")
        for name in ways:
            if self.way not in TAKES[name]:
                raise DataError(
                    f"data option {name} does not go with split={self.split}; "
                    f"it is for {', '.join(TAKES[name])}"
                )
        needed = NEEDS.get(self.way)
        if needed is not None and needed not in ways:
            raise DataError(f"data option split={self.split} needs {needed}")
        if (self.writers is None) != (self.qmnist is None):
            raise DataError("data options writers and qmnist (a folder) are only given together")
        if self.writers is not None and self.pool is not None:
            raise DataError("data option pool does not go with writers, who are of one part alone")
        self._check_clients()

    def _check_clients(self) -> None:
        dependent = [
            name
            for name in ("classes", "alpha", "split", "client")
            if getattr(self, name) is not None
        ]
        if self.clients is None and dependent:
            raise DataError(f"data option {dependent[0]} needs clients, the number of them")
        if self.clients is not None and self.client is not None and self.client >= self.clients:
            raise DataError(
                f"data option client={self.client}; expected 0 to {self.clients - 1}, "
                f"as there are clients={self.clients}"
            )


def _split(text: str | None, known: Sequence[str]) -> Split | None:
    usable = [name for name in SPLITS if name != "writers" or "writers" in known]
    if text is None:
        return None
    for name in usable:
        if text == name:
            return name
    raise DataError(f"data option split={text}; expected one of {', '.join(usable)}")


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


def _number(text: str) -> float:
    """Return a number; 0 where the text is none, which no caller takes."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise ValueError("a number above 0")
    return value


def _fraction(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise ValueError("a fraction above 0 and below 1")
    return value


def _amount(text: str) -> Amount:
    low, dash, high = text.partition("-")
    ends = [int(end) for end in (low, high) if end.isascii() and end.isdigit()]
    if dash and len(ends) == 2 and 1 <= ends[0] <= ends[1]:
        return Range(*ends)
    if not dash and ends and ends[0] > 0:
        return ends[0]
    if not 0 < _number(text) < 1:
        raise ValueError("a number of samples, a fraction above 0 and below 1, or a range as 20-30")
    return _number(text)
