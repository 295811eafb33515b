"""Errors of the server. `code` also decides the gRPC status (service/status.py)."""

from __future__ import annotations

from motley.errors import MotleyError


class DataDirectoryError(MotleyError):
    """The data directory cannot be used: another version, in use, or not writable."""

    code = "data_directory"


class UnknownRunError(MotleyError):
    """No run has this id or name."""

    code = "unknown_run"


class WidthsError(MotleyError):
    """A round has no bit-widths to show."""

    code = "widths"


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


class OffsetError(MotleyError):
    """A download is to go on beyond the payload's end: what the client has is of other bytes."""

    code = "offset"


class InternalError(MotleyError):
    """The server itself is at fault; its log has the stack trace."""

    code = "internal"


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


class LimitsFileError(MotleyError):
    """The file of `--limits` is not valid."""

    code = "limits_file"


class LimitError(MotleyError):
    """A client asks for more than it may; `retry_after` says in how many seconds to try again."""

    code = "limit"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateError(LimitError):
    """Too many calls a second."""

    code = "rate"


class CrowdedError(LimitError):
    """Too many open transfers or unfinished updates of one client."""

    code = "crowded"


class QuotaError(LimitError):
    """All bytes of a day are used up."""

    code = "quota"


class SetAsideError(LimitError):
    """The client broke the protocol again and again and has to wait."""

    code = "set_aside"


class IdleError(MotleyError):
    """A transfer stood still for too long; it goes on where it was at the next try."""

    code = "idle"


class ForbiddenError(MotleyError):
    """The caller's certificate does not allow this call."""

    code = "forbidden"


class RevokedError(MotleyError):
    """The caller was shut out."""

    code = "revoked"


class ExpiredError(MotleyError):
    """The connection is older than its certificate: it must be made anew."""

    code = "expired"


class EnrolledError(MotleyError):
    """A device of this name holds a certificate, and the join token is not for this name."""

    code = "enrolled"


class BusyError(MotleyError):
    """Too many calls came; later ones will be answered."""

    code = "busy"


class CertificateLimitError(MotleyError):
    """A client asked for more certificates than it can need."""

    code = "certificates"


class PopulationError(MotleyError):
    """The clients of a simulation do not fit together, or not the run."""

    code = "population"


class SimulationError(MotleyError):
    """A simulation cannot go on, or its directory holds something else."""

    code = "simulation"
