"""The ends of a model in fp16: what low bit-widths left in full precision."""

from __future__ import annotations

from collections.abc import Mapping

from motley.errors import EncodingError
from motley.models.units import UnitTable
from motley.wire import Dense, EncodedTensor, encode_dense


def end_names(table: UnitTable) -> tuple[str, ...]:
    """Return the float32 tensors that are ends: the first and the last layer, and every vector.

    First and last are the layers of the first and the last parameter of two or more dimensions;
    vectors are biases and what normalisation holds, wherever they are.
    """
    matrices = [row for row in table if row.parameter and len(row.shape) >= 2]
    ends = {row.unit for row in (*matrices[:1], *matrices[-1:])}
    return tuple(
        row.name
        for row in table
        if row.dtype == "float32" and (row.unit in ends or len(row.shape) < 2)
    )


def halved(
    tensors: Mapping[str, EncodedTensor], table: UnitTable
) -> dict[str, EncodedTensor] | None:
    """Return the tensors with the ends that are dense in fp16; None where one of them overflows."""
    found, ends = dict(tensors), end_names(table)
    try:
        for name in ends:
            if isinstance(tensors[name].encoding, Dense):
                found[name] = encode_dense(tensors[name].decode(), "float16")
    except EncodingError:
        return None
    return found
