"""Where a round's time goes: the steps of the client that a round waited for, from the logs.

The phases end: when the task is in hand; its payload there and hashed; it is decoded, touched,
encoded and written by the training process; in the outbox; checked and on record at the server;
when the new state is; when the next round is open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

Event = Mapping[str, Any]
PHASES = ("give out", "download", "work", "keep", "upload", "fold", "open next")
COLOURS = ("#b8b8b8", "#4c78a8", "#f58518", "#e45756", "#72b7b2", "#54a24b", "#9d755d")


def when(event: Event) -> float:
    """Return an event's time in seconds."""
    return datetime.fromisoformat(str(event["timestamp"]).replace("Z", "+00:00")).timestamp()


def phases(server: Sequence[Event], clients: Mapping[str, Sequence[Event]]) -> dict[str, float]:
    """Return the median seconds of each phase over all rounds but the first."""
    opened = {e["round"]: when(e) for e in server if e["event"] == "round_opened"}
    closed = {e["round"]: when(e) for e in server if e["event"] == "round_closed"}
    found: dict[str, list[float]] = {name: [] for name in PHASES}
    for number in sorted(closed)[1:]:
        if number + 1 not in opened:
            break
        received = [
            (when(e), str(e["client"]))
            for e in server
            if e["event"] == "update_received" and opened[number] < when(e) < closed[number]
        ]
        if not received:
            continue
        last, client = max(received)
        marks = _marks(clients[client], number)
        if marks is None:
            continue
        given, started, done, sending = marks
        times = (opened[number], given, started, done, sending, last, closed[number])
        ends = (*times[1:], opened[number + 1])
        for name, early, late in zip(PHASES, times, ends, strict=True):
            found[name].append(late - early)
    return {name: median(values) if values else 0.0 for name, values in found.items()}


def _marks(events: Sequence[Event], number: int) -> tuple[float, float, float, float] | None:
    """Return when a client had its task, began the work, ended it, and began to send."""
    given = done = sending = seconds = 0.0
    for event in events:
        if event["event"] == "task_started" and event["round"] == number:
            given = when(event)
        elif event["event"] == "task_done" and event["round"] == number:
            done, seconds = when(event), float(event["seconds"])
        elif event["event"] == "upload_started" and done and not sending:
            sending = when(event)
    return (given, done - seconds, done, sending) if given and done and sending else None


def draw(cases: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw a bar for each case: the share of each phase, with the whole in seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.9 + 0.55 * len(cases)))
    labels = list(cases)
    for row, label in enumerate(labels):
        whole, left = sum(cases[label].values()) or 1.0, 0.0
        for name, colour in zip(PHASES, COLOURS, strict=True):
            share = cases[label][name] / whole
            axes.barh(row, share, left=left, color=colour, label=name if row == 0 else None)
            if share > 0.06:
                axes.text(
                    left + share / 2,
                    row,
                    f"{cases[label][name]:.2g} s",
                    ha="center",
                    va="center",
                    fontsize=8,
                )
            left += share
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("part of a round, as the client that it waited for saw it")
    axes.legend(
        ncols=len(PHASES), fontsize=8, loc="lower center", bbox_to_anchor=(0.45, 1.0), frameon=False
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
