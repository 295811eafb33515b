"""The database of a data directory, and the one thread that owns it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar
from urllib.parse import quote

from sqlalchemy import Column, Connection, MetaData, String, Table, create_engine, event, inspect
from sqlalchemy import Engine as SqlEngine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import StaticPool
from structlog.stdlib import get_logger

from fedserver.errors import DataDirectoryError
from fedserver.storage.schema import REVISIONS, metadata
from motley.wire.durable import put_in_place, sync_folder

log = get_logger()
P = ParamSpec("P")
T = TypeVar("T")

OWN_NAMES = {
    "backups",
    "control.sock",
    "dashboard-token",
    "identity",
    "incoming",
    "listening.json",
    "lock",
    "motley.sqlite",
    "payloads",
    "scratch",
    "simulation",
}
FOREIGN_NAMES = {"lost+found"}
"""What is there before us: in the root of an ext4 file system."""
MIGRATIONS = Path(__file__).parent / "migrations"


def lock_directory(root: Path, *, patience: float = 0.0) -> IO[str]:
    """Take the data directory for this process; raise DataDirectoryError when it is taken.

    The lock goes with the process, however it ends; keep the returned file open. `patience`:
    seconds to wait for one who only looks at what is there.
    """
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        strangers = sorted({p.name for p in root.iterdir()} - OWN_NAMES - FOREIGN_NAMES)
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
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except OSError:
            if time.monotonic() < until:
                time.sleep(0.05)
                continue
            handle.close()
            raise DataDirectoryError(
                f"data directory {root} is in use by another fedserver; stop it, or give another "
                f"directory with --data"
            ) from None


def open_database(root: Path, *, synced: bool = True) -> SqlEngine:
    """Open or create the database; one of an older version is migrated after a backup.

    `synced`: whether a commit is on the disk when it returns, and not only with the kernel.

    Raises:
        DataDirectoryError: no database of this program, of a newer version, or it cannot be
            migrated; nothing was changed.
    """
    path = root / "motley.sqlite"
    engine = _engine(path, synced)
    try:
        with engine.begin() as tx:
            found = _revision(tx)
        if found not in ("", *REVISIONS):
            raise DataDirectoryError(
                f"data directory {root} is of version {found}, this program writes version "
                f"{REVISIONS[-1]}; use the program version that made it, or another --data"
            )
        if found != REVISIONS[-1]:
            if found:
                saved = _back_up(path, found)
                log.info("database_backup", file=str(saved), version=found)
            with engine.begin() as tx:
                if found:
                    _migrate(tx, found)
                else:
                    _create(tx)
            if found:
                log.info("database_migrated", before=found, after=REVISIONS[-1])
            else:
                log.info("database_created", version=REVISIONS[-1])
    except (DatabaseError, sqlite3.DatabaseError, OSError) as error:
        engine.dispose()
        said = error.orig if isinstance(error, DatabaseError) else error
        raise DataDirectoryError(
            f"{path} cannot be opened as a database of this program: {said}"
        ) from None
    except DataDirectoryError:
        engine.dispose()
        raise
    return engine


def open_reader(root: Path) -> SqlEngine:
    """Open the database of a server that runs, for one more thread that only reads.

    In WAL mode a reader holds up nobody who writes. All that one `connect()` reads is of one
    commit, so it is to be short: the log is not emptied into the database meanwhile.
    """
    engine = create_engine(
        f"sqlite:///file:{quote(str((root / 'motley.sqlite').resolve()))}?mode=ro&uri=true",
        poolclass=StaticPool,
        connect_args={"check_same_thread": False},
    )
    _begin_transactions(engine)
    return engine


def _engine(path: Path, synced: bool) -> SqlEngine:
    # One connection for one thread: SQLite has a single writer, and so do we.
    engine = create_engine(
        f"sqlite:///{path}", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    _begin_transactions(engine)

    @event.listens_for(engine, "connect")
    def _settings(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        # FULL: a commit is on disk when it returns; promise 1 depends on it.
        level = "FULL" if synced else "OFF"
        for pragma in ("journal_mode=WAL", f"synchronous={level}", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


def _begin_transactions(engine: SqlEngine) -> None:
    """Let each use of a connection be one transaction, from its first statement on.

    Python's driver would begin one at the first change of data, and leave changes of tables and
    all reading outside of it.
    """

    @event.listens_for(engine, "connect")
    def _settings(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")


def _revision(tx: Connection) -> str:
    """Return the version of the tables that are there, "" for none.

    Asked for without alembic, whose import takes longer than the rest of this module.
    """
    tables = inspect(tx).get_table_names()
    if "alembic_version" in tables:
        return str(tx.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() or "")
    if "meta" in tables:  # before there were migrations
        found = tx.exec_driver_sql("SELECT value FROM meta WHERE key = 'version'").scalar()
        return "0001" if found == "1" else str(found or "")
    return ""


def _create(tx: Connection) -> None:
    """Make all tables of a new directory, inside the caller's transaction.

    As the migrations would, but without alembic: its import takes a second of a server's first
    start, and of every simulation.
    """
    metadata.create_all(tx, checkfirst=False)  # tables that are there already are not ours
    Table(
        "alembic_version", MetaData(), Column("version_num", String(32), primary_key=True)
    ).create(tx)
    tx.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (REVISIONS[-1],))


def _migrate(tx: Connection, found: str) -> None:
    """Bring the tables to the newest version, inside the caller's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = tx
    if not inspect(tx).has_table("alembic_version"):
        command.stamp(config, found)
    command.upgrade(config, REVISIONS[-1])


def _back_up(path: Path, version: str) -> Path:
    """Copy the database beside itself, whole and synced; return where it lies."""
    folder = path.parent / "backups"
    folder.mkdir(exist_ok=True, mode=0o700)
    sync_folder(path.parent)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = folder / f"motley-{version}-{stamp}.sqlite"
    partial = target.with_name(f"{target.name}.part")
    partial.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(partial)) as copy:
        source.backup(copy)
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    put_in_place(partial, target)
    return target


class DatabaseThread:
    """Runs functions one after another on the thread that owns a connection."""

    def __init__(self, name: str = "database") -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self.queued = 0
        """Functions that were handed in and have not ended, the one that runs included."""

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` there and return its result."""
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))
        self.queued += 1
        running.add_done_callback(self._ended)
        return await running

    def _ended(self, running: asyncio.Future[Any]) -> None:
        self.queued -= 1

    def close(self) -> None:
        """Finish what was handed in and end the thread."""
        self._pool.shutdown(wait=True)
