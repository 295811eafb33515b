import tracemalloc

import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from motley.errors import EncodingError
from motley.wire import TILE, quantize_uniform

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


def test_codes_worked_out_by_hand():
    x = np.array([[-1.0, -0.4], [0.9, 2.0]], np.float32)
    tensor = quantize_uniform(x, 2)  # levels -1, 0, 1, 2
    npt.assert_array_equal(tensor.codes(), np.array([[0, 1], [2, 3]], np.uint8))
    npt.assert_array_equal(tensor.decode(), np.array([[-1, 0], [1, 2]], np.float32))
    assert tensor.scale == (-1.0, 1.0)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0), elements=FINITE),
    st.integers(1, 8),
    st.one_of(st.none(), st.integers(0, 2**32 - 1)),
)
def test_error_is_at_most_a_step(x, bits, seed):
    tensor = quantize_uniform(x, bits, None if seed is None else np.random.default_rng(seed))
    assert tensor.shape == x.shape
    _, step = (float(number) for number in tensor.scale)
    allowed = step * (1 if seed is not None else 0.5)
    largest = float(np.max(np.abs(x), initial=0))
    error = np.abs(tensor.decode().astype(np.float64) - x)
    assert np.max(error, initial=0) <= allowed * (1 + 1e-5) + 4e-7 * largest + 1e-38


@pytest.mark.parametrize("bits", range(1, 9))
def test_stochastic_rounding_is_unbiased(bits):
    x = np.linspace(-0.7, 1.3, 101, dtype=np.float32)
    rng, draws = np.random.default_rng(bits), 2000
    repeated = np.ascontiguousarray(np.broadcast_to(x, (draws, x.size)))
    tensor = quantize_uniform(repeated, bits, rng)
    mean = tensor.decode().astype(np.float64).mean(axis=0)
    # A draw's standard deviation is at most step / 2; six of the mean's, over 808 points.
    bound = 6 * 0.5 * float(tensor.scale[1]) / np.sqrt(draws)
    assert np.max(np.abs(mean - x)) < bound


@pytest.mark.parametrize("bits", range(1, 9))
def test_values_on_a_level_stay_there(bits):
    codes = np.arange(1 << bits, dtype=np.float32)
    x = np.repeat(codes * np.float32(0.25) - np.float32(3), 5000)
    npt.assert_array_equal(quantize_uniform(x, bits, np.random.default_rng(0)).decode(), x)


def test_a_seed_fixes_the_bytes():
    x = np.random.default_rng(0).standard_normal(TILE + 77).astype(np.float32)
    first, second, other = (
        quantize_uniform(x, 3, np.random.default_rng(seed)).segment for seed in (5, 5, 6)
    )
    npt.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.parametrize("value", [0.0, -3.5, 3e38, 1e-45])
@pytest.mark.parametrize("shape", [(), (1,), (9, 11)])
def test_a_constant_is_exact(value, shape):
    x = np.full(shape, value, np.float32)
    tensor = quantize_uniform(x, 1, np.random.default_rng(0))
    assert tensor.scale[1] == 0
    npt.assert_array_equal(tensor.decode(), x)


@pytest.mark.parametrize("bits", range(1, 9))
def test_tiny_spans_work(bits):
    x = np.array([0, 1e-45, 3e-45], np.float32)
    npt.assert_allclose(quantize_uniform(x, bits).decode(), x, atol=2e-38)
    x = np.array([1, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    npt.assert_allclose(quantize_uniform(x, bits).decode(), x, rtol=2e-7)


def test_an_empty_tensor_has_no_codes():
    tensor = quantize_uniform(np.empty((0, 5), np.float32), 4)
    assert tensor.nbytes == 8
    assert tensor.decode().shape == (0, 5)


@pytest.mark.parametrize(
    ("bad", "cause"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")]
)
def test_values_that_are_not_finite_are_refused(bad, cause):
    x = np.zeros(TILE + 5, np.float32)
    x[-1] = bad
    with pytest.raises(EncodingError, match=cause):
        quantize_uniform(x, 4)


def test_other_faults_are_refused():
    with pytest.raises(EncodingError, match="span"):
        quantize_uniform(np.array([-3e38, 3e38], np.float32), 8)
    with pytest.raises(EncodingError, match="float32"):
        quantize_uniform(np.zeros(3), 8)
    with pytest.raises(EncodingError, match="bit-width"):
        quantize_uniform(np.zeros(3, np.float32), 0)


def test_memory_is_the_result_and_a_few_tiles():
    x = np.random.default_rng(0).standard_normal(64 * TILE).astype(np.float32)
    tracemalloc.start()
    tensor = quantize_uniform(x, 2, np.random.default_rng(0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < tensor.nbytes + 24 * TILE
