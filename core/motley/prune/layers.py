"""Layer sets: which units a client sends (FedP3's L_i).

Yi, Gazagnadou, Richtarik, Lyu, "FedP3: Federated Personalized and Privacy-friendly Network Pruning
under Model Heterogeneity", ICLR 2024, arXiv 2404.09816. The last unit is in every set, and
none of the policies chooses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from motley.errors import PlanError
from motley.models.units import UnitTable

Policy = Callable[[Sequence[str], int, int, np.random.Generator], tuple[str, ...]]
"""(units but the last, group, client's index, generator) -> the client's units."""


def final_unit(table: UnitTable) -> str:
    """Return the unit of the model's last parameter; raise PlanError when there is none."""
    units = [row.unit for row in table if row.parameter]
    if not units:
        raise PlanError("the model has no parameters, so there are no layers to choose from")
    return units[-1]


def choosable_units(table: UnitTable) -> tuple[str, ...]:
    """Return the units that hold a parameter, but the last one, in order of the model.

    Raises:
        PlanError: the model has one such unit alone.
    """
    final = final_unit(table)
    units = dict.fromkeys(row.unit for row in table if row.parameter)
    del units[final]
    if not units:
        raise PlanError(f"the model is {final!r} alone; there are no layers to choose from")
    return tuple(units)


def group_of(index: int, clients: int, groups: int) -> int:
    """Return ⌊index · groups / clients⌋: clients in order of name, in groups of like size.

    >>> [group_of(index, 10, 4) for index in range(10)]
    [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    """
    return index * groups // clients


def consecutive(units: Sequence[str], group: int, count: int) -> tuple[str, ...]:
    """Return `count` units from the group's own on, beginning again behind the last.

    >>> consecutive(["a", "b", "c", "d"], 3, 2)
    ('a', 'd')
    """
    chosen = {(group + step) % len(units) for step in range(min(count, len(units)))}
    return tuple(units[place] for place in sorted(chosen))


def _overlapping(count: int) -> Policy:
    return lambda units, group, index, rng: consecutive(units, group, count)


def _mixed(*counts: int) -> Policy:
    """Clients in turn send so many layers as `counts` says."""
    return lambda units, group, index, rng: consecutive(units, group, counts[index % len(counts)])


def _random(count: int) -> Policy:
    def choose(
        units: Sequence[str], group: int, index: int, rng: np.random.Generator
    ) -> tuple[str, ...]:
        places = rng.choice(len(units), size=min(count, len(units)), replace=False)
        return tuple(units[place] for place in sorted(places.tolist()))

    return choose


POLICIES: dict[str, Policy] = {
    "lowerb": _overlapping(1),
    "opu2": _overlapping(2),
    "opu3": _overlapping(3),
    "mixed": _mixed(1, 2, 3),
    "mixed23": _mixed(2, 3),
    "random2": _random(2),
    "all": lambda units, group, index, rng: tuple(units),
}
"""By name: LowerB, OPU2, OPU3, OPU1-2-3, OPU2-3, two at random in each round, all (UpperB)."""
