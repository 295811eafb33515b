"""The dithered lattice against theory and brute force (UVeQFed, arXiv 2006.03262)."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import numpy.testing as npt
import pytest
import wire_reference
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from motley.errors import EncodingError, PayloadError
from motley.wire import TILE, DitheredLattice, EncodedTensor, quantize_lattice, quantize_uniform
from motley.wire.dithered import safe_extent
from motley.wire.encodings.lattice import dither

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
HEIGHT = math.sqrt(3) / 2
CELL = {1: 1.0, 2: HEIGHT}
"""Area of the basic cell of the lattice whose step is 1."""
MOMENT = {1: 1 / 12, 2: 5 / (36 * math.sqrt(3))}
"""Normalised second moment: mean square a dimension over the cell of area 1 (0.0833, 0.0802)."""
FARTHEST = {1: 0.5, 2: 1 / math.sqrt(3)}
"""From a lattice point to the corner of its cell."""


def seeded(values, bits, dimensions, reach=0.0, seed=99):
    return quantize_lattice(values, bits, dimensions, seed, reach)


def errors(values, tensor):
    """The errors in units of the step, [points, dimensions]."""
    flat = tensor.decode().astype(np.float64).reshape(-1) - values.reshape(-1)
    return flat.reshape(-1, tensor.encoding.dimensions) / float(tensor.scale[1])


def in_cell(points):
    """Whether points lie in the hexagon about 0: nearer to 0 than to its six neighbours."""
    angles = np.arange(6) * np.pi / 3
    reach = points @ np.stack([np.cos(angles), np.sin(angles)])
    return (reach <= 0.5 + 1e-3).all(axis=1)


def samples(kind, n):
    rng = np.random.default_rng(3)
    made = {
        "even": rng.uniform(-1, 1, n),
        "normal": rng.standard_normal(n),
        "few": rng.choice([-1.0, 0.25, 0.5], n),
        "zero but one": np.concatenate([[1.0, -1.0], np.zeros(n - 2)]),
    }
    return made[kind].astype(np.float32)


@pytest.mark.parametrize("kind", ["even", "normal", "few", "zero but one"])
@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_errors_are_uniform_over_the_cell_whatever_the_input(bits, dimensions, kind):
    x = samples(kind, 200_000)
    found = errors(x, seeded(x, bits, dimensions))
    points = len(found)
    # Six standard errors; a coordinate has variance below 1/12 and is bounded by 1/√3.
    assert np.abs(found.mean(axis=0)).max() < 6 * math.sqrt(1 / 12 / points)
    moment = np.square(found).sum(axis=1).mean() / dimensions
    expected = MOMENT[dimensions] * CELL[dimensions] ** (2 / dimensions)
    assert abs(moment - expected) < 6 * 0.1 / math.sqrt(points)
    if kind != "zero but one":
        inputs = x.reshape(-1, dimensions).astype(np.float64)
        for a, b in itertools.product(range(dimensions), repeat=2):
            assert abs(np.corrcoef(inputs[:, a], found[:, b])[0, 1]) < 6 / math.sqrt(points)
    if dimensions == 2:
        assert in_cell(found).all()
        # The inscribed circle of the hexagon, and half of it, hold what their areas say.
        for radius in (0.5, 0.25):
            share = np.mean(np.hypot(*found.T) < radius)
            assert abs(share - math.pi * radius**2 / HEIGHT) < 6 * 0.5 / math.sqrt(points)
    else:
        assert np.abs(found).max() <= 0.5 + 1e-3
        counts, _ = np.histogram(found, bins=10, range=(-0.5, 0.5))
        assert np.abs(counts / points - 0.1).max() < 6 * 0.3 / math.sqrt(points)


def test_the_hexagon_loses_less_at_equal_density():
    """Two dimensions gain 0.0833 / 0.0802 = 1.04 where as many points lie on an area."""
    x = samples("even", 400_000)
    losses = {}
    for dimensions in (1, 2):
        tensor = seeded(x, 6, dimensions)
        density = float(tensor.scale[1]) ** 2 * CELL[dimensions]
        if dimensions == 1:
            density = float(tensor.scale[1]) ** 2
        losses[dimensions] = np.mean((tensor.decode().astype(np.float64) - x) ** 2) / density
    npt.assert_allclose([losses[1], losses[2]], [MOMENT[1], MOMENT[2]], rtol=0.01)


def test_half_the_variance_of_stochastic_rounding_is_left():
    x = samples("even", 400_000)
    other = quantize_uniform(x, 4, np.random.default_rng(1))
    rounded = np.mean((other.decode().astype(np.float64) - x) ** 2) / float(other.scale[1]) ** 2
    dithered = np.mean(np.square(errors(x, seeded(x, 4, 1))))
    npt.assert_allclose([rounded, dithered], [1 / 6, 1 / 12], rtol=0.02)


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("bits", range(1, 9))
def test_a_value_is_unbiased_over_seeds(bits, dimensions):
    x = np.linspace(-0.7, 1.3, 22, dtype=np.float32)
    draws = 3000
    total, step = np.zeros(x.size), 0.0
    for seed in range(draws):
        tensor = seeded(x, bits, dimensions, seed=seed)
        total += tensor.decode()
        step = float(tensor.scale[1])
    assert np.abs(total / draws - x).max() < 6 * step * math.sqrt(1 / 12 / draws)


@pytest.mark.parametrize("reach", [0.0, 0.7, 2.4])
@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_codes_are_the_nearest_points_of_the_box(bits, dimensions, reach):
    """By brute force over all points; far outside of the box the edge's row comes first."""
    x = samples("normal", 2_000)
    tensor = seeded(x, bits, dimensions, reach)
    step, top = float(tensor.scale[1]), (1 << bits) - 1
    places = np.arange(top + 1)
    shifts = np.array([wire_reference.dither(99, i) for i in range(x.size)])
    if dimensions == 1:
        wanted = x / step + shifts + top / 2
        nearest = np.abs(wanted[:, None] - places).argmin(axis=1)
        npt.assert_array_equal(tensor.codes(), nearest)
        return
    rows, columns = (grid.reshape(-1) for grid in np.meshgrid(places, places, indexing="ij"))
    across = columns - top / 2 + np.where(rows % 2, 0.25, -0.25)
    lattice = np.stack([across, (rows - top / 2) * HEIGHT], axis=1)
    wanted = x.reshape(-1, 2) / step + shifts.reshape(-1, 2) * [1, HEIGHT]
    distances = np.linalg.norm(wanted[:, None] - lattice, axis=2)
    codes = tensor.codes().reshape(-1, 2)
    taken = distances[np.arange(len(wanted)), codes[:, 1] * (top + 1) + codes[:, 0]]
    # Within 1/2 of a point the whole lattice has no nearer one; without a reach none lies outside.
    inside = (distances.min(axis=1) < 0.5) | (reach == 0)
    npt.assert_allclose(taken[inside], distances.min(axis=1)[inside], atol=1e-5)
    row = np.clip(np.rint(wanted[:, 1] / HEIGHT + top / 2), 0, top)
    outside = np.abs(wanted[:, 1] / HEIGHT) > top / 2 + 1
    npt.assert_array_equal(codes[outside, 1], row[outside])


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0), elements=FINITE),
    st.integers(1, 8),
    st.sampled_from([1, 2]),
    st.integers(0, 2**64 - 1),
)
@example(np.array(1e-37, np.float32), 5, 1, 0)  # a step below the smallest normal number
def test_no_value_overloads_when_all_are_reached(x, bits, dimensions, seed):
    tensor = quantize_lattice(x, bits, dimensions, seed)
    assert tensor.shape == x.shape
    found = (tensor.decode().astype(np.float64) - x).reshape(-1)
    step, largest = float(tensor.scale[1]), float(np.max(np.abs(x), initial=0))
    if step == 0:  # it would be no normal number: see test_zeros_and_tiny_values_have_no_step
        assert (
            largest / safe_extent(DitheredLattice(bits, dimensions)) * (1 + 1e-5)
            < np.finfo(np.float32).tiny
        )
        assert not tensor.decode().any()
        return
    tolerance = step * 1e-4 + 4e-7 * largest + 3e-38
    if dimensions == 2:
        points = np.concatenate([found, np.zeros(found.size % 2)]).reshape(-1, 2)
        found = np.hypot(*points[: found.size // 2].T) if found.size > 1 else found[:0]
    assert np.max(np.abs(found), initial=0) <= FARTHEST[dimensions] * step + tolerance


def test_far_values_go_to_the_edge_of_the_box():
    x = np.concatenate([np.full(10_000, 0.01, np.float32), [5.0, -5.0]]).astype(np.float32)
    for dimensions in (1, 2):
        tensor = seeded(x, 3, dimensions, reach=2.0)
        rms = math.sqrt(float(np.mean(np.square(x, dtype=np.float64))))
        edge = 2.0 * rms / (3.5 * (1.0 if dimensions == 1 else HEIGHT))
        npt.assert_allclose(float(tensor.scale[1]), edge, rtol=1e-5)
        assert np.abs(tensor.decode()).max() <= 4.25 * edge
        again = seeded(x, 3, dimensions, reach=2.0)
        npt.assert_array_equal(tensor.segment, again.segment)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 1001])
@pytest.mark.parametrize("bits", range(1, 9))
def test_a_value_takes_as_many_bits_as_in_uniform_codes(bits, n):
    x = samples("normal", 1002)[:n]
    uniform = quantize_uniform(x, bits).nbytes
    assert seeded(x, bits, 1).nbytes == uniform + 4
    assert seeded(x, bits, 2).nbytes <= uniform + 4 + (n % 2) * bits


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (3, 5, 7), (TILE + 3,), (2, TILE)])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_slices_equal_whole(bits, shape, dimensions):
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    tensor = seeded(np.asarray(x, np.float32), bits, dimensions)
    whole = tensor.decode().reshape(-1)
    for start in range(0, tensor.size, TILE):
        for stop in {start, min(start + 13, tensor.size), tensor.size}:
            out = np.empty(stop - start, np.float32)
            npt.assert_array_equal(tensor.decode_slice(start, stop, out), whole[start:stop])
    assert tensor.codes().shape == shape


def test_any_elements_dither_can_be_had_alone():
    whole = dither(2**64 - 3, 0, 1001)
    npt.assert_array_equal(dither(2**64 - 3, 400, 77), whole[400:477])
    npt.assert_array_equal(whole[:50], [wire_reference.dither(2**64 - 3, i) for i in range(50)])
    assert whole.min() >= -0.5
    assert whole.max() < 0.5
    assert (dither(0, 0, 1000) != dither(1, 0, 1000)).mean() > 0.99


def test_zeros_and_tiny_values_have_no_step():
    for x in (np.zeros(9, np.float32), np.full(9, 1e-45, np.float32)):
        tensor = seeded(x, 2, 2)
        assert tensor.scale == (0, 0)
        npt.assert_array_equal(tensor.decode(), np.zeros(9, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    x = np.zeros(9, np.float32)
    x[-1] = bad
    with pytest.raises(EncodingError, match="not finite"):
        seeded(x, 4, 2)


@pytest.mark.parametrize(("bits", "dimensions"), [(0, 1), (9, 1), (4, 0), (4, 3)])
def test_widths_and_lattices_that_do_not_exist_are_refused(bits, dimensions):
    with pytest.raises(EncodingError):
        seeded(np.zeros(4, np.float32), bits, dimensions)


@pytest.mark.parametrize(
    "segment",
    [
        "00" * 8 + "0000c07f" + "00",  # step is NaN
        "00" * 8 + "000080bf" + "00",  # step is -1
        "00" * 8 + "ffff7f7f" + "00",  # the farthest point is infinite
        "00" * 8 + "00000000",  # too short
        "00" * 8 + "00000000" + "0000",  # too long
    ],
)
@pytest.mark.parametrize("dimensions", [1, 2])
def test_segments_against_the_format_are_refused(segment, dimensions):
    data = np.frombuffer(bytes.fromhex(segment), np.uint8)
    with pytest.raises(PayloadError):
        EncodedTensor(DitheredLattice(2, dimensions), (3,), "float32", data)


def test_unused_bits_are_zero_and_a_pair_uses_all_of_its_codes():
    data = np.frombuffer(bytes(12) + b"\x40", np.uint8)
    with pytest.raises(PayloadError, match="unused"):
        EncodedTensor(DitheredLattice(2, 1), (3,), "float32", data)
    EncodedTensor(DitheredLattice(2, 2), (3,), "float32", data)


def test_memory_is_the_result_and_a_few_tiles():
    x = np.random.default_rng(0).standard_normal(64 * TILE).astype(np.float32)
    out = np.empty(TILE, np.float32)
    tracemalloc.start()
    tensor = seeded(x, 2, 2)
    _, encoding = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    tensor.decode_slice(TILE, 2 * TILE, out)
    _, decoding = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert encoding < tensor.nbytes + 40 * TILE
    assert decoding - before < 24 * TILE
