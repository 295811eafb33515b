from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest

from motley.data.idx import find_idx, read_idx, read_qmnist_labels
from motley.errors import DataError

CODES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}


def idx_bytes(values: np.ndarray, code: int) -> bytes:
    lengths = struct.pack(f">{values.ndim}I", *values.shape)
    body = values.astype(np.dtype(CODES[code]).newbyteorder(">")).tobytes()
    return bytes([0, 0, code, values.ndim]) + lengths + body


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_type_in_native_order(code: int, zipped: bool, tmp_path: Path) -> None:
    values = np.arange(6).reshape(2, 3)
    path = tmp_path / ("a.gz" if zipped else "a")
    content = idx_bytes(values, code)
    path.write_bytes(gzip.compress(content) if zipped else content)
    read = read_idx(path)
    npt.assert_array_equal(read, values)
    assert read.dtype == np.dtype(CODES[code])
    assert read.dtype.isnative


def test_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(bytes.fromhex("00000b01 00000002 0102 fffe"))
    npt.assert_array_equal(read_idx(path), np.array([258, -2], np.int16))


GOOD = idx_bytes(np.arange(6).reshape(2, 3), 0x0C)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing; an IDX file starts with 00 00"),
        (b"\0\0", "starts with 00 00;"),
        (b"\x89PNG", "starts with 89 50 4e 47"),
        (b"\0\0\x0a\x01" + b"\0" * 8, "starts with 00 00 0a 01"),
        (b"\0\0\x08\0" + b"\0" * 8, "number of dimensions"),
        (b"\0\0\x08\x40" + b"\0" * 256, "number of dimensions"),
        (GOOD[:9], "ends within its header of 2 lengths"),
        (GOOD[:-1], r"only 23 bytes of values; its header announces int32 \[2, 3\], 24 bytes"),
        (GOOD + b"x", "more bytes of values"),
        # A header that claims an exabyte allocates nothing.
        (b"\0\0\x08\x02" + b"\xff" * 8 + b"abc", "only 3 bytes"),
    ],
)
def test_damaged_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "a")
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "a.gz")


@pytest.mark.parametrize("cut", [0, 5, 20, -4])
def test_damaged_gzip(cut: int, tmp_path: Path) -> None:
    whole = gzip.compress(GOOD)
    (tmp_path / "a.gz").write_bytes(whole[:cut] if cut else b"not gzip at all")
    with pytest.raises(DataError, match="expected an IDX file"):
        read_idx(tmp_path / "a.gz")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_idx(tmp_path / "a")
    with pytest.raises(DataError, match=r"holds neither a nor a\.gz"):
        find_idx(tmp_path, "a")


def test_plain_goes_before_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.gz").touch()
    assert find_idx(tmp_path, "a") == tmp_path / "a.gz"
    (tmp_path / "a").touch()
    assert find_idx(tmp_path, "a") == tmp_path / "a"


def test_qmnist_labels(tmp_path: Path) -> None:
    rows = np.arange(16).reshape(2, 8)
    (tmp_path / "q").write_bytes(idx_bytes(rows, 0x0C))
    npt.assert_array_equal(read_qmnist_labels(tmp_path / "q"), rows)
    (tmp_path / "r").write_bytes(idx_bytes(rows.reshape(4, 4), 0x0C))
    with pytest.raises(
        DataError, match=r"int32 \[4, 4\]; a QMNIST label file holds int32 \[N, 8\]"
    ):
        read_qmnist_labels(tmp_path / "r")
