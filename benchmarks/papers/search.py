"""Finds settings that a paper does not give, with the same number of candidates for each method."""

from __future__ import annotations

import json
from concurrent.futures import Executor, Future, as_completed
from pathlib import Path

import results
import rows
import tables
from pydantic import BaseModel, ConfigDict
from tables import Row, Search, Table, Value

from fedserver.errors import DataDirectoryError
from fedserver.storage.database import lock_directory


class Scored(BaseModel):
    """One candidate and what it reached."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: int
    """From 1 on."""
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


def scored(table: Table, stage: int, row: str) -> list[Scored]:
    """Return what a row's candidates of a stage reached, in their order, as far as they were run.

    Scores of what is no candidate any more stay on record and count for nothing.
    """
    assert table.search is not None
    candidates = table.search.stages[stage - 1].candidates.get(row, ())
    tried = {
        _key(one.settings): one for one in found(table.name).get(row, []) if one.stage == stage
    }
    return [tried[key] for key in map(_key, candidates) if key in tried]


def _key(settings: dict[str, Value]) -> str:
    return json.dumps(settings, sort_keys=True)


def best(table: Table, row: str) -> dict[str, Value] | None:
    """Return the settings that scored best in the last stage that has begun for a row.

    None while candidates of that stage are still to be scored; empty where nothing was searched.
    """
    stages = table.search.stages if table.search is not None else ()
    for number, stage in reversed(list(enumerate(stages, 1))):
        tried = scored(table, number, row)
        if tried and len(tried) < len(stage.candidates[row]):
            return None
        ended = [one for one in tried if one.settings not in stage.diverged.get(row, ())]
        if ended:
            return dict(max(ended, key=lambda one: one.accuracy).settings)
    return {}


def chosen(table: Table, row: Row) -> dict[str, Value]:
    """Return the searched settings that a row takes: its own, or those of `settings_of`.

    Empty where there are none, and while a search is under way: the run file stays as it is.
    """
    own = best(table, row.name)
    if own is None or own or not row.settings_of:
        return own or {}
    owner, _, name = row.settings_of.rpartition("/")
    other = tables.load(owner) if owner else table
    return chosen(other, other.row(name))


def search(table: Table, folder: Path, only: list[str], device: str, pool: Executor) -> None:
    """Score every candidate that has no score yet; a second call goes on.

    Args:
        table: has a [search].
        folder: of the data sets.
        only: these rows' candidates alone; empty: all.
        device: what trains; candidates of rows for a GPU are scored on one, and others are not.
        pool: does as many at the same time as it has workers.

    Raises:
        SystemExit: another search of the table is under way, or a candidate failed.
    """
    if table.search is None:
        raise SystemExit(f"{table.name} has no [search]: its settings are the paper's or another's")
    place = rows.WORK / table.name / "search"
    place.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_directory(place)
    except DataDirectoryError:
        raise SystemExit(f"another search of {table.name} is under way; wait for it") from None
    with lock:
        try:
            _search(table, table.search, folder, only, device, pool)
        finally:
            apply()


def _search(
    table: Table, plan: Search, folder: Path, only: list[str], device: str, pool: Executor
) -> None:
    started: dict[Future[float], tuple[int, str, dict[str, Value]]] = {}
    for number, stage in enumerate(plan.stages, 1):
        for row, candidates in stage.candidates.items():
            if (only and row not in only) or table.row(row).gpu != (device != "cpu"):
                continue
            done = [one.settings for one in scored(table, number, row)]
            for settings in candidates:
                if settings not in done:
                    one = pool.submit(rows.score, table, plan, stage, row, settings, folder, device)
                    started[one] = (number, row, settings)
    failed: BaseException | None = None
    for one in as_completed(started):
        if one.cancelled():
            continue
        try:
            accuracy = one.result()
        except BaseException as error:
            # Those that run yet are worth their time: their scores are kept, no other begins.
            failed = failed or error
            for other in started:
                other.cancel()
            continue
        _keep(table, *started[one], accuracy)
    if failed is not None:
        raise failed


def _keep(table: Table, number: int, row: str, settings: dict[str, Value], accuracy: float) -> None:
    """Put a score on record."""
    entries = found(table.name)
    entries.setdefault(row, []).append(Scored(stage=number, settings=settings, accuracy=accuracy))
    _write(table.name, entries)
    listed = ", ".join(f"{name} {value}" for name, value in settings.items())
    rows.console.print(f"  stage {number}, {row}: {accuracy:.2f} % at {listed}")


def apply() -> None:
    """Write the best settings into the run files of all tables.

    A row whose run file changes loses its results, which are of other settings.
    """
    for table in map(tables.load, tables.names()):
        for row in table.rows:
            settings = {} if row.same_as else chosen(table, row)
            if not settings:
                continue
            path = tables.HERE / table.name / f"{row.name}.toml"
            text = path.read_text()
            changed = rows.laid_over(text, settings)
            if changed != text:
                path.write_text(changed)
                results.forget(table.name, row.name)
                rows.console.print(f"  {table.name}/{row.name} takes {settings}")


def _write(table: str, entries: dict[str, list[Scored]]) -> None:
    path = _path(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {row: [one.model_dump() for one in tried] for row, tried in entries.items()}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def _path(table: str) -> Path:
    return results.RESULTS / table / "search.json"
