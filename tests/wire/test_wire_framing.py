"""Frames as messages: the bytes and the meaning are protobuf's, whatever comes."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from motley.wire import Frame
from motley.wire.framing import pack_frame, pack_upload, read_frame, read_upload
from motley.wire.stubs import common_pb2, federation_pb2

frames = st.builds(
    Frame,
    offset=st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1)),
    data=st.binary(max_size=300),
    crc32=st.integers(0, 2**32 - 1),
)


def by_protobuf(frame: Frame) -> common_pb2.Frame:
    return common_pb2.Frame(offset=frame.offset, data=frame.data, crc32=frame.crc32)


def parts(found: Frame | common_pb2.Frame) -> tuple[int, bytes, int]:
    return found.offset, bytes(found.data), found.crc32


def test_golden_bytes() -> None:
    frame = Frame(300, b"ab", 0x01020304)
    assert pack_frame(frame).hex(" ") == "08 ac 02 12 02 61 62 1d 04 03 02 01"
    assert pack_upload(frame).hex(" ") == "12 0c 08 ac 02 12 02 61 62 1d 04 03 02 01"
    assert pack_frame(Frame(0, b"", 0)) == b""


@given(frames)
def test_packed_as_protobuf_packs(frame: Frame) -> None:
    message = by_protobuf(frame)
    assert pack_frame(frame) == message.SerializeToString()
    whole = federation_pb2.UploadMessage(frame=message)
    assert pack_upload(frame) == whole.SerializeToString()


@given(frames)
def test_read_back(frame: Frame) -> None:
    assert parts(read_frame(pack_frame(frame))) == parts(frame)
    found = read_upload(pack_upload(frame))
    assert isinstance(found, Frame)
    assert parts(found) == parts(frame)


def test_data_are_not_copied() -> None:
    message = pack_upload(Frame(7, b"x" * 100, 5))
    found = read_upload(message)
    assert isinstance(found, Frame)
    assert isinstance(found.data, memoryview)
    assert found.data.obj is message


def test_an_opening_is_protobufs() -> None:
    opening = federation_pb2.UploadMessage(open=federation_pb2.UploadOpen(name="a", samples=3))
    assert pack_upload(opening) == opening.SerializeToString()
    assert read_upload(opening.SerializeToString()) == opening


def _damage(message: bytes, at: int, byte: int, cut: int, tail: bytes) -> bytes:
    changed = bytearray(message)
    if changed:
        changed[at % len(changed)] = byte
        del changed[len(changed) - cut % len(changed) :]
    return bytes(changed) + tail


damaged = st.builds(
    _damage,
    st.one_of(frames.map(pack_frame), frames.map(pack_upload), st.binary(max_size=40)),
    st.integers(0, 400),
    st.integers(0, 255),
    st.integers(0, 12),
    st.one_of(st.just(b""), st.binary(max_size=12), frames.map(pack_frame)),
)


@given(damaged)
def test_any_bytes_mean_what_protobuf_says(message: bytes) -> None:
    try:
        expected = common_pb2.Frame.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            read_frame(message)
    else:
        assert parts(read_frame(message)) == parts(expected)
    try:
        whole = federation_pb2.UploadMessage.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            read_upload(message)
        return
    found = read_upload(message)
    if whole.WhichOneof("kind") == "frame":
        assert isinstance(found, Frame)
        assert parts(found) == parts(whole.frame)
    else:
        assert found == whole


def test_a_length_beyond_the_message_is_refused() -> None:
    for message in (b"\x12\x05ab", b"\x12", b"\x08" + b"\xff" * 12, b"\x12\xff\xff\xff\xff\x0fab"):
        with pytest.raises(DecodeError):
            read_frame(message)
        with pytest.raises(DecodeError):
            read_upload(b"\x12" + bytes([len(message)]) + message)
