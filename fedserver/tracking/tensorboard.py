"""TensorBoard's event files: a folder for each run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedserver.tracking.closed import ClosedRound


class TensorBoardTracker:
    """Writes `FOLDER/NAME-ID/events...` with TensorBoard's own writer, which needs no torch."""

    def __init__(self, folder: str) -> None:
        """Make it; raise ImportError without the package `tensorboard`."""
        from tensorboard.summary import Writer

        self._make, self._folder = Writer, Path(folder)
        self._writers: dict[str, Any] = {}

    def round_closed(self, closed: ClosedRound) -> None:
        """Write a round's figures, to the disk at once."""
        if closed.run not in self._writers:
            target = self._folder / f"{closed.run_name}-{closed.run}"
            self._writers[closed.run] = self._make(str(target))
        writer = self._writers[closed.run]
        for name, value in closed.figures.items():
            writer.add_scalar(name, value, closed.round, wall_time=closed.closed)
        writer.flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
