"""The clients of a simulation: names, tiers, and where the data of each lies."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain, repeat
from typing import Any

from fedserver.errors import PopulationError
from fedserver.rounds.presence import Arrival, Capabilities, Presence, Profile
from motley.algorithms import registry
from motley.errors import did_you_mean
from motley.runfile import RunFile
from motley.wire import ENCODING_NAMES
from motley.wire import VERSION as WIRE_VERSION

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BLANKS = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, kw_only=True)
class SimulatedClient:
    """One client of this process."""

    name: str
    tier: str
    data: str
    """Its data spec."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """All clients of a simulation."""

    clients: tuple[SimulatedClient, ...]
    """In order of number, each with a name of its own."""
    threads: int | None = None
    """Training threads of each client, on record as its device's: results depend on them. None: 1,
    and all cores where clients train together."""

    def ready(self, batch: int) -> Population:
        """Return the population with its threads settled."""
        cores = len(os.sched_getaffinity(0))
        return replace(self, threads=self.threads or (1 if batch == 1 else cores))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a record."""
        return asdict(self)


def population_of(
    runfile: RunFile,
    *,
    clients: int | None = None,
    data: str = "",
    tiers: Mapping[str, int] | None = None,
    threads: int | None = None,
) -> Population:
    """Return the population that a run file's `[simulate]` names, arguments laid over it.

    Args:
        runfile: the run.
        clients: how many.
        data: template of their data specs; `{client}` stands for the number of a client,
            `{clients}` for how many there are, `{name}` for its name.
        tiers: clients of each tier.
        threads: training threads of each.

    Raises:
        PopulationError: counts, names or templates do not fit together or not the run.
    """
    section = runfile.simulate
    counts = dict(tiers if tiers is not None else section.tiers)
    number = clients or (None if tiers else section.clients)
    number = number or sum(counts.values()) or runfile.clients.expected
    if number < runfile.clients.expected:
        raise PopulationError(
            f"{number} clients, but the run waits for {runfile.clients.expected} "
            f"(clients.expected); simulate at least as many, e.g. with --clients"
        )
    template = data or section.data
    if not template:
        raise PopulationError(
            "nothing says where the clients' data lies; give simulate.data in the run file or "
            "--client-data, e.g. 'digits?clients={clients}&client={client}'"
        )
    names = _names(section.names, number)
    placed = chain.from_iterable(repeat(tier, n) for tier, n in _counts(runfile, counts, number))
    return Population(
        clients=tuple(
            SimulatedClient(
                name=name,
                tier=tier,
                data=_filled(template, client=str(index), clients=str(number), name=name),
            )
            for index, (name, tier) in enumerate(zip(names, placed, strict=True))
        ),
        threads=threads or section.threads,
    )


def _names(wanted: str | tuple[str, ...], number: int) -> list[str]:
    """Return the names; numbers in them are padded, so that they sort by number."""
    names = list(wanted)
    if isinstance(wanted, str):
        digits = len(str(number - 1))
        names = [_filled(wanted, client=f"{index:0{digits}}") for index in range(number)]
    if len(names) != number:
        raise PopulationError(f"simulate.names holds {len(names)} names for {number} clients")
    for name in names:
        if not _NAME.fullmatch(name):
            raise PopulationError(
                f"{name!r} cannot be a client's name; expected 1 to 64 letters, digits, '.', '_' "
                f"and '-', the first a letter or digit"
            )
    if len(set(names)) != number:
        raise PopulationError(
            "two clients have the same name; put {client} into simulate.names, or name each"
        )
    return names


def _counts(runfile: RunFile, counts: Mapping[str, int], number: int) -> list[tuple[str, int]]:
    """Return how many clients each tier has, in order."""
    known = [tier.name for tier in runfile.tiers]
    unknown = [name for name in counts if name not in known]
    if unknown:
        hint = did_you_mean(unknown[0], known)
        has = f"it has {', '.join(known)}{hint}"
        raise PopulationError(f"the run file has no tier {unknown[0]!r}; {has}")
    if not counts and len(known) == 1:
        return [(known[0], number)]
    if sum(counts.values()) != number:
        share, more = divmod(number, len(known))
        example = ",".join(f"{name}={share + (at < more)}" for at, name in enumerate(known))
        raise PopulationError(
            f"the tiers hold {sum(counts.values())} of {number} clients; say how many are in each, "
            f"e.g. --tiers {example}"
        )
    return list(counts.items())


def _filled(template: str, **values: str) -> str:
    def value(found: re.Match[str]) -> str:
        if found[1] not in values:
            known = ", ".join(f"{{{name}}}" for name in values)
            raise PopulationError(f"{template!r}: {found[0]} is not known; there are {known}")
        return values[found[1]]

    return _BLANKS.sub(value, template)


class Everyone(Presence):
    """Presence of a population: all of it is always here, and nobody else ever."""

    def __init__(self, population: Population, runfile: RunFile, workload_version: int) -> None:
        super().__init__()
        capabilities = Capabilities(
            protocol=0,  # nothing here speaks over a network
            wire=WIRE_VERSION,
            algorithms={runfile.run.algorithm: registry.find(runfile.run.algorithm).version},
            workloads={runfile.workload.name: workload_version},
            encodings=tuple(ENCODING_NAMES),
        )
        self._here = {
            client.name: Arrival(
                name=client.name,
                session="",
                capabilities=capabilities,
                profile=Profile(
                    threads=population.threads or 1, tier=client.tier, labels=runfile.clients.labels
                ),
                seen=0.0,
            )
            for client in sorted(population.clients, key=lambda c: c.name)
        }

    def get(self, name: str) -> Arrival | None:
        """Return what a client says of itself."""
        return self._here.get(name)

    def here(self, now: float) -> dict[str, Arrival]:
        """Return all clients, in order of name."""
        return self._here
