import hashlib
import io
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
from wire_cases import CASES, LENET, assert_same, floats, lenet_tensors, payload

from motley.errors import EncodingError, PayloadError, TableMismatchError
from motley.wire import (
    Dense,
    EncodedTensor,
    PayloadReader,
    TensorRow,
    TensorTable,
    encode_codebook,
    encode_dense,
    encode_offset,
    write_payload,
)

TWO_ROWS = TensorTable([TensorRow("w", (3,), "float32"), TensorRow("b", (), "int8")])


def two_tensors():
    codes = np.array([1, 0, 3], np.uint8)
    return [("w", encode_offset(codes, -1.0, 0.5, 2)), ("b", encode_dense(np.array(-2, np.int8)))]


def test_table_mode_byte_for_byte():
    expected = (
        "4d4f544c4559" "01" "01" "02000000" "20000000" "1800000000000000"
        + TWO_ROWS.digest.hex()
        + "00000000" "02" "020000" "0900000000000000"
        + "01000000" "01" "030000" "0100000000000000"
        + "000080bf" "0000003f" "31" "00000000000000"
        + "fe" "00000000000000"
    )  # fmt: skip
    assert payload(two_tensors(), TWO_ROWS).hex() == expected


def test_named_mode_byte_for_byte():
    expected = (
        "4d4f544c4559" "01" "00" "02000000" "38000000" "1800000000000000"
        + "00" * 32
        + "0100" "01" "01" "02" "020000" "0900000000000000" "0300000000000000" "77" + "00" * 7
        + "0100" "03" "00" "01" "030000" "0100000000000000" "62" + "00" * 7
        + "000080bf" "0000003f" "31" "00000000000000"
        + "fe" "00000000000000"
    )  # fmt: skip
    assert payload(two_tensors()).hex() == expected


@pytest.mark.parametrize("case", CASES)
def test_info_is_that_of_the_file(case, tmp_path):
    tensors, table = CASES[case]
    info = write_payload(tmp_path / "p", tensors, table)
    data = (tmp_path / "p").read_bytes()
    assert info.sha256 == hashlib.sha256(data).digest()
    assert (info.size, info.tensors) == (len(data), len(tensors))
    assert info.packed_bytes == sum(tensor.nbytes for _, tensor in tensors)
    with PayloadReader(tmp_path / "p", table) as reader:
        assert reader.info == info
        assert len(reader) == len(tensors)
        assert reader.names == tuple(name for name, _ in tensors)


@pytest.mark.parametrize("case", CASES)
def test_iterators_streams_and_paths_give_the_same_bytes(case, tmp_path):
    tensors, table = CASES[case]
    write_payload(tmp_path / "p", iter(tensors), table)
    stream = io.BytesIO()
    write_payload(stream, dict(tensors).items(), table)
    assert (tmp_path / "p").read_bytes() == stream.getvalue() == payload(tensors, table)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_rows_may_be_left_out():
    some = lenet_tensors()[1::3]
    reader = PayloadReader(payload(some, LENET), LENET)
    assert reader.names == tuple(name for name, _ in some)
    assert "conv1.weight" not in reader
    for name, tensor in some:
        assert_same(reader[name].decode(), tensor.decode())


def test_tensors_outlive_the_reader(tmp_path):
    write_payload(tmp_path / "p", [("x", encode_dense(floats((9,))))])
    with PayloadReader(tmp_path / "p") as reader:
        tensor = reader["x"]
    npt.assert_array_equal(tensor.decode(), floats((9,)))
    assert reader.names == ()


def test_check_finite_names_the_tensor():
    bad = np.array([0, np.nan], np.float32)
    reader = PayloadReader(payload([("x", encode_dense(floats((9,)))), ("y", encode_dense(bad))]))
    with pytest.raises(PayloadError, match="'y': element 1"):
        reader.check_finite()


def test_another_table_is_refused():
    other = TensorTable([*LENET.rows[:-1], TensorRow("fc3.bias", (11,), "float32")])
    data = payload(lenet_tensors(), LENET)
    for table in (other, None):
        with pytest.raises(TableMismatchError, match="written against the tensor table"):
            PayloadReader(data, table)
    with pytest.raises(TableMismatchError, match="no tensor table"):
        PayloadReader(payload(lenet_tensors()), LENET)


@pytest.mark.parametrize(
    ("tensors", "table", "cause"),
    [
        ([("x", encode_dense(floats((2,))))] * 2, None, "twice"),
        ([("", encode_dense(floats((2,))))], None, "expected 1 to 256"),
        ([("x", encode_dense(floats((1,) * 9)))], None, "dimensions"),
        ([("x", encode_dense(floats((2,))))], LENET, "not in the tensor table"),
        ([("conv1.bias", encode_dense(floats((7,))))], LENET, "not as the tensor table"),
        ([("conv1.bias", encode_dense(np.zeros(6)))], LENET, "not as the tensor table"),
        (lenet_tensors()[::-1], LENET, "order"),
        (lenet_tensors()[:1] * 2, LENET, "order"),
    ],
)
def test_nothing_is_written_when_the_writer_refuses(tensors, table, cause, tmp_path):
    (tmp_path / "p").write_bytes(b"old")
    for form in (tensors, iter(tensors)):
        with pytest.raises(EncodingError, match=cause):
            write_payload(tmp_path / "p", form, table)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert (tmp_path / "p").read_bytes() == b"old"


def test_an_iterator_holds_one_tensor_at_a_time(tmp_path):
    alive = []

    def tensors():
        for place in range(20):
            tensor = encode_codebook(np.zeros(8, np.uint8), floats((2,)))
            alive.append(weakref.ref(tensor))
            yield str(place), tensor
            del tensor
            assert sum(reference() is not None for reference in alive) <= 1

    assert write_payload(tmp_path / "p", tensors()).tensors == 20


def test_a_missing_or_empty_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        PayloadReader(tmp_path / "p")
    (tmp_path / "p").touch()
    with pytest.raises(PayloadError, match="empty"):
        PayloadReader(tmp_path / "p")


def test_a_layout_spares_the_temporary_file_and_is_held_to(tmp_path: Path) -> None:
    rows = (TensorRow("a", (3,), "float32"), TensorRow("b", (2,), "int64"))
    table = TensorTable(rows)
    values = {"a": np.arange(3, dtype=np.float32), "b": np.array([4, 5])}
    layout = [(row, Dense(row.dtype)) for row in rows]

    def tensors(*names: str) -> Iterator[tuple[str, EncodedTensor]]:
        return ((name, encode_dense(values[name])) for name in names)

    plain = write_payload(tmp_path / "plain", list(tensors("a", "b")), table)
    planned = write_payload(tmp_path / "planned", tensors("a", "b"), table, layout)
    assert planned == plain
    assert (tmp_path / "planned").read_bytes() == (tmp_path / "plain").read_bytes()
    with pytest.raises(EncodingError, match=r"'b' .* comes where the layout has"):
        write_payload(tmp_path / "other", tensors("b", "a"), table, layout)
    with pytest.raises(EncodingError, match="'b' of the layout did not come"):
        write_payload(tmp_path / "short", tensors("a"), table, layout)
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "short").exists()
