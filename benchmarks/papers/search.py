"""Finds settings that a paper does not give, with the same number of candidates for each method."""

from __future__ import annotations

import json
from pathlib import Path

import results
import rows
from pydantic import BaseModel, ConfigDict
from tables import Table, Value


class Scored(BaseModel):
    """One candidate and what it reached."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, Value]
    accuracy: float
    """Mean over clients on validation samples, in per cent; 0 where the run did not end."""


def found(table: str) -> dict[str, list[Scored]]:
    """Return what was scored so far, by row."""
    path = _path(table)
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    return {row: [Scored.model_validate(one) for one in tried] for row, tried in content.items()}


def best(table: str, row: str) -> dict[str, Value]:
    """Return the settings that scored best for a row, or none."""
    tried = found(table).get(row, [])
    return dict(max(tried, key=lambda one: one.accuracy).settings) if tried else {}


def search(table: Table, folder: Path, only: list[str]) -> None:
    """Score every candidate that has no score yet; a second call goes on."""
    if table.search is None:
        raise SystemExit(f"{table.name} has no [search]: its settings are the paper's")
    for row, candidates in table.search.candidates.items():
        for settings in candidates:
            scored = found(table.name)
            if (only and row not in only) or any(
                one.settings == settings for one in scored.get(row, [])
            ):
                continue
            accuracy = rows.score(table, row, settings, folder)
            scored.setdefault(row, []).append(Scored(settings=settings, accuracy=accuracy))
            _write(table.name, scored)
            listed = ", ".join(f"{name} {value}" for name, value in settings.items())
            rows.console.print(f"  {row}: {accuracy:.2f} % at {listed}")


def _write(table: str, scored: dict[str, list[Scored]]) -> None:
    path = _path(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {row: [one.model_dump() for one in tried] for row, tried in scored.items()}
    path.write_text(json.dumps(content, indent=1) + "\n")


def _path(table: str) -> Path:
    return results.RESULTS / table / "search.json"
