"""The dashboard's HTTP application: a page, and the records behind it as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from fedserver.dashboard.answers import Answers
from fedserver.dashboard.door import Door, log_in, login_page
from fedserver.dashboard.events import Event, EventFeed
from fedserver.dashboard.series import client_series, round_columns
from fedserver.dashboard.token import DashboardToken
from fedserver.errors import ProtocolError, WidthsError
from fedserver.rounds.driver import Driver
from fedserver.rounds.engine import ENDED, Engine
from fedserver.rounds.reader import Reader
from fedserver.rounds.view import list_clients, list_runs, round_record, run_record
from fedserver.widths import round_widths
from motley.errors import MotleyError

STATIC = Path(__file__).parent / "static"
SILENCE_SECONDS = 15.0
"""An event stream says at least so often that it is there, so that a dead one is noticed."""
PRESENCE_SECONDS = 5.0
"""Who is here changes without a change of the record."""
ENDED_SECONDS = 60.0
KIND, METRIC = "evaluate", "accuracy"
"""What is drawn unless a page asks for another figure."""
NO_HISTORY = 2**62
"""No round's record has so high a number."""
_STATUS = {"unknown_run": 404}


class Dashboard:
    """Answers the page's questions from the record, through a reader of its own."""

    def __init__(self, reader: Reader, feed: EventFeed, token: DashboardToken | None) -> None:
        """Make it; `token` is what a browser must know, None where only this machine asks."""
        self._answers, self._feed, self._token = Answers(reader), feed, token

    @contextlib.asynccontextmanager
    async def heeding(self, driver: Driver) -> AsyncIterator[None]:
        """Notice changes of the record meanwhile, and have the newest run's answers ready."""
        tasks = [asyncio.create_task(self._heed(driver)), asyncio.create_task(self._prepare())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _heed(self, driver: Driver) -> None:
        with driver.watching() as changed:
            while True:
                await changed.wait()
                changed.clear()
                self._answers.changed()

    async def _prepare(self) -> None:
        """Ask what the first page will: after a start all of it is cold."""
        for run in json.loads(await self._answers(list_runs))[:1]:
            await self._answers(_run_alone, run["id"])
            await self._answers(round_columns, run["id"], 0)
            await self._answers(client_series, run["id"], KIND, METRIC, 0)

    def app(self) -> Door:
        """Return the application behind its door."""
        routes = [
            Route("/", self._page),
            Route("/login", login_page),
            Route("/login", log_in(self._token), methods=["POST"]),
            Route("/api/runs", self._runs),
            Route("/api/clients", self._clients),
            Route("/api/runs/{run}", self._run),
            Route("/api/runs/{run}/rounds", self._rounds),
            Route("/api/runs/{run}/series", self._series),
            Route("/api/runs/{run}/widths", self._widths),
            Route("/api/events", self._events),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
        refused: Mapping[Any, Any] = {MotleyError: _refused}
        return Door(Starlette(routes=routes, exception_handlers=refused), self._token)

    async def _page(self, request: Request) -> Response:
        return Response((STATIC / "index.html").read_bytes(), media_type="text/html")

    async def _runs(self, request: Request) -> Response:
        return _json(await self._answers(list_runs))

    async def _clients(self, request: Request) -> Response:
        return _json(await self._answers(list_clients, good_for=PRESENCE_SECONDS))

    async def _run(self, request: Request) -> Response:
        """One run as `show --json` prints it, but for its history, which charts want as columns."""
        run = request.path_params["run"]
        known = json.loads(await self._answers(list_runs))
        ended = any(entry["id"] == run and entry["status"] in ENDED for entry in known)
        # Of a run that goes on, time runs out too.
        good_for = ENDED_SECONDS if ended else PRESENCE_SECONDS
        return _json(await self._answers(_run_alone, run, good_for=good_for))

    async def _rounds(self, request: Request) -> Response:
        after = _whole(request, "after")
        return _json(await self._answers(round_columns, request.path_params["run"], after))

    async def _series(self, request: Request) -> Response:
        wanted = request.query_params
        kind, metric = wanted.get("kind", KIND), wanted.get("metric", METRIC)
        run, after = request.path_params["run"], _whole(request, "after")
        return _json(await self._answers(client_series, run, kind, metric, after))

    async def _widths(self, request: Request) -> Response:
        number = _whole(request, "round")
        return _json(await self._answers(_widths_of, request.path_params["run"], number))

    async def _events(self, request: Request) -> Response:
        """Server-sent events; a browser that comes back says what it saw last."""
        last = request.headers.get("last-event-id") or request.query_params.get("after", "0")
        number = int(last) if last.isascii() and last.isdigit() else 0

        async def stream() -> AsyncIterator[str]:
            async for found in self._feed.follow(number, SILENCE_SECONDS):
                yield "".join(map(_message, found)) or ": still here\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")


def _run_alone(engine: Engine, run: str) -> dict[str, Any]:
    return run_record(engine, run, after_round_id=NO_HISTORY)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _widths_of(engine: Engine, run: str, number: int) -> dict[str, Any]:
    record = round_record(engine, run, number)
    try:
        return {**round_widths(record, number).to_json(), "reason": ""}
    except WidthsError as error:
        # No fault of the page's: it asks of every run.
        told = {"run": record["name"], "round": number or record["round"], "status": ""}
        return {**told, "layers": [], "clients": [], "reason": str(error)}


def _message(event: Event) -> str:
    return f"id: {event.number}\ndata: {event.text}\n\n"


def _whole(request: Request, name: str) -> int:
    text = request.query_params.get(name)
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ProtocolError(f"{name}={text[:40]!r}: expected a whole number from 0")
    return int(text)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, MotleyError)
    content = {"code": error.code, "error": str(error)}
    return JSONResponse(content, status_code=_STATUS.get(error.code, 400))
