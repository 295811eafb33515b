"""Errors of the server. `code` also decides the gRPC status (service/status.py)."""

from __future__ import annotations

from motley.errors import MotleyError


class DataDirectoryError(MotleyError):
    """The data directory cannot be used: another version, in use, or not writable."""

    code = "data_directory"


class UnknownRunError(MotleyError):
    """No run has this id or name."""

    code = "unknown_run"


class RunStateError(MotleyError):
    """The run is in a state in which this cannot be done."""

    code = "run_state"


class UnknownTaskError(MotleyError):
    """No such task, or it belongs to another client."""

    code = "unknown_task"


class NameInUseError(MotleyError):
    """A second client of a name that is connected already."""

    code = "name_in_use"


class VersionError(MotleyError):
    """Client and server do not speak the same protocol version."""

    code = "version"


class ProtocolError(MotleyError):
    """A message that the protocol does not allow at this point."""

    code = "protocol"


class AddressError(MotleyError):
    """A listener cannot be opened: port in use, or an address that needs --insecure."""

    code = "address"


class AggregationError(MotleyError):
    """Counted updates do not fold into a model."""

    code = "aggregation"


class StorageError(MotleyError):
    """Too little space is left on the server's disk."""

    code = "storage"


class PreparationError(MotleyError):
    """The initial model of a run could not be made."""

    code = "preparation"
