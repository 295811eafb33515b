"""Libraries of other formats: imported when a format is asked for, never before."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from motley.errors import MissingExtraError

EXTRA = "motley-fl[onnx]"


def need(module: str, what: str, install: str = EXTRA) -> Any:
    """Import a module that `what` needs and return it.

    Raises:
        MissingExtraError: it cannot be imported; says what to `install`.
    """
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise MissingExtraError(
            f"{what} needs {library}, which cannot be imported here ({error}); "
            f"install it with: pip install '{install}'"
        ) from None
