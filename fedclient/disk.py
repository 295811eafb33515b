"""Durable steps on files: after each of them a power cut leaves the old or the new content.

All writers of the state directory go through one `Disk`, so that a test can stop at any step.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

TEMPORARY = ".tmp"
"""Suffix of files that are being written; leftovers are removed at the next start."""


class Disk:
    """The file system, one durable step at a time."""

    def sync(self, path: Path) -> None:
        """Flush a file or a directory to the disk."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def move(self, source: Path, target: Path) -> None:
        """Rename within a file system, replacing the target, and flush the directory."""
        os.replace(source, target)
        self.sync(target.parent)

    def remove(self, path: Path) -> None:
        """Remove a file or a whole directory; nothing happens when it is not there."""
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def publish(self, temporary: Path, target: Path) -> None:
        """Flush a finished temporary file and give it its name."""
        self.sync(temporary)
        self.move(temporary, target)

    def write(self, target: Path, content: bytes) -> None:
        """Write a small file so that it is there as a whole or as it was before."""
        temporary = target.with_name(target.name + TEMPORARY)
        try:
            temporary.write_bytes(content)
            self.publish(temporary, target)
        except OSError:
            temporary.unlink(missing_ok=True)  # on a full disk half a file is in the way
            raise

    def note(self, target: Path, content: bytes) -> None:
        """Write a small file that is of use but may be lost: nothing waits for the disk."""
        temporary = target.with_name(target.name + TEMPORARY)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, target)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def make_directory(self, path: Path) -> Path:
        """Create a directory with its parents, readable by the owner alone; return it.

        Its entry in its parent is flushed also when it was there: who made it may have died first.
        """
        if not path.parent.exists():
            self.make_directory(path.parent)
        path.mkdir(exist_ok=True, mode=0o700)
        self.sync(path.parent)
        return path
