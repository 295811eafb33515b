"""Any bytes end in a payload or in PayloadError, and never in a large allocation."""

import struct
import tracemalloc

import numpy as np
import numpy.testing as npt
import pytest
import wire_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_cases import CASES, LENET, lenet_tensors, payload

from motley.errors import PayloadError, TableMismatchError
from motley.wire import PayloadReader, encode_offset

SEEDS = {name: (payload(tensors, table), table) for name, (tensors, table) in CASES.items()}
SEEDS["whole lenet"] = (payload(lenet_tensors(), LENET), LENET)
MANIFEST_ENDS = {
    name: 56 + struct.unpack_from("<I", data, 12)[0] for name, (data, _) in SEEDS.items()
}


def use(data, table=None):
    """Read everything; return whether the bytes were taken."""
    try:
        with PayloadReader(data, table) as reader:
            for name in reader:
                tensor = reader[name]
                values = tensor.decode()
                assert values.shape == tensor.shape
                assert values.dtype == tensor.dtype
            reader.check_finite()
    except PayloadError:
        return False
    return True


def mutations(name, count, rng):
    """Yield altered payloads; half of the changes go to header and manifest."""
    data, end = SEEDS[name][0], MANIFEST_ENDS[name]
    for _ in range(count):
        altered = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, end if rng.random() < 0.5 else len(data)))
            match rng.integers(0, 4):
                case 0:
                    altered[at] ^= 1 << int(rng.integers(0, 8))
                case 1:
                    altered[at] = int(rng.integers(0, 256))
                case 2:
                    altered[at : at + 8] = bytes([int(rng.choice([0, 127, 255]))]) * 8
                case _:
                    other = int(rng.integers(0, len(data)))
                    altered[at : at + 16] = data[other : other + 16]
            altered = altered[: len(data)].ljust(len(data), b"\0")
        yield bytes(altered)


def assert_read_as_the_reference_does(data, table):
    rows = None if table is None else [(row.name, row.shape) for row in table]
    expected = wire_reference.decode(data, rows)
    for name, tensor in PayloadReader(data, table).items():
        values = np.array(expected[name], tensor.dtype).reshape(tensor.shape)
        npt.assert_array_equal(tensor.decode(), values)


@pytest.mark.parametrize("name", SEEDS)
def test_altered_payloads(name):
    table, taken = SEEDS[name][1], 0
    for data in mutations(name, 2000, np.random.default_rng(len(name))):
        if use(data, table):
            taken += 1
            if taken < 50 and len(data) < 5000:
                assert_read_as_the_reference_does(data, table)
    assert taken < 2000


@pytest.mark.parametrize("name", SEEDS)
def test_truncated_and_extended_payloads(name):
    data, table = SEEDS[name]
    cuts = {*range(min(len(data), 400)), *range(0, len(data), 97), len(data) - 1}
    for size in cuts - {len(data)}:
        assert not use(data[:size], table)
    for tail in (b"\0", bytes(8), data):
        assert not use(data + tail, table)


@pytest.mark.parametrize("name", SEEDS)
def test_every_bit_of_header_and_manifest_matters(name):
    """A flipped bit there is refused, or gives a payload that is read as different tensors."""
    data, table = SEEDS[name]
    for at in range(MANIFEST_ENDS[name]):
        altered = bytearray(data)
        altered[at] ^= 1 << at % 8
        try:
            reader = PayloadReader(bytes(altered), table)
        except PayloadError:
            continue
        assert payload(list(reader.items()), table) == bytes(altered)


@pytest.mark.parametrize("name", SEEDS)
def test_memory_stays_a_small_multiple_of_the_input(name):
    data, table = SEEDS[name]
    # One bit decodes to four bytes: 32 times the input, besides a tile and the manifest's objects.
    known = 0 if table is None else sum(4 * row.size for row in table)
    bound = 64 * len(data) + 2 * known + (1 << 20)
    altered = list(mutations(name, 150, np.random.default_rng(3)))
    use(data, table)
    tracemalloc.start()
    try:
        for item in altered:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            use(item, table)
            assert tracemalloc.get_traced_memory()[1] - before < bound
    finally:
        tracemalloc.stop()


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes(data):
    use(data)
    use(b"MOTLEY\x01\x00" + data)
    use(b"MOTLEY\x01\x01" + data, LENET)


@settings(max_examples=300)
@given(
    st.integers(0, 2**16 - 1),
    st.lists(st.integers(0, 2**64 - 1), max_size=9),
    st.binary(min_size=4, max_size=4),
    st.integers(0, 2**64 - 1),
)
def test_any_manifest_entry(name_size, dims, encoding, length):
    fixed = struct.pack("<HBB4sQ", name_size, 1, len(dims), encoding, length)
    entry = fixed + struct.pack(f"<{len(dims)}Q", *dims) + b"name"
    entry += bytes(-len(entry) % 8)
    header = struct.pack("<6sBBIIQ32s", b"MOTLEY", 1, 0, 1, len(entry), 64, bytes(32))
    use(header + entry + bytes(64))


def with_entry(**changes):
    """A payload of one tensor [3] of 2 bits whose manifest entry or bytes were changed."""
    data = bytearray(payload([("x", encode_offset(np.zeros(3, np.uint8), 0.0, 1.0, 2))]))
    for at, value in changes.values():
        data[at : at + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("at", "value", "cause"),
    [
        (0, b"motley", "magic"),
        (6, b"\2", "version 2"),
        (7, b"\2", "flags"),
        (8, b"\2", "ends within an entry"),
        (8, b"\0", "behind the last manifest entry"),
        (8, b"\0\0\2", "caps"),
        (12, b"\x19", "multiple of 8"),
        (16, b"\x18", "announces"),
        (24, b"\1", "table digest"),
        (56, b"\0\0", "a name of 0 bytes"),
        (56, b"\xff\xff", "a name of 65535 bytes"),
        (58, b"\0", "dtype number 0"),
        (58, b"\x09", "dtype number 9"),
        (58, b"\x06", "cannot be in"),
        (59, b"\xff", "255 dimensions"),
        (60, b"\0", "encoding 0 is not known"),
        (60, b"\xc8", "encoding 200 is not known"),
        (61, b"\0", "bit-width 0"),
        (61, b"\x09", "bit-width 9"),
        (62, b"\1", "parameters"),
        (64, b"\x0a", "segment of 10 bytes"),
        (72, b"\xff" * 8, "each dimension"),
        (72, b"\5", "has 10"),
        (80, b"\n", "control character"),
        (80, b"\xff", "utf-8"),
        (81, b"\1", "padding behind a name"),
        (88, b"\0\0\xc0\x7f", "low nan"),
        (92, b"\0\0\x80\xff", "step -inf"),
        (96, b"\x40", "unused bits"),
        (97, b"\1", "padding behind tensor"),
    ],
)
def test_the_error_names_the_cause(at, value, cause):
    assert use(with_entry())
    with pytest.raises(PayloadError, match=cause):
        PayloadReader(with_entry(change=(at, value)))


def test_table_entries_are_checked():
    data = bytearray(payload(lenet_tensors()[:2], LENET))
    for at, value in ((56, b"\1"), (72, b"\0"), (72, b"\x0a"), (76, b"\7"), (80, b"\xff")):
        altered = data.copy()
        altered[at : at + 1] = value
        assert not use(bytes(altered), LENET)
    altered = data.copy()
    altered[30] ^= 1
    with pytest.raises(TableMismatchError):
        PayloadReader(bytes(altered), LENET)


def test_a_name_occurs_once():
    tensor = encode_offset(np.zeros(3, np.uint8), 0.0, 1.0, 2)
    data = payload([("x", tensor), ("y", tensor)])
    with pytest.raises(PayloadError, match="twice"):
        PayloadReader(data.replace(b"y\0\0\0\0\0\0\0", b"x\0\0\0\0\0\0\0"))


def test_many_announced_tensors_allocate_nothing():
    header = struct.pack("<6sBBIIQ32s", b"MOTLEY", 1, 0, 65536, 0, 0, bytes(32))
    tracemalloc.start()
    assert not use(header)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
