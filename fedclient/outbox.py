"""Updates on their way to the server: they outlive restarts and reboots.

`meta.json` is the commit point: it is written when the update and the personal state that
belongs to it are on the disk. A folder without it is work cut short, and is removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from structlog.stdlib import get_logger

from fedclient.disk import Disk
from fedclient.errors import StorageError
from fedclient.protocol import Metrics
from fedclient.state import file_word

log = get_logger()


class UpdateMeta(BaseModel):
    """What the server is told about an update when its upload opens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    run_id: str
    run_name: str
    round: int
    sha256: str
    """Hexadecimal."""
    size: int
    samples: int
    metrics: Metrics = Field(default_factory=dict)
    train_seconds: FiniteFloat
    restarted: bool = False


@dataclass(frozen=True)
class Update:
    """A finished update that the server has not acknowledged yet."""

    meta: UpdateMeta
    payload: Path


class Outbox:
    """The folder `outbox/` of a state directory."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        self._directory, self._disk = directory, disk or Disk()

    def prepare(self, task_id: str) -> Path:
        """Make an empty folder for a task; return where its update is to be written."""
        folder = self._folder(task_id)
        self._disk.remove(folder)
        self._disk.make_directory(folder)
        return folder / "update.payload"

    def commit(self, meta: UpdateMeta) -> Update:
        """Note that a task's update is complete; from here on it is sent until acknowledged."""
        folder = self._folder(meta.task_id)
        self._disk.write(folder / "meta.json", meta.model_dump_json().encode())
        return Update(meta, folder / "update.payload")

    def find(self, task_id: str) -> Update | None:
        """Return a task's update when it is complete.

        Raises:
            OSError: the disk does not tell; the update stays.
        """
        folder = self._folder(task_id)
        try:
            meta = UpdateMeta.model_validate_json((folder / "meta.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None  # any other error is the disk's: the update may be whole
        payload = folder / "update.payload"
        if meta.task_id != task_id or not payload.exists() or payload.stat().st_size != meta.size:
            return None
        return Update(meta, payload)

    def remove(self, task_id: str) -> None:
        """Forget a task's update: `meta.json` first, so that no half of it is ever sent."""
        folder = self._folder(task_id)
        self._disk.remove(folder / "meta.json")
        self._disk.remove(folder)

    def recover(self) -> list[Update]:
        """Return what waits to be sent, oldest first; remove work that was cut short.

        What others put here under a name that no task has, such as `.DS_Store`, stays.
        """
        found = []
        for folder in sorted(self._directory.iterdir()):
            try:
                update = self.find(folder.name)
            except StorageError:
                log.info("outbox_entry_skipped", name=folder.name, reason="no task id")
                continue
            if update is None:
                log.info("outbox_entry_dropped", task=folder.name, reason="incomplete")
                self._disk.remove(folder)
            else:
                found.append(update)
        return sorted(found, key=lambda update: (update.payload.stat().st_mtime, str(update)))

    def _folder(self, task_id: str) -> Path:
        return self._directory / file_word(task_id, "task id")
