"""The dashboard's door alone, without a server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.datastructures import URL
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from fedserver.dashboard.door import Door
from fedserver.dashboard.token import DashboardToken


def answered(path: str, host: str) -> int:
    """Return the status that a browser without a token is answered with."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", host.encode())]
    scope = {"type": "http", "method": "GET", "scheme": "http", "query_string": b""}
    scope |= {"path": path, "raw_path": path.encode(), "root_path": "", "headers": headers}
    door = Door(PlainTextResponse("figures"), DashboardToken(secret="x" * 43, is_new=False))
    asyncio.run(door(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    "host", ["example:9480", "x/login?", "x/login#", "x/static/page.css?", "x/static/login.js?"]
)
def test_what_host_says_opens_no_path(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def url_of(request: Request) -> URL:  # as Starlette up to 1.0.0 has it
        return URL(f"http://{request.headers['host']}{request.scope['path']}")

    monkeypatch.setattr(Request, "url", property(url_of))
    assert answered("/api/clients", host) == 401
    assert answered("/", host) == 303
    assert answered("/login", host) == 200
