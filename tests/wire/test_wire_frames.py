import hashlib
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motley.errors import PayloadError
from motley.wire import Frame, FrameError, FrameWriter, iter_frames, partial_path

DATA = bytes(range(256)) * 40 + b"end"
DIGEST = hashlib.sha256(DATA).digest()


def frame(offset, data):
    return Frame(offset, data, zlib.crc32(data))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def test_a_file_arrives(source, tmp_path):
    target = tmp_path / "target"
    with FrameWriter(target, len(DATA)) as writer:
        for piece in iter_frames(source, frame_size=1000):
            assert writer.write(piece) == writer.received == piece.offset + len(piece.data)
        assert not target.exists()
        assert writer.finish(DIGEST) == target
    assert target.read_bytes() == DATA
    assert not partial_path(target).exists()


@settings(deadline=None)  # it writes and syncs: the disk may be busy
@given(st.integers(1, 4000), st.lists(st.integers(1, 9), max_size=5))
def test_a_file_arrives_over_any_breaks(tmp_path_factory, size, breaks):
    folder = tmp_path_factory.mktemp("frames")
    source, target = folder / "source", folder / "target"
    source.write_bytes(DATA)
    for count in breaks:
        with FrameWriter(target, len(DATA)) as writer:
            for _, piece in zip(range(count), iter_frames(source, writer.received, size)):  # noqa: B905
                writer.write(piece)
                writer.sync()
    with FrameWriter(target, len(DATA)) as writer:
        for piece in iter_frames(source, writer.received, size):
            writer.write(piece)
        writer.finish(DIGEST)
    assert target.read_bytes() == DATA


def test_an_empty_file(tmp_path):
    (tmp_path / "source").touch()
    assert list(iter_frames(tmp_path / "source")) == []
    with FrameWriter(tmp_path / "target", 0) as writer:
        writer.finish(hashlib.sha256().digest())
    assert (tmp_path / "target").read_bytes() == b""


def test_frames_start_at_the_offset(source):
    assert b"".join(piece.data for piece in iter_frames(source, 777, 100)) == DATA[777:]
    assert list(iter_frames(source, len(DATA))) == []
    for offset in (-1, len(DATA) + 1):
        with pytest.raises(FrameError, match="offset"):
            list(iter_frames(source, offset))
    with pytest.raises(ValueError, match="frame_size"):
        list(iter_frames(source, 0, 0))


@pytest.mark.parametrize(
    ("piece", "cause"),
    [
        (frame(0, b"abc"), "expected 3"),
        (frame(4, b"abc"), "expected 3"),
        (frame(3, bytes(8)), "up to 11 of 10"),
        (Frame(3, b"abc", zlib.crc32(b"abd")), "damaged"),
    ],
)
def test_a_frame_that_does_not_fit_changes_nothing(tmp_path, piece, cause):
    with FrameWriter(tmp_path / "t", 10) as writer:
        writer.write(frame(0, b"xyz"))
        with pytest.raises(FrameError, match=cause):
            writer.write(piece)
        assert writer.received == 3
    assert partial_path(tmp_path / "t").read_bytes() == b"xyz"


def test_missing_bytes_are_named_and_kept(tmp_path):
    with FrameWriter(tmp_path / "t", 10) as writer:
        writer.write(frame(0, b"xyz"))
        with pytest.raises(FrameError, match="3 of 10"):
            writer.finish(DIGEST)
        writer.write(frame(3, b"0123456"))
        writer.finish(hashlib.sha256(b"xyz0123456").digest())


def test_another_digest_removes_the_partial_file(tmp_path):
    with FrameWriter(tmp_path / "t", 3) as writer:
        writer.write(frame(0, b"xyz"))
        with pytest.raises(PayloadError, match="announced was"):
            writer.finish(DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_a_longer_leftover_is_started_anew(tmp_path):
    partial_path(tmp_path / "t").write_bytes(b"something else")
    with FrameWriter(tmp_path / "t", 3) as writer:
        assert writer.received == 0
        writer.write(frame(0, b"xyz"))
        writer.finish(hashlib.sha256(b"xyz").digest())


def test_a_refusing_disk_leaves_no_torn_frame(tmp_path):
    class Full:
        """A stream that takes two bytes of a write, then reports a full disk."""

        def __init__(self, stream):
            self._stream, self._writes = stream, 0

        def write(self, data):
            self._writes += 1
            if self._writes > 1:
                raise OSError("no space left")
            return self._stream.write(bytes(data[:2]))

        def __getattr__(self, name):
            return getattr(self._stream, name)

    with FrameWriter(tmp_path / "t", 6) as writer:
        writer.write(frame(0, b"abc"))
        plain = writer._stream
        writer._stream = Full(plain)
        with pytest.raises(OSError, match="no space"):
            writer.write(frame(3, b"def"))
        assert writer.received == 3
        writer._stream = plain
        writer.write(frame(3, b"def"))
        writer.finish(hashlib.sha256(b"abcdef").digest())
