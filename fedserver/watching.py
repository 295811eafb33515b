"""What a server shows to those who watch it: the dashboard and the metrics, on their own ports."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from structlog.stdlib import get_logger

from fedserver.dashboard.app import Dashboard
from fedserver.dashboard.events import EventFeed
from fedserver.dashboard.token import FILE, DashboardToken
from fedserver.http_listener import HttpListener
from fedserver.identity.authority import outward_address
from fedserver.listeners import is_loopback, split_address
from fedserver.metrics import Metrics, MetricsApp
from fedserver.rounds.driver import Driver
from fedserver.rounds.engine import Engine
from fedserver.rounds.reader import Reader
from fedserver.service.transfers import Turns
from fedserver.storage.database import DatabaseThread
from fedserver.tracking.desk import open_tracker, tracked
from motley.logs import listened_to

log = get_logger()


@dataclass(frozen=True, kw_only=True)
class WatchPorts:
    """Where a server can be watched. `HOST:PORT`, or "" for nowhere."""

    dashboard: str = ""
    metrics: str = ""
    track: tuple[str, ...] = ()
    """Trackers of experiments that are told of closed rounds, `KIND:WHERE`."""


class Watching:
    """The open ports, and what they stand on."""

    def __init__(self, root: Path, engine: Engine, driver: Driver) -> None:
        self._root, self._engine, self._driver = root, engine, driver
        self._reader = Reader(root, engine)
        self._ends = contextlib.AsyncExitStack()
        self._ends.callback(self._reader.close)
        self.listening: list[str] = []
        """`dashboard HOST:PORT` and `metrics HOST:PORT`, as far as they are open."""

    async def open(self, ports: WatchPorts, database: DatabaseThread, turns: Turns) -> None:
        """Open the ports.

        Raises:
            AddressError: one cannot be opened.
            DataDirectoryError: the dashboard's token cannot be kept.
            TrackerError: a tracker is not one, or its package is not there.
        """
        if ports.track:
            trackers = [open_tracker(text) for text in ports.track]
            await self._ends.enter_async_context(tracked(trackers, self._reader, self._driver))
        if ports.dashboard:
            await self._open_dashboard(ports.dashboard)
        if ports.metrics:
            metrics = Metrics(self._engine, database, turns)
            self._ends.enter_context(listened_to(metrics.note))
            await self._ends.enter_async_context(metrics.measured())
            app = MetricsApp(metrics, self._reader)
            listener = await HttpListener.open(app, ports.metrics, "--metrics")
            self._ends.push_async_callback(listener.close)
            self.listening.append(f"metrics {listener.address}")
            log.info("metrics", address=f"http://{listener.address}/metrics")

    async def _open_dashboard(self, address: str) -> None:
        token = None if is_loopback(address) else DashboardToken.of(self._root)
        feed = EventFeed()
        self._ends.enter_context(listened_to(feed))
        dashboard = Dashboard(self._reader, feed, token)
        await self._ends.enter_async_context(dashboard.heeding(self._driver))
        listener = await HttpListener.open(dashboard.app(), address, "--dashboard")
        self._ends.push_async_callback(listener.close)
        self._ends.callback(feed.close)
        self.listening.append(f"dashboard {listener.address}")
        log.info("dashboard", address=f"http://{listener.address}/", token=_where(token))
        if token is not None and token.is_new:
            # Not to the log, which may be sent elsewhere. A browser keeps what stands after # .
            print(f"dashboard: {_link(listener.address)}login#{token.secret}", flush=True)

    async def close(self) -> None:
        """Close everything, the newest first."""
        await self._ends.aclose()


def _where(token: DashboardToken | None) -> str:
    return f"in {FILE} of the data directory" if token else "none: this machine alone"


def _link(address: str) -> str:
    host, port = split_address(address)
    if host in ("0.0.0.0", "[::]"):
        host = outward_address()
    return f"http://{host}:{port}/"
