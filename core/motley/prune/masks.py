"""Which values of a tensor are kept: pruning on the way down, sparse uploads.

Both are functions of what server and client know, so that a mask never has to be guessed: the
state and the keep ratio on the way down (FedP3's P_i), a seed on the way up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from motley.errors import PlanError, did_you_mean
from motley.models.units import TensorInfo
from motley.plan import Plan
from motley.seeding import derive
from motley.sparsity import Sparsity
from motley.wire import Mask, PrefixMask, SeededMask, smallest_mask

FloatArray = npt.NDArray[np.float32]
Shape = tuple[int, ...]
T = TypeVar("T")
DataFreeRule = Callable[[Shape, float, int], Mask]
"""(shape, share to keep, seed) -> mask."""
PruningRule = Callable[[FloatArray, float, int], Mask]
"""(values, share to keep, seed) -> mask."""


def by_magnitude(values: FloatArray, keep: float, seed: int = 0) -> Mask:
    """Keep the int(keep · n) largest magnitudes of a tensor of n values.

    Of equal ones those with the lowest index are kept. FedP3's global pruning, P_i.
    """
    magnitudes = np.abs(values.reshape(-1))
    count = int(keep * magnitudes.size)
    bits = np.zeros(magnitudes.size, np.bool_)
    if count:
        edge = np.partition(magnitudes, magnitudes.size - count)[magnitudes.size - count]
        np.greater(magnitudes, edge, out=bits)
        ties = np.flatnonzero(magnitudes == edge)
        bits[ties[: count - np.count_nonzero(bits)]] = True
    return smallest_mask(bits)


def at_random(shape: Shape, keep: float, seed: int) -> Mask:
    """Keep int(keep · n) values drawn from the seed."""
    size = math.prod(shape)
    return SeededMask(size, int(keep * size), seed)


def ordered(shape: Shape, keep: float, seed: int = 0) -> Mask:
    """Keep the corner [:⌈s d1⌉, :⌈s d2⌉] of a tensor [d1, d2, ...], s = √keep.

    Ordered dropout's sub-matrix (FjORD, arXiv 2102.13451), at about the share asked for.
    """
    rows, columns = corner(shape, math.sqrt(keep))
    return PrefixMask.corner(shape, rows, columns)


def corner(shape: Shape, scale: float) -> tuple[int, int]:
    """Return (⌈scale · d1⌉, ⌈scale · d2⌉) of a shape of two or more dimensions."""
    # A hair less: 0.7 · 10 must be 7, whatever its last bit says.
    return math.ceil(scale * shape[0] - 1e-9), math.ceil(scale * shape[1] - 1e-9)


UPLOAD_RULES: dict[str, DataFreeRule] = {"random": at_random, "ordered": ordered}
"""Rules for sparse uploads by name; they see no data."""


def _on_values(rule: DataFreeRule) -> PruningRule:
    return lambda values, keep, seed: rule(values.shape, keep, seed)


PRUNING_RULES: dict[str, PruningRule] = {
    "magnitude": by_magnitude,
    "random": _on_values(at_random),
    "ordered": _on_values(ordered),
}
"""Rules for pruning on the way down by name."""


def is_prunable(row: TensorInfo) -> bool:
    """Tell whether a tensor can be pruned: weights can, biases, scales and statistics cannot."""
    return row.parameter and row.dtype == "float32" and len(row.shape) >= 2


def is_pruned(row: TensorInfo, plan: Plan) -> bool:
    """Tell whether a tensor comes down pruned: a weight of a unit that the client does not send."""
    sparsity = plan.sparsity
    if sparsity is None or sparsity.down_keep == 1 or not plan.upload:
        return False
    return is_prunable(row) and row.unit not in plan.upload


@dataclass(frozen=True, kw_only=True)
class UploadMasks:
    """The masks of one client's sparse upload, as both sides make them."""

    sparsity: Sparsity
    run_seed: int
    round: int
    client: str

    @classmethod
    def of(cls, plan: Plan, run_seed: int, round: int, client: str) -> UploadMasks | None:
        """Return the masks of a plan; None when its upload is whole."""
        if plan.sparsity is None or plan.sparsity.up_keep == 1:
            return None
        return cls(sparsity=plan.sparsity, run_seed=run_seed, round=round, client=client)

    def __call__(self, row: TensorInfo) -> Mask | None:
        """Return which values of a tensor go up; None: all.

        Raises:
            PlanError: the plan names a rule that does not exist.
        """
        if not is_prunable(row) or row.unit == self.sparsity.final:
            return None
        rule = named(UPLOAD_RULES, self.sparsity.up_rule, "rule for sparse uploads")
        seed = derive(self.run_seed, "upload-mask", self.round, self.client, row.name)
        return rule(row.shape, self.sparsity.up_keep, seed)


def named(table: dict[str, T], name: str, what: str) -> T:
    """Return an entry of a table of strategies; raise PlanError when there is none."""
    if name not in table:
        hint = did_you_mean(name, table)
        raise PlanError(f"no {what} is called {name!r}; there are {', '.join(table)}{hint}")
    return table[name]
