"""Payload files by digest, and partial uploads by task and digest."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fedserver.errors import StorageError
from motley.wire import partial_path
from motley.wire.durable import put_in_place, sync_folder, sync_handle

RESERVE = 64 * 1024 * 1024
"""Bytes of disk that stay free for the record and for folding."""


class PayloadStore:
    """Files under the data directory: `payloads/ab/<sha256>` and `incoming/<task>+<sha256>`.

    A file under `payloads` is always whole: it is written beside its place, synced, and renamed or
    linked.

    Who may remove one: a row that names a payload is committed only while the payload cannot go,
    and a payload goes only when no row names it. In detail:

    1. Only the database thread judges that no row needs a digest, and dooms it (`doom`) before
       it does anything else. A digest that somebody claims is not doomed but stays suspect.
    2. An upload claims its digest before it puts the file in place, and lets go after its row is
       committed. A claim takes the digest off the doomed; the file is there or is linked anew.
    3. Looking whether a digest is doomed and unlinking it is one step under the lock.
    4. Jobs need no claim: the driver removes files only between a job's commit and the next job.

    So a file that goes was doomed after the last commit that named it, and nobody was about to
    commit another. What a crash leaves over is suspect at the next start.
    """

    def __init__(self, root: Path, *, reserve: int = RESERVE) -> None:
        """Open the folders of a data directory; `reserve` bytes of its disk are to stay free."""
        self._payloads = root / "payloads"
        self._incoming = root / "incoming"
        self._scratch = root / "scratch"
        self._reserve = reserve
        self._lock, self._space = threading.Lock(), threading.Lock()
        self._claims: Counter[str] = Counter()
        self._coming: dict[str, tuple[Path, int]] = {}
        """Partial files, and the sizes they will have, of claimed tasks' uploads."""
        self._suspects: set[str] = set()
        self._doomed: set[str] = set()
        self._synced: set[Path] = set()
        """Folders of `payloads` that this process knows to be on the disk."""
        for folder in (self._payloads, self._incoming, self._scratch):
            folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._scratch.iterdir():
            _remove(leftover)

    def path(self, sha256: str) -> Path:
        """Return where the payload with this digest (hex) lies, or would lie."""
        return self._payloads / sha256[:2] / sha256

    def require(self, size: int) -> None:
        """Raise StorageError unless `size` bytes and the reserve are free.

        What uploads announced and did not send does not count: it must not hold up rounds.
        """
        self._require(size, [])

    def _require(self, size: int, others: Sequence[tuple[Path, int]]) -> None:
        # Before the free space: what comes in between is counted twice rather than not at all.
        coming = sum(max(0, whole - _length(partial)) for partial, whole in others)
        found = os.statvfs(self._payloads)
        free = found.f_bavail * found.f_frsize
        if free < size + coming + self._reserve:
            raise StorageError(
                f"{size:,} bytes are needed, {coming:,} yet to come in other uploads and "
                f"{self._reserve:,} kept in reserve (--reserve), but the disk of "
                f"{self._payloads.parent} has {free:,} free"
            )

    # --- uploads under way -------------------------------------------------------------------

    def incoming(self, task_id: str, sha256: str) -> Path:
        """Return where a task's upload of a digest is put together: what `FrameWriter` is given."""
        # '+' is in no task's id, so that one task's partial file is never another's.
        return self._incoming / f"{task_id}+{sha256}"

    def begin_incoming(self, task_id: str, sha256: str, size: int) -> Path:
        """Return `incoming` for a new attempt; what came of other bytes of this task goes.

        While the task is claimed, no other upload is given the space that this one will take.

        Raises:
            StorageError: too little space for the bytes that are missing.
        """
        target = self.incoming(task_id, sha256)
        partial = partial_path(target)
        self.drop_incoming(task_id, but=partial)
        found = 0
        if partial.exists():
            state = partial.stat()
            found = state.st_size
            if state.st_nlink > 1 and found != size:
                # It is a stored payload already: never write into it, whatever is announced.
                partial.unlink()
                found = 0
        if found < size:
            # The disk may be slow, and the other lock is asked for where calls are answered.
            with self._space:
                with self._lock:
                    self._coming.pop(task_id, None)
                    others = list(self._coming.values())
                self._require(size - found, others)
                with self._lock:
                    if task_id in self._claims:
                        self._coming[task_id] = (partial, size)
        return target

    def drop_incoming(self, task_id: str, *, but: Path | None = None) -> None:
        """Remove what came of a task's uploads."""
        for path in self._incoming.glob(f"{task_id}+*"):
            if path != but:
                path.unlink(missing_ok=True)

    def incoming_tasks(self) -> set[str]:
        """Return the ids of tasks of which something came."""
        return {path.name.partition("+")[0] for path in self._incoming.iterdir()}

    def idle_incoming(self) -> set[str]:
        """Return the ids of tasks of which something came, and that nobody receives now."""
        with self._lock:
            claimed = set(self._claims)
        return self.incoming_tasks() - claimed

    def forget_incoming(self, task_ids: Iterable[str]) -> None:
        """Remove what came for tasks that are over, unless somebody is receiving it yet."""
        for task_id in task_ids:
            with self._lock:
                if task_id not in self._claims:
                    self.drop_incoming(task_id)

    # --- putting payloads in their place -----------------------------------------------------

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Give a place to write a payload before `adopt`; what is left there goes at the end."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=self._scratch))
        try:
            yield folder / name
        finally:
            _remove(folder)

    def adopt(self, written: Path, sha256: str) -> Path:
        """Move a whole, synced file into its place; a file that is there already stays."""
        target = self._place(sha256)
        if target.exists():
            written.unlink()
            # Whoever put it there may not have come to this yet.
            sync_folder(target.parent)
        else:
            put_in_place(written, target)
        return target

    def keep(self, whole: Path, sha256: str) -> Path:
        """Put a whole, synced file into its place and leave it where it is, too.

        So a crash before the record names it leaves both, and no byte has to come again. The caller
        holds a claim on the digest.
        """
        target = self._place(sha256)
        try:
            if not target.exists():
                os.link(whole, target)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            with self.scratch("copy") as copy:
                shutil.copyfile(whole, copy)
                with copy.open("rb") as stream:
                    sync_handle(stream.fileno())
                put_in_place(copy, target)
        # Also where it was there: whoever put it there may not have come to this yet.
        sync_folder(target.parent)
        return target

    def _place(self, sha256: str) -> Path:
        target = self.path(sha256)
        if target.parent not in self._synced:
            # Also where it is there: whoever made it may not have come to the sync.
            target.parent.mkdir(exist_ok=True)
            sync_folder(self._payloads)
            self._synced.add(target.parent)
        return target

    # --- removing them -----------------------------------------------------------------------

    @contextmanager
    def claimed(self, key: str) -> Iterator[None]:
        """Keep a digest from being removed, or a task's upload from being forgotten."""
        with self._lock:
            self._claims[key] += 1
            self._doomed.discard(key)
        try:
            yield
        finally:
            with self._lock:
                self._claims[key] -= 1
                if not self._claims[key]:
                    del self._claims[key]
                    self._coming.pop(key, None)

    def suspect(self, digests: Iterable[str]) -> None:
        """Note payloads that may have become of no use; `""` is none."""
        with self._lock:
            self._suspects.update(digest for digest in digests if digest)

    def has_suspects(self) -> bool:
        """Return whether there is anything to judge."""
        return bool(self._suspects)

    def take_suspects(self) -> set[str]:
        """Return the suspects, which the caller judges now."""
        with self._lock:
            found, self._suspects = self._suspects, set()
        return found

    def doom(self, digests: Iterable[str]) -> None:
        """Give payloads free that no row needs; claimed ones stay suspect."""
        with self._lock:
            for digest in digests:
                (self._suspects if digest in self._claims else self._doomed).add(digest)

    def remove_doomed(self) -> int:
        """Remove what is doomed; return how many files went."""
        removed = 0
        while True:
            with self._lock:
                if not self._doomed:
                    return removed
                path = self.path(self._doomed.pop())
                with suppress(FileNotFoundError):
                    path.unlink()
                    removed += 1

    def stored(self) -> set[str]:
        """Return the digests of all payloads that lie here; a stray file beside them is none."""
        folders = [folder for folder in self._payloads.iterdir() if folder.is_dir()]
        return {path.name for folder in folders for path in folder.iterdir()}


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # nothing came yet
        return 0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
