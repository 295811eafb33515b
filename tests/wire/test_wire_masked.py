"""The encoding `masked`: masks in every form, values under them, what is refused."""

import struct
import tracemalloc

import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_cases import assert_same, floats, masked_inner, masks, payload, ramp
from wire_reference import philox

from motley.errors import EncodingError, PayloadError
from motley.wire import (
    TILE,
    BitMask,
    EncodedTensor,
    GapMask,
    Masked,
    PayloadReader,
    PrefixMask,
    SeededMask,
    TensorRow,
    TensorTable,
    encode_codebook,
    encode_dense,
    encode_masked,
    smallest_mask,
)


def whole(values: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """What a masked tensor decodes to, by numpy alone."""
    found = np.zeros(bits.shape, np.float32)
    found[bits] = values
    return found


def random_bits(n: int, share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < share


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(0, 300) | st.integers(TILE - 3, 2 * TILE + 9),
    share=st.sampled_from([0.0, 0.003, 0.08, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 2**32),
    inner=st.integers(0, 5),
)
def test_any_mask_decodes_to_its_values_and_zeros(n, share, seed, inner):
    bits = random_bits(n, share, seed)
    _, values = masked_inner(int(bits.sum()))[inner]
    for mask in (BitMask.of(bits), GapMask.of(bits), smallest_mask(bits)):
        npt.assert_array_equal(mask.bits(), bits)
        tensor = encode_masked(values, mask, (n,))
        expected = whole(values.decode(), bits)
        assert_same(tensor.decode(), expected)
        for start in range(0, n, TILE):
            stop = min(n, start + TILE)
            part = tensor.decode_slice(start, stop, np.empty(stop - start, np.float32))
            npt.assert_array_equal(part, expected[start:stop])
            assert mask.before(start) == bits[:start].sum()
        npt.assert_array_equal(mask.take(expected), values.decode())


@settings(max_examples=150, deadline=None)
@given(
    shape=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    rows=st.integers(0, 12),
    columns=st.integers(0, 12),
)
def test_the_corner_of_a_tensor_is_a_prefix(shape, rows, columns):
    rows, columns = min(rows, shape[0]), min(columns, shape[1])
    bits = np.zeros(shape, np.bool_)
    bits[:rows, :columns] = True
    corner = PrefixMask.corner(tuple(shape), rows, columns)
    npt.assert_array_equal(corner.bits(), bits.reshape(-1))
    found = smallest_mask(bits)
    assert isinstance(found, PrefixMask)
    npt.assert_array_equal(found.bits(), bits.reshape(-1))


def test_a_large_corner_can_be_read_from_any_tile():
    shape, bits = (700, 300), np.zeros((700, 300), np.bool_)
    bits[:500, :130] = True
    mask = PrefixMask.corner(shape, 500, 130)
    for start in range(0, bits.size, TILE):
        assert mask.before(start) == bits.reshape(-1)[:start].sum()
    npt.assert_array_equal(mask.bits(), bits.reshape(-1))


def test_the_generator_is_philox_as_published():
    """Known answers of Random123's kat_vectors: philox4x64, 10 rounds."""
    assert philox([0] * 4, [0] * 2)[0] == 0x16554D9ECA36314C
    assert philox([2**64 - 1] * 4, [2**64 - 1] * 2)[0] == 0x87B092C3013FE90B


def test_a_seeded_mask_is_what_the_page_says():
    mask = SeededMask(13, 4, 99)
    words = [w for block in range(4) for w in philox([block + 1, 0, 0, 0], [99, 0])][:13]
    smallest = sorted(range(13), key=lambda j: (words[j] // 65536, j))[:4]
    npt.assert_array_equal(np.flatnonzero(mask.bits()), sorted(smallest))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 200) | st.integers(TILE, 3 * TILE),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_seeded_mask_keeps_so_many_and_spreads_them(n, share, seed):
    mask = SeededMask(n, int(share * n), seed)
    bits = mask.bits()
    assert bits.sum() == mask.kept
    for start in range(0, n, TILE):
        assert mask.before(start) == bits[:start].sum()
        tile = bits[start : start + TILE]
        assert abs(tile.sum() - mask.kept * tile.size / n) < 2


def test_every_element_of_a_seeded_mask_is_as_likely():
    hits = sum(SeededMask(40, 10, seed).bits().astype(int) for seed in range(4000))
    # 4000 draws of 1/4: mean 1000, deviation 27.4.
    assert abs(hits - 1000).max() < 5 * 27.4


def test_the_smallest_form_is_taken():
    n = 10_000
    assert isinstance(smallest_mask(ramp(n, 1009) % 10 < 9), BitMask)
    assert isinstance(smallest_mask(ramp(n, 1009) % 30 == 7), GapMask)
    assert isinstance(smallest_mask(np.arange(n) < 77), PrefixMask)
    assert isinstance(smallest_mask(np.zeros(n, np.bool_)), PrefixMask)
    for share in (0.01, 0.1, 0.115, 0.12, 0.125, 0.13, 0.2):
        bits = random_bits(n, share, 5)
        sizes = {kind: kind.of(bits).data().size for kind in (BitMask, GapMask)}
        assert smallest_mask(bits).data().size == min(sizes.values())


def test_bytes_of_each_form():
    """12 bytes of head, then: 4 + n / 8; 8 + one byte a gap below 128; 16; 8; none."""
    n, shape = 1000, (10, 100)
    sizes = {}
    for name, mask in masks(shape).items():
        values = encode_dense(floats((mask.kept,)), "float16")
        sizes[name] = encode_masked(values, mask, shape).nbytes - 2 * mask.kept
    kept = masks(shape)["gaps"].kept
    pad = -(12 + 8 + kept) % 8
    assert sizes == {
        "bitmap": 12 + 4 + n // 8 + 3,
        "gaps": 12 + 8 + kept + pad,
        "prefix": 32,
        "seeded": 24,
    }
    mask = SeededMask(n, 300, 3)
    known = encode_masked(encode_dense(floats((300,))), mask, shape, known=True)
    assert known.nbytes == 16 + 4 * 300


# --- a mask that does not travel -----------------------------------------------------------------

TABLE = TensorTable([TensorRow("x", (20, 7), "float32")])


def known_payload(mask, values):
    tensor = encode_masked(encode_dense(values), mask, (20, 7), known=True)
    npt.assert_array_equal(tensor.decode().reshape(-1), whole(values, mask.bits()))
    return payload([("x", tensor)], TABLE)


def test_the_receiver_brings_the_mask():
    mask, values = SeededMask(140, 30, 7), floats((30,)) + 10
    tensor = PayloadReader(known_payload(mask, values), TABLE)["x"]
    with pytest.raises(PayloadError, match="does not travel"):
        tensor.decode()
    tensor.check_finite()
    assert tensor.kept is not None
    npt.assert_array_equal(tensor.kept.decode(), values)
    other = BitMask.of(mask.bits())
    npt.assert_array_equal(tensor.under(other).decode().reshape(-1), whole(values, mask.bits()))
    assert payload([("x", tensor.under(other))], TABLE) == known_payload(mask, values)


def test_a_mask_of_another_size_is_refused():
    tensor = PayloadReader(known_payload(SeededMask(140, 30, 7), floats((30,))), TABLE)["x"]
    for other in (SeededMask(140, 31, 7), SeededMask(141, 30, 7)):
        with pytest.raises(PayloadError, match="30 of 140 elements are kept"):
            tensor.under(other)
    with pytest.raises(EncodingError, match="take no mask"):
        encode_dense(floats((3,))).under(SeededMask(3, 1, 0))
    travels = encode_masked(encode_dense(floats((1,))), SeededMask(3, 1, 0), (3,))
    with pytest.raises(EncodingError, match="travels with it"):
        travels.under(SeededMask(3, 1, 0))


def test_values_that_are_not_finite_are_found_under_any_mask():
    bad = floats((30,))
    bad[20] = np.nan
    mask = SeededMask(140, 30, 7)
    for known in (True, False):
        tensor = encode_masked(encode_dense(bad), mask, (20, 7), known=known)
        with pytest.raises(PayloadError, match="element 20 is nan"):
            tensor.check_finite()


# --- what is refused -----------------------------------------------------------------------------


def segment_of(mask, n: int) -> bytearray:
    values = encode_dense(floats((mask.kept,)))
    return bytearray(encode_masked(values, mask, (n,)).segment.tobytes())


def read(kind: int, segment: bytes, n: int) -> np.ndarray:
    return EncodedTensor(Masked(kind), (n,), "float32", np.frombuffer(segment, np.uint8)).decode()


BITS = ramp(20, 1009) % 3 > 0
PLACES = np.array([0, 1, 200, 20_000])
SPARSE = np.isin(np.arange(30_000), PLACES)


@pytest.mark.parametrize(
    ("mask", "n", "at", "value", "cause"),
    [
        (BitMask.of(BITS), 20, 0, struct.pack("<Q", 21), "keeps 21 of 20"),
        (BitMask.of(BITS), 20, 0, b"\x01", "add up"),
        (BitMask.of(BITS), 20, 8, b"\x00", "in encoding 0"),
        (BitMask.of(BITS), 20, 8, b"\x05", "in encoding 5"),
        (BitMask.of(BITS), 20, 9, b"\x02", "float32"),
        (BitMask.of(BITS), 20, 9, b"\x0b", "not a valid encoding"),
        (BitMask.of(BITS), 20, 9, b"\x09", "a segment of"),
        (BitMask.of(BITS), 20, 12, b"\x01", "add up"),
        (BitMask.of(BITS), 20, 16, b"\xff", "as many ones"),
        (BitMask.of(BITS), 20, 18, b"\xff", "unused bits"),
        (BitMask.of(BITS), 20, 19, b"\x01", "padding behind a mask"),
        (GapMask.of(SPARSE), 30_000, 16, b"\x09", "as many elements"),
        (GapMask.of(SPARSE), 30_000, 16, b"\x0d", "less than 1 or more than 3 bytes"),
        (GapMask.of(SPARSE), 30_000, 16, b"\x03", "less than 1 or more than 3 bytes"),
        (GapMask.of(SPARSE), 30_000, 20, b"\x80", "more bytes than it needs"),
        (GapMask.of(SPARSE), 30_000, 22, b"\xc6\x00", "more bytes than it needs"),
        (GapMask.of(SPARSE), 30_000, 26, b"\x81", "end within a number"),
        (GapMask.of(SPARSE), 30_000, 24, b"\xff\xff\x01", "as many elements"),
        (PrefixMask.corner((4, 5), 3, 2), 20, 12, b"\x00", "give no mask"),
        (PrefixMask.corner((4, 5), 3, 2), 20, 12, b"\x06", "give no mask"),
        (PrefixMask.corner((4, 5), 3, 2), 20, 12, b"\x14", "give no mask"),
        (PrefixMask.corner((4, 5), 3, 2), 20, 20, b"\x04", "give no mask"),
        (PrefixMask.corner((4, 5), 3, 2), 20, 20, b"\x01", "give no mask"),
    ],
)
def test_segments_against_the_format(mask, n, at, value, cause):
    segment = segment_of(mask, n)
    read(mask.kind, bytes(segment), n)
    segment[at : at + len(value)] = value
    with pytest.raises(PayloadError, match=cause):
        read(mask.kind, bytes(segment), n)


@pytest.mark.parametrize("mask", [BitMask.of(BITS), GapMask.of(BITS), SeededMask(20, 5, 1)])
def test_segments_cut_anywhere_are_refused(mask):
    segment = bytes(segment_of(mask, 20))
    for size in range(len(segment)):
        with pytest.raises(PayloadError):
            read(mask.kind, segment[:size], 20)


def test_few_bytes_claim_no_memory_without_a_table():
    """A seed and no values could stand for a tensor of 2^40 elements."""
    huge = encode_masked(encode_dense(floats((0,))), SeededMask(2**40, 0, 1), (2**20, 2**20))
    with pytest.raises(EncodingError, match="without a tensor table"):
        payload([("x", huge)])
    entry = struct.pack("<HBB4BQ2Q", 1, 1, 2, 5, 4, 0, 0, huge.nbytes, 2**20, 2**20) + b"x" * 1
    entry += bytes(-len(entry) % 8)
    header = struct.pack("<6sBBIIQ32s", b"MOTLEY", 1, 0, 1, len(entry), 24, bytes(32))
    with pytest.raises(PayloadError, match="without a tensor table"):
        PayloadReader(header + entry + huge.segment.tobytes())


def test_gaps_of_one_element_do_not_take_a_multiple_of_the_payload():
    """Where one tile claims a whole payload of gaps, they are refused before they are unpacked."""
    size = 1 << 20
    head = struct.pack("<Q4BII", 1, 1, 0, 0, 0, 1, size)
    segment = np.frombuffer(head + bytes(size), np.uint8)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="more than 3 bytes"):
            EncodedTensor(Masked(2), (TILE,), "float32", segment).decode()
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def test_what_cannot_be_encoded():
    mask = SeededMask(6, 2, 0)
    values = encode_dense(floats((2,)))
    for wrong in ((3, 3), (5,)):
        with pytest.raises(EncodingError, match="under a mask of 2 of 6"):
            encode_masked(values, mask, wrong)
    with pytest.raises(EncodingError, match="under a mask of 2 of 6"):
        encode_masked(encode_dense(floats((3,))), mask, (6,))
    nested = encode_masked(encode_dense(floats((1,))), SeededMask(2, 1, 0), (2,))
    with pytest.raises(EncodingError, match="cannot be in"):
        encode_masked(nested, mask, (6,))
    with pytest.raises(EncodingError, match="mask kind 9"):
        Masked(9)


def test_a_codebook_index_without_a_centre_is_found_under_a_mask():
    codes = np.array([0, 1, 2], np.uint8)
    tensor = encode_masked(encode_codebook(codes, floats((3,)), bits=2), SeededMask(9, 3, 4), (9,))
    segment = bytearray(tensor.segment.tobytes())
    segment[-1] = 0b00111111  # indices 3
    read_again = EncodedTensor(tensor.encoding, (9,), "float32", np.frombuffer(segment, np.uint8))
    for use in (read_again.decode, read_again.check_finite):
        with pytest.raises(PayloadError, match="index 3 into 3 centres"):
            use()
