"""The check of an uploaded update before it may count: bad input changes nothing."""

from __future__ import annotations

from pathlib import Path

from fedserver.rounds.tasks import Ticket
from motley.errors import PayloadError, UpdateError
from motley.plan import FULL_PRECISION
from motley.wire import EncodedTensor, PayloadReader


def check_update(path: Path, ticket: Ticket) -> None:
    """Read a whole update once and compare it with the plan it answers.

    Raises:
        UpdateError: the bytes are no payload, a tensor is missing, surplus, of another encoding
            than planned, or holds a value that is not finite; names tensor and client.
    """
    try:
        with PayloadReader(path, ticket.table.tensor_table) as reader:
            _check_names(set(reader.names), ticket)
            for name in reader.names:
                _check_tensor(name, reader[name], ticket)
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


def _check_tensor(name: str, tensor: EncodedTensor, ticket: Ticket) -> None:
    planned = "dense"
    bits = ticket.plan.up_bits
    if bits != FULL_PRECISION and tensor.dtype == "float32":
        planned = "uniform"
    found_bits = getattr(tensor.encoding, "bits", bits)
    if tensor.encoding.name != planned or (planned == "uniform" and found_bits != bits):
        raise UpdateError(
            f"the update of {ticket.client} has {name} in {tensor.encoding}; "
            f"the plan asks for {planned}" + (f" at {bits} bits" if planned == "uniform" else "")
        )
    try:
        tensor.check_finite()
    except PayloadError as error:
        raise UpdateError(
            f"the update of {ticket.client} holds a value in {name} that is not finite: {error}; "
            f"its training diverged"
        ) from None
