"""Packed frames that several downloads share."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from fedserver.service.broadcasts import Broadcasts
from motley.wire.framing import read_frame

DATA = bytes(range(256)) * 40


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    path = tmp_path / "digest"
    path.write_bytes(DATA)
    return path


def test_a_frame_is_read_once_for_all(payload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    real = os.pread

    def counted(file: int, size: int, offset: int) -> bytes:
        reads.append(offset)
        return real(file, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    broadcasts = Broadcasts()
    with broadcasts.reading(payload) as first, broadcasts.reading(payload) as second:
        for offset in range(0, len(DATA), 1000):
            size = min(1000, len(DATA) - offset)
            packed = first(offset, size)
            assert second(offset, size) is packed
            frame = read_frame(packed)
            assert frame.offset == offset
            assert bytes(frame.data) == DATA[offset : offset + size]
            assert frame.crc32 == zlib.crc32(frame.data)
    assert reads == list(range(0, len(DATA), 1000))


def test_other_sizes_and_files_are_other_frames(payload: Path) -> None:
    other = payload.with_name("other")
    other.write_bytes(DATA[::-1])
    broadcasts = Broadcasts()
    with broadcasts.reading(payload) as mine, broadcasts.reading(other) as theirs:
        assert bytes(read_frame(mine(0, 10)).data) == DATA[:10]
        assert bytes(read_frame(mine(0, 20)).data) == DATA[:20]
        assert bytes(read_frame(theirs(0, 10)).data) == DATA[::-1][:10]


def test_memory_is_bounded_and_goes_with_the_last_reader(payload: Path) -> None:
    broadcasts = Broadcasts(most=3500)
    with broadcasts.reading(payload) as packed:
        for offset in range(0, 10_000, 1000):
            packed(offset, 1000)
            assert broadcasts.held <= 3500
        assert broadcasts.held > 2500
        with broadcasts.reading(payload):
            pass
        assert broadcasts.held > 2500
    assert broadcasts.held == 0


def test_a_removed_file_is_read_to_its_end(payload: Path) -> None:
    broadcasts = Broadcasts()
    with broadcasts.reading(payload) as packed:
        payload.unlink()
        assert bytes(read_frame(packed(5, 10)).data) == DATA[5:15]
