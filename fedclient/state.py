"""The state directory: what a client keeps between rounds, restarts and reboots.

lock                        held (flock) while a daemon runs
session                     JSON: layout version, the client's name, its session id
profile.json, link.json     what was measured of the device and of the link
downloads/HEX[.part]        broadcasts by SHA-256, whole or still arriving
outbox/TASK/                an unacknowledged update: update.payload; meta.json, the commit point
runs/RUN/                   personal states: counted-TASK.payload and pending-TASK.payload
models/NAME-RUN.motley      finished models, each with its metrics in NAME-RUN.json
identity/                   key, certificate, authority (identity/store.py); not for others' eyes
privacy/                    what was spent of the data's privacy, and its secret (privacy.py)
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import uuid
from pathlib import Path

from fedclient.disk import TEMPORARY, Disk
from fedclient.errors import StateDirectoryError, StorageError

LAYOUT = 1
_FOLDERS = ("downloads", "outbox", "runs", "models")
_FILE_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def file_word(text: str, what: str) -> str:
    """Return a name that the server chose if it is safe in a path; raise StorageError otherwise."""
    if not _FILE_WORD.fullmatch(text):
        raise StorageError(
            f"{what} {text[:80]!r} cannot be a file name; expected letters, digits, '.', '_' "
            f"and '-' as this project's server sends them"
        )
    return text


def was_started(root: Path) -> bool:
    """Tell whether a client joined or ran with this state directory; a join that failed did not.

    A ledger that was put back after the rest was lost counts too.
    """
    return (root / "session").exists() or (root / "privacy").exists()


class StateDirectory:
    """One client's state directory, locked from `open` to `close`."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self.root = root
        self.disk = disk or Disk()
        self.session = ""
        self._lock: int | None = None

    def open(self, name: str) -> None:
        """Create what is missing, lock the directory and read (or make) the session id.

        Raises:
            StateDirectoryError: in use by another daemon, of another client, or not writable.
        """
        self._check_ours()
        try:
            for folder in _FOLDERS:
                self.disk.make_directory(self.root / folder)
            self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._take_lock()
            self.session = self._read_session(name)
            self._remove_leftovers()
        except OSError as error:
            self.close()
            raise StateDirectoryError(
                f"state directory {self.root} cannot be used: {error.strerror}; make room or set "
                f"its permissions right, or choose another one with --state"
            ) from None
        except BaseException:
            self.close()
            raise

    def abandon(self) -> None:
        """Bind a directory to no name: the one it was opened for did not get in."""
        self.disk.remove(self.root / "session")

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def run_directory(self, run_id: str) -> Path:
        """Return the directory of a run's personal states; it may not exist yet."""
        return self.root / "runs" / file_word(run_id, "run id")

    @property
    def privacy_directory(self) -> Path:
        """The directory of the privacy ledger; it may not exist yet."""
        return self.root / "privacy"

    def model_path(self, run_name: str, run_id: str) -> Path:
        """Return where a run's finished model lies."""
        name = f"{file_word(run_name, 'run name')}-{file_word(run_id, 'run id')}.motley"
        return self.root / "models" / name

    def _check_ours(self) -> None:
        """Refuse somebody else's directory before anything is written or removed in it."""
        if not self.root.is_dir() or (self.root / "session").exists():
            return
        foreign = {entry.name for entry in self.root.iterdir()} - {
            *(*_FOLDERS, "identity", "privacy", "lock", "session.tmp")
        }
        if foreign:
            raise StateDirectoryError(
                f"{self.root} holds {min(foreign)!r} and no client's state; "
                f"choose an empty or new directory with --state"
            )

    def _remove_leftovers(self) -> None:
        """Remove files whose writing was cut short."""
        patterns = (
            *(f"*.json{TEMPORARY}", "runs/*/.pending-*.payload.*", "models/.*.motley.*"),
            *(f"identity/.{name}.*" for name in ("client.pem", "joining.key", "renewing.key")),
            *(f"privacy/*{TEMPORARY}", "privacy/.secret.*"),
        )
        for pattern in patterns:
            for leftover in self.root.glob(pattern):
                self.disk.remove(leftover)

    def _take_lock(self) -> None:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            self.close()
            raise StateDirectoryError(
                f"state directory {self.root} is in use by another fedclient "
                f"(process {holder or 'unknown'}); stop that one, or give this one another --state"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _read_session(self, name: str) -> str:
        path = self.root / "session"
        if not path.exists():
            session = uuid.uuid4().hex
            content = {"layout": LAYOUT, "name": name, "session": session}
            self.disk.write(path, json.dumps(content).encode())
            return session
        try:
            content = json.loads(path.read_bytes())
            layout, owner, session = content["layout"], content["name"], str(content["session"])
        except (ValueError, KeyError, TypeError):
            raise StateDirectoryError(
                f"{path} is not readable; move {self.root} away to begin with an empty state"
            ) from None
        if layout != LAYOUT:
            raise StateDirectoryError(
                f"{self.root} has layout {layout}, this version reads {LAYOUT}; "
                f"update motley-fl, or choose another --state"
            )
        if owner != name:
            raise StateDirectoryError(
                f"{self.root} belongs to client {owner!r}, not to {name!r}; "
                f"choose another --state, or start with --name {owner}"
            )
        return session
