"""Masks that change from step to step of local training (FedP3's Q_i).

At step k a client draws q_k evenly from [q, 1], one number for all of its layers, and leaves out a
share 1 - q_k of the weights that it does not send. A weight that is left out keeps its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from motley.prune.masks import Shape, corner, named
from motley.seeding import numpy_generator

Bools = npt.NDArray[np.bool_]
LocalRule = Callable[[Shape, float, bool, np.random.Generator], Bools]
"""(shape, share q_k, whether the tensor reads the model's input, generator) -> mask."""


def uniform(shape: Shape, keep: float, is_first: bool, rng: np.random.Generator) -> Bools:
    """Keep each weight with probability `keep`."""
    kept: Bools = rng.random(shape, dtype=np.float32) < np.float32(keep)
    return kept


def ordered(shape: Shape, keep: float, is_first: bool, rng: np.random.Generator) -> Bools:
    """Keep the corner [:⌈keep · d1⌉, :⌈keep · d2⌉]: uniform ordered dropout.

    The model's first layer keeps all columns: its inputs are data (FjORD, arXiv 2102.13451).
    """
    rows, columns = corner(shape, keep)
    found = np.zeros(shape, np.bool_)
    found[:rows, : shape[1] if is_first else columns] = True
    return found


LOCAL_RULES: dict[str, LocalRule | None] = {"fixed": None, "uniform": uniform, "ordered": ordered}
"""By name; None: the mask that came with the broadcast stays as it is."""


@dataclass(frozen=True, kw_only=True)
class StepMasks:
    """A client's masks by iteration: a pure function of seed, client and iteration."""

    rule: str
    keep: float
    """q, the least share."""
    seed: int
    """The run's."""
    client: str
    shapes: Mapping[str, Shape]
    """Tensors to mask, by name."""
    first: str
    """Name of the tensor that reads the model's input."""

    def share(self, iteration: int) -> float:
        """Return q_k, evenly from [keep, 1]."""
        drawn = numpy_generator(self.seed, "local-keep", self.client, iteration).random()
        return self.keep + (1 - self.keep) * float(drawn)

    def __call__(self, iteration: int) -> dict[str, Bools]:
        """Return the masks of one iteration by tensor; none for the rule "fixed".

        Raises:
            PlanError: there is no such rule.
        """
        rule = named(LOCAL_RULES, self.rule, "rule for local pruning")
        if rule is None:
            return {}
        share, masks = self.share(iteration), {}
        for name, shape in self.shapes.items():
            rng = numpy_generator(self.seed, "local-mask", self.client, iteration, name)
            masks[name] = rule(shape, share, name == self.first, rng)
        return masks
