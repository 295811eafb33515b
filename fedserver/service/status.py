"""Errors as gRPC statuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from grpc import StatusCode
from structlog.stdlib import get_logger

from motley.errors import MotleyError

log = get_logger()

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_STATUS = {
    "name_in_use": StatusCode.ALREADY_EXISTS,
    "version": StatusCode.FAILED_PRECONDITION,
    "unknown_task": StatusCode.NOT_FOUND,
    "unknown_run": StatusCode.NOT_FOUND,
    "protocol": StatusCode.INVALID_ARGUMENT,
    "run_file": StatusCode.INVALID_ARGUMENT,
    "run_state": StatusCode.FAILED_PRECONDITION,
    # Damaged on the way: the same bytes sent again may be right.
    "payload": StatusCode.DATA_LOSS,
    "frame": StatusCode.DATA_LOSS,
    "update": StatusCode.INVALID_ARGUMENT,
}


LONGEST_WORDS = 2000
"""Characters of a refusal: more would not fit the trailers of a call, and fill the log."""


class RefusedError(Exception):
    """Carries a MotleyError to the RPC's end with its status."""


@contextlib.contextmanager
def refusals(method: str, client: str) -> Iterator[None]:
    """Log a MotleyError and let it end the RPC with its status and `[code] message`."""
    try:
        yield
    except MotleyError as error:
        log.warning(
            "refused", method=method, client=client[:64], code=error.code, reason=_words(error)
        )
        raise RefusedError(error) from error


async def abort(context: Context, refusal: RefusedError) -> NoReturn:
    """End an RPC with the status that belongs to the error."""
    error = refusal.args[0]
    status = _STATUS.get(error.code, StatusCode.INTERNAL)
    await context.abort(status, f"[{error.code}] {_words(error)}")


def _words(error: MotleyError) -> str:
    """Return an error's text, cut: it may quote what the caller sent, of any length."""
    text = str(error)
    return text if len(text) <= LONGEST_WORDS else f"{text[:LONGEST_WORDS]}..."
