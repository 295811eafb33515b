"""How requests are read and replies written: frames without copies, and bad bytes refused by name.

gRPC's own answer to bytes that it cannot decode is UNKNOWN, without a word in the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from fedserver.errors import ProtocolError
from fedserver.service.status import RefusedError, abort, refusals
from motley.wire.framing import read_upload

_READERS = {"/motley.v1.Federation/Upload": read_upload}
_WRITERS = {"/motley.v1.Federation/Download": bytes}
"""Of methods whose frames do not go through protobuf: an upload's are `Frame`s, a download's are
packed already."""


@dataclass(frozen=True)
class _Undecodable:
    """Stands for a request that could not be read."""

    error: ProtocolError


class Decoding(grpc.aio.ServerInterceptor):
    """Ends an RPC with INVALID_ARGUMENT when a message of it cannot be decoded.

    For handlers that are coroutines; those with many replies write them to the context.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the method's handler with a guard around it; None for an unknown method."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        path = handler_call_details.method
        method = path.rpartition("/")[2]
        read = _READERS.get(path, handler.request_deserializer)
        guarded = {
            "request_deserializer": _reader(read, method),
            "response_serializer": _WRITERS.get(path, handler.response_serializer),
        }
        if handler.unary_unary:
            guarded["unary_unary"] = _one_request(handler.unary_unary, method)
        elif handler.unary_stream:
            guarded["unary_stream"] = _one_request(handler.unary_stream, method)
        elif handler.stream_stream:
            guarded["stream_stream"] = _stream(handler.stream_stream)
        return handler._replace(**guarded)


def _reader(read: Callable[[bytes], Any], method: str) -> Callable[[bytes], Any]:
    def safe(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return _Undecodable(
                ProtocolError(
                    f"{len(data)} bytes that are no message of {method}; is the client "
                    f"of the same version of motley-fl?"
                )
            )

    return safe


async def _refuse(request: _Undecodable, method: str, context: Any) -> None:
    try:
        with refusals(method, str(context.peer())):
            raise request.error
    except RefusedError as refusal:
        await abort(context, refusal)


def _one_request(serve: Any, method: str) -> Any:
    async def guarded(request: Any, context: Any) -> Any:
        if isinstance(request, _Undecodable):
            await _refuse(request, method, context)
        return await serve(request, context)

    return guarded


def _stream(serve: Any) -> Any:
    async def checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            if isinstance(request, _Undecodable):
                raise request.error  # inside the service, which refuses it
            yield request

    async def guarded(requests: AsyncIterator[Any], context: Any) -> None:
        await serve(checked(requests), context)

    return guarded
