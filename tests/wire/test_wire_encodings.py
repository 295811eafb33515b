import numpy as np
import numpy.testing as npt
import pytest
from wire_cases import assert_same, floats

from motley.errors import EncodingError, PayloadError
from motley.wire import (
    TILE,
    Codebook,
    Dense,
    EncodedTensor,
    PrefixMask,
    UniformOffset,
    UniformPlanes,
    encode_codebook,
    encode_dense,
    encode_masked,
    encode_offset,
    encode_planes,
)

SHAPES = ((), (0,), (1,), (3, 0, 2), (7,), (8,), (3, 5, 7), (TILE + 3,), (2, TILE))
MANY = 2 * TILE + 1003


def rng():
    return np.random.default_rng(1)


def assert_slices_equal_whole(tensor):
    whole = tensor.decode().reshape(-1)
    for start in range(0, tensor.size, TILE):
        for stop in {start, min(start + 13, tensor.size), tensor.size}:
            out = np.empty(stop - start, tensor.dtype)
            assert tensor.decode_slice(start, stop, out) is out
            npt.assert_array_equal(out, whole[start:stop])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_offset_round_trip(bits, shape):
    codes = rng().integers(0, 1 << bits, shape, dtype=np.uint8)
    codes = np.asarray(codes, np.uint8)
    tensor = encode_offset(codes, -0.3, 0.07, bits)
    low, step = tensor.scale
    expected = low + codes.astype(np.float32) * step
    assert_same(tensor.codes(), codes)
    assert_same(tensor.decode(), np.asarray(expected))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_planes_round_trip(bits, shape):
    top = (1 << bits) - 1
    codes = np.asarray(rng().integers(-top, top + 1, shape, dtype=np.int16))
    tensor = encode_planes(codes, 0.07, bits)
    assert tensor.nbytes == 4 + (bits + 1) * ((codes.size + 7) // 8)
    assert_same(tensor.codes(), codes)
    expected = codes.astype(np.float32) * np.float32(0.07)
    assert_same(tensor.decode(), np.asarray(expected))
    npt.assert_array_equal(np.signbit(tensor.decode()), codes < 0)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 15, 16, 255, 256])
@pytest.mark.parametrize("shape", SHAPES)
def test_codebook_gives_the_centres_bit_for_bit(m, shape):
    centres = rng().standard_normal(m).astype(np.float32)
    indices = np.asarray(rng().integers(0, m, shape, dtype=np.uint8))
    for bits in {None, 8}:
        tensor = encode_codebook(indices, centres, bits)
        assert_same(tensor.codes(), indices)
        assert_same(tensor.centres, centres)
        npt.assert_array_equal(
            tensor.decode().view(np.uint32), np.asarray(centres[indices]).view(np.uint32)
        )


@pytest.mark.parametrize("bits", range(1, 9))
def test_slices_equal_whole(bits):
    codes = rng().integers(0, 1 << bits, MANY, dtype=np.uint8)
    assert_slices_equal_whole(encode_offset(codes, 1.0, 0.5, bits))
    assert_slices_equal_whole(encode_planes(-codes.astype(np.int16), 0.5, bits))
    centres = floats((int(codes.max()) + 1,))
    assert_slices_equal_whole(encode_codebook(codes, centres))
    assert_slices_equal_whole(encode_codebook(np.minimum(codes, 1), centres[:2], bits))


@pytest.mark.parametrize("kind", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_dense_float_round_trip(shape, kind):
    x = floats(shape)  # multiples of 1/256 below 2: exact in float16
    tensor = encode_dense(x, kind)
    assert_slices_equal_whole(tensor)
    decoded = tensor.decode()
    tolerance = 0 if kind != "bfloat16" else 2**-8
    npt.assert_allclose(decoded, x, rtol=tolerance, atol=0)
    assert (decoded.dtype, decoded.shape) == (x.dtype, x.shape)


@pytest.mark.parametrize("dtype", ["float64", "int8", "int16", "int32", "int64", "uint8", "bool"])
def test_dense_other_dtypes(dtype):
    x = rng().integers(0, 2 if dtype == "bool" else 100, (3, MANY // 3)).astype(dtype)
    tensor = encode_dense(x)
    assert tensor.encoding == Dense(dtype)
    assert_same(tensor.decode(), x)
    assert_same(encode_dense(x.T).decode(), x.T)


def test_bfloat16_rounds_to_nearest_even():
    torch = pytest.importorskip("torch")
    bits = rng().integers(0, 2**32, 100_000, dtype=np.uint32)
    x = bits.view(np.float32)
    x = np.concatenate([x[np.abs(x) < 3e38], np.array([np.inf, -np.inf], np.float32)])
    expected = torch.from_numpy(x).bfloat16().float().numpy()
    npt.assert_array_equal(encode_dense(x, "bfloat16").decode(), expected)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_special_values_survive(kind):
    patterns = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000, 0x7FFF8000], np.uint32)
    special = np.array([np.inf, -np.inf, -0.0, 0.0], np.float32)
    tensor = encode_dense(np.concatenate([special, patterns.view(np.float32)]), kind)
    npt.assert_array_equal(tensor.decode()[:4].view(np.uint32), special.view(np.uint32))
    assert np.isnan(tensor.decode()[4:]).all()
    with pytest.raises(PayloadError, match="element 0 is inf"):
        tensor.check_finite()


@pytest.mark.parametrize(("kind", "large"), [("float16", 65520.0), ("bfloat16", 3.4e38)])
def test_halves_refuse_what_would_become_infinite(kind, large):
    with pytest.raises(EncodingError, match="too large"):
        encode_dense(np.array([1.0, large], np.float32), kind)


def test_dense_copies_unless_told_not_to():
    x = floats((4,))
    own, shared = encode_dense(x), encode_dense(x, copy=False)
    x[:] = 9
    assert own.decode()[0] != 9
    assert shared.decode()[0] == 9
    with pytest.raises(ValueError, match="read-only"):
        shared.segment[0] = 1


@pytest.mark.parametrize("present", [0b1111, 0b1011, 0b0001, 0b0000])
def test_planes_can_be_left_out(present):
    codes = np.arange(-15, 16, dtype=np.int16)
    whole, cut = encode_planes(codes, 1.0, 4), encode_planes(codes, 1.0, 4, present)
    expected = np.sign(codes) * (np.abs(codes) & present)
    npt.assert_array_equal(cut.decode(), expected.astype(np.float32))
    # Leaving a plane out is cutting its 4 bytes.
    planes = whole.segment[8:].reshape(4, 4)
    kept = [planes[bit].tobytes() for bit in range(4) if present >> bit & 1]
    assert cut.segment.tobytes() == whole.segment[:8].tobytes() + b"".join(kept)


def test_eight_bits_take_nine_planes():
    tensor = encode_planes(np.array([-255, 255, 0], np.int16), 0.5, 8)
    assert tensor.nbytes == 4 + 9
    npt.assert_array_equal(tensor.decode(), np.array([-127.5, 127.5, 0], np.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda: encode_dense(np.zeros(2, np.complex64)),
        lambda: encode_dense(np.zeros(2, np.float64), "float16"),
        lambda: encode_dense(np.zeros(2, np.float32), "int8"),
        lambda: encode_offset(np.zeros(2, np.uint8), np.nan, 1.0, 2),
        lambda: encode_offset(np.zeros(2, np.uint8), 0.0, -1.0, 2),
        lambda: encode_offset(np.zeros(2, np.uint8), 3e38, 3e38, 2),
        lambda: encode_offset(np.zeros(2, np.int64), 0.0, 1.0, 2),
        lambda: encode_offset(np.full(2, 4, np.uint8), 0.0, 1.0, 2),
        lambda: encode_offset(np.zeros(2, np.uint8), 0.0, 1.0, 9),
        lambda: encode_planes(np.full(2, -4, np.int16), 1.0, 2),
        lambda: encode_planes(np.full(2, -32768, np.int16), 1.0, 8),
        lambda: encode_planes(np.zeros(2, np.int16), np.inf, 2),
        lambda: encode_planes(np.zeros(2, np.int16), 1.0, 2, 4),
        lambda: encode_planes(np.zeros(2, np.int8), 1.0, 2),
        lambda: encode_codebook(np.full(2, 3, np.uint8), np.zeros(3, np.float32)),
        lambda: encode_codebook(np.zeros(2, np.uint8), np.zeros(0, np.float32)),
        lambda: encode_codebook(np.zeros(2, np.uint8), np.zeros(257, np.float32)),
        lambda: encode_codebook(np.zeros(2, np.uint8), np.zeros(3, np.float32), 1),
        lambda: encode_codebook(np.zeros(2, np.uint8), np.array([np.nan], np.float32)),
        lambda: encode_codebook(np.zeros(2, np.uint8), np.zeros(3)),
        lambda: encode_dense(np.zeros(2, np.float32)).codes(),
        lambda: encode_dense(np.zeros(2, np.float32)).centres,
        lambda: encode_dense(np.zeros(2, np.float32)).scale,
    ],
)
def test_what_an_encoding_cannot_hold_is_refused(make):
    with pytest.raises(EncodingError):
        make()


@pytest.mark.parametrize(
    ("encoding", "dtype", "segment"),
    [
        (UniformOffset(2), "float32", "0000000000000000" + "40"),  # an unused bit
        (UniformOffset(2), "float32", "0000c07f00000000" + "00"),  # low is NaN
        (UniformOffset(2), "float32", "00000000000080bf" + "00"),  # step is -1
        (UniformOffset(2), "float32", "ffff7f7fffff7f7f" + "00"),  # the top code is infinite
        (UniformOffset(2), "float32", "0000000000000000"),  # too short
        (UniformOffset(2), "float64", "0000000000000000" + "00"),  # wrong dtype
        (UniformPlanes(2, 3), "float32", "00000000" + "000800"),
        (UniformPlanes(2, 3), "float32", "00000000" + "080000"),
        (UniformPlanes(2, 3), "float32", "0000807f" + "000000"),
        (Codebook(2, 1), "float32", "0000807f" + "00"),
        (Codebook(2, 1), "float32", "00000000" + "40"),
        (Dense("int8"), "int8", "0000"),
        (Dense("int8"), "uint8", "000000"),
    ],
)
def test_segments_against_the_format_are_refused(encoding, dtype, segment):
    with pytest.raises(PayloadError):
        EncodedTensor(encoding, (3,), dtype, np.frombuffer(bytes.fromhex(segment), np.uint8))


@pytest.mark.parametrize(
    ("encoding", "dtype", "segment"),
    [
        (Codebook(2, 3), "float32", "00" * 12 + "30"),  # index 3 of 3 centres
        (Codebook(8, 1), "float32", "00" * 4 + "000001"),
        (Dense("bool"), "bool", "000102"),
    ],
)
def test_bad_elements_are_refused_when_decoded(encoding, dtype, segment):
    data = np.frombuffer(bytes.fromhex(segment), np.uint8)
    tensor = EncodedTensor(encoding, (3,), dtype, data)
    for use in (tensor.decode, tensor.check_finite):
        with pytest.raises(PayloadError):
            use()


def test_decoding_into_the_wrong_buffer_is_refused():
    tensor = encode_dense(floats((TILE + 9,)))
    for start, stop, out in [
        (1, 9, np.empty(8, np.float32)),
        (TILE, TILE + 10, np.empty(10, np.float32)),
        (TILE, TILE + 9, np.empty(8, np.float32)),
        (TILE, TILE + 9, np.empty(9, np.float64)),
        (TILE, TILE + 9, np.empty(18, np.float32)[::2]),
    ]:
        with pytest.raises(ValueError, match=r"expected|slice"):
            tensor.decode_slice(start, stop, out)
    with pytest.raises(ValueError, match="out"):
        tensor.decode(np.empty((1, TILE + 9), np.float32))


@pytest.mark.parametrize("weighs_base", [True, False])
def test_adding_rounds_as_numpy_does(weighs_base):
    n = TILE + 13
    codes = rng().integers(0, 8, n, dtype=np.uint8)
    base, before = rng().standard_normal((2, n), dtype=np.float32)
    weight = np.float32(0.3)
    for tensor in (
        encode_dense(base),
        encode_offset(codes, -0.3, 0.07, 3),
        encode_planes(codes.astype(np.int16), 0.07, 3),
        encode_codebook(codes, floats((8,))),
        encode_masked(encode_dense(base[:13]), PrefixMask(n, 13, n, 13), (n,)),
    ):
        total = before.copy()
        for start in range(0, n, TILE):
            part = slice(start, start + TILE)
            tensor.add_slice(start, weight, total[part], base[part] if weighs_base else None)
        values = tensor.decode() + base if weighs_base else tensor.decode()
        assert_same(total, before + values * weight)


def test_adding_checks_what_it_gets():
    tensor = encode_offset(np.zeros(TILE + 8, np.uint8), 0.0, 1.0, 3)
    total, one = np.zeros(8, np.float32), np.float32(1)
    for start, part in ((8, total), (2 * TILE, total), (TILE, total[::2]), (-TILE, total)):
        with pytest.raises(ValueError, match=r"slice|out is"):
            tensor.add_slice(start, one, part)
    with pytest.raises(ValueError, match="out is float64"):
        tensor.add_slice(0, one, total.astype(np.float64))
    with pytest.raises(ValueError, match="out is"):
        tensor.add_slice(0, one, total, total[:4])
