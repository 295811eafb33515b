"""How many values travel: exactly, and in the paper's closed form."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from motley.models.units import TensorInfo, UnitTable
from motley.plan import Plan
from motley.prune.masks import PRUNING_RULES, UPLOAD_RULES, is_prunable, is_pruned, named


@dataclass(frozen=True)
class Traffic:
    """Values of one client's round."""

    up: int
    down: int


def traffic(table: UnitTable, plan: Plan) -> Traffic:
    """Return how many values a plan sends up and down, biases included."""
    sparsity = plan.sparsity
    up = down = 0
    for row in table:
        sent = not plan.upload or row.unit in plan.upload
        if sent and sparsity is not None and sparsity.up_keep < 1:
            up += _sparse(row, sparsity.up_keep, sparsity.up_rule, sparsity.final)
        elif sent:
            up += row.size
        if is_pruned(row, plan):
            assert sparsity is not None
            # How many are kept does not depend on which: any values do.
            rule = named(PRUNING_RULES, sparsity.down_rule, "pruning rule")
            down += rule(np.zeros(row.shape, np.float32), sparsity.down_keep, 0).kept
        elif not plan.withholds(row.unit):
            down += row.size
    return Traffic(up, down)


def closed_form(total: int, own: int, keep: float) -> float:
    """Return the paper's count of values down, U + p (Total - U); arXiv 2404.09816, appendix B.3.

    Args:
        total: values of the whole model.
        own: U, values of the client's layers and the last one; also what goes up.
        keep: p.
    """
    return own + keep * (total - own)


def _sparse(row: TensorInfo, keep: float, rule: str, final: str) -> int:
    if not is_prunable(row) or row.unit == final:
        return prod(row.shape)
    return named(UPLOAD_RULES, rule, "rule for sparse uploads")(row.shape, keep, 0).kept
