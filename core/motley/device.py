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


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a device measured of its memory and processor; 0 where it is not known."""

    memory: int = 0
    """Bytes that it may use."""
    gflops: float = 0.0
    """10^9 float32 operations per second of a matrix product."""
