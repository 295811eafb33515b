from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest

from motley.data import cifar
from motley.errors import DataError

ROWS = 4
LAYOUT = replace(cifar.CIFAR10, train=("0.bin", "1.bin"), train_rows=ROWS)
FINE = replace(cifar.CIFAR100, train_rows=ROWS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two small files: labels 0-3 and 4-7; a pixel tells its row, channel and column."""
    for number in range(2):
        labels = np.arange(ROWS, dtype=np.uint8) + ROWS * number
        images = np.zeros((ROWS, 3, 32, 32), np.uint8)
        images += labels[:, None, None, None] * 10
        images += np.arange(3, dtype=np.uint8)[:, None, None] * 3
        images[:, :, :, 31] = 255
        rows = np.concatenate([labels[:, None], images.reshape(ROWS, -1)], axis=1)
        rows.tofile(tmp_path / f"{number}.bin")
    return tmp_path


def test_labels_and_images(folder: Path) -> None:
    npt.assert_array_equal(cifar.read_labels(folder, LAYOUT, "train"), np.arange(8))
    images = cifar.read_images(folder, LAYOUT, "train", np.array([6, 1, 4]))
    assert images.shape == (3, 3, 32, 32)
    assert images.dtype == np.uint8
    npt.assert_array_equal(images[:, :, 5, 7], [[60, 63, 66], [10, 13, 16], [40, 43, 46]])
    assert (images[:, :, :, 31] == 255).all()


@pytest.mark.parametrize("change", [-1, 1, -3073])
def test_wrong_size(folder: Path, change: int) -> None:
    content = (folder / "0.bin").read_bytes()
    (folder / "0.bin").write_bytes(content[:change] if change < 0 else content + b"x")
    with pytest.raises(DataError, match=f"has {4 * 3073 + change} bytes; .* has {4 * 3073} "):
        cifar.read_labels(folder, LAYOUT, "train")


def test_label_out_of_range(folder: Path) -> None:
    content = bytearray((folder / "1.bin").read_bytes())
    content[0] = 10
    (folder / "1.bin").write_bytes(content)
    with pytest.raises(DataError, match="label 10; expected 0 to 9"):
        cifar.read_labels(folder, LAYOUT, "train")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data_batch_1.bin cannot be read: No such file"):
        cifar.read_labels(tmp_path, cifar.CIFAR10, "train")


def test_published_sizes() -> None:
    """Of the files that the page names: 30,730,000, 153,700,000 and 30,740,000 bytes."""
    for layout, train, test in (
        (cifar.CIFAR10, 30_730_000, 30_730_000),
        (cifar.CIFAR100, 153_700_000, 30_740_000),
    ):
        row = layout.labels + 3072
        assert (layout.train_rows * row, layout.test_rows * row) == (train, test)


def test_fine_labels_of_cifar100(tmp_path: Path) -> None:
    rows = np.zeros((ROWS, 2 + 3072), np.uint8)
    rows[:, 0], rows[:, 1] = [19, 3, 0, 7], [99, 0, 41, 5]
    rows[:, 2:] = np.arange(3072) // 1024 + 50
    rows[2, 2 + 1024] = 200
    rows.tofile(tmp_path / "train.bin")
    assert cifar.read_labels(tmp_path, FINE, "train").tolist() == [99, 0, 41, 5]
    images = cifar.read_images(tmp_path, FINE, "train", np.array([2, 0]))
    assert images[0, :, 0, 0].tolist() == [50, 200, 52]
    assert images[1, :, 31, 31].tolist() == [50, 51, 52]
    rows[1, 1] = 100
    rows.tofile(tmp_path / "train.bin")
    with pytest.raises(DataError, match=r"label 100; expected 0 to 99: .* of CIFAR-100"):
        cifar.read_labels(tmp_path, FINE, "train")
    with pytest.raises(DataError, match=r"test.bin cannot be read.*with train.bin, test.bin"):
        cifar.read_labels(tmp_path, FINE, "test")
