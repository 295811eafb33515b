"""The check of an uploaded update before it may count: bad input changes nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from fedserver.aggregation.fold import Pages
from fedserver.rounds.tasks import Findings, Ticket
from motley.errors import PayloadError, UpdateError
from motley.models.units import TensorInfo
from motley.plan import FULL_PRECISION, HALF, Plan
from motley.prune.masks import UploadMasks
from motley.seeding import dither_seed
from motley.wire import (
    TILE,
    Dense,
    DitheredLattice,
    EncodedTensor,
    Encoding,
    Mask,
    PayloadReader,
    UniformOffset,
    UniformPlanes,
    encode_dense,
    quantize_planes,
)


def check_update(path: Path, ticket: Ticket) -> Findings:
    """Read a whole update, compare it with the plan it answers; return what was found by the way.

    Raises:
        UpdateError: the bytes are no payload, a tensor is missing, surplus, of another encoding
            than planned, holds a value that is not finite, or the whole is further from the
            broadcast than the run file allows; names tensor and client.
    """
    try:
        with PayloadReader(path, ticket.table.tensor_table) as reader:
            _check_names(set(reader.names), ticket)
            widths: dict[str, int] = {}
            pages = Pages()
            for row in ticket.table.rows:
                if row.name not in reader:
                    continue
                tensor = reader[row.name]
                _check_tensor(row, tensor, ticket)
                if isinstance(tensor.encoding, UniformPlanes):
                    widths[row.unit] = max(widths.get(row.unit, 0), tensor.encoding.bits)
                pages.read(reader, tensor.nbytes)
            return Findings(widths=widths, distances=_measure(reader, ticket))
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
    mask, kept = _mask(row, ticket), tensor.kept
    if (mask is None) != (kept is None) or tensor.encoding.carries_mask():
        raise UpdateError(
            f"the update of {ticket.client} has {row.name} in {tensor.encoding}; the plan asks for "
            + ("all of its values" if mask is None else "values under a mask that does not travel")
        )
    if mask is not None:
        tensor.under(mask)
    values = tensor if kept is None else kept
    if not _as_planned(row, values.encoding, ticket.plan):
        raise UpdateError(
            f"the update of {ticket.client} has {row.name} in {_found(values.encoding)}; "
            f"the plan asks for {_planned(row, ticket.plan)}"
        )
    _check_dither(row, tensor, ticket)
    try:
        tensor.check_finite()
    except PayloadError as error:
        raise UpdateError(
            f"the update of {ticket.client} holds a value in {row.name} that is not "
            f"finite: {error}; its training diverged"
        ) from None


def _check_dither(row: TensorInfo, tensor: EncodedTensor, ticket: Ticket) -> None:
    """Compare the seed in the bytes with the one that the task gives: a client cannot choose it."""
    if not isinstance(tensor.encoding, DitheredLattice):
        return
    expected = dither_seed(ticket.run_seed, ticket.round, ticket.client, row.name)
    if tensor.encoding.seed(tensor.segment) != expected:
        raise UpdateError(
            f"the update of {ticket.client} has a dither in {row.name} of another seed than its "
            f"task gives; expected that of (run seed, round, client, tensor)"
        )


def _mask(row: TensorInfo, ticket: Ticket) -> Mask | None:
    """Return which values of a tensor a sparse update has to hold; None: all."""
    masks = UploadMasks.of(ticket.plan, ticket.run_seed, ticket.round, ticket.client)
    return None if masks is None else masks(row)


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
    if plan.lattice_dimensions:
        return found == DitheredLattice(plan.up_bits, plan.lattice_dimensions)
    return isinstance(found, UniformOffset) and found.bits == plan.up_bits


def _found(encoding: Encoding) -> str:
    if isinstance(encoding, UniformPlanes):
        absent = sorted(set(range(encoding.bits)) - set(encoding.weights))
        holes = ", ".join(str(1 << bit) for bit in absent)
        text = f"a sign plane and {encoding.bits} magnitude planes"
        return f"{text} but for weight {holes}" if holes else text
    if isinstance(encoding, UniformOffset):
        return f"uniform codes at {encoding.bits} bits"
    return f"{encoding.kind} values" if isinstance(encoding, Dense) else str(encoding)


def _planned(row: TensorInfo, plan: Plan) -> str:
    planes = plan.planes_of(row.unit, quantized=row.quantized)
    if planes:
        return f"a sign plane and 1 to {planes} magnitude planes, none left out below the top"
    if _is_dense(row, plan):
        return f"{_kind(row, plan)} values"
    if plan.lattice_dimensions:
        return f"points of the {plan.layout} lattice at {plan.up_bits} bits"
    return f"uniform codes at {plan.up_bits} bits"


def _is_dense(row: TensorInfo, plan: Plan) -> bool:
    if plan.layout == "planes" or not row.takes_wire_bits or plan.withholds(row.unit):
        return True
    return plan.up_bits == FULL_PRECISION


def _kind(row: TensorInfo, plan: Plan) -> str:
    is_half = plan.layout == "planes" and plan.tail_bits == HALF and row.dtype == "float32"
    return "float16" if is_half else row.dtype


def _measure(reader: PayloadReader, ticket: Ticket) -> dict[str, float]:
    """Return how far each unit is from the global state, where somebody asks; check the whole."""
    if ticket.max_norm is None and not ticket.wants_distances:
        return {}
    distances = unit_norms(reader, ticket)
    norm = math.hypot(*distances.values())
    if ticket.max_norm is not None and norm > ticket.max_norm:
        raise UpdateError(
            f"the update of {ticket.client} has norm {norm:.6g}, and aggregate.max_update_norm "
            f"allows {ticket.max_norm:.6g}; its training may diverge: try a lower learning_rate"
        )
    return distances


def unit_norms(reader: PayloadReader, ticket: Ticket) -> dict[str, float]:
    """Return the L2 norm of each unit's floating-point tensors against the broadcast.

    Values are compared with what the client was sent: the global state, in planes and halves where
    the plan says so; of a sparse update, those that it holds. Memory is a few tiles, or one tensor
    where planes or halves are made.
    """
    squares: dict[str, float] = {}
    with PayloadReader(ticket.state, ticket.table.tensor_table) as state:
        for name in reader.names:
            row, tensor = ticket.table[name], reader[name]
            if not np.issubdtype(np.dtype(tensor.dtype), np.floating):
                continue  # counters
            is_delta = ticket.plan.sends_delta_of(row)
            base = None if is_delta else _as_broadcast(row, state[name], ticket.plan)
            mask = _mask(row, ticket)
            squares[row.unit] = squares.get(row.unit, 0.0) + _squares(tensor, base, mask)
    return {unit: math.sqrt(total) for unit, total in squares.items()}


def _as_broadcast(row: TensorInfo, tensor: EncodedTensor, plan: Plan) -> EncodedTensor:
    """Return a tensor of the global state as `OpenJob` encodes it where values travel."""
    planes = plan.planes_of(row.unit, quantized=row.quantized)
    if planes:
        return quantize_planes(tensor.decode(), planes)
    kind = _kind(row, plan)
    return tensor if kind == row.dtype else encode_dense(tensor.decode(), kind)


def _squares(tensor: EncodedTensor, base: EncodedTensor | None, mask: Mask | None) -> float:
    """Return the sum of squares of a tensor's kept values, or of their differences to `base`."""
    total, buffer = 0.0, np.empty((2, min(TILE, tensor.size)), tensor.dtype)
    tensor = tensor if mask is None else tensor.under(mask)
    for start in range(0, tensor.size, TILE):
        stop = min(start + TILE, tensor.size)
        tile, other = buffer[:, : stop - start]
        tensor.decode_slice(start, stop, tile)
        exact = tile.astype(np.float64)
        if base is not None:
            base.decode_slice(start, stop, other)
            exact -= other
        if mask is not None:
            exact = exact[mask.tile(start, stop)]
        with np.errstate(over="ignore"):
            total += float(np.dot(exact, exact))
    return total
