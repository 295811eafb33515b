"""Durations as people write them."""

from __future__ import annotations

import re

from motley.errors import MotleyError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")


class DurationError(MotleyError):
    """A duration is not written as `90d`, `12h`, `15m` or `30s`."""

    code = "duration"
    number = "M1505"


def parse_duration(text: str, option: str) -> float:
    """Return seconds of a duration.

    >>> parse_duration("12h", "--lifetime")
    43200.0
    """
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise DurationError(f"{option} {text!r}: expected a duration such as 90d, 12h, 15m or 30s")
    return seconds


def format_duration(seconds: float) -> str:
    """Return a duration in its largest whole unit.

    >>> format_duration(7200)
    '2 h'
    """
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
