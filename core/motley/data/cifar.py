"""CIFAR-10 in its "binary version" (https://www.cs.toronto.edu/~kriz/cifar.html).

Five training files and a test file of 10,000 rows; a row is one label byte and 3,072 bytes of
pixels: the red, the green and the blue plane of 32x32. Files are mapped, not read, so that a
client's share costs no more memory than the share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from motley.errors import DataError

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)
FILE_ROWS = 10_000
CLASSES = 10
IMAGE_SHAPE = (3, 32, 32)
_ROW_BYTES = 1 + 3 * 32 * 32


def read_labels(folder: Path, files: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the labels [N] of files in a folder, joined in the order given.

    Raises:
        DataError: a file is missing, of another size, or holds a label above 9.
    """
    labels = np.concatenate([np.asarray(_rows(folder / name)[:, 0], np.int64) for name in files])
    if labels.max(initial=0) >= CLASSES:
        raise DataError(
            f"{folder} holds a label {labels.max()}; expected 0 to {CLASSES - 1}: "
            f"is this the binary version of CIFAR-10?"
        )
    return labels


def read_images(
    folder: Path, files: Sequence[str], indices: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """Return the images [n, 3, 32, 32] at `indices` [n] of files joined in the order given.

    Raises:
        DataError: a file is missing or of another size.
    """
    images = np.empty((len(indices), *IMAGE_SHAPE), np.uint8)
    for number, name in enumerate(files):
        here = np.flatnonzero(indices // FILE_ROWS == number)
        rows = _rows(folder / name)
        images[here] = rows[indices[here] % FILE_ROWS, 1:].reshape(-1, *IMAGE_SHAPE)
    return images


def _rows(path: Path) -> npt.NDArray[np.uint8]:
    """Return a file as a read-only map of its rows, [FILE_ROWS, 3073]."""
    expected = FILE_ROWS * _ROW_BYTES
    try:
        size = path.stat().st_size
        if size != expected:
            raise DataError(
                f"{path} has {size} bytes; a file of CIFAR-10's binary version has {expected} "
                f"({FILE_ROWS} rows of {_ROW_BYTES}); download it again"
            )
        return np.memmap(path, np.uint8, mode="r", shape=(FILE_ROWS, _ROW_BYTES))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; expected the folder of CIFAR-10's "
            f"binary version, with {', '.join((*TRAIN_FILES, *TEST_FILES))}"
        ) from None
