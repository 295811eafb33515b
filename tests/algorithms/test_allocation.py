from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

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
from motley.algorithms.base import Member, Moment
from motley.algorithms.fedmpq import FedMPQ, FedMPQSettings, client_budget
from motley.device import Link
from motley.models.units import TensorInfo, UnitTable, variant_table
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


def test_clients_without_samples_weigh_the_same() -> None:
    reports = [
        report(8, {"a": 8}, removed=2, samples=0),
        report(2, {"a": 2}, removed=0, samples=0),
        report(4, {"a": 2}, removed=1, samples=0),
    ]
    assert weighted_widths(reports, ["a"]) == ({"a": 4}, {"a": 2})
    assert weighted_widths(reports[:1], ["a"]) == ({"a": 8}, {"a": 3})


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
    left = Fraction(budget) * sum(sizes.values()) - sum(sizes[u] * bits[u] for u in sizes)
    assert left >= 0
    # Nothing that is left over could be given to any layer.
    assert all(bits[unit] == 8 or sizes[unit] > left for unit in sizes)
    # Without strictness the last step alone may go beyond.
    loose = allocate(start, removed, sizes, budget, strict=False)
    over = sum(sizes[u] * loose[u] for u in sizes) - Fraction(budget) * sum(sizes.values())
    assert 0 <= over < max(sizes.values())
    assert average_bits(loose, sizes) >= average_bits(bits, sizes)


@given(layers, st.data())
def test_what_fits_exactly_is_used_exactly(sizes: dict[str, int], data: st.DataObject) -> None:
    """In floating point a budget that the start meets is missed by a last bit, and layers move."""
    start = {unit: data.draw(st.integers(1, 8)) for unit in sizes}
    whole = data.draw(st.integers(1, 8))
    same = dict.fromkeys(sizes, whole)
    assert allocate(same, dict.fromkeys(sizes, 1), sizes, whole) == same
    assert allocate(start, dict.fromkeys(sizes, 1), sizes, 8) == dict.fromkeys(sizes, 8)
    assert allocate(start, dict.fromkeys(sizes, 1), sizes, 1) == dict.fromkeys(sizes, 1)


def test_only_those_who_took_part_count_and_all_are_planned_for() -> None:
    units = UnitTable(
        tuple(
            TensorInfo(f"{u}.weight", (n,), "float32", u, True) for u, n in (("a", 10), ("b", 90))
        )
    )

    def member(name: str, bits: int) -> Member:
        return Member(name=name, tier="t", variant="v", units=units, bits=bits)

    algorithm = FedMPQ.configure({})
    first = Moment(round=1, rounds=9, seed=0)
    assert algorithm.plan(member("c1", 2), first).bits == {"a": 2, "b": 2}
    came = {"samples": 7.0, "budget": 4.0, "bits.a": 8.0, "bits.b": 3.0, "removed.a": 0.0}
    second = Moment(round=2, rounds=9, seed=0, last={"c0": {**came, "removed.b": 1.0}})
    # c0 alone took part: all start from its widths, 8 and 3, an average of 3.5.
    assert algorithm.plan(member("c0", 4), second).bits == {"a": 8, "b": 3}
    assert algorithm.plan(member("c1", 2), second).bits == {"a": 8, "b": 1}
    assert algorithm.plan(member("c2", 8), second).bits == {"a": 8, "b": 8}


LINK = Link(download=1e5, upload=1e5)
WEIGHTS = 800_000


def test_the_affordable_budget() -> None:
    # 8 bits and a sign: 900 kB each way; at 100 kB/s that is 18 s of the 20 that half of 40 gives.
    assert affordable_budget(WEIGHTS, 0, LINK, 40) == 8
    assert affordable_budget(WEIGHTS, 0, LINK, 36) == 8
    assert affordable_budget(WEIGHTS, 0, LINK, 35.9) == 7
    # 4 and 12 s over an uneven link, and the tail travels too.
    uneven = Link(download=3e5, upload=1e5)
    assert affordable_budget(WEIGHTS, 0, uneven, 24) == 8
    assert affordable_budget(WEIGHTS, 1, uneven, 24) == 7
    assert affordable_budget(WEIGHTS, 0, Link(storage=10 * 3 * 300_000), 60) == 2
    assert affordable_budget(WEIGHTS, 1, Link(storage=10 * 3 * 300_000), 60) == 1


@pytest.mark.parametrize(
    ("link", "seconds", "budget"),
    [
        (Link(), 1e-3, 8),  # nothing is measured yet: nothing limits it
        (Link(download=1e12, upload=1e12, storage=10**15), 1, 8),
        (LINK, 1e-3, 1),  # a bit is too much already, and one bit is what there is
        (LINK, 0, 1),
        (Link(download=1e-6), 3600, 1),
        (Link(storage=1), 3600, 1),
        (Link(upload=1e5), 18, 8),  # one direction is known: it alone counts
        (Link(upload=1e5), 17.9, 7),
    ],
)
def test_the_edges_of_the_affordable_budget(link: Link, seconds: float, budget: int) -> None:
    assert affordable_budget(WEIGHTS, 0, link, seconds) == budget


def test_the_page_says_what_a_device_would_get() -> None:
    tail = sum(row.nbytes for row in RESNET20 if not row.quantized)
    page = (Path(__file__).resolve().parents[2] / "docs" / "algorithms.md").read_text()
    rows = re.findall(r"^\| ([\d.]+) kB/s \| (\d) \| (\d) \|$", page, re.MULTILINE)
    assert len(rows) > 4
    for speed, minute, hour in rows:
        link = Link(download=1e3 * float(speed), upload=1e3 * float(speed))
        for seconds, bits in ((60, minute), (600, hour)):
            assert affordable_budget(sum(SIZES.values()), tail, link, seconds) == int(bits)


def test_a_tail_in_halves_leaves_more_for_weights() -> None:
    units = UnitTable(
        (
            TensorInfo("a.weight", (80,), "float32", "a", True),
            TensorInfo("a.bias", (100,), "float32", "a", False),
            TensorInfo("a.count", (1,), "int64", "a", False),
        )
    )
    # (20 + 400 + 8) bytes at 1 bit, 70 more at 8; 298 = 20 + 70 + 200 + 8 with a tail in halves.
    member = Member(name="c", tier="t", variant="v", units=units, link=Link(upload=1.0))
    moment = Moment(round=1, rounds=1, seed=0, deadline=2 * 298)
    for tail, bits in (("fp32", 1), ("fp16", 8)):
        settings = FedMPQSettings(budget="auto", tail=tail)
        assert client_budget(settings, member, moment) == bits
