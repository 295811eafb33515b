"""The check of an uploaded update before it may count: bad input changes nothing."""

from __future__ import annotations

from pathlib import Path

from fedserver.rounds.tasks import Ticket
from motley.errors import PayloadError, UpdateError
from motley.models.units import TensorInfo
from motley.plan import FULL_PRECISION, HALF, Plan
from motley.wire import (
    Dense,
    EncodedTensor,
    Encoding,
    PayloadReader,
    UniformOffset,
    UniformPlanes,
)


def check_update(path: Path, ticket: Ticket) -> dict[str, int]:
    """Read a whole update once, compare it with the plan it answers; return the widths that came.

    The widths are those of the units that came in planes.

    Raises:
        UpdateError: the bytes are no payload, a tensor is missing, surplus, of another encoding
            than planned, or holds a value that is not finite; names tensor and client.
    """
    try:
        with PayloadReader(path, ticket.table.tensor_table) as reader:
            _check_names(set(reader.names), ticket)
            widths: dict[str, int] = {}
            for row in ticket.table.rows:
                if row.name not in reader.names:
                    continue
                tensor = reader[row.name]
                _check_tensor(row, tensor, ticket)
                if isinstance(tensor.encoding, UniformPlanes):
                    widths[row.unit] = max(widths.get(row.unit, 0), tensor.encoding.bits)
            return widths
    except PayloadError as error:
        raise UpdateError(f"the update of {ticket.client} is not valid: {error}") from None


def _check_names(found: set[str], ticket: Ticket) -> None:
    units = ticket.plan.upload
    expected = {row.name for row in ticket.table.rows if not units or row.unit in units}
    if found == expected:
        return
    missing, surplus = sorted(expected - found), sorted(found - expected)
    raise UpdateError(
        f"the update of {ticket.client} does not hold the planned tensors"
        + (f"; missing: {', '.join(missing)}" if missing else "")
        + (f"; not asked for: {', '.join(surplus)}" if surplus else "")
    )


def _check_tensor(row: TensorInfo, tensor: EncodedTensor, ticket: Ticket) -> None:
    if not _as_planned(row, tensor.encoding, ticket.plan):
        raise UpdateError(
            f"the update of {ticket.client} has {row.name} in {tensor.encoding}; "
            f"the plan asks for {_planned(row, ticket.plan)}"
        )
    try:
        tensor.check_finite()
    except PayloadError as error:
        raise UpdateError(
            f"the update of {ticket.client} holds a value in {row.name} that is not "
            f"finite: {error}; its training diverged"
        ) from None


def _as_planned(row: TensorInfo, found: Encoding, plan: Plan) -> bool:
    """Tell whether an update's tensor is in the encoding that its plan asks for."""
    planes = plan.planes_of(row.unit, quantized=row.quantized)
    if planes:
        # Top planes may be left out: the width is then smaller, and all of its planes are there.
        return (
            isinstance(found, UniformPlanes)
            and found.bits <= planes
            and found.present == (1 << found.bits) - 1
        )
    if _is_dense(row, plan):
        return found == Dense(_kind(row, plan))
    return isinstance(found, UniformOffset) and found.bits == plan.up_bits


def _planned(row: TensorInfo, plan: Plan) -> str:
    planes = plan.planes_of(row.unit, quantized=row.quantized)
    if planes:
        return f"a sign plane and 1 to {planes} magnitude planes, none left out below the top"
    if _is_dense(row, plan):
        return f"{_kind(row, plan)} values"
    return f"uniform codes at {plan.up_bits} bits"


def _is_dense(row: TensorInfo, plan: Plan) -> bool:
    return plan.layout == "planes" or plan.up_bits == FULL_PRECISION or row.dtype != "float32"


def _kind(row: TensorInfo, plan: Plan) -> str:
    is_half = plan.layout == "planes" and plan.tail_bits == HALF and row.dtype == "float32"
    return "float16" if is_half else row.dtype
