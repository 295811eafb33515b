"""Where a server and its operators on the same machine meet; apart, so that commands start fast."""

from __future__ import annotations

import fcntl
from pathlib import Path


def control_socket(root: Path) -> Path:
    """Return the control socket of a data directory."""
    return root / "control.sock"


def is_served(root: Path) -> bool:
    """Return whether a server has a data directory open and listens there.

    A server that was killed leaves its socket behind, but its lock goes with the process. One that
    cannot be tried, another user's, counts as taken: the socket tells what is the matter.
    """
    if not control_socket(root).exists():
        return False
    try:
        with (root / "lock").open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
