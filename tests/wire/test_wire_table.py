import hashlib
import json

import pytest

from motley.errors import EncodingError, PayloadError
from motley.wire import TensorRow, TensorTable

ROWS = [
    TensorRow("conv1.weight", (6, 1, 5, 5), "float32"),
    TensorRow("bn1.num_batches_tracked", (), "int64"),
]


def test_digest_is_over_the_documented_text():
    text = (
        "motley tensor table 1\nfloat32\t6,1,5,5\tconv1.weight\nint64\t\tbn1.num_batches_tracked\n"
    )
    assert TensorTable(ROWS).digest == hashlib.sha256(text.encode()).digest()


def test_digest_depends_on_order_shape_and_dtype():
    others = [
        ROWS[::-1],
        ROWS[:1],
        [TensorRow("conv1.weight", (6, 5, 1, 5), "float32"), ROWS[1]],
        [TensorRow("conv1.weight", (6, 1, 5, 5), "float64"), ROWS[1]],
    ]
    digests = {TensorTable(rows).digest for rows in [ROWS, *others]}
    assert len(digests) == 5


def test_rows_are_found_by_name():
    table = TensorTable(ROWS)
    assert table.index("bn1.num_batches_tracked") == 1
    assert table["conv1.weight"].size == 150
    assert list(table) == ROWS
    assert "other" not in table
    with pytest.raises(KeyError):
        table.index("other")


def test_json_round_trip():
    table = TensorTable(ROWS)
    again = TensorTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table
    assert again.digest == table.digest


@pytest.mark.parametrize(
    "row",
    [
        ("", (1,), "float32"),
        ("x" * 257, (1,), "float32"),
        ("tab\t", (1,), "float32"),
        ("\ud800", (1,), "float32"),
        ("x", (1,) * 9, "float32"),
        ("x", (-1,), "float32"),
        ("x", (2**32,), "float32"),
        ("x", (2**20, 2**20, 2), "float32"),
        ("x", (0, 2**31, 2**31), "float32"),
        ("x", (True,), "float32"),
        ("x", (1,), "complex64"),
        ("x", (1,), "float16"),
    ],
)
def test_rows_against_the_format_are_refused(row):
    with pytest.raises(EncodingError):
        TensorRow(*row)


def test_a_name_occurs_once():
    with pytest.raises(EncodingError, match="twice"):
        TensorTable([ROWS[0], ROWS[0]])


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"version": 2, "rows": []},
        {"version": 1, "rows": {}},
        {"version": 1, "rows": [1]},
        {"version": 1, "rows": [["x", [1.5], "float32"]]},
        {"version": 1, "rows": [["x", [1]]]},
        {"version": 1, "rows": [["x", [], "float32"], ["x", [], "float32"]]},
    ],
)
def test_json_of_another_kind_is_refused(value):
    with pytest.raises(PayloadError):
        TensorTable.from_json(value)
