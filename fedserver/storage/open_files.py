"""The limit of open files: a fold opens every counted update."""

from __future__ import annotations

import contextlib
import resource


def allow_many_files() -> None:
    """Raise this process's limit of open files as far as it goes."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
