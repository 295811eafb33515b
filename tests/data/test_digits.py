from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import numpy.testing as npt
import pytest

from motley.errors import DataError
from motley.workload import DataSpec
from motley.workloads import digits
from motley.workloads.digits import Digits

# Looked for, not imported: that takes seconds in each process that collects tests.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None,
    reason="the digits come with scikit-learn: motley-fl[digits]",
)


def test_the_whole_set() -> None:
    data = Digits().load(DataSpec("digits"))
    assert data.train.inputs.shape == (1258, 1, 8, 8)
    assert (data.train.inputs.dtype, data.train.targets.dtype) == (np.float32, np.int64)
    assert len(data.test) == 1797 - 1258
    assert (data.train.inputs.min(), data.train.inputs.max()) == (0, 1)


def test_the_file_is_what_scikit_learn_loads() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    read_pixels, read_labels = digits._read_digits()
    npt.assert_array_equal(read_pixels, pixels)
    npt.assert_array_equal(read_labels, labels)


def test_scikit_learn_loads_where_the_file_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = digits._read_digits()
    monkeypatch.setattr(digits.Path, "is_file", lambda self: False)
    for found, wanted in zip(digits._read_digits(), expected, strict=True):
        npt.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype


def test_the_demo_six_clients_of_four_classes() -> None:
    seen: set[bytes] = set()
    classes: set[int] = set()
    for client in range(6):
        spec = DataSpec.parse(f"digits?clients=6&client={client}&classes=4&train=40")
        data = Digits().load(spec)
        assert len(data.train) == 40
        assert len(set(data.train.targets.tolist())) == 4
        assert set(data.train.targets.tolist()) == set(data.test.targets.tolist())
        assert np.bincount(data.train.targets).max() <= 16
        assert len(data.test) > 150
        classes |= set(data.train.targets.tolist())
        seen |= {image.tobytes() for split in (data.train, data.test) for image in split.inputs}
        # The share alone stays in memory.
        assert data.train.inputs.base is None or data.train.inputs.base.nbytes == 40 * 64 * 4
    assert classes == set(range(10))
    whole = Digits().load(DataSpec("digits"))
    assert len(seen) == len(
        {image.tobytes() for split in (whole.train, whole.test) for image in split.inputs}
    )


def test_the_servers_test_set_is_all_clients_together() -> None:
    options = "clients=6&classes=4&train=40"
    together = Digits().held_out(DataSpec.parse(f"digits?{options}"))
    assert len(together) == 1797 - 6 * 40
    own = Digits().held_out(DataSpec.parse(f"digits?{options}&client=1"))
    assert len(own) == len(Digits().load(DataSpec.parse(f"digits?{options}&client=1")).test)
    assert len(Digits().held_out(DataSpec("digits"))) == 539


def test_variants() -> None:
    cnns = ["cnn1", "cnn2", "mlp", "cnn1-64", "cnn2-64", "cnn1-1024", "mlp-1024"]
    resnets = ["resnet20", "resnet32", "resnet44", "resnet18", "resnet18-gn"]
    assert list(Digits().variants()) == [*cnns, *resnets]


@pytest.mark.parametrize("name", Digits().variants())
def test_every_variant_reads_the_data(name: str) -> None:
    import torch

    split = Digits().load(DataSpec("digits")).test
    module = Digits().variants()[name].build()
    outputs = module(torch.from_numpy(split.inputs[:4]))
    assert Digits().loss(outputs, torch.from_numpy(split.targets[:4])).shape == (4,)


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="'/data/digits'; this workload expects the word 'digits'"):
        Digits().load(DataSpec("/data/digits"))
    with pytest.raises(
        DataError, match=r"'writers' is not known.*clients, client, split, classes, alpha"
    ):
        Digits().load(DataSpec.parse("digits?writers=3"))
    with pytest.raises(DataError, match=r"train=40 of 3\d samples leaves none"):
        Digits().load(DataSpec.parse("digits?clients=50&classes=4&client=0&train=40"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'motley-fl\[digits\]'"):
        Digits().load(DataSpec("digits"))


def test_loading_imports_neither_scikit_learn_nor_torch() -> None:
    code = (
        "import sys; from motley.workload import DataSpec; "
        "from motley.workloads.digits import Digits; Digits().load(DataSpec('digits')); "
        "print([name for name in ('sklearn', 'scipy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
