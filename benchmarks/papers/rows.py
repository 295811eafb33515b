"""Runs rows: one after the other, each to be stopped at any point and to go on there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import results
from rich.console import Console
from tables import Search, Stage, Table, Value

from fedserver.simulate.population import population_of
from fedserver.simulate.progress import Closed
from fedserver.simulate.simulation import simulate
from motley.errors import TrainingError
from motley.runfile import parse
from motley.task import TaskSpec

WORK = Path(__file__).parent.parent / "out" / "papers"
CHECK = "check"
"""Name of each table's short row."""
PACED = 3
"""Rounds after which a row's pace is known."""
Settings = Mapping[str, Value]
console = Console(stderr=True, highlight=False, soft_wrap=True)


class TooLongError(Exception):
    """A row cannot end in the time it is given."""


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds."""

    row: float
    queue: float
    """From `began` on."""
    began: float

    @property
    def left(self) -> float:
        """What the queue has left."""
        return self.began + self.queue - time.monotonic()


class Pace:
    """Watches a run; ends it when it cannot be over in time."""

    def __init__(self, name: str, rounds: int, limits: Limits) -> None:
        self._name, self._rounds, self._limits = name, rounds, limits
        self._began = time.monotonic()
        self._first = -1

    def answered(self, task: TaskSpec) -> None:
        """Say nothing."""

    def closed(self, found: Closed) -> None:
        """Tell how far it is; raise TooLongError."""
        if found.kind != "train" or found.status != "closed":
            return
        if self._first < 0:
            self._first = found.round - 1
        spent, done = time.monotonic() - self._began, found.round - self._first
        a_round, to_do = spent / done, self._rounds - found.round
        if found.round % 20 == 0:
            console.print(
                f"  {self._name}: round {found.round}/{self._rounds}, {spent:.0f} s, "
                f"{a_round * to_do:.0f} s to go"
            )
        if done < PACED:
            return
        if a_round * self._rounds > self._limits.row or a_round * to_do > self._limits.left:
            raise TooLongError(
                f"{self._name} takes {a_round * self._rounds / 60:.0f} minutes, "
                f"{a_round * to_do / 60:.0f} of them to go; it has "
                f"{min(self._limits.row, self._limits.left) / 60:.0f} (--row-minutes, --minutes)"
            )


def queue(
    tables: list[Table], only: list[str], most: int, *, gpu: bool = False
) -> Iterator[tuple[Table, str, int]]:
    """Yield table, row and seed of what is to be run: first seeds first, then in order of worth.

    `most`: seeds of a row at most; `gpu`: whether those that need a GPU, or the others.
    """
    waiting = [
        (seed, row.worth, number, place, table)
        for number, table in enumerate(tables)
        for place, row in enumerate(table.rows)
        for seed in range(min(table.seeds, most))
        if row.gpu == gpu and not (row.missing or row.same_as) and (not only or row.name in only)
    ]
    for seed, _, _, place, table in sorted(waiting, key=lambda entry: entry[:4]):
        yield table, table.rows[place].name, seed


def run_row(
    table: Table, row: str, seed: int, folder: Path, limits: Limits, device: str = "cpu"
) -> results.Result:
    """Run a row for one seed, or go on with it; return its result, which is saved.

    Raises:
        TooLongError: it cannot end in the time it is given; on a processor, what is done is kept.
    """
    text = table.run_file(row, seed)
    runfile = parse(text, f"{table.name}/{row}.toml")
    place = None
    if device == "cpu":
        place = WORK / table.name / f"{row}-{seed}-{results.digest(text)[:8]}"
        place.mkdir(parents=True, exist_ok=True)
    # On a GPU states' files take as long as the training, and a row takes minutes: they stay in
    # memory, and a row that is stopped starts anew.
    found = simulate(
        text,
        population=population_of(
            runfile, data=table.data_of(table.data or runfile.simulate.data, folder)
        ),
        directory=place,
        batch=table.batch,
        device=device,
        watcher=Pace(f"{table.name}/{row} seed {seed}", runfile.run.rounds, limits),
    )
    if found.status != "finished":
        raise SystemExit(f"{table.name}/{row} seed {seed} is {found.status}: {found.reason}")
    result = results.result_of(row, seed, text, found.record, measure=table.measure, device=device)
    results.save(table.name, result)
    if place is not None:
        shutil.rmtree(place)
    return result


def score(
    table: Table,
    search: Search,
    stage: Stage,
    row: str,
    settings: Settings,
    folder: Path,
    device: str = "cpu",
) -> float:
    """Return the validation accuracy in per cent that a row reaches with other settings.

    0 where training diverges; whatever else ends the run ends the search, and says why.
    """
    whole = table.run_file(row, 0)
    text = shortened(whole, stage.rounds, stage.clients, {**stage.settings, **settings})
    # Shared out over all of the table's clients: the stage's have what theirs will be, not more.
    everyone = str(parse(whole).clients.expected)
    data = table.data_of(table.data, folder).replace("{clients}", everyone)
    data += f"{'&' if '?' in data else '?'}validate={search.validate_share}"
    runfile = parse(text)
    tiers = {runfile.tiers[0].name: stage.clients}
    found = simulate(
        text,
        population=population_of(runfile, data=data, tiers=tiers, clients=stage.clients),
        batch=table.batch,
        device=device,
    )
    if found.status != "finished":
        if f": {TrainingError.code}: " not in found.reason:
            raise SystemExit(f"{table.name}/{row} is {found.status}: {found.reason[:500]}")
        return 0.0
    result = results.result_of(row, 0, text, found.record, measure=table.measure)
    return result.mean


def run_check(table: Table) -> results.Result:
    """Run a table's short row, which needs no data but what is bundled."""
    text = table.run_file(CHECK, 0)
    runfile = parse(text, f"{table.name}/{CHECK}.toml")
    population = population_of(runfile, data=table.data_of(runfile.simulate.data, None))
    found = simulate(text, population=population, batch=len(population.clients))
    reasons = [client["reason"] for client in found.record["clients"] if client["reason"]]
    if found.status != "finished" or reasons:
        raise SystemExit(f"{table.name}/{CHECK} is {found.status}: {found.reason} {reasons[:1]}")
    return results.result_of(CHECK, 0, text, found.record, measure=table.measure)


def shortened(text: str, rounds: int, clients: int, settings: Settings) -> str:
    """Return a run file of fewer rounds and clients, never tested on the way, other settings."""
    given = {"rounds": rounds, "expected": clients, "every": 0}
    return laid_over(_replaced(text, given)[0], settings)


def laid_over(text: str, settings: Settings) -> str:
    """Return a run file with other settings; the same text when it has them already."""
    text, missing = _replaced(text, settings)
    new = "".join(f"\n{name} = {toml(value)}" for name, value in missing.items())
    return text.replace("[settings]", f"[settings]{new}", 1)


def _replaced(text: str, given: Settings) -> tuple[str, Settings]:
    """Return the text with the values of keys that it has replaced, and the other ones."""
    lines, missing = [], dict(given)
    for line in text.splitlines():
        key = line.partition("=")[0].strip()
        if key in missing:
            line = f"{key} = {toml(missing.pop(key))}"
        lines.append(line)
    return "\n".join(lines) + "\n", missing


def toml(value: Value) -> str:
    """Return a value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
