"""Errors as gRPC statuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from grpc import StatusCode
from structlog.stdlib import get_logger

from fedserver.errors import InternalError, LimitError, StorageError
from fedserver.storage.trouble import disk_trouble
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
    "offset": StatusCode.OUT_OF_RANGE,
    "rate": StatusCode.RESOURCE_EXHAUSTED,
    "crowded": StatusCode.RESOURCE_EXHAUSTED,
    "quota": StatusCode.RESOURCE_EXHAUSTED,
    "set_aside": StatusCode.RESOURCE_EXHAUSTED,
    "idle": StatusCode.UNAVAILABLE,
    "forbidden": StatusCode.PERMISSION_DENIED,
    "revoked": StatusCode.PERMISSION_DENIED,
    "token": StatusCode.PERMISSION_DENIED,
    "enrolled": StatusCode.ALREADY_EXISTS,
    "identity": StatusCode.INVALID_ARGUMENT,
    # A client that connects anew, with the certificate that it has by now, may be let in.
    "expired": StatusCode.UNAVAILABLE,
    "busy": StatusCode.RESOURCE_EXHAUSTED,
    "certificates": StatusCode.RESOURCE_EXHAUSTED,
    # The disk is full: the client tries again, and goes on where it was.
    "storage": StatusCode.RESOURCE_EXHAUSTED,
}

RETRY_AFTER = "retry-after"
"""Trailing metadata: seconds after which a call that was turned away may come again."""


LONGEST_WORDS = 2000
"""Characters of a refusal: more would not fit the trailers of a call, and fill the log."""


class RefusedError(Exception):
    """Carries a MotleyError to the RPC's end with its status."""


@contextlib.contextmanager
def refusals(method: str, client: str) -> Iterator[None]:
    """Log a MotleyError and let it end the RPC with its status and `[code] message`.

    So do errors of the disk, of the database's too. Any other exception is a fault of this server:
    it is logged with its stack trace, and the caller hears no more than that.
    """
    try:
        yield
    except (RefusedError, grpc.aio.BaseError):
        raise  # logged further in; or the connection is gone, and nobody hears an answer
    except MotleyError as error:
        log.warning(
            "refused", method=method, client=client[:64], code=error.code, reason=_words(error)
        )
        raise RefusedError(error) from error
    except Exception as error:
        reason = disk_trouble(error)
        if reason:
            log.error("disk_trouble", method=method, client=client[:64], reason=reason)
            raise RefusedError(StorageError(reason)) from error
        log.exception("call_failed", method=method, client=client[:64])
        raise RefusedError(
            InternalError(
                f"{method} failed by a fault of the server ({type(error).__name__}); its log has "
                f"the details under call_failed. It may work when tried again"
            )
        ) from error


async def abort(context: Context, refusal: RefusedError) -> NoReturn:
    """End an RPC with the status that belongs to the error."""
    await abort_with(context, refusal.args[0])


async def abort_with(context: Context, error: MotleyError) -> NoReturn:
    """End an RPC with the status that belongs to the error, from within it or from outside."""
    status = _STATUS.get(error.code, StatusCode.INTERNAL)
    metadata: tuple[tuple[str, str], ...] = ()
    if isinstance(error, LimitError):
        metadata = ((RETRY_AFTER, f"{error.retry_after:.3f}"),)
    await context.abort(status, f"[{error.code}] {_words(error)}", metadata)


def _words(error: MotleyError) -> str:
    """Return an error's text, cut: it may quote what the caller sent, of any length."""
    text = str(error)
    return text if len(text) <= LONGEST_WORDS else f"{text[:LONGEST_WORDS]}..."
