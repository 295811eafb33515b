"""What a simulation says while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedserver.display import metrics_text
from motley.logs import in_words
from motley.task import TaskSpec


@dataclass(frozen=True, kw_only=True)
class Closed:
    """A round that ended."""

    round: int
    kind: str
    status: str
    reason: str
    counted: int
    """Updates, or answers of an evaluation."""
    seconds: Mapping[str, float]
    """By phase."""
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, row: Any, counted: int) -> Closed:
        """Build from a row of the `rounds` table."""
        return cls(
            round=row.round,
            kind=row.kind,
            status=row.status,
            reason=row.reason,
            counted=counted,
            seconds=row.phases,
            metrics=row.metrics,
        )


class Watcher(Protocol):
    """Hears what happens."""

    def answered(self, task: TaskSpec) -> None:
        """A client is done with a task."""

    def closed(self, found: Closed) -> None:
        """A round ended."""


class Silence:
    """Says nothing."""

    def answered(self, task: TaskSpec) -> None:
        """Say nothing."""

    def closed(self, found: Closed) -> None:
        """Say nothing."""


class Lines:
    """A line for each round that ended; for pipes and files."""

    def __init__(self, console: Console, name: str, rounds: int) -> None:
        self._console, self._name, self._rounds = console, name, rounds

    def answered(self, task: TaskSpec) -> None:
        """Say nothing: a thousand lines a round help nobody."""

    def closed(self, found: Closed) -> None:
        """Print what came of a round."""
        why = f": {found.reason}" if found.reason else ""
        said = (
            f"{found.counted} clients, {sum(found.seconds.values()):.2f} s, "
            f"{metrics_text(found.metrics)}"
        )
        self._console.print(
            f"{self._name} round {found.round}/{self._rounds} {found.kind} {found.status}{why}: "
            f"{said.rstrip(', ')}",
            highlight=False,
            soft_wrap=True,
        )


class Bar:
    """A bar over the rounds of a run, with what the present one does; for a terminal."""

    def __init__(self, progress: Progress, name: str, rounds: int) -> None:
        self._progress, self._answers, self._said = progress, 0, ""
        self._bar = progress.add_task(str(in_words(name)), total=rounds, doing="preparing")

    @classmethod
    def columns(cls) -> tuple[Any, ...]:
        """Return the columns of the display that it is shown in."""
        return (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[doing]}", markup=False),
        )

    def answered(self, task: TaskSpec) -> None:
        """Count an answer."""
        self._answers += 1
        doing = f"{task.kind.value} {task.round}: {self._answers} clients"
        self._progress.update(self._bar, doing=f"{doing}, {self._said}".rstrip(", "))

    def closed(self, found: Closed) -> None:
        """Show a round's figures."""
        self._answers, self._said = 0, str(in_words(metrics_text(found.metrics)))
        if found.kind == "train" and found.status == "closed":
            self._progress.update(self._bar, completed=found.round)
