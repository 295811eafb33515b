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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from motley.errors import DataError, did_you_mean
from motley.workload import DataSpec
from motley.workloads.options import (
    Amount,
    amount,
    check_known,
    count,
    fraction,
    index,
    positive,
    value,
)

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
        check_known(spec, known)
        options = spec.options
        split = _split(options.get("split"), known)
        writers = value(options.get("writers"), "writers", count)
        if writers is None and split == "writers":
            writers = PER_CLIENT
        clients = value(options.get("clients"), "clients", count)
        if clients is None and writers is not None:
            clients = max(1, WRITERS // writers)
        return cls(
            clients=clients,
            client=value(options.get("client"), "client", index),
            split=split,
            classes=value(options.get("classes"), "classes", count),
            alpha=value(options.get("alpha"), "alpha", positive),
            writers=writers,
            qmnist=options.get("qmnist"),
            pool=value(options.get("pool"), "pool", fraction),
            train=value(options.get("train"), "train", amount),
            test=value(options.get("test"), "test", amount),
            validate=value(options.get("validate"), "validate", fraction),
            seed=value(options.get("seed"), "seed", index) or 0,
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
    hint = did_you_mean(text, usable)
    raise DataError(f"data option split={text}; expected one of {', '.join(usable)}{hint}")
