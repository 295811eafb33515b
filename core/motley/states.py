"""A run's personal states on disk: the last counted version, and the uncounted new one.

A version is the id of the task that made it. It stands in the file's name, so that promoting a
state is one rename: after a crash at any point either the old or the new version is there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from motley.algorithms.base import Tensors
from motley.errors import PayloadError
from motley.wire import PayloadReader, encode_dense, write_payload

_SUFFIX = ".payload"


class Files(Protocol):
    """The steps on a file system that states need."""

    def move(self, source: Path, target: Path) -> None:
        """Rename, replacing the target."""

    def remove(self, path: Path) -> None:
        """Remove a file."""

    def make_directory(self, path: Path) -> Path:
        """Create a directory with its parents; return it."""


class PlainFiles:
    """The file system as it is, without syncs: a process may die at any step, not the machine."""

    def move(self, source: Path, target: Path) -> None:
        """Rename, replacing the target."""
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        """Remove a file."""
        path.unlink(missing_ok=True)

    def make_directory(self, path: Path) -> Path:
        """Create a directory with its parents; return it."""
        path.mkdir(parents=True, exist_ok=True)
        return path


class StateFiles:
    """A `PersonalStore` in one directory of its own."""

    def __init__(self, directory: Path, files: Files) -> None:
        self._directory, self._files = directory, files

    def load(self, version: str) -> Tensors | None:
        """Return the state of `version`, or None when it is not there.

        A version is named only after its update counted: a pending state of that version becomes
        the counted one, and all others go. Naming the counted version drops the pending.
        """
        counted, pending = self._path("counted", version), self._path("pending", version)
        if pending.exists():
            self._files.move(pending, counted)
        if not counted.exists():
            return None
        self._remove_but("counted", counted)
        self._remove_but("pending", counted)
        return _read(counted)

    def save(self, version: str, tensors: Tensors) -> None:
        """Keep a new, uncounted state beside the counted one, replacing an uncounted one."""
        self._files.make_directory(self._directory)
        target = self._path("pending", version)
        write_payload(target, [(name, encode_dense(values)) for name, values in tensors.items()])
        self._remove_but("pending", target)

    def _path(self, status: str, version: str) -> Path:
        return self._directory / f"{status}-{version}{_SUFFIX}"

    def _remove_but(self, status: str, keep: Path) -> None:
        for path in self._directory.glob(f"{status}-*{_SUFFIX}"):
            if path != keep:
                self._files.remove(path)


def _read(path: Path) -> Tensors | None:
    """Return a state's tensors; None when the disk spoiled the file, which then is lost."""
    try:
        with PayloadReader(path) as reader:
            return {name: reader[name].decode() for name in reader.names}
    except PayloadError:
        return None
