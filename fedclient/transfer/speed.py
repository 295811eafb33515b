"""What transfers showed of the link: its speed, smoothed, and how large its frames may be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from structlog.stdlib import get_logger

from fedclient.disk import Disk
from motley.wire import FRAME_SIZE

log = get_logger()

SMALLEST = 32 * 1024
"""Bytes; shorter transfers tell the delay of a call, not the speed of a link."""
_WEIGHT = 0.3

TOLD_CHANGE = 0.25
"""Part of a speed by which it has to change before the server is told."""

FULL_FRAME = FRAME_SIZE
CUT_FRAME = 128 * 1024
"""After a cut: what is repeated at the next one."""
LEAST_FRAME = 16 * 1024
GROW_BYTES = 4 * 1024 * 1024
"""Frames double each time so much went through without a cut."""
FRAME_SECONDS = 10.0
"""A frame takes no longer than this on a slow link: both sides must see that it moves."""

Direction = Literal["download", "upload"]
FrameBytes = Annotated[int, Field(ge=LEAST_FRAME, le=FULL_FRAME)]


class LinkSpeed(BaseModel):
    """Bytes per second in both directions, 0 while unknown; and bytes of a frame."""

    model_config = ConfigDict(frozen=True)

    download: float = 0.0
    upload: float = 0.0
    download_frame: FrameBytes = FULL_FRAME
    upload_frame: FrameBytes = FULL_FRAME


class LinkRecord:
    """Smooths measurements (weight 0.3 for the newest) and fits frames, in `link.json`."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self._path, self._disk = path, disk or Disk()
        self._uncut: dict[Direction, int] = {"download": 0, "upload": 0}
        try:
            self.speed = LinkSpeed.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            self.speed = LinkSpeed()
        self._told = self.speed

    # --- speed -------------------------------------------------------------------------------

    def downloaded(self, size: int, seconds: float) -> None:
        """Take in a download of `size` bytes."""
        self._note("download", size, seconds)

    def uploaded(self, size: int, seconds: float) -> None:
        """Take in an upload of `size` bytes."""
        self._note("upload", size, seconds)

    def told(self) -> LinkSpeed:
        """Return what the server is told: renewed when a speed has changed by a quarter.

        What a client says of itself is put on record when it changes, which every transfer would.
        """
        pairs = (
            (self.speed.download, self._told.download),
            (self.speed.upload, self._told.upload),
        )
        if any(abs(now - told) > TOLD_CHANGE * told for now, told in pairs):
            self._told = self.speed
        return self._told

    def _note(self, direction: Direction, size: int, seconds: float) -> None:
        if size < SMALLEST or seconds <= 0:
            return
        before: float = getattr(self.speed, direction)
        now = size / seconds
        smoothed = now if not before else before + _WEIGHT * (now - before)
        self._keep(**{direction: smoothed})

    # --- frames ------------------------------------------------------------------------------

    def frame(self, direction: Direction) -> int:
        """Return how many bytes the next frame may have."""
        size: int = getattr(self.speed, f"{direction}_frame")
        speed: float = getattr(self.speed, direction)
        if not speed:
            return size
        return max(LEAST_FRAME, min(size, int(speed * FRAME_SECONDS)))

    def is_good(self, direction: Direction) -> bool:
        """Return whether frames are back at full size: no cut for a while."""
        return self.frame(direction) == FULL_FRAME

    def cut(self, direction: Direction, *, stood_still: bool = False) -> None:
        """Shrink frames: a transfer broke off. One that `stood_still` may need smaller ones."""
        self._uncut[direction] = 0
        size: int = getattr(self.speed, f"{direction}_frame")
        smaller = size // 2 if stood_still and size <= CUT_FRAME else min(size, CUT_FRAME)
        self._set_frame(direction, max(LEAST_FRAME, smaller))

    def passed(self, direction: Direction, count: int) -> None:
        """Take in that `count` bytes went through; frames double after every 4 MiB."""
        self._uncut[direction] += count
        if self._uncut[direction] >= GROW_BYTES:
            self._uncut[direction] = 0
            size: int = getattr(self.speed, f"{direction}_frame")
            self._set_frame(direction, min(FULL_FRAME, 2 * size))

    def _set_frame(self, direction: Direction, size: int) -> None:
        if size != getattr(self.speed, f"{direction}_frame"):
            self._keep(**{f"{direction}_frame": size})

    def _keep(self, **changes: float) -> None:
        self.speed = self.speed.model_copy(update=changes)
        try:
            self._disk.note(self._path, self.speed.model_dump_json().encode())
        except OSError as error:  # no transfer fails over a note on its speed
            log.warning("link_not_noted", reason=str(error))
