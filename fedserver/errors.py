"""Errors of the server. `code` also decides the gRPC status (service/status.py)."""

from __future__ import annotations

from motley import errors
from motley.errors import MotleyError


class DataDirectoryError(MotleyError):
    """The data directory cannot be used: another version, in use, or not writable."""

    code = "data_directory"
    number = "M1101"


class UnknownRunError(MotleyError):
    """No run has this id or name, or more than one has an id that begins so."""

    code = "unknown_run"
    number = "M1201"


class WidthsError(MotleyError):
    """A round has no bit-widths to show."""

    code = "widths"
    number = "M1203"


class RunStateError(MotleyError):
    """The run is in a state in which this cannot be done."""

    code = "run_state"
    number = "M1202"


class UnknownTaskError(MotleyError):
    """No such task, or it belongs to another client."""

    code = "unknown_task"
    number = "M1301"


class NameInUseError(MotleyError):
    """A second client of a name that is connected already."""

    code = "name_in_use"
    number = "M1302"


class VersionError(MotleyError):
    """Client and server do not speak the same protocol version."""

    code = "version"
    number = "M1303"


class ProtocolError(MotleyError):
    """A message that the protocol does not allow at this point."""

    code = "protocol"
    number = "M1304"


class OffsetError(MotleyError):
    """A download is to go on beyond the payload's end: what the client has is of other bytes."""

    code = "offset"
    number = "M1305"


class InternalError(MotleyError):
    """The server itself is at fault; its log has the stack trace."""

    code = "internal"
    number = "M1306"


class AddressError(MotleyError):
    """A listener cannot be opened: port in use, or an address that needs --insecure."""

    code = "address"
    number = "M1104"


class AggregationError(MotleyError):
    """Counted updates do not fold into a model."""

    code = "aggregation"
    number = "M1205"


class StorageError(MotleyError):
    """Too little space is left on the server's disk."""

    code = "storage"
    number = "M1102"


class PreparationError(MotleyError):
    """The initial model of a run could not be made."""

    code = "preparation"
    number = "M1204"


class LimitsFileError(MotleyError):
    """The file of `--limits` is not valid."""

    code = "limits_file"
    number = "M1103"


class TrackerError(MotleyError):
    """`--track` names no tracker that there is, or its package is not installed."""

    code = "tracker"
    number = "M1105"


class LimitError(MotleyError):
    """A client asks for more than it may; `retry_after` says in how many seconds to try again."""

    code = "limit"
    number = "M1401"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateError(LimitError):
    """Too many calls a second."""

    code = "rate"
    number = "M1402"


class CrowdedError(LimitError):
    """Too many open transfers or unfinished updates of one client."""

    code = "crowded"
    number = "M1403"


class QuotaError(LimitError):
    """All bytes of a day are used up."""

    code = "quota"
    number = "M1404"


class SetAsideError(LimitError):
    """The client broke the protocol again and again and has to wait."""

    code = "set_aside"
    number = "M1405"


class IdleError(MotleyError):
    """A transfer stood still for too long; it goes on where it was at the next try."""

    code = "idle"
    number = "M1307"


class ForbiddenError(MotleyError):
    """The caller's certificate does not allow this call."""

    code = "forbidden"
    number = "M1501"


class RevokedError(MotleyError):
    """The caller was shut out."""

    code = "revoked"
    number = "M1502"


class ExpiredError(MotleyError):
    """The connection is older than its certificate: it must be made anew."""

    code = "expired"
    number = "M1503"


class EnrolledError(MotleyError):
    """A device of this name holds a certificate, and the join token is not for this name."""

    code = "enrolled"
    number = "M1504"


class BusyError(MotleyError):
    """Too many calls came; later ones will be answered."""

    code = "busy"
    number = "M1308"


class CertificateLimitError(MotleyError):
    """A client asked for more certificates than it can need."""

    code = "certificates"
    number = "M1406"


class PopulationError(MotleyError):
    """The clients of a simulation do not fit together, or not the run."""

    code = "population"
    number = "M1206"


class SimulationError(MotleyError):
    """A simulation cannot go on, or its directory holds something else."""

    code = "simulation"
    number = "M1207"


def numbers_by_code() -> dict[str, str]:
    """Return the number of every error that a server refuses with, by its code."""
    kinds = [*vars(errors).values(), *globals().values()]
    errors_alone = [k for k in kinds if isinstance(k, type) and issubclass(k, MotleyError)]
    return {kind.code: kind.number for kind in errors_alone}
