"""Figures for Prometheus: docs/operations.md lists them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import func, select
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from fedserver.rounds.closing import OPEN_TASKS
from fedserver.rounds.engine import Engine
from fedserver.rounds.reader import Reader
from fedserver.service.transfers import Turns
from fedserver.storage.database import DatabaseThread
from fedserver.storage.schema import clients, rounds, runs, tasks
from motley import __version__

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send
    from structlog.typing import EventDict, WrappedLogger

LAG_EVERY = 0.25
"""Seconds between two looks at how late the event loop is."""
LAG_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What the record says at one moment."""

    rounds: dict[tuple[str, str, str], int]
    """By run, kind and status."""
    tasks: dict[tuple[str, str, str], int]
    """By run, kind and status."""
    traffic: dict[str, tuple[int, int]]
    """Payload bytes to and from clients, by run."""
    runs: dict[str, int]
    """By status."""
    known: int
    """Clients that ever checked in."""
    here: int


def counted(engine: Engine) -> Counts:
    """Count what is on record, and who is here."""
    key = runs.c.name, rounds.c.kind, rounds.c.status
    task = runs.c.name, tasks.c.kind, tasks.c.status
    sums = func.sum(tasks.c.bytes_down), func.sum(tasks.c.bytes_up)
    with engine.database.connect() as tx:
        by_round = select(*key, func.count()).join_from(rounds, runs).group_by(*key)
        # Once over the tasks: there may be a hundred thousand of them.
        by_task = select(*task, func.count(), *sums).join_from(tasks, runs).group_by(*task)
        found = tx.execute(by_task).all()
        states = tx.execute(select(runs.c.status, func.count()).group_by(runs.c.status)).all()
        traffic: dict[str, tuple[int, int]] = {}
        for row in found:
            down, up = traffic.get(row[0], (0, 0))
            traffic[row[0]] = (down + (row[4] or 0), up + (row[5] or 0))
        return Counts(
            rounds={(r[0], r[1], r[2]): r[3] for r in tx.execute(by_round)},
            tasks={(r[0], r[1], r[2]): r[3] for r in found},
            traffic=traffic,
            runs={r[0]: r[1] for r in states},
            known=tx.scalar(select(func.count()).select_from(clients)) or 0,
            here=len(engine.presence.here(engine.clock.monotonic())),
        )


class Metrics:
    """All figures of one server: from its record, its memory and its process."""

    def __init__(self, engine: Engine, database: DatabaseThread, turns: Turns) -> None:
        self._engine, self._database, self._turns = engine, database, turns
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._lag = Histogram(
            "motley_event_loop_lag_seconds",
            "How late the event loop comes to what is due.",
            buckets=LAG_BUCKETS,
            registry=self._registry,
        )
        self._refused = Counter(
            "motley_refused",
            "Calls that were refused, by method and code of the error.",
            ["method", "code"],
            registry=self._registry,
        )
        self._counts: Counts | None = None
        self._registry.register(self)

    def note(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Count refusals, which no record holds, as the log says them: a structlog processor."""
        if event.get("event") == "refused":
            self._refused.labels(str(event.get("method")), str(event.get("code"))).inc()
        return event

    @contextlib.asynccontextmanager
    async def measured(self) -> AsyncIterator[None]:
        """Measure the event loop's lag meanwhile."""
        watching = asyncio.create_task(self._watch_lag())
        try:
            yield
        finally:
            watching.cancel()

    async def _watch_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_EVERY
            await asyncio.sleep(LAG_EVERY)
            self._lag.observe(max(0.0, loop.time() - due))

    def text(self, counts: Counts) -> bytes:
        """Return everything in Prometheus' text format."""
        self._counts = counts
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield what is not counted as it happens: the record's figures and this moment's."""
        counts = self._counts
        if counts is None:
            return
        yield from _of_record(counts)
        yield _gauge(
            "motley_database_queue", "Work for the database thread.", self._database.queued
        )
        transfers = GaugeMetricFamily(
            "motley_transfers_open", "Uploads and downloads.", labels=["state"]
        )
        transfers.add_metric(["moving"], self._turns.moving)
        transfers.add_metric(["waiting"], self._turns.waiting)
        yield transfers
        held = float(bool(self._engine.trouble))
        yield _gauge("motley_disk_trouble", "1 while the disk keeps rounds from moving.", held)
        build = GaugeMetricFamily("motley_build", "The server's version.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build


def _of_record(counts: Counts) -> Iterator[Metric]:
    states = GaugeMetricFamily("motley_runs", "Runs.", labels=["status"])
    for status, number in sorted(counts.runs.items()):
        states.add_metric([status], number)
    yield states
    ended = CounterMetricFamily(
        "motley_rounds", "Rounds that ended: closed, abandoned.", labels=["run", "kind", "status"]
    )
    for key, number in sorted(counts.rounds.items()):
        if key[2] in ("closed", "abandoned"):
            ended.add_metric(key, number)
    yield ended
    updates = CounterMetricFamily(
        "motley_updates",
        "Training tasks that ended: counted, surplus, late, failed (refused ones too).",
        labels=["run", "status"],
    )
    still = GaugeMetricFamily(
        "motley_tasks_open", "Tasks that have not ended.", labels=["run", "kind", "status"]
    )
    for key, number in sorted(counts.tasks.items()):
        if key[2] in OPEN_TASKS:
            still.add_metric(key, number)
        elif key[1] == "train" and key[2] != "accepted":
            updates.add_metric([key[0], key[2]], number)
    yield updates
    yield still
    traffic = CounterMetricFamily(
        "motley_payload_bytes", "Payload bytes that travelled.", labels=["run", "direction"]
    )
    for run, (down, up) in sorted(counts.traffic.items()):
        traffic.add_metric([run, "down"], down)
        traffic.add_metric([run, "up"], up)
    yield traffic
    people = GaugeMetricFamily("motley_clients", "Clients on record.", labels=["state"])
    people.add_metric(["here"], counts.here)
    people.add_metric(["away"], max(0, counts.known - counts.here))
    yield people


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


class MetricsApp:
    """Answers `GET /metrics`."""

    def __init__(self, metrics: Metrics, reader: Reader) -> None:
        self._metrics, self._reader = metrics, reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        response = await self._answer(Request(scope))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.scope["path"] != "/metrics" or request.method not in ("GET", "HEAD"):
            return PlainTextResponse("the figures are at /metrics\n", status_code=404)
        text = self._metrics.text(await self._reader(counted))
        return Response(text, media_type=CONTENT_TYPE)
