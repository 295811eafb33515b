"""Records as lines of JSON, which every reader takes."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(record: Any) -> str:
    """Return a record as one line of JSON, which has no word for NaN and infinity: null."""
    try:
        return json.dumps(record, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(finite(record), separators=(",", ":"), allow_nan=False)


def finite(value: Any) -> Any:
    """Return a value of JSON with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
