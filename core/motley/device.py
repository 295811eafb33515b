"""What a device measured of itself, as methods see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Link:
    """What a device measured of its link and storage; 0 where it is not known."""

    download: float = 0.0
    """Bytes per second."""
    upload: float = 0.0
    """Bytes per second."""
    storage: int = 0
    """Free bytes."""
