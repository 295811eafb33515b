"""Golden files: today's writer gives the same bytes, both readers the same values."""

import numpy as np
import pytest
import wire_reference
from wire_cases import CASES, GOLDEN, LENET, assert_same, payload

from motley.wire import PayloadReader


@pytest.mark.parametrize("case", CASES)
def test_writer_gives_the_golden_bytes(case):
    tensors, table = CASES[case]
    assert payload(tensors, table) == (GOLDEN / f"{case}.payload").read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_reader_agrees_with_the_reference(case):
    _, table = CASES[case]
    path = GOLDEN / f"{case}.payload"
    rows = None if table is None else [(row.name, row.shape) for row in table]
    expected = wire_reference.decode(path.read_bytes(), rows)
    with PayloadReader(path, table) as reader:
        assert list(reader) == list(expected)
        for name, tensor in reader.items():
            values = np.array(expected[name], tensor.dtype).reshape(tensor.shape)
            assert_same(tensor.decode(), values)


@pytest.mark.parametrize("case", CASES)
def test_reading_and_writing_again_gives_the_same_file(case):
    _, table = CASES[case]
    data = (GOLDEN / f"{case}.payload").read_bytes()
    assert payload(list(PayloadReader(data, table).items()), table) == data


def test_digest_of_a_table_is_fixed():
    assert LENET.digest.hex() == "149880cc0dbec14ab011f1d32e7f5ee0d0b7859ef347eed711badbb17963a9e8"
