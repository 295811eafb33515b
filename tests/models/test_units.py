from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import numpy.testing as npt
import pytest
import torch
from torch import nn

from motley.errors import UpdateError, WorkloadError
from motley.models.cnn import cnn1, cnn2
from motley.models.units import (
    TensorInfo,
    UnitTable,
    fresh_tensors,
    load_tensors,
    unit_table,
    variant_table,
)
from motley.workload import Variant

SMALL = partial(cnn1, channels=1, classes=10, side=8)


class Normalised(nn.Module):
    """A module with buffers, a nested layer and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 2))
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.blocks = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
        self.fc = nn.Linear(2, 2)


def test_every_tensor_is_listed_once_in_order() -> None:
    module = Normalised()
    table = unit_table(module)
    state = module.state_dict()
    assert table.names == tuple(state)
    assert [row.shape for row in table] == [tuple(t.shape) for t in state.values()]
    assert table.units == ("scale", "conv1", "blocks.0", "blocks.1", "fc")
    listed = [row.name for unit in table.units for row in table.tensors_of(unit)]
    assert listed == list(state)
    assert table.parameters_count == sum(p.numel() for p in module.parameters())
    count = table["blocks.1.num_batches_tracked"]
    assert count == TensorInfo(count.name, (), "int64", "blocks.1", False, parameter=False)
    assert (count.size, count.nbytes, table["fc.weight"].nbytes) == (1, 8, 16)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (SMALL, ["conv2.weight", "fc1.weight", "fc2.weight"]),
        (
            partial(cnn2, channels=3, classes=10, side=32),
            ["conv2.weight", "conv3.weight", "fc1.weight", "fc2.weight"],
        ),
        (partial(nn.Linear, 2, 2), []),
        (Normalised, ["conv1.weight", "blocks.0.weight"]),
    ],
)
def test_first_and_last_layer_stay_in_full_precision(
    build: partial[nn.Module], expected: list[str]
) -> None:
    table = unit_table(build())
    assert [row.name for row in table if row.quantized] == expected
    assert table.quantized_units == tuple(name.removesuffix(".weight") for name in expected)


def test_quantized_tensors_can_be_named() -> None:
    table = unit_table(SMALL(), ("conv1.weight", "fc3.weight"))
    assert table.quantized_units == ("conv1", "fc3")
    assert unit_table(SMALL(), ()).quantized_units == ()


def test_units_can_be_blocks() -> None:
    blocks = {"blocks": "blocks", "blocks.1": "conv1", "scale": "conv1"}
    table = unit_table(Normalised(), units=blocks)
    assert {row.name: row.unit for row in table if row.parameter} == {
        "scale": "conv1",
        "conv1.weight": "conv1",
        "conv1.bias": "conv1",
        "blocks.0.weight": "blocks",
        "blocks.0.bias": "blocks",
        "blocks.1.weight": "conv1",
        "blocks.1.bias": "conv1",
        "fc.weight": "fc",
        "fc.bias": "fc",
    }
    assert table.units == ("conv1", "blocks", "fc")
    assert variant_table(Variant(Normalised, units=blocks)) == table
    assert UnitTable.from_json(table.to_json()) == table


@pytest.mark.parametrize("path", ["block", "blocks.2", "blocks", "fc.weights"])
def test_a_path_without_tensors_is_no_unit(path: str) -> None:
    units = {"blocks.0": "a", "blocks.1": "b", path: "c"}
    with pytest.raises(WorkloadError, match=f"{path!r} in Variant.units holds no tensor"):
        unit_table(Normalised(), units=units)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conv9.weight", r"'conv9.weight'.*does not exist; there are scale, conv1.weight"),
        ("blocks.1.running_mean", "not a floating-point parameter"),
        ("blocks.1.num_batches_tracked", "not a floating-point parameter"),
    ],
)
def test_a_wrong_name_is_refused_with_those_that_exist(name: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        unit_table(Normalised(), (name,))


def test_a_type_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(WorkloadError, match="'weight' is bfloat16; expected one of float32"):
        unit_table(nn.Linear(2, 2).bfloat16())


def test_unknown_unit_and_tensor() -> None:
    table = unit_table(SMALL())
    with pytest.raises(WorkloadError, match="'conv7'; there are conv1, conv2, fc1"):
        table.tensors_of("conv7")
    with pytest.raises(WorkloadError, match=r"'w'; there are conv1.weight"):
        table["w"]


def test_json_round_trip() -> None:
    table = unit_table(Normalised())
    assert UnitTable.from_json(table.to_json()) == table
    assert "\n" not in table.to_json()


ROW = '{"name":"a","shape":[2],"dtype":"float32","unit":"a","quantized":false,"parameter":true}'


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "7",
        "[7]",
        "[{}]",
        f"[{ROW},{ROW}]",
        f"[{ROW.replace('[2]', '[-2]')}]",
        f"[{ROW.replace('[2]', '2')}]",
        f"[{ROW.replace('[2]', '[2.0]')}]",
        f"[{ROW.replace('float32', 'object')}]",
        f"[{ROW.replace('false', '0')}]",
        f"[{ROW.replace('unit', 'layer')}]",
        '[{"name":3,"shape":[2],"dtype":"float32","unit":"a","quantized":false}]',
    ],
)
def test_bad_json_is_one_named_error(text: str) -> None:
    with pytest.raises(WorkloadError):
        UnitTable.from_json(text)


def test_tensor_table_has_the_same_rows() -> None:
    table = unit_table(Normalised())
    rows = [(row.name, row.shape, row.dtype) for row in table.tensor_table.rows]
    assert rows == [(row.name, row.shape, row.dtype) for row in table]


def test_fresh_tensors_follow_the_seed_and_leave_the_generator_alone() -> None:
    variant = Variant(SMALL)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (fresh_tensors(variant, seed) for seed in (1, 1, 2**63 - 1))
    assert torch.equal(torch.rand(3), expected)
    assert tuple(first) == unit_table(SMALL()).names
    for name in first:
        npt.assert_array_equal(first[name], again[name])
        assert first[name].dtype == np.float32
    assert not np.array_equal(first["conv1.weight"], other["conv1.weight"])


def test_fresh_tensors_keep_0d_buffers() -> None:
    count = fresh_tensors(Variant(Normalised), 0)["blocks.1.num_batches_tracked"]
    assert count.shape == ()
    assert count.dtype == np.int64


def test_load_tensors_round_trip() -> None:
    tensors = fresh_tensors(Variant(Normalised), 3)
    tensors["blocks.1.num_batches_tracked"] = np.array(7)
    for values in tensors.values():
        values.setflags(write=False)
    module = Normalised()
    load_tensors(module, tensors)
    for name, tensor in module.state_dict().items():
        npt.assert_array_equal(tensor.numpy(), tensors[name])
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_load_tensors_converts_within_a_kind() -> None:
    module = nn.Linear(2, 1)
    load_tensors(module, {"weight": np.ones((1, 2), ">f2"), "bias": np.zeros(1, np.float64)})
    assert module.weight.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.weight": None}, "missing fc.weight; unknown none"),
        ({"extra": np.zeros(1)}, "missing none; unknown extra"),
        ({"fc.weight": np.zeros((2, 3), np.float32)}, r"'fc.weight' has shape \[2, 3\].*\[2, 2\]"),
        ({"blocks.1.num_batches_tracked": np.array(1.5)}, "float64; expected int64"),
    ],
)
def test_tensors_that_do_not_fit_change_nothing(
    change: dict[str, np.ndarray | None], message: str
) -> None:
    module = Normalised()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    merged = {**fresh_tensors(Variant(Normalised), 3), **change}
    tensors = {name: values for name, values in merged.items() if values is not None}
    with pytest.raises(UpdateError, match=message):
        load_tensors(module, tensors)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_tables_are_read_without_torch() -> None:
    code = (
        "import sys; import motley.models.units, motley.workloads.digits, motley.workloads.images; "
        "motley.workloads.digits.Digits().variants(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
