"""Compiled loops against numpy's decoding, bit for bit, and when they are used at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
import wire_reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from motley.errors import PayloadError
from motley.wire import TILE, EncodedTensor, compiled, encode_codebook, encode_offset
from motley.wire.packing import pack, packed_size

BITS = range(1, 9)
SIZES = (0, 1, 7, 8, 9, 16, 63, 4095, 4096, 4104, TILE - 1, TILE, TILE + 9, 2 * TILE + 3)
TINY, MOST = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
SCALES = (
    (-0.3, 0.07),
    (0.0, 0.0),
    (-0.0, TINY),
    (-TINY, 3 * TINY),
    (-MOST, MOST / 255),
    (1e30, 1 / 3),
    (-1.0, np.nextafter(np.float32(1), np.float32(0))),
)
"""(low, step) with and without rounding in either operation, down to subnormal values."""


@pytest.fixture
def numba() -> None:
    """Skip where numba is missing."""
    pytest.importorskip("numba", reason="the extra [fast] is not installed")
    if os.environ.get(compiled.SWITCH) == "0":
        pytest.skip(f"{compiled.SWITCH}=0")
    assert compiled.load() is not None


def decoded(tensor: EncodedTensor, start: int, stop: int, *, fast: bool) -> np.ndarray:
    """Return a slice that starts at any multiple of 8, decoded one way or the other."""
    out = np.full(stop - start, np.nan, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled.usage, "pays_from", 0 if fast else np.inf)
        tensor.encoding.decode_slice(tensor.segment, tensor.size, start, out)
    return out


def added(
    tensor: EncodedTensor, total: np.ndarray, base: np.ndarray | None, *, fast: bool
) -> np.ndarray:
    """Return `total` with a third of the tensor's values, or of their sums with `base`."""
    total = total.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled.usage, "pays_from", 0 if fast else np.inf)
        for start in range(0, tensor.size, TILE):
            part = slice(start, start + TILE)
            own = None if base is None else base[part]
            tensor.add_slice(start, np.float32(1 / 3), total[part], own)
    return total


def assert_same_bits(tensor: EncodedTensor, start: int, stop: int) -> None:
    fast, plain = (decoded(tensor, start, stop, fast=fast) for fast in (True, False))
    npt.assert_array_equal(fast.view(np.uint32), plain.view(np.uint32))


def codes_of(bits: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, n, dtype=np.uint8)


def tensors(bits: int, n: int) -> list[EncodedTensor]:
    codes, centres = codes_of(bits, n), np.random.default_rng(1).standard_normal(1 << bits)
    centres = centres.astype(np.float32)
    centres[0] = -0.0
    some = centres[: max(1, (1 << bits) - 1)]
    return [
        encode_offset(codes, -0.3, 0.07, bits),
        encode_codebook(codes, centres, bits),
        encode_codebook(np.minimum(codes, np.uint8(some.size - 1)), some, bits),
    ]


@pytest.mark.usefixtures("numba")
@pytest.mark.parametrize("bits", BITS)
def test_every_size_and_start_gives_the_same_bits(bits: int) -> None:
    for n in SIZES:
        for tensor in tensors(bits, n):
            for start in {0, 8, 24, n // 16 * 8, TILE} & set(range(n + 1)):
                for stop in {start, min(start + 13, n), n}:
                    assert_same_bits(tensor, start, stop)


@pytest.mark.usefixtures("numba")
@pytest.mark.parametrize("bits", BITS)
def test_every_scale_gives_the_same_bits(bits: int) -> None:
    codes = np.concatenate([np.arange(1 << bits, dtype=np.uint8), codes_of(bits, 4096)])
    for low, step in SCALES:
        assert_same_bits(encode_offset(codes, low, step, bits), 0, codes.size)


@pytest.mark.usefixtures("numba")
@settings(max_examples=300)
@given(
    st.integers(1, 8),
    st.integers(0, 300),
    st.integers(0, 37),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(0, width=32, allow_nan=False, allow_infinity=False),
)
def test_any_slice_gives_the_same_bits(
    bits: int, n: int, start: int, low: float, step: float
) -> None:
    with np.errstate(over="ignore"):
        top = np.float32(low) + np.float32((1 << bits) - 1) * np.float32(step)
    assume(np.isfinite(top))
    tensor = encode_offset(codes_of(bits, n, seed=n), low, step, bits)
    assert_same_bits(tensor, min(8 * start, n // 8 * 8), n)


@pytest.mark.usefixtures("numba")
@pytest.mark.parametrize("bits", BITS)
def test_sums_have_the_same_bits(bits: int) -> None:
    rng = np.random.default_rng(2)
    for n in SIZES:
        total, base = rng.standard_normal((2, n), dtype=np.float32)
        for scale in SCALES:
            tensor = encode_offset(codes_of(bits, n), *scale, bits)
            for own in (None, base):
                fast, plain = (added(tensor, total, own, fast=fast) for fast in (True, False))
                npt.assert_array_equal(fast.view(np.uint32), plain.view(np.uint32))


@pytest.mark.usefixtures("numba")
def test_product_and_sum_are_rounded_one_after_the_other() -> None:
    low, step = np.float32(-0.3), np.float32(0.07)
    tensor = encode_offset(np.arange(256, dtype=np.uint8), low, step, 8)
    once = [wire_reference.f32(float(low) + code * float(step)) for code in range(256)]
    twice = [
        wire_reference.f32(float(low) + wire_reference.f32(code * float(step)))
        for code in range(256)
    ]
    assert sum(one != two for one, two in zip(once, twice, strict=True)) > 20
    npt.assert_array_equal(decoded(tensor, 0, 256, fast=True), np.array(twice, np.float32))


@pytest.mark.usefixtures("numba")
@pytest.mark.parametrize("bits", BITS)
def test_codes_are_as_documented(bits: int) -> None:
    codes = codes_of(bits, 77)
    packed = pack(codes, bits)
    assert wire_reference.unpack_codes(packed.tobytes(), bits, 77) == codes.tolist()
    tensor = encode_offset(codes, 0.0, 1.0, bits)
    npt.assert_array_equal(decoded(tensor, 0, 77, fast=True), codes.astype(np.float32))


@pytest.mark.usefixtures("numba")
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("place", [0, 63, 64, 69])
def test_an_index_without_a_centre_is_refused(place: int, fast: bool) -> None:
    for bits in BITS[1:]:
        centres = np.ones((1 << bits) - 1, np.float32)
        tensor = encode_codebook(np.zeros(70, np.uint8), centres, bits)
        segment = tensor.segment.copy()
        codes = np.zeros(70, np.uint8)
        codes[place] = (1 << bits) - 1
        segment[centres.nbytes :] = pack(codes, bits)
        hostile = EncodedTensor(tensor.encoding, (70,), "float32", segment)
        with pytest.raises(PayloadError, match=f"index {codes[place]} into {centres.size} centres"):
            decoded(hostile, 0, 70, fast=fast)


@pytest.mark.usefixtures("numba")
def test_nothing_is_read_behind_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.usage, "pays_from", 0)
    packed, out = np.zeros(packed_size(64, 3), np.uint8), np.ones(64, np.float32)
    one = np.float32(1)
    assert compiled.scale(packed, 3, 64, 0, one, one, out) == 64
    assert compiled.scale(packed, 3, 64, 8, one, one, out) == 0
    assert compiled.scale(packed[:-1], 3, 64, 0, one, one, out) == 0
    assert compiled.look_up(packed, 3, 56, 0, out[:8], out) == (0, 0)
    assert compiled.scale(packed, 3, 64, 0, one, one, out[::2]) == 0


CODE = """
import sys
import numpy as np
from motley.wire import compiled, encode_dense, encode_offset
codes = (np.arange(1 << 16) % 32).astype(np.uint8)
low = encode_offset(codes, 0.5, 0.1, 5)
dense = encode_dense(np.zeros(1 << 16, np.float32))
plain = low.decode()
seen = ["numba" in sys.modules]
compiled.usage.pays_from = codes.size
dense.decode()
seen.append("numba" in sys.modules)
assert low.decode().tobytes() == plain.tobytes()
seen.append("motley.wire.kernels" in sys.modules)
print(*seen)
"""


def imported(**extra: str) -> list[str]:
    """Return whether numba is there after a little, after dense values; the loops after more."""
    environment = {key: v for key, v in os.environ.items() if key != compiled.SWITCH}
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env={**environment, **extra}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.usefixtures("numba")
def test_numba_is_imported_when_it_pays() -> None:
    assert imported() == ["False", "False", "True"]


def test_the_switch_keeps_numba_out() -> None:
    assert imported(MOTLEY_COMPILED="0") == ["False", "False", "False"]


def test_without_numba_numpy_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled.load.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "motley.wire.kernels", raising=False)
    try:
        tensor = encode_offset(codes_of(5, 99), 0.5, 0.25, 5)
        expected = np.float32(0.5) + codes_of(5, 99) * np.float32(0.25)
        npt.assert_array_equal(decoded(tensor, 0, 99, fast=True), expected)
    finally:
        compiled.load.cache_clear()


@pytest.mark.usefixtures("numba")
def test_a_cache_that_is_damaged_or_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_OPT", "0")  # compiles in less time
    assert imported(NUMBA_CACHE_DIR=str(tmp_path))[-1] == "True"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:7])
    assert imported(NUMBA_CACHE_DIR=str(tmp_path))[-1] == "True"
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    assert imported(NUMBA_CACHE_DIR=str(nowhere / "under"))[-1] == "True"
