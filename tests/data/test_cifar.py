from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest

from motley.data import cifar
from motley.errors import DataError

ROWS = 4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small files: labels 0-3 and 4-7; a pixel tells its row, channel and column."""
    monkeypatch.setattr(cifar, "FILE_ROWS", ROWS)
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
    files = ("0.bin", "1.bin")
    npt.assert_array_equal(cifar.read_labels(folder, files), np.arange(8))
    images = cifar.read_images(folder, files, np.array([6, 1, 4]))
    assert images.shape == (3, 3, 32, 32)
    assert images.dtype == np.uint8
    npt.assert_array_equal(images[:, :, 5, 7], [[60, 63, 66], [10, 13, 16], [40, 43, 46]])
    assert (images[:, :, :, 31] == 255).all()


@pytest.mark.parametrize("change", [-1, 1, -3073])
def test_wrong_size(folder: Path, change: int) -> None:
    content = (folder / "0.bin").read_bytes()
    (folder / "0.bin").write_bytes(content[:change] if change < 0 else content + b"x")
    with pytest.raises(DataError, match=f"has {4 * 3073 + change} bytes; .* has {4 * 3073} "):
        cifar.read_labels(folder, ("0.bin",))


def test_label_out_of_range(folder: Path) -> None:
    content = bytearray((folder / "1.bin").read_bytes())
    content[0] = 10
    (folder / "1.bin").write_bytes(content)
    with pytest.raises(DataError, match="label 10; expected 0 to 9"):
        cifar.read_labels(folder, ("0.bin", "1.bin"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data_batch_1.bin cannot be read: No such file"):
        cifar.read_labels(tmp_path, cifar.TRAIN_FILES)
