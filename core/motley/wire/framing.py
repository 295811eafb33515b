"""Frames as the protobuf messages that carry them, without protobuf's copies of their data.

A protobuf library copies a frame's data into the message and out of it again: at a MiB a frame that
costs more than all else that is done with it. Written here are the same bytes as its own; read is
the form that all libraries write, and everything else is left to protobuf, which decides.
"""

from __future__ import annotations

from motley.wire.frames import Frame
from motley.wire.stubs import common_pb2, federation_pb2

# Tags of `Frame.offset`, `Frame.data` and `Frame.crc32`, and of `UploadMessage.frame`: number and
# wire type (proto/motley/v1).
_OFFSET, _DATA, _CRC32 = 0x08, 0x12, 0x1D
_UPLOAD_FRAME = 0x12
_LONGEST_VARINT = 9
"""Bytes; of more, protobuf is asked."""


def pack_frame(frame: Frame) -> bytes:
    """Return a frame as `motley.v1.Frame`."""
    return b"".join(_parts(frame))


def pack_upload(message: Frame | federation_pb2.UploadMessage) -> bytes:
    """Return a frame, or the opening of an upload, as `motley.v1.UploadMessage`."""
    if not isinstance(message, Frame):
        return message.SerializeToString()
    parts = _parts(message)
    return b"".join([bytes([_UPLOAD_FRAME]), _varint(sum(map(len, parts))), *parts])


def read_frame(message: bytes) -> Frame:
    """Return the frame in a `motley.v1.Frame`; its data lie in `message`.

    Raises:
        google.protobuf.message.DecodeError: it is no such message.
    """
    return _read(message, 0) or _frame(common_pb2.Frame.FromString(message))


def read_upload(message: bytes) -> Frame | federation_pb2.UploadMessage:
    """Return the frame, or else the message, in a `motley.v1.UploadMessage`.

    Raises:
        google.protobuf.message.DecodeError: it is no such message.
    """
    if message[:1] == bytes([_UPLOAD_FRAME]):
        length, begin = _read_varint(message, 1)
        found = _read(message, begin) if begin + length == len(message) else None
        if found is not None:
            return found
    whole = federation_pb2.UploadMessage.FromString(message)
    return _frame(whole.frame) if whole.WhichOneof("kind") == "frame" else whole


def _parts(frame: Frame) -> list[bytes | memoryview]:
    offset, data, crc32 = frame
    parts: list[bytes | memoryview] = []
    if offset:
        parts += [bytes([_OFFSET]), _varint(offset)]
    if data:
        parts += [bytes([_DATA]), _varint(len(data)), data]
    if crc32:
        parts += [bytes([_CRC32]), crc32.to_bytes(4, "little")]
    return parts


def _read(message: bytes, at: int) -> Frame | None:
    """Return the frame from `at` to the end, if its fields are there once and in order."""
    offset, crc32, end = 0, 0, len(message)
    data = memoryview(b"")
    if at < end and message[at] == _OFFSET:
        offset, at = _read_varint(message, at + 1)
    if at < end and message[at] == _DATA:
        length, at = _read_varint(message, at + 1)
        data = memoryview(message)[at : at + length]
        at += length
    if at + 5 == end and message[at] == _CRC32:
        crc32, at = int.from_bytes(message[at + 1 :], "little"), end
    return Frame(offset, data, crc32) if at == end else None


def _frame(message: common_pb2.Frame) -> Frame:
    return Frame(message.offset, message.data, message.crc32)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends: behind the message if it does not end in it."""
    value = 0
    for place, byte in enumerate(message[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return 0, len(message) + 1
