import numpy as np
import numpy.testing as npt
import pytest
import wire_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_cases import assert_same

from motley.errors import EncodingError, PayloadError
from motley.wire import TILE, pack, packed_size, unpack
from motley.wire.packing import pack_slice, unpack_slice, unused_bits_are_zero

BITS = range(1, 9)
SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 63, TILE - 1, TILE, TILE + 1, TILE + 8, 2 * TILE + 3)


def codes_of(bits, n, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << bits, n, dtype=np.uint8)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("n", SIZES)
def test_unpack_inverts_pack(bits, n):
    codes = codes_of(bits, n)
    packed = pack(codes, bits)
    assert packed.size == packed_size(n, bits) <= (n * bits + 7) // 8 + 2
    assert unused_bits_are_zero(packed, bits, n)
    assert_same(unpack(packed, bits, n), codes)


@given(st.integers(1, 8), st.binary(max_size=300))
def test_pack_is_as_documented(bits, data):
    codes = np.frombuffer(data, np.uint8) >> np.uint8(8 - bits)
    packed = pack(codes, bits)
    assert wire_reference.unpack_codes(packed.tobytes(), bits, codes.size) == codes.tolist()
    npt.assert_array_equal(unpack(packed, bits, codes.size), codes)


@pytest.mark.parametrize(
    ("bits", "codes", "expected"),
    [
        (1, [1, 0, 1, 1, 0, 0, 0, 0, 1], "0d01"),
        (2, [1, 2, 3, 0, 3], "3903"),
        (3, [1, 6, 3, 4, 5], "39011a"),
        (4, [1, 15, 7], "f107"),
        (5, [16, 1, 31], "100f" + "05"),
        (6, [0x3F, 0x20, 0x05], "0f05" + "0b"),
        (7, [0x7F, 0x40, 0x15], "0f05" + "13" + "03"),
        (8, [255, 0, 7], "ff0007"),
    ],
)
def test_bytes_worked_out_by_hand(bits, codes, expected):
    assert pack(np.array(codes, np.uint8), bits).tobytes().hex() == expected


@pytest.mark.parametrize("bits", BITS)
def test_slices_equal_the_whole(bits):
    n = 2 * TILE + 13
    codes, packed = codes_of(bits, n), np.empty(packed_size(n, bits), np.uint8)
    for start in (TILE, 0, 2 * TILE):
        pack_slice(codes[start : start + TILE], bits, n, start, packed)
    npt.assert_array_equal(packed, pack(codes, bits))
    for start, stop in ((0, 5), (TILE, n), (TILE, TILE + 1001), (2 * TILE, n), (8, TILE + 16)):
        out = np.empty(stop - start, np.uint8)
        unpack_slice(packed, bits, n, start, out)
        npt.assert_array_equal(out, codes[start:stop])


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(0, 3 * TILE), st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack_at_any_size(bits, n, seed):
    codes = codes_of(bits, n, seed)
    out, packed = np.empty(n, np.uint8), np.empty(packed_size(n, bits), np.uint8)
    assert pack(codes, bits, out=packed) is packed
    assert unpack(packed, bits, n, out=out) is out
    npt.assert_array_equal(out, codes)


def test_unaligned_memory_works():
    memory = bytes(3) + codes_of(8, 1000).tobytes()
    codes = np.frombuffer(memory, np.uint8)[3:] >> np.uint8(0)
    for bits in BITS:
        own = np.frombuffer((codes >> np.uint8(8 - bits)).tobytes() + b"\0", np.uint8)[1:]
        packed = np.frombuffer(b"x" + pack(own, bits).tobytes(), np.uint8)[1:]
        npt.assert_array_equal(unpack(packed, bits, own.size), own)


@pytest.mark.parametrize("bits", range(1, 8))
def test_codes_that_do_not_fit_are_refused(bits):
    with pytest.raises(EncodingError, match="does not fit"):
        pack(np.array([0] * TILE + [1 << bits], np.uint8), bits)


def test_wrong_arguments_are_refused():
    codes = np.zeros(9, np.uint8)
    for bits in (0, 9, -1):
        with pytest.raises(EncodingError, match="bit-width"):
            pack(codes, bits)
    with pytest.raises(EncodingError, match="uint8"):
        pack(codes.astype(np.int64), 3)
    with pytest.raises(PayloadError, match="expected uint8"):
        unpack(codes, 1, 9)
    with pytest.raises(ValueError, match="out is"):
        unpack(np.zeros(2, np.uint8), 1, 9, out=np.empty(8, np.uint8))
