"""Layers that a round leaves as they are, because no client sends them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from structlog.stdlib import get_logger

from fedserver.rounds.context import RunContext
from motley.models.units import UnitTable
from motley.plan import Plan

log = get_logger()


def uncovered(table: UnitTable, plans: Sequence[Plan]) -> list[str]:
    """Return the units with parameters that no plan uploads, in order of the model."""
    if any(not plan.upload for plan in plans):
        return []
    sent = {unit for plan in plans for unit in plan.upload}
    units = dict.fromkeys(row.unit for row in table if row.parameter)
    return [unit for unit in units if unit not in sent]


def warn_of_uncovered(context: RunContext, current: Any, plans: Sequence[Plan], what: str) -> str:
    """Log the units that no update of a round holds, and return what its record says of them.

    `what` is "planned" or "counted": which updates are meant. All are covered: "".
    """
    missing = uncovered(context.global_table, plans)
    if not missing or current.kind != "train":
        return ""
    log.warning("layers_uncovered", run=current.run, round=current.round, what=what, layers=missing)
    return f"no {what} update holds {', '.join(missing)}: they keep their values"
