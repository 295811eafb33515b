from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motley.algorithms.allocation import (
    Report,
    affordable_budget,
    allocate,
    average_bits,
    weighted_widths,
)
from motley.device import Link
from motley.models.units import variant_table
from motley.workloads.images import Cifar10

VARIANTS = Cifar10().variants()
RESNET20 = variant_table(VARIANTS["resnet20"], ends=True)
SIZES = RESNET20.quantized_sizes
BUDGETS = [2, 2, 4, 4, 4, 6, 6, 6, 8, 8]


def report(budget: float, bits: dict[str, int], removed: int = 0, samples: int = 10) -> Report:
    return Report(samples=samples, budget=budget, bits=bits, removed=dict.fromkeys(bits, removed))


@pytest.mark.parametrize(
    ("depth", "weights", "tail"),
    # ResNet-44 has 8 convolutions more in each stage, with 4 floats of normalisation a channel.
    [(20, 268_336, 5706), (44, 268_336 + 8 * (2304 + 9216 + 36_864), 5706 + 4 * 8 * 112)],
)
def test_the_paper_s_choice_of_layers(depth: int, weights: int, tail: int) -> None:
    """First convolution, 3x3 convolutions and the last layer; no shortcut, no normalisation."""
    table = variant_table(VARIANTS[f"resnet{depth}"], ends=True)
    assert len(table.quantized_sizes) == depth
    assert sum(table.quantized_sizes.values()) == weights
    rest = [row for row in table if not row.quantized]
    assert sum(row.size for row in rest if row.dtype == "float32") == tail
    shapes = {row.unit: row.shape for row in table if row.quantized}
    assert shapes.pop("fc") == (10, 64)
    assert next(iter(shapes)) == "conv1"
    assert all(shape[2:] == (3, 3) for shape in shapes.values())
    matrices = [row for row in rest if len(row.shape) > 1]
    assert [row.name for row in matrices] == [
        "stage2.0.shortcut.0.weight",
        "stage3.0.shortcut.0.weight",
    ]
    assert all(row.shape[2:] == (1, 1) for row in matrices)
    norms = [row for row in rest if row.name.endswith(("running_mean", "running_var"))]
    assert len(norms) == 2 * (depth - 1 + 2)


@pytest.mark.parametrize(
    ("budget", "strict", "widths"),
    [
        (2, False, "8 8 6 6 6 6 6 6 1 4 6 6 6 1 1 1 1 1 1 8"),
        (2, True, "8 7 6 6 6 6 6 6 1 4 6 6 6 1 1 1 1 1 1 8"),
        (4, False, "8 8 8 8 7 6 6 6 6 6 6 6 6 6 1 1 1 6 6 8"),
        (6, False, " ".join(["6"] * 20)),
        (6, True, " ".join(["6"] * 20)),
        (8, False, " ".join(["8"] * 20)),
    ],
)
def test_the_first_round_of_the_paper_s_federation(budget: int, strict: bool, widths: str) -> None:
    reports = [report(v, dict.fromkeys(SIZES, v)) for v in BUDGETS]
    start, removed = weighted_widths(reports, list(SIZES))
    assert set(start.values()) == {6}
    assert set(removed.values()) == {1}
    bits = allocate(start, removed, SIZES, budget, strict=strict)
    assert " ".join(map(str, bits.values())) == widths


def test_weights_are_samples_times_budget() -> None:
    reports = [report(2, {"a": 2}, 0, samples=30), report(8, {"a": 8}, 3, samples=10)]
    # (60 * 2 + 80 * 8) / 140 = 5.43; 1 + 80 * 3 / 140 = 2.71
    assert weighted_widths(reports, ["a"]) == ({"a": 5}, {"a": 3})


def test_removed_bits_come_first() -> None:
    sizes = {"small": 10, "large": 12}
    start = {"small": 4, "large": 4}
    assert allocate(start, {"small": 1, "large": 1}, sizes, 3) == {"small": 4, "large": 2}
    assert allocate(start, {"small": 3, "large": 1}, sizes, 3) == {"small": 1, "large": 4}


layers = st.dictionaries(
    st.text("abc", min_size=1, max_size=5), st.integers(1, 5000), min_size=1, max_size=12
)


@given(layers, st.floats(1, 8), st.data())
def test_a_strict_allocation_never_exceeds_its_budget(
    sizes: dict[str, int], budget: float, data: st.DataObject
) -> None:
    start = {unit: data.draw(st.integers(1, 8)) for unit in sizes}
    removed = {unit: data.draw(st.integers(1, 8)) for unit in sizes}
    bits = allocate(start, removed, sizes, budget)
    assert list(bits) == list(sizes)
    assert all(1 <= width <= 8 for width in bits.values())
    assert sum(sizes[u] * bits[u] for u in sizes) <= budget * sum(sizes.values())
    # Nothing more fits where growing came last: the layer of least priority is full or too large.
    loose = allocate(start, removed, sizes, budget, strict=False)
    assert average_bits(loose, sizes) >= min(budget, average_bits(bits, sizes))


def test_the_affordable_budget() -> None:
    weights, tail = 800_000, 1000
    assert affordable_budget(weights, tail, Link(), 60) == 8
    # 8 bits and a sign: 900 kB each way; at 100 kB/s that is 18 s of the 20 that half of 40 gives.
    assert affordable_budget(weights, 0, Link(download=1e5, upload=1e5), 40) == 8
    assert affordable_budget(weights, 0, Link(download=1e5, upload=1e5), 35) == 7
    assert affordable_budget(weights, 0, Link(download=1e5, upload=1e5), 1) == 1
    assert affordable_budget(weights, 0, Link(storage=10 * 3 * 300_000), 60) == 2
