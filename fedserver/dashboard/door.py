"""Who may ask the dashboard: this machine alone, or browsers that know its token."""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from fedserver.dashboard.token import DashboardToken
from fedserver.errors import AddressError
from fedserver.listeners import is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "motley_dashboard"
COOKIE_SECONDS = 30 * 24 * 3600
LONGEST_FORM = 4096
"""Bytes of a login."""
OPEN_PATHS = ("/login", "/static/page.css", "/static/login.js")
"""What is answered before a browser shows its token."""
HEADERS = {
    # Nothing from elsewhere, nothing inline, in nobody's frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Door:
    """Lets requests through to an application, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, token: DashboardToken | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if self._token is None:
            return None if _asks_loopback(request) else _wrong_host()
        shown = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._token.opens(request.cookies.get(COOKIE, "")) or self._token.is_right(shown):
            return None
        # What routes go by; `request.url` of older versions of Starlette begins with Host.
        path = request.scope["path"]
        if path in OPEN_PATHS:
            return None
        if path == "/":
            return RedirectResponse("/login", status_code=303)
        error = {"code": "forbidden", "error": "log in at /login, or send the token as a bearer's"}
        return JSONResponse(error, status_code=401)


def _asks_loopback(request: Request) -> bool:
    """Return whether the browser meant this machine: a name that others made point here is not."""
    host = request.headers.get("host", "")
    try:
        return is_loopback(host if host.rpartition(":")[2].isdigit() else f"{host}:80")
    except AddressError:
        return False


def _wrong_host() -> Response:
    error = "this page is for this machine alone; ask for it at 127.0.0.1 or localhost"
    return JSONResponse({"code": "forbidden", "error": error}, status_code=403)


def log_in(token: DashboardToken | None) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers the form of the login page."""

    async def answer(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LONGEST_FORM:
                return _login("", 413)
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        if token is not None and not token.is_right(given):
            return _login("That is not the token. It is in the file dashboard-token.", 403)
        response = RedirectResponse("/", status_code=303)
        if token is not None:
            response.set_cookie(
                COOKIE, token.cookie, max_age=COOKIE_SECONDS, httponly=True, samesite="strict"
            )
        return response

    return answer


async def login_page(request: Request) -> Response:
    """Answer with the form that asks for the token."""
    return _login("", 200)


def _login(problem: str, status: int) -> Response:
    page = (Path(__file__).parent / "static" / "login.html").read_text()
    page = page.replace("{problem}", html.escape(problem))
    return Response(page, status_code=status, media_type="text/html")
