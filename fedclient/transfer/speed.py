"""The link's speed as transfers showed it, smoothed and kept over restarts."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from structlog.stdlib import get_logger

from fedclient.disk import Disk

log = get_logger()

SMALLEST = 32 * 1024
"""Bytes; shorter transfers tell the delay of a call, not the speed of a link."""
_WEIGHT = 0.3


class LinkSpeed(BaseModel):
    """Bytes per second in both directions; 0 while unknown."""

    model_config = ConfigDict(frozen=True)

    download: float = 0.0
    upload: float = 0.0


class LinkRecord:
    """Smooths measurements (weight 0.3 for the newest) into `link.json`."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self._path, self._disk = path, disk or Disk()
        try:
            self.speed = LinkSpeed.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            self.speed = LinkSpeed()

    def downloaded(self, size: int, seconds: float) -> None:
        """Take in a download of `size` bytes."""
        self._note("download", size, seconds)

    def uploaded(self, size: int, seconds: float) -> None:
        """Take in an upload of `size` bytes."""
        self._note("upload", size, seconds)

    def _note(self, direction: str, size: int, seconds: float) -> None:
        if size < SMALLEST or seconds <= 0:
            return
        before: float = getattr(self.speed, direction)
        now = size / seconds
        smoothed = now if not before else before + _WEIGHT * (now - before)
        self.speed = self.speed.model_copy(update={direction: smoothed})
        try:
            self._disk.write(self._path, self.speed.model_dump_json().encode())
        except OSError as error:  # no transfer fails over a note on its speed
            log.warning("link_not_noted", reason=str(error))
