"""Choosing clients so that every layer has somebody who sends it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np


def covering_sample(
    sets: Sequence[Collection[str]], count: int, rng: np.random.Generator
) -> list[int]:
    """Return `count` places in `sets`, in order, that cover every layer where so many can.

    In random order, whoever adds most layers that nobody has is taken, until all are covered;
    the rest are taken as they come. Clients with many layers are taken a little more often so.

    >>> covering_sample([{"a"}, {"a"}, {"b"}], 2, np.random.default_rng(0))[-1]
    2
    """
    waiting = [int(place) for place in rng.permutation(len(sets))]
    chosen: list[int] = []
    covered: set[str] = set()
    while waiting and len(chosen) < count:
        gains = [len(set(sets[place]) - covered) for place in waiting]
        place = waiting.pop(gains.index(max(gains)))
        chosen.append(place)
        covered |= set(sets[place])
    return sorted(chosen)
