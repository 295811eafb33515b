"""Where a server and its operators on the same machine meet; apart, so that commands start fast."""

from __future__ import annotations

from pathlib import Path


def control_socket(root: Path) -> Path:
    """Return the control socket of a data directory."""
    return root / "control.sock"
