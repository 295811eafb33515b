"""Errors of the client daemon. `exit_status` is what the command line ends with."""

from __future__ import annotations

from typing import ClassVar

from motley.errors import MotleyError

EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_LOCAL = 4
EXIT_CERTIFICATE = 5


class ClientError(MotleyError):
    """Base of the daemon's own errors."""

    number = "M2001"
    exit_status: ClassVar[int] = EXIT_LOCAL


class OptionError(ClientError):
    """A command-line option has a value that cannot be used."""

    code = "option"
    number = "M2002"
    exit_status = EXIT_USAGE


class RefusedError(ClientError):
    """The server refuses this client: shut out, name in use, versions that do not fit."""

    code = "refused"
    number = "M2101"
    exit_status = EXIT_REFUSED


class CertificateError(ClientError):
    """This device has no certificate that counts: not joined, run out, or the clock is wrong."""

    code = "certificate"
    number = "M2102"
    exit_status = EXIT_CERTIFICATE


class JoinError(ClientError):
    """The server that answers is not the one that made the join token."""

    code = "join"
    number = "M2103"
    exit_status = EXIT_CERTIFICATE


class UnreachableError(ClientError):
    """Nobody answers on the join port."""

    code = "unreachable"
    number = "M2104"


class StateDirectoryError(ClientError):
    """The state directory is in use, of another client, or not readable."""

    code = "state_directory"
    number = "M2003"


class ProfileError(ClientError):
    """The device could not be measured, e.g. torch is not installed."""

    code = "profile"
    number = "M2004"


class StorageError(ClientError):
    """A file of a task could not be written or read."""

    code = "storage"
    number = "M2005"


class TransferError(ClientError):
    """The payload will not get through; trying again would not help.

    `failure_code` is what the server is told: the code of its own refusal where it was one.
    """

    code = "transfer"
    number = "M2201"

    def __init__(self, message: str, failure_code: str = code) -> None:
        super().__init__(message)
        self.failure_code = failure_code


class WorkerError(ClientError):
    """The training process failed; `failure_code` is what the server is told."""

    code = "worker"
    number = "M2202"

    def __init__(self, failure_code: str, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.failure_code = failure_code
        self.permanent = permanent
