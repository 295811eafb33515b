"""Which faults were exercised at which step, how often."""

from __future__ import annotations

from typing import Any

from fault_points import POINTS

ACTIONS = ("kill", "stop", "delay", "enospc")
Table = dict[str, dict[str, int]]
"""Count by "moment action", by "role:point"."""


def coverage(fired: list[dict[str, Any]]) -> Table:
    """Count the faults that took place."""
    table: Table = {point.key: {} for point in POINTS}
    for fault in fired:
        row = table.setdefault(f"{fault['role']}:{fault['point']}", {})
        cell = f"{fault['moment']} {fault['action']}"
        row[cell] = row.get(cell, 0) + 1
    return table


def missing(table: Table) -> list[str]:
    """Return the points at which nothing ever happened, and kills that no moment saw."""
    never = []
    for point in POINTS:
        for moment in point.moments:
            if not table[point.key].get(f"{moment} kill"):
                never.append(f"{point.key} {moment} kill")
    return never


def print_coverage(table: Table) -> None:
    """Print a row for each point; a cell holds counts before/during/after."""
    print(f"{'fault point':34}" + "".join(f"{action:>14}" for action in ACTIONS))
    for key in (point.key for point in POINTS):
        row = table[key]
        cells = []
        for action in ACTIONS:
            counts = [row.get(f"{m} {action}", 0) for m in ("before", "during", "after")]
            cells.append("/".join(map(str, counts)))
        print(f"{key:34}" + "".join(f"{cell:>14}" for cell in cells))
    for key in sorted(set(table) - {point.key for point in POINTS}):
        counts = ", ".join(f"{cell.split()[1]} {n}" for cell, n in sorted(table[key].items()))
        print(f"{key:34} {counts}")
