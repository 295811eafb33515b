"""Finds the insides of large gRPC messages in a plain HTTP/2 stream.

In plain text only the data of frames carries a checksum: a bit that flips in a task's id, a sample
count or a metric is a different, valid message, and no receiver can tell. So corruption on plain
connections hits the middle of large messages alone, which is always frame data. Under TLS every
byte is protected, and corruption may hit any (`Link.corrupt(..., anywhere=True)`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LARGE = 2000
"""Bytes of a message of which over 9 in 10 are one frame's data."""
_DATA = 0
_HEADER = 9
_PREFIX = 5


@dataclass
class _Message:
    """Where a stream stands inside its length-prefixed messages."""

    prefix: bytearray = field(default_factory=bytearray)
    size: int = 0
    at: int = 0


class Http2Scanner:
    """Follows one direction of one connection, chunk by chunk."""

    def __init__(self, *, from_client: bool) -> None:
        self._skip = len(PREFACE) if from_client else 0
        self._header = bytearray()
        self._left = 0
        self._message: _Message | None = None
        self._streams: dict[int, _Message] = {}

    def middles(self, chunk: bytes) -> list[int]:
        """Return the offsets in `chunk` that are the middle byte of a large message."""
        found: list[int] = []
        at = 0
        while at < len(chunk):
            if self._skip:
                taken = min(self._skip, len(chunk) - at)
                self._skip -= taken
                at += taken
            elif self._left:
                taken = min(self._left, len(chunk) - at)
                if self._message is not None:
                    found += self._data(self._message, chunk, at, taken)
                self._left -= taken
                at += taken
            else:
                taken = min(_HEADER - len(self._header), len(chunk) - at)
                self._header += chunk[at : at + taken]
                at += taken
                if len(self._header) == _HEADER:
                    self._begin()
        return found

    def _begin(self) -> None:
        self._left = int.from_bytes(self._header[:3], "big")
        stream = int.from_bytes(self._header[5:9], "big") & 0x7FFFFFFF
        is_data = self._header[3] == _DATA
        self._message = self._streams.setdefault(stream, _Message()) if is_data else None
        self._header.clear()

    def _data(self, message: _Message, chunk: bytes, at: int, length: int) -> list[int]:
        found = []
        end = at + length
        while at < end:
            if message.at >= message.size:
                taken = min(_PREFIX - len(message.prefix), end - at)
                message.prefix += chunk[at : at + taken]
                at += taken
                if len(message.prefix) == _PREFIX:
                    message.size = int.from_bytes(message.prefix[1:], "big")
                    message.at = 0
                    message.prefix.clear()
                continue
            taken = min(message.size - message.at, end - at)
            middle = message.size // 2
            if message.size >= LARGE and message.at <= middle < message.at + taken:
                found.append(at + middle - message.at)
            message.at += taken
            at += taken
        return found
