"""Values of the options of a data spec: numbers, fractions, amounts of samples."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import floor
from typing import TypeVar

from motley.errors import DataError, did_you_mean
from motley.workload import DataSpec

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """A number of samples that is drawn anew for each client, both ends included."""

    low: int
    high: int


Amount = int | float | Range
"""A number of samples, a fraction when it is a float (then below 1), or a range of numbers."""


def amount_of(amount: Amount, available: int, draw: float) -> int:
    """Return the number of samples that an amount means for a client that has `available`.

    Args:
        amount: what was asked for.
        available: samples that the client has.
        draw: the client's place in a range, 0 to below 1; a range is cut at what is there.

    Raises:
        DataError: a range starts above what is there.
    """
    if isinstance(amount, float):
        return max(1, round(amount * available))
    if isinstance(amount, int):
        return amount
    if available < amount.low:
        raise DataError(
            f"a client has {available} samples, and {amount.low}-{amount.high} of them are asked "
            f"for; start the range at {available} or below"
        )
    return min(available, amount.low + floor(draw * (amount.high - amount.low + 1)))


def check_known(spec: DataSpec, known: Collection[str]) -> None:
    """Raise DataError at an option that a workload does not know."""
    for name in spec.options:
        if name not in known:
            raise DataError(
                f"data option {name!r} is not known for this workload; there are "
                f"{', '.join(known)}{did_you_mean(name, known)}"
            )


def value(text: str | None, name: str, read: Callable[[str], T]) -> T | None:
    """Return the value of an option, None where it is not given.

    Raises:
        DataError: `read` raises ValueError; its message says what was expected.
    """
    try:
        return None if text is None else read(text)
    except ValueError as error:
        raise DataError(f"data option {name}={text}; expected {error}") from None


def index(text: str) -> int:
    """Read a whole number, 0 or more; raise ValueError with what was expected."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError("a whole number, 0 or more")
    return int(text)


def count(text: str) -> int:
    """Read a whole number, 1 or more; raise ValueError with what was expected."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError("a whole number, 1 or more")
    return int(text)


def _number(text: str) -> float:
    """Return a number; 0 where the text is none, which no caller takes."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def positive(text: str) -> float:
    """Read a number above 0; raise ValueError with what was expected."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise ValueError("a number above 0")
    return value


def fraction(text: str) -> float:
    """Read a number above 0 and below 1; raise ValueError with what was expected."""
    value = _number(text)
    if not 0 < value < 1:
        raise ValueError("a fraction above 0 and below 1")
    return value


def amount(text: str) -> Amount:
    """Read `40`, `0.5` or `20-30`; raise ValueError with what was expected."""
    low, dash, high = text.partition("-")
    ends = [int(end) for end in (low, high) if end.isascii() and end.isdigit()]
    if dash and len(ends) == 2 and 1 <= ends[0] <= ends[1]:
        return Range(*ends)
    if not dash and ends and ends[0] > 0:
        return ends[0]
    if not 0 < _number(text) < 1:
        raise ValueError("a number of samples, a fraction above 0 and below 1, or a range as 20-30")
    return _number(text)
