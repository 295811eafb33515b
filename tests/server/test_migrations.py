"""Data directories of every version: created, migrated after a backup, refused when newer."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import pytest
import schema_version_1 as old
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event, select

from fedserver.errors import DataDirectoryError
from fedserver.storage import database
from fedserver.storage.database import MIGRATIONS, open_database
from fedserver.storage.schema import REVISIONS, clients, metadata, runs


def differences(engine: Engine) -> list[object]:
    with engine.connect() as tx:
        options = {"compare_type": True, "compare_server_default": True}
        found = compare_metadata(MigrationContext.configure(tx, opts=options), metadata)
        return list(found)


def revision(path: Path) -> str:
    with sqlite3.connect(path) as tx:
        tables = {row[0] for row in tx.execute("SELECT name FROM sqlite_master")}
        if "alembic_version" not in tables:
            return "meta " + tx.execute("SELECT value FROM meta").fetchone()[0]
        return str(tx.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def make_version_1(root: Path) -> Path:
    """Make a data directory as the first version did, with a run and a client."""
    path = root / "motley.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as tx:
        tx.exec_driver_sql("PRAGMA journal_mode=WAL")
        old.metadata.create_all(tx)
        tx.execute(old.meta.insert().values(key="version", value="1"))
        tx.execute(
            old.runs.insert().values(
                id="r1", sequence=1, name="n", runfile="", status="queued", rounds=1, submitted=1.0
            )
        )
        tx.execute(
            old.rounds.insert().values(
                run="r1", round=1, kind="train", status="closed", goal=1, minimum=1,
                seconds_left=1.0, state_before="ab",
            )
        )  # fmt: skip
        tx.execute(
            old.clients.insert().values(
                name="c0", session="s", profile={}, capabilities={}, first_seen=1.0, last_seen=2.0
            )
        )
    engine.dispose()
    return path


def check_migrated(root: Path) -> None:
    engine = open_database(root)
    assert differences(engine) == []
    with engine.connect() as tx:
        assert tx.execute(select(runs.c.name)).scalar_one() == "n"
        client = tx.execute(select(clients)).one()
        assert (client.name, client.revoked, client.set_aside_until) == ("c0", "", 0.0)
        assert tx.exec_driver_sql("SELECT pruned FROM rounds").scalar_one() == 0
        assert tx.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    engine.dispose()


def test_new_directories_have_the_tables_of_the_schema(tmp_path: Path) -> None:
    engine = open_database(tmp_path)
    assert differences(engine) == []
    engine.dispose()
    assert revision(tmp_path / "motley.sqlite") == REVISIONS[-1]
    assert not (tmp_path / "backups").exists(), "there was nothing to save"


def columns(engine: Engine) -> dict[str, set[object]]:
    """Return what each table has, its indexes too, in whatever order."""
    with engine.connect() as tx:
        names = tx.exec_driver_sql(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'alembic%'"
        ).scalars()
        return {
            name: {tuple(row[1:]) for row in tx.exec_driver_sql(f"PRAGMA table_info({name})")}
            | {(row[1], row[2]) for row in tx.exec_driver_sql(f"PRAGMA index_list({name})")}
            for name in names
        }


def test_new_directories_are_what_the_migrations_make(tmp_path: Path) -> None:
    """They are made without alembic: a migration that adds rows would need a place in both."""
    migrated = create_engine(f"sqlite:///{tmp_path / 'migrated'}")
    with migrated.begin() as tx:
        config = revisions()
        config.attributes["connection"] = tx
        command.upgrade(config, "head")
    created = open_database(tmp_path)
    assert columns(created) == columns(migrated) != {}
    with created.connect() as tx:
        rows = [tx.execute(table.select()).all() for table in metadata.sorted_tables]
    assert not any(rows)
    created.dispose()
    migrated.dispose()


def test_tables_without_a_version_are_refused_and_left_alone(tmp_path: Path) -> None:
    """As a first version left them that was killed before it wrote which it is."""
    path = make_version_1(tmp_path)
    with sqlite3.connect(path) as tx:
        tx.execute("DELETE FROM meta")
    with pytest.raises(DataDirectoryError, match="already exists"):
        open_database(tmp_path)
    with sqlite3.connect(path) as tx:
        assert tx.execute("SELECT name FROM clients").fetchall() == [("c0",)]


def revisions() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def test_the_revisions_are_those_of_the_folder() -> None:
    config = revisions()
    found = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(found)) == REVISIONS


def test_version_1_is_migrated_after_a_backup(tmp_path: Path) -> None:
    make_version_1(tmp_path)
    check_migrated(tmp_path)
    (backup,) = (tmp_path / "backups").iterdir()
    assert backup.name.startswith("motley-0001-")
    assert revision(backup) == "meta 1"
    with sqlite3.connect(backup) as tx:
        assert tx.execute("SELECT name FROM clients").fetchall() == [("c0",)]
        assert tx.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_current_directory_is_opened_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version_1(tmp_path)
    open_database(tmp_path).dispose()
    monkeypatch.setattr(database, "_migrate", None)
    open_database(tmp_path).dispose()
    assert len(list((tmp_path / "backups").iterdir())) == 1


def killed_at(root: Path, statement: int) -> bool:
    """Migrate in a child that is killed before its n-th statement; return whether it was."""
    child = os.fork()
    if child == 0:
        left = [statement]

        def count(*arguments: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(Engine, "before_cursor_execute", count)
        event.listen(Engine, "commit", count)
        open_database(root)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_migration_that_is_killed_at_any_step_is_done_again(tmp_path: Path) -> None:
    """Each time the old tables are whole, and the next start migrates them."""
    killed = 0
    for statement in range(200):
        root = tmp_path / str(statement)
        root.mkdir()
        path = make_version_1(root)
        if not killed_at(root, statement):
            break
        killed += 1
        assert revision(path) == "meta 1"
        check_migrated(root)
    assert killed > 15
    assert revision(path) == REVISIONS[-1], "nothing was left to kill it at"


def test_a_new_directory_that_is_killed_at_any_step_is_created_again(tmp_path: Path) -> None:
    for statement in range(200):
        root = tmp_path / str(statement)
        root.mkdir()
        if not killed_at(root, statement):
            return
        engine = open_database(root)
        assert differences(engine) == []
        engine.dispose()
    raise AssertionError("it was always killed")


@pytest.mark.parametrize("table", ["alembic_version", "meta"])
def test_a_newer_directory_is_refused_and_left_alone(tmp_path: Path, table: str) -> None:
    path = make_version_1(tmp_path)
    with sqlite3.connect(path) as tx:
        if table == "meta":
            tx.execute("UPDATE meta SET value = '0999'")
        else:
            tx.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
            tx.execute("INSERT INTO alembic_version VALUES ('0999')")
    with pytest.raises(DataDirectoryError, match=r"is of version 0999.*use the program"):
        open_database(tmp_path)
    assert not (tmp_path / "backups").exists()
    with sqlite3.connect(path) as tx:
        assert len(tx.execute("SELECT * FROM clients").fetchone()) == 6


def test_a_backup_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    path = make_version_1(tmp_path)
    (tmp_path / "backups").write_text("in the way")
    with pytest.raises(DataDirectoryError, match="cannot be opened"):
        open_database(tmp_path)
    assert revision(path) == "meta 1"
