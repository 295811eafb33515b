"""The image workloads on small files made here, and on the published sets where they are.

The published sets are looked for in the folder that MOTLEY_DATA_DIR names: `mnist`, `qmnist`,
`fashion-mnist` and `cifar-10-batches-bin` in it.
"""

from __future__ import annotations

import gzip
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
import torch

from motley.data import cifar, idx
from motley.errors import DataError, WorkloadError
from motley.models.units import variant_table
from motley.workload import DataSpec, LocalData, Workload
from motley.workloads.crops import CropAndMirror
from motley.workloads.images import Cifar10, Cifar100, EmnistLetters, Mnist
from motley.workloads.selection import Selection

TRAIN, TEST = 400, 100


def published(name: str) -> Path:
    root = os.environ.get("MOTLEY_DATA_DIR")
    if not root:
        pytest.skip(f"MOTLEY_DATA_DIR names no folder, so the published {name} is not read")
    if not (Path(root) / name).is_dir():
        pytest.skip(f"there is no folder {name} in MOTLEY_DATA_DIR ({root})")
    return Path(root) / name


def load(workload: Workload, spec: str) -> LocalData:
    return workload.load(DataSpec.parse(spec))


def write_idx(path: Path, values: np.ndarray, code: int) -> None:
    head = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(head + values.astype(values.dtype.newbyteorder(">")).tobytes()))


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Forty images a class, ten writers; an image's first pixel is its class."""
    for stem, count in (("train", TRAIN), ("t10k", TEST)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0], images[:, 27, 27] = labels, 255
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", images, 0x08)
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", labels, 0x08)
    rows = np.zeros((TRAIN, 8), np.int32)
    rows[:, 0], rows[:, 2] = np.arange(TRAIN) % 10, np.arange(TRAIN) // 40 + 1000
    write_idx(tmp_path / "qmnist-train-labels-idx2-int.gz", rows, 0x0C)
    return tmp_path


def test_mnist_standardised_by_the_training_part(mnist: Path) -> None:
    plain, ours = load(Mnist(), str(mnist)), load(Mnist(standardised=True), str(mnist))
    pixels = plain.train.inputs.astype(np.float64)
    for before, after in ((plain.train, ours.train), (plain.test, ours.test)):
        expected = (before.inputs - pixels.mean()) / pixels.std()
        npt.assert_allclose(after.inputs, expected, rtol=1e-5, atol=1e-6)
        assert after.inputs.dtype == np.float32
    part = load(Mnist(standardised=True), f"{mnist}?clients=5&client=2&classes=4&seed=3")
    whole = {image.tobytes() for image in ours.train.inputs}
    assert all(image.tobytes() in whole for image in part.train.inputs)


def test_standardised_is_true_or_false() -> None:
    with pytest.raises(WorkloadError, match="standardised is 'no'; expected true or false"):
        Mnist(standardised="no")  # type: ignore[arg-type]


def test_augmented_is_true_or_false() -> None:
    assert Cifar10().augmentation is None
    assert isinstance(Cifar100(augmented=True).augmentation, CropAndMirror)
    with pytest.raises(WorkloadError, match="augmented is 1; expected true or false"):
        Cifar10(augmented=1)  # type: ignore[arg-type]


def test_mnist_whole(mnist: Path) -> None:
    data = load(Mnist(), str(mnist))
    assert data.train.inputs.shape == (TRAIN, 1, 28, 28)
    assert data.test.inputs.shape == (TEST, 1, 28, 28)
    assert (data.train.inputs.dtype, data.train.targets.dtype) == (np.float32, np.int64)
    npt.assert_allclose(data.train.inputs[:, 0, 0, 0] * 255, data.train.targets, rtol=1e-6)
    assert (data.train.inputs[:, 0, 27, 27] == 1).all()


def test_mnist_share(mnist: Path) -> None:
    data = load(Mnist(), f"{mnist}?clients=5&client=2&classes=4&seed=3")
    classes, counts = np.unique(data.train.targets, return_counts=True)
    assert counts.tolist() == [20] * 4
    same, counts = np.unique(data.test.targets, return_counts=True)
    npt.assert_array_equal(classes, same)
    assert counts.tolist() == [5] * 4
    npt.assert_allclose(data.test.inputs[:, 0, 0, 0] * 255, data.test.targets, rtol=1e-6)
    small = load(Mnist(), f"{mnist}?clients=5&client=2&classes=4&train=8&test=4")
    assert (len(small.train), len(small.test)) == (8, 4)
    together = Mnist().held_out(DataSpec.parse(f"{mnist}?clients=5&classes=4"))
    assert len(together) == TEST


def test_mnist_writers(mnist: Path) -> None:
    data = load(Mnist(), f"{mnist}?writers=2&clients=5&client=0&qmnist={mnist}")
    assert (len(data.train), len(data.test)) == (72, 8)
    assert data.test.inputs.shape == (8, 1, 28, 28)
    rows = np.zeros((TRAIN, 8), np.int32)
    write_idx(mnist / "qmnist-train-labels-idx2-int.gz", rows, 0x0C)
    with pytest.raises(DataError, match="QMNIST's writers are those of MNIST's training part"):
        load(Mnist(), f"{mnist}?writers=2&clients=5&client=0&qmnist={mnist}")


@pytest.mark.parametrize(
    "way", ["clients=5&classes=4", "writers=2&clients=5&qmnist={}", "clients=5&pool=0.5"]
)
def test_a_validation_set_is_cut_from_the_training_samples(mnist: Path, way: str) -> None:
    spec = f"{mnist}?{way.format(mnist)}&client=1"
    whole, cut = load(Mnist(), spec), load(Mnist(), f"{spec}&validate=0.25")
    assert len(cut.test) == round(0.25 * len(whole.train))
    assert len(cut.train) + len(cut.test) == len(whole.train)
    both = np.concatenate([cut.train.targets, cut.test.targets])
    npt.assert_array_equal(np.sort(both), np.sort(whole.train.targets))
    with pytest.raises(DataError, match="validate=1; expected a fraction above 0 and below 1"):
        load(Mnist(), f"{spec}&validate=1")


def test_mnist_files_that_do_not_belong_together(mnist: Path) -> None:
    write_idx(mnist / "train-labels-idx1-ubyte.gz", np.zeros(TRAIN - 1, np.uint8), 0x08)
    with pytest.raises(DataError, match=r"expected uint8 \[399, 28, 28\], an image for each label"):
        load(Mnist(), str(mnist))
    write_idx(mnist / "train-labels-idx1-ubyte.gz", np.full(TRAIN, 10, np.uint8), 0x08)
    with pytest.raises(DataError, match=r"expected uint8 \[N\], 0 to 9"):
        load(Mnist(), str(mnist))
    with pytest.raises(DataError, match="holds neither train-labels-idx1-ubyte nor"):
        load(Mnist(), str(mnist / "nowhere"))


def test_mnist_pooled(mnist: Path) -> None:
    """Both parts together are 50 a class; FedP3's class-wise split and its 70 / 30."""
    query = f"{mnist}?clients=10&split=cyclic&classes=5&pool=0.7"
    firsts = []
    for client in range(10):
        data = load(Mnist(), f"{query}&client={client}")
        assert (len(data.train), len(data.test)) == (35, 15)
        for split in (data.train, data.test):
            npt.assert_allclose(split.inputs[:, 0, 0, 0] * 255, split.targets, rtol=1e-6)
            assert set(split.targets.tolist()) == {(client + j) % 10 for j in range(5)}
            firsts.append(len(split))
    assert sum(firsts) == TRAIN + TEST
    whole = load(Mnist(), f"{mnist}?pool=0.7")
    assert (len(whole.train), len(whole.test)) == (350, 150)


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """Ten images of each of 26 letters, which count from 1; a bar down the left, as published."""
    for part, count in (("train", 260), ("test", 52)):
        labels = (np.arange(count) % 26 + 1).astype(np.uint8)
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, :], images[:, 27, 27] = 255, labels
        write_idx(tmp_path / f"emnist-letters-{part}-images-idx3-ubyte.gz", images, 0x08)
        write_idx(tmp_path / f"emnist-letters-{part}-labels-idx1-ubyte.gz", labels, 0x08)
    return tmp_path


def test_emnist_letters(letters: Path) -> None:
    data = load(EmnistLetters(), str(letters))
    assert (len(data.train), len(data.test)) == (100, 20)
    assert np.bincount(data.train.targets).tolist() == [10] * 10
    for split in (data.train, data.test):
        # The pixel in the corner is the published label.
        npt.assert_allclose(split.inputs[:, 0, 27, 27] * 255, split.targets + 1, rtol=1e-6)
        assert (split.inputs[:, 0, :, 0] == 1).all()
        assert (split.inputs[:, 0, 1:27, 1:] == 0).all()
    everything = load(EmnistLetters(letters=26), f"{letters}?clients=2&client=0&pool=0.5").train
    assert sorted(set(everything.targets.tolist())) == list(range(26))
    (logits,) = (
        v.build()(torch.zeros(1, 1, 28, 28)) for v in [EmnistLetters(26).variants()["mlp"]]
    )
    assert logits.shape == (1, 26)


def test_emnist_refuses(letters: Path) -> None:
    with pytest.raises(WorkloadError, match="letters is 27; expected 2 to 26"):
        EmnistLetters(27)
    path = letters / "emnist-letters-train-labels-idx1-ubyte.gz"
    write_idx(path, np.arange(260).astype(np.uint8) % 26, 0x08)
    with pytest.raises(DataError, match=r"expected uint8 \[N\], 1 to 26"):
        load(EmnistLetters(), str(letters))


def test_cifar100_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cifar100, "layout", replace(cifar.CIFAR100, train_rows=1600, test_rows=400))
    for name, count in (("train.bin", 1600), ("test.bin", 400)):
        rows = np.zeros((count, 2 + 3072), np.uint8)
        rows[:, 1], rows[:, 2] = np.arange(count) % 100, np.arange(count) % 100
        rows[:, 0] = rows[:, 1] // 5
        rows.tofile(tmp_path / name)
    data = load(Cifar100(), f"{tmp_path}?clients=20&client=3&split=cyclic&classes=15&pool=0.5")
    both = [*data.train.targets.tolist(), *data.test.targets.tolist()]
    assert sorted(both) == list(range(3, 18))
    first = (data.train.inputs[:, 0, 0, 0] * 0.2673 + 0.5071) * 255
    npt.assert_allclose(first, data.train.targets, atol=1e-3)
    assert variant_table(Cifar100().variants()["cnn1-1024"])["fc3.bias"].shape == (100,)


def test_cifar10_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cifar10, "layout", replace(cifar.CIFAR10, train_rows=40, test_rows=40))
    rng = np.random.default_rng(0)
    for name in (*cifar.CIFAR10.train, *cifar.CIFAR10.test):
        rows = rng.integers(0, 256, (40, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(40) % 10
        rows[:, 1] = rows[:, 0]
        rows.tofile(tmp_path / name)
    data = load(Cifar10(), f"{tmp_path}?clients=5&client=1&classes=4")
    assert data.train.inputs.shape == (40, 3, 32, 32)
    assert data.train.inputs.dtype == np.float32
    first = (data.train.inputs[:, 0, 0, 0] * 0.2470 + 0.4914) * 255
    npt.assert_allclose(first, data.train.targets, atol=1e-3)
    # Batches are changed when they are drawn; what a model is tested on is not.
    ours = load(Cifar10(augmented=True), f"{tmp_path}?clients=5&client=1&classes=4")
    npt.assert_array_equal(ours.train.inputs, data.train.inputs)
    npt.assert_array_equal(ours.test.inputs, data.test.inputs)
    with pytest.raises(DataError, match="'writers' is not known"):
        load(Cifar10(), f"{tmp_path}?writers=3&qmnist=q")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_published_mnist(name: str) -> None:
    data = load(Mnist(), f"{published(name)}?clients=50&client=49&alpha=0.5")
    assert data.train.inputs.shape[1:] == (1, 28, 28)
    assert set(data.test.targets.tolist()) <= set(data.train.targets.tolist())
    whole = Mnist().held_out(DataSpec(str(published(name))))
    assert len(whole) == 10_000


def test_published_mean_of_mnist() -> None:
    train = load(Mnist(), str(published("mnist"))).train
    assert len(train) == 60_000
    assert np.bincount(train.targets).tolist()[:3] == [5923, 6742, 5958]
    assert float(train.inputs.mean(dtype=np.float64)) == pytest.approx(0.1307, abs=1e-4)
    own = load(
        Mnist(standardised=True), f"{published('mnist')}?clients=60&client=0&classes=4"
    ).train
    empty = np.float32(-0.1307 / 0.3081)
    npt.assert_allclose(own.inputs.min(), empty, rtol=1e-3)


def test_published_writers() -> None:
    folder, qmnist = published("mnist"), published("qmnist")
    rows = idx.read_qmnist_labels(idx.find_idx(qmnist, "qmnist-train-labels-idx2-int"))
    assert len(np.unique(rows[:, idx.WRITER_COLUMN])) == 539
    selection = f"{folder}?writers=3&qmnist={qmnist}"
    sizes = []
    for client in (0, 65):
        data = load(Mnist(), f"{selection}&client={client}")
        sizes.append((len(data.train), len(data.test)))
    assert all(321 <= train <= 354 and 35 <= test <= 40 for train, test in sizes)
    assert len(Mnist().held_out(DataSpec.parse(selection))) == pytest.approx(2472, abs=80)


def test_published_writers_cut_to_qupeds_sizes() -> None:
    """66 clients of 203 to 336 samples for training and 25 to 40 for testing, writers apart."""
    folder, qmnist = published("mnist"), published("qmnist")
    spec = DataSpec.parse(f"{folder}?split=writers&qmnist={qmnist}&train=203-336&test=25-40")
    shares = Mnist().shares(folder, Selection.parse(spec, Mnist.options))
    sizes = np.array([(len(share.train), len(share.test)) for share in shares])
    assert sizes.shape == (66, 2)
    assert (sizes.min(axis=0) >= (203, 25)).all()
    assert (sizes.max(axis=0) <= (336, 40)).all()
    assert sizes[:, 0].mean() == pytest.approx(269.5, abs=20)
    rows = idx.read_qmnist_labels(idx.find_idx(qmnist, "qmnist-train-labels-idx2-int"))
    writers = [set(rows[share.train, idx.WRITER_COLUMN].tolist()) for share in shares]
    assert [len(names) for names in writers] == [3] * 66
    assert len(set.union(*writers)) == 198


def test_published_sets_in_fedp3s_splits() -> None:
    """100 clients: 490 and 210 images of Fashion-MNIST each, 420 and 180 of CIFAR-10."""
    for workload, name, sizes in (
        (Mnist(), "fashion-mnist", (490, 210)),
        (Cifar10(), "cifar-10-batches-bin", (420, 180)),
    ):
        folder = published(name)
        for split in ("cyclic&classes=5", "dirichlet-equal&alpha=0.5"):
            spec = DataSpec.parse(f"{folder}?clients=100&split={split}&pool=0.7")
            shares = workload.shares(folder, Selection.parse(spec, workload.options))
            assert {(len(share.train), len(share.test)) for share in shares} == {sizes}


def test_published_cifar10() -> None:
    folder = published("cifar-10-batches-bin")
    data = load(Cifar10(), f"{folder}?clients=50&client=7&classes=4")
    for split, shard in ((data.train, 250), (data.test, 50)):
        _, counts = np.unique(split.targets, return_counts=True)
        assert counts.tolist() == [shard] * 4
    images = load(Cifar10(), f"{folder}?train=10000").train.inputs
    npt.assert_allclose(images.mean(axis=(0, 2, 3)), 0, atol=0.02)
    npt.assert_allclose(images.std(axis=(0, 2, 3)), 1, atol=0.02)
