"""The errors of this system: one base, one class for each kind of cause.

A message says what was wrong, what was expected and what to do. `code` is the stable name
that logs, `--json` output and the wire carry.
"""

from __future__ import annotations

from typing import ClassVar


class MotleyError(Exception):
    """Base of every error that this system raises on purpose."""

    code: ClassVar[str] = "error"


class PayloadError(MotleyError):
    """Bytes are not a payload: truncated, altered, or against docs/wire-format.md."""

    code = "payload"


class TableMismatchError(PayloadError):
    """A payload was written against another tensor table than the one at hand."""

    code = "table_mismatch"


class EncodingError(MotleyError):
    """Values cannot be put into the asked encoding, e.g. NaN or a bit-width of 9."""

    code = "encoding"


class RunFileError(MotleyError):
    """A run file is not valid; the message names the field and what was expected."""

    code = "run_file"


class DataError(MotleyError):
    """Training data is missing, or not in the format that was named."""

    code = "data"


class WorkloadError(MotleyError):
    """A workload is not mapped on this machine, or does not keep its interface."""

    code = "workload"


class PlanError(MotleyError):
    """A plan asks for something this model or algorithm does not have."""

    code = "plan"


class LostStateError(MotleyError):
    """The personal state that a task starts from is not on this device."""

    code = "lost_state"


class UpdateError(MotleyError):
    """An update cannot be counted: wrong shape, wrong digest, not finite."""

    code = "update"


class TrainingError(MotleyError):
    """Training failed on the device, e.g. the loss became NaN."""

    code = "training"


class TokenError(MotleyError):
    """A join token is not one, or the server does not take it."""

    code = "token"


class IdentityError(MotleyError):
    """A key or certificate is missing, damaged, readable by others, or not what it should be."""

    code = "identity"


class PrivacyError(MotleyError):
    """A guarantee of privacy that is asked for cannot be given: what would break it is refused."""

    code = "privacy"


class PrivacyBudgetError(PrivacyError):
    """A task would spend more of a privacy budget than is left."""

    code = "privacy_budget"


class WithheldError(MotleyError):
    """Code of a workload failed in a private task; what it said stays on the device."""

    code = "crash"


class PrivacyLedgerError(PrivacyError):
    """The record of what was spent is damaged or not whole, so that nothing may be spent."""

    code = "privacy_ledger"


class ExportError(MotleyError):
    """A model cannot be put into the asked format, or what was made of it predicts otherwise."""

    code = "export"


class MissingExtraError(ExportError):
    """The asked format needs a library that is not installed."""

    code = "missing_extra"


class PackedModelError(MotleyError):
    """A file is no packed model, is damaged, or does not fit the workload that it names."""

    code = "packed_model"
