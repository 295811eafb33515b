"""What is wrong with a document's fields, in words; for run files and limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from motley.errors import did_you_mean

_QUOTED = re.compile(r"'([^']*)'")
"""A choice, as pydantic lists them."""


def describe(error: ValidationError, model: type[BaseModel], place: str = "") -> list[str]:
    """Turn pydantic's errors into lines `field: what was wrong (what was given)`."""
    lines = []
    for item in error.errors():
        location = [place] if place else []
        location += [str(part) for part in item["loc"]]
        line = f"{'.'.join(location) or 'file'}: {item['msg'].removeprefix('Value error, ')}"
        if item["type"] == "extra_forbidden":
            known = _fields_at(model, item["loc"][:-1])
            hint = did_you_mean(str(item["loc"][-1]), known)
            line = f"{'.'.join(location)}: no such field{hint} (known: {', '.join(known)})"
        elif item["type"] != "missing" and not isinstance(item["input"], Mapping | BaseModel):
            line += f" (got {item['input']!r})"
            if item["type"] == "literal_error":
                line += did_you_mean(str(item["input"]), _QUOTED.findall(item["ctx"]["expected"]))
        lines.append(line)
    return lines


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the section at `path` inside `model`."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        current = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(current.model_fields)
