"""The database of a data directory, and the one thread that owns it."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

from sqlalchemy import Engine as SqlEngine
from sqlalchemy import create_engine, event, insert, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import StaticPool

from fedserver.errors import DataDirectoryError
from fedserver.storage import schema

P = ParamSpec("P")
T = TypeVar("T")

OWN_NAMES = {
    *("lock", "motley.sqlite", "payloads", "incoming", "scratch", "control.sock"),
    "identity",
}


def lock_directory(root: Path) -> IO[str]:
    """Take the data directory for this process; raise DataDirectoryError when it is taken.

    The lock goes with the process, however it ends; keep the returned file open.
    """
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        strangers = sorted({p.name for p in root.iterdir()} - OWN_NAMES)
        if strangers and not (root / "motley.sqlite").exists():
            raise DataDirectoryError(
                f"{root} holds other things ({', '.join(strangers[:3])}); a data directory is a "
                f"folder of its own: give a new or empty one with --data"
            )
        handle = (root / "lock").open("a+")
    except OSError as error:
        raise DataDirectoryError(
            f"data directory {root} cannot be used: {error.strerror}; give another with --data"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise DataDirectoryError(
            f"data directory {root} is in use by another fedserver; stop it, or give another "
            f"directory with --data"
        ) from None
    return handle


def open_database(root: Path) -> SqlEngine:
    """Open or create the database; raise DataDirectoryError when it is of another version."""
    path = root / "motley.sqlite"
    # One connection for one thread: SQLite has a single writer, and so do we.
    engine = create_engine(
        f"sqlite:///{path}", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def _settings(connection: object, record: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        # FULL: a commit is on disk when it returns; promise 1 depends on it.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    try:
        with engine.begin() as tx:
            schema.meta.create(tx, checkfirst=True)
            found = tx.scalar(select(schema.meta.c.value).where(schema.meta.c.key == "version"))
            if found is None:
                schema.metadata.create_all(tx)
                tx.execute(
                    insert(schema.meta).values(key="version", value=str(schema.SCHEMA_VERSION))
                )
    except DatabaseError as error:
        raise DataDirectoryError(
            f"{path} is not a database of this program: {error.orig}"
        ) from None
    if found is not None and found != str(schema.SCHEMA_VERSION):
        engine.dispose()
        raise DataDirectoryError(
            f"data directory {root} is of version {found}, this program writes version "
            f"{schema.SCHEMA_VERSION}; use the program version that made it, or another --data"
        )
    return engine


class DatabaseThread:
    """Runs functions one after another on the thread that owns the database."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` there and return its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Finish what was handed in and end the thread."""
        self._pool.shutdown(wait=True)
