"""CIFAR-10 and CIFAR-100 in the "binary version" (https://www.cs.toronto.edu/~kriz/cifar.html).

A row is its labels, one byte each, and 3,072 bytes of pixels: the red, the green and the blue
plane of 32x32. CIFAR-10 has one label in a row and six files of 10,000 rows; CIFAR-100 has two, the
coarse and the fine one, and a file for each part. Files are mapped, not read, so that a
client's share costs no more memory than the share.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from motley.errors import DataError

IMAGE_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The files of one set; those of a part have equal numbers of rows."""

    title: str
    classes: int
    labels: int
    """Label bytes of a row; the last of them is the class."""
    train: tuple[str, ...]
    test: tuple[str, ...]
    train_rows: int
    """Rows of each training file."""
    test_rows: int
    """Rows of each test file."""

    def part(self, part: Literal["train", "test"]) -> tuple[tuple[str, ...], int]:
        """Return a part's files, and the rows of each."""
        return (self.train, self.train_rows) if part == "train" else (self.test, self.test_rows)


CIFAR10 = Layout(
    title="CIFAR-10",
    classes=10,
    labels=1,
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    train_rows=10_000,
    test_rows=10_000,
)
CIFAR100 = Layout(
    title="CIFAR-100",
    classes=100,
    labels=2,
    train=("train.bin",),
    test=("test.bin",),
    train_rows=50_000,
    test_rows=10_000,
)


def read_labels(
    folder: Path, layout: Layout, part: Literal["train", "test"]
) -> npt.NDArray[np.int64]:
    """Return the labels [N] of a part's files, joined in order.

    Raises:
        DataError: a file is missing, of another size, or holds a label out of range.
    """
    files, count = layout.part(part)
    column = layout.labels - 1
    labels = np.concatenate(
        [np.asarray(_rows(folder / name, layout, count)[:, column], np.int64) for name in files]
    )
    if labels.max(initial=0) >= layout.classes:
        raise DataError(
            f"{folder} holds a label {labels.max()}; expected 0 to {layout.classes - 1}: "
            f"is this the binary version of {layout.title}?"
        )
    return labels


def read_images(
    folder: Path,
    layout: Layout,
    part: Literal["train", "test"],
    indices: npt.NDArray[np.int64],
) -> npt.NDArray[np.uint8]:
    """Return the images [n, 3, 32, 32] at `indices` [n] of a part's files joined in order.

    Raises:
        DataError: a file is missing or of another size.
    """
    files, count = layout.part(part)
    images = np.empty((len(indices), *IMAGE_SHAPE), np.uint8)
    for number, name in enumerate(files):
        here = np.flatnonzero(indices // count == number)
        rows = _rows(folder / name, layout, count)
        images[here] = rows[indices[here] % count, layout.labels :].reshape(-1, *IMAGE_SHAPE)
    return images


def _rows(path: Path, layout: Layout, count: int) -> npt.NDArray[np.uint8]:
    """Return a file as a read-only map of its rows, [count, labels + 3072]."""
    row_bytes = layout.labels + _PIXELS
    expected = count * row_bytes
    try:
        size = path.stat().st_size
        if size != expected:
            raise DataError(
                f"{path} has {size} bytes; this file of {layout.title}'s binary version has "
                f"{expected} ({count} rows of {row_bytes}); download it again"
            )
        return np.memmap(path, np.uint8, mode="r", shape=(count, row_bytes))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; expected the folder of {layout.title}'s "
            f"binary version, with {', '.join((*layout.train, *layout.test))}"
        ) from None
