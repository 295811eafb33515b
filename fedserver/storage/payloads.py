"""Payload files by digest, and partial uploads by task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from motley.wire.durable import put_in_place, sync_folder


class PayloadStore:
    """Files under the data directory: `payloads/ab/<sha256>` and `incoming/<task>`.

    A file under `payloads` is always whole: it is written beside its place, synced and renamed.
    """

    def __init__(self, root: Path) -> None:
        self._payloads = root / "payloads"
        self._incoming = root / "incoming"
        self._scratch = root / "scratch"
        for folder in (self._payloads, self._incoming, self._scratch):
            folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._scratch.iterdir():
            leftover.unlink()

    def path(self, sha256: str) -> Path:
        """Return where the payload with this digest (hex) lies, or would lie."""
        return self._payloads / sha256[:2] / sha256

    def incoming(self, task_id: str) -> Path:
        """Return where a task's upload is put together before `adopt`."""
        # '+' is in no task's id, so that one task's partial file is never another's whole one.
        return self._incoming / f"{task_id}+"

    def incoming_tasks(self) -> set[str]:
        """Return the tasks of which something has come, but not all."""
        return {path.name.partition("+")[0] for path in self._incoming.iterdir()}

    def forget_incoming(self, keep: Iterable[str]) -> None:
        """Remove what came of uploads other than those of the tasks in `keep`."""
        wanted = set(keep)
        for path in self._incoming.iterdir():
            if path.name.partition("+")[0] not in wanted:
                path.unlink()

    def scratch(self, name: str) -> Path:
        """Return a place to write a payload before `adopt`; emptied at every start."""
        return self._scratch / name

    def adopt(self, written: Path, sha256: str) -> Path:
        """Move a whole, synced file into its place; a file that is there already stays."""
        target = self.path(sha256)
        if not target.parent.exists():
            target.parent.mkdir(exist_ok=True)
            sync_folder(self._payloads)
        if target.exists():
            written.unlink()
        else:
            put_in_place(written, target)
        return target
