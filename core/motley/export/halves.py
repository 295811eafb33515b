"""The ends of a model in fp16: what low bit-widths left in full precision."""

from __future__ import annotations

from collections.abc import Mapping

from motley.errors import EncodingError
from motley.models.units import UnitTable
from motley.wire import Dense, EncodedTensor, encode_dense, encode_masked

FULL = Dense("float32")


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


def halvable(tensors: Mapping[str, EncodedTensor], table: UnitTable) -> tuple[str, ...]:
    """Return the ends whose values, or kept values under a mask, are stored as float32."""
    return tuple(name for name in end_names(table) if _values(tensors[name]).encoding == FULL)


def halved(
    tensors: Mapping[str, EncodedTensor], table: UnitTable
) -> dict[str, EncodedTensor] | None:
    """Return the tensors with the `halvable` ones in fp16; None where one of them overflows."""
    found = dict(tensors)
    try:
        for name in halvable(tensors, table):
            found[name] = _half(tensors[name])
    except EncodingError:
        return None
    return found


def _values(tensor: EncodedTensor) -> EncodedTensor:
    """Return what is stored of a tensor: the values under its mask, or all."""
    return tensor if tensor.kept is None else tensor.kept


def _half(tensor: EncodedTensor) -> EncodedTensor:
    half = encode_dense(_values(tensor).decode(), "float16")
    return half if tensor.mask is None else encode_masked(half, tensor.mask, tensor.shape)
