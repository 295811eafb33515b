"""IDX, the format of MNIST and Fashion-MNIST, and the label files of QMNIST.

An IDX file is big-endian: two zero bytes, a type code, the number of dimensions, each length
as 32 bits, then the values (http://yann.lecun.com/exdb/mnist/). QMNIST's label files are IDX
of eight 32-bit columns for each digit: class, NIST hsf series, NIST writer id, ...
(Yadav and Bottou, arXiv 1905.10498, section 2).
"""

from __future__ import annotations

import gzip
import zlib
from io import BufferedReader
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from motley.errors import DataError

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""numpy's types by the third byte of a file."""
QMNIST_COLUMNS = 8
CLASS_COLUMN, WRITER_COLUMN = 0, 2

_CHUNK = 1 << 20


def read_idx(path: Path) -> npt.NDArray[np.generic]:
    """Return the array of an IDX file, plain or (by its name) gzipped, in native byte order.

    Raises:
        DataError: there is no such file, or its magic, lengths or size are not those of IDX.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            return _read(stream, path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected an IDX file") from None
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; expected an IDX file") from error


def find_idx(folder: Path, name: str) -> Path:
    """Return the path of `name` or `name.gz` in a folder; raise DataError when neither is there."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder} holds neither {name} nor {name}.gz; name the folder that does")


def read_qmnist_labels(path: Path) -> npt.NDArray[np.int32]:
    """Return the rows [N, 8] of a QMNIST label file; raise DataError when it is not one."""
    rows = read_idx(path)
    if rows.dtype != np.int32 or rows.ndim != 2 or rows.shape[1] != QMNIST_COLUMNS:
        raise DataError(
            f"{path} holds {rows.dtype} {list(rows.shape)}; a QMNIST label file holds "
            f"int32 [N, {QMNIST_COLUMNS}]"
        )
    return rows.astype(np.int32, copy=False)


def _read(stream: gzip.GzipFile | BufferedReader, path: Path) -> npt.NDArray[np.generic]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or not 1 <= magic[3] <= 8:
        raise DataError(
            f"{path} starts with {magic.hex(' ') or 'nothing'}; an IDX file starts with 00 00, "
            f"a type (08, 09, 0b, 0c, 0d or 0e) and the number of dimensions (1 to 8)"
        )
    lengths = stream.read(4 * magic[3])
    if len(lengths) < 4 * magic[3]:
        raise DataError(f"{path} ends within its header of {magic[3]} lengths; download it again")
    shape = [int(length) for length in np.frombuffer(lengths, ">u4")]
    dtype = np.dtype(TYPES[magic[2]])
    expected = prod(shape) * dtype.itemsize
    body = _read_at_most(stream, expected + 1)
    if len(body) != expected:
        found = f"only {len(body)}" if len(body) < expected else "more"
        raise DataError(
            f"{path} holds {found} bytes of values; its header announces {dtype.name} {shape}, "
            f"{expected} bytes; download it again"
        )
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read_at_most(stream: gzip.GzipFile | BufferedReader, limit: int) -> bytearray:
    """Read in pieces, so that a false length in a header allocates nothing."""
    body = bytearray()
    while len(body) < limit:
        piece = stream.read(min(_CHUNK, limit - len(body)))
        if not piece:
            break
        body += piece
    return body
