"""Personal states and the state directory, with crashes at every step."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from fedclient.disk import Disk
from fedclient.errors import StateDirectoryError, StorageError
from fedclient.outbox import Outbox
from fedclient.personal import PersonalFiles
from fedclient.state import StateDirectory


class CrashError(Exception):
    pass


class CrashingDisk(Disk):
    """Stops before or after the n-th step, as a power cut would."""

    def __init__(self, at: int) -> None:
        self._left = at

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise CrashError

    def move(self, source: Path, target: Path) -> None:
        self._step()
        super().move(source, target)
        self._step()

    def remove(self, path: Path) -> None:
        self._step()
        super().remove(path)
        self._step()


class NotingDisk(Disk):
    """Notes which files and directories were flushed."""

    def __init__(self) -> None:
        self.synced: set[Path] = set()

    def sync(self, path: Path) -> None:
        super().sync(path)
        self.synced.add(path)


def values(number: float) -> dict[str, np.ndarray]:
    return {"w": np.full((2, 3), number, np.float32), "n": np.array(3, np.int64)}


def holds(store: PersonalFiles, version: str, number: float) -> bool:
    state = store.load(version)
    return state is not None and bool((state["w"] == number).all()) and state["w"].shape == (2, 3)


def test_a_pending_state_is_promoted_when_the_server_names_it(tmp_path):
    store = PersonalFiles(tmp_path / "run")
    assert store.load("t1") is None
    store.save("t1", values(1))
    assert holds(store, "t1", 1)
    store.save("t2", values(2))
    assert holds(store, "t2", 2), "t2 counted"
    assert store.load("t1") is None, "its predecessor is gone"


def test_a_pending_state_is_dropped_when_its_update_did_not_count(tmp_path):
    store = PersonalFiles(tmp_path / "run")
    store.save("t1", values(1))
    assert holds(store, "t1", 1)
    store.save("t2", values(2))
    assert holds(store, "t1", 1)
    assert store.load("t2") is None
    assert len(list((tmp_path / "run").iterdir())) == 1


def test_a_new_pending_state_replaces_the_old_one(tmp_path):
    store = PersonalFiles(tmp_path / "run")
    store.save("t1", values(1))
    store.save("t2", values(2))
    assert store.load("t1") is None
    assert holds(store, "t2", 2)


@pytest.mark.parametrize("at", range(9))
def test_promotion_survives_a_crash_at_any_step(tmp_path, at):
    folder = tmp_path / "run"
    store = PersonalFiles(folder)
    store.save("t1", values(1))
    store.load("t1")
    store.save("t2", values(2))
    with contextlib.suppress(CrashError):
        PersonalFiles(folder, CrashingDisk(at)).load("t2")
    assert holds(PersonalFiles(folder), "t2", 2), "the server named t2: it must not be lost"
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("at", range(5))
def test_saving_keeps_the_counted_state_whatever_happens(tmp_path, at):
    folder = tmp_path / "run"
    store = PersonalFiles(folder)
    store.save("t1", values(1))
    store.load("t1")
    store.save("t2", values(2))
    with contextlib.suppress(CrashError):
        PersonalFiles(folder, CrashingDisk(at)).save("t3", values(3))
    assert holds(PersonalFiles(folder), "t1", 1)


def test_a_first_state_is_reached_after_a_power_cut(tmp_path):
    """Every directory on the way to it must be flushed, the run's own entry in `runs` too."""
    disk = NotingDisk()
    PersonalFiles(tmp_path / "runs" / "run-1", disk).save("t1", values(1))
    assert {tmp_path, tmp_path / "runs"} <= disk.synced


def test_made_directories_are_flushed_and_the_owners_alone(tmp_path):
    disk = NotingDisk()
    made = disk.make_directory(tmp_path / "a" / "b" / "c")
    assert disk.synced == {tmp_path, tmp_path / "a", tmp_path / "a" / "b"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (made, *list(made.parents)[:2]))
    disk.synced.clear()
    disk.make_directory(made)
    assert made.parent in disk.synced, "who made it may have died before flushing"


def test_outbox_folders_are_flushed(tmp_path):
    disk = NotingDisk()
    outbox = Outbox(tmp_path / "outbox", disk)
    folder = outbox.prepare("t1").parent
    assert {tmp_path, tmp_path / "outbox"} <= disk.synced
    assert folder.is_dir()


def test_a_spoiled_state_is_lost_not_wrong(tmp_path):
    store = PersonalFiles(tmp_path)
    store.save("t1", values(1))
    (tmp_path / "pending-t1.payload").write_bytes(b"MOTLEY garbage")
    assert store.load("t1") is None


def test_ids_that_are_no_file_names_are_refused(tmp_path):
    store = PersonalFiles(tmp_path)
    for bad in ("../../etc/passwd", "", "a/b", ".hidden", "x" * 200):
        with pytest.raises(StorageError, match="cannot be a file name"):
            store.load(bad)


def test_one_daemon_for_a_state_directory(tmp_path):
    first = StateDirectory(tmp_path / "s")
    first.open("phone-1")
    with pytest.raises(StateDirectoryError, match="in use by another fedclient"):
        StateDirectory(tmp_path / "s").open("phone-1")
    first.close()
    second = StateDirectory(tmp_path / "s")
    second.open("phone-1")
    assert second.session == first.session, "the session id is made once"
    second.close()


def test_a_state_directory_belongs_to_one_client(tmp_path):
    state = StateDirectory(tmp_path / "s")
    state.open("phone-1")
    state.close()
    with pytest.raises(StateDirectoryError, match="belongs to client 'phone-1'"):
        StateDirectory(tmp_path / "s").open("phone-2")


def test_somebody_elses_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(StateDirectoryError, match=r"holds 'thesis\.doc'"):
        StateDirectory(tmp_path).open("phone-1")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_leftovers_of_cut_writes_are_removed(tmp_path):
    state = StateDirectory(tmp_path / "s")
    state.open("phone-1")
    state.close()
    run = state.run_directory("run-1")
    run.mkdir()
    (run / ".pending-t1.payload.ab12").write_bytes(b"half")
    (state.root / "link.json.tmp").write_bytes(b"{")
    identity = state.root / "identity"
    identity.mkdir()
    (identity / ".renewing.key.ab12").write_bytes(b"half")
    (identity / "renewing.key").write_bytes(b"whole")
    state.open("phone-1")
    assert not list(run.iterdir())
    assert [path.name for path in identity.iterdir()] == ["renewing.key"]
    assert not (state.root / "link.json.tmp").exists()
    state.close()
