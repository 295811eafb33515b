"""Libraries of other formats: imported when a format is asked for, never before."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from motley.errors import MissingExtraError


def need(module: str, what: str) -> Any:
    """Import a module of the extra `onnx` and return it.

    Raises:
        MissingExtraError: it is not installed; says what to install for `what`.
    """
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise MissingExtraError(
            f"{what} needs {library}, which cannot be imported here ({error}); "
            f"install it with: pip install 'motley-fl[onnx]'"
        ) from None
