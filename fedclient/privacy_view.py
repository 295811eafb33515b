"""The privacy ledger as `fedclient privacy` shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedclient.errors import StateDirectoryError
from fedclient.privacy import PrivacyFiles
from fedclient.state import was_started
from motley.privacy.guarantee import NEIGHBOURING, UNITS
from motley.privacy.ledger import Entry, spent

USUAL_DELTA = 1e-5
"""δ of the sum over all runs, where the owner gave no budget."""


def privacy_record(state: Path) -> dict[str, Any]:
    """Return what one client spent, as plain values (docs/privacy.md lists them).

    Raises:
        StateDirectoryError: no client ever ran with this directory.
        PrivacyLedgerError: what was spent cannot be read.
    """
    if not was_started(state):
        raise StateDirectoryError(
            f"no client was started with state directory {state}; expected one that "
            f"`fedclient start` made, as given there with --state"
        )
    files = PrivacyFiles(state / "privacy")
    budget, entries = files.budget(), files.entries()
    delta = budget.delta if budget else USUAL_DELTA
    return {
        "state": str(state),
        "neighbouring": NEIGHBOURING,
        "unit": "record",
        "spent_epsilon": spent(entries, delta, "record"),
        "delta": delta,
        "budget": budget.model_dump() if budget else None,
        "tasks": len(entries),
        "runs": [_run([e for e in entries if e.run == run]) for run in _runs(entries)],
    }


def _runs(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(entry.run for entry in entries))


def _run(entries: Sequence[Entry]) -> dict[str, Any]:
    first, unit = entries[0], UNITS[entries[0].mode]
    return {
        "run": first.run,
        "name": first.run_name,
        "mode": first.mode,
        "unit": unit,
        "tasks": len(entries),
        "steps": sum(entry.steps for entry in entries),
        "noise_multiplier": min(entry.noise_multiplier for entry in entries),
        "spent_epsilon": spent(entries, first.delta, unit),
        "epsilon": first.epsilon,
        "delta": first.delta,
        "last": entries[-1].at,
    }


def as_text(record: dict[str, Any]) -> str:
    """Return a record for people."""
    budget = record["budget"]
    bound = f"of {budget['epsilon']:g}" if budget else "(no budget set)"
    lines = [
        f"{record['state']}",
        f"  all private runs, one record: epsilon {record['spent_epsilon']:.4g} {bound} "
        f"at delta {record['delta']:g}, {record['tasks']} tasks",
    ]
    for run in record["runs"]:
        lines.append(
            f"  {run['name']} ({run['run']}), {run['mode']}, one {run['unit']}: epsilon "
            f"{run['spent_epsilon']:.4g} of {run['epsilon']:g} at delta {run['delta']:g}, "
            f"{run['tasks']} tasks, {run['steps']} noisy steps"
        )
    return "\n".join(lines)
