"""The errors of this system: one base, one class for each kind of cause.

A message says what was wrong, what was expected and what to do. `code` is the stable name
that logs, `--json` output and the wire carry.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

LONGEST_GUESS = 100
"""Characters of what a name is guessed for; longer texts are no typing mistakes."""


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """Return the end of a message about a name that there is not: the one that comes closest.

    >>> did_you_mean("QuPED", ["fedavg", "quped"])
    "; did you mean 'quped'?"

    "" where none comes close. Capitals do not count.
    """
    from difflib import get_close_matches

    if len(given) > LONGEST_GUESS:
        return ""

    known = {name.lower(): name for name in names}
    close = get_close_matches(given.lower(), known, n=1)
    return f"; did you mean {known[close[0]]!r}?" if close else ""


class MotleyError(Exception):
    """Base of every error that this system raises on purpose."""

    code: ClassVar[str] = "error"
    number: str = "M0001"
    """Names its section of docs/errors.md; never given to another class."""


class PayloadError(MotleyError):
    """Bytes are not a payload: truncated, altered, or against docs/wire-format.md."""

    code = "payload"
    number = "M0101"


class TableMismatchError(PayloadError):
    """A payload was written against another tensor table than the one at hand."""

    code = "table_mismatch"
    number = "M0102"


class EncodingError(MotleyError):
    """Values cannot be put into the asked encoding, e.g. NaN or a bit-width of 9."""

    code = "encoding"
    number = "M0103"


class RunFileError(MotleyError):
    """A run file is not valid; the message names the field and what was expected."""

    code = "run_file"
    number = "M0201"


class DataError(MotleyError):
    """Training data is missing, or not in the format that was named."""

    code = "data"
    number = "M0202"


class WorkloadError(MotleyError):
    """A workload is not mapped on this machine, or does not keep its interface."""

    code = "workload"
    number = "M0203"


class PlanError(MotleyError):
    """A plan asks for something this model or algorithm does not have."""

    code = "plan"
    number = "M0204"


class LostStateError(MotleyError):
    """The personal state that a task starts from is not on this device."""

    code = "lost_state"
    number = "M0301"


class UpdateError(MotleyError):
    """An update cannot be counted: wrong shape, wrong digest, not finite."""

    code = "update"
    number = "M0302"


class TrainingError(MotleyError):
    """Training failed on the device, e.g. the loss became NaN."""

    code = "training"
    number = "M0303"


class TokenError(MotleyError):
    """A join token is not one, or the server does not take it."""

    code = "token"
    number = "M0401"


class IdentityError(MotleyError):
    """A key or certificate is missing, damaged, readable by others, or not what it should be."""

    code = "identity"
    number = "M0402"


class PrivacyError(MotleyError):
    """A guarantee of privacy that is asked for cannot be given: what would break it is refused."""

    code = "privacy"
    number = "M0501"


class PrivacyBudgetError(PrivacyError):
    """A task would spend more of a privacy budget than is left."""

    code = "privacy_budget"
    number = "M0502"


class WithheldError(MotleyError):
    """Code of a workload failed in a private task; what it said stays on the device."""

    code = "crash"
    number = "M0304"


class PrivacyLedgerError(PrivacyError):
    """The record of what was spent is damaged or not whole, so that nothing may be spent."""

    code = "privacy_ledger"
    number = "M0503"


class ExportError(MotleyError):
    """A model cannot be put into the asked format, or what was made of it predicts otherwise."""

    code = "export"
    number = "M0601"


class MissingExtraError(ExportError):
    """The asked format needs a library that is not installed."""

    code = "missing_extra"
    number = "M0602"


class PackedModelError(MotleyError):
    """A file is no packed model, is damaged, or does not fit the workload that it names."""

    code = "packed_model"
    number = "M0603"
