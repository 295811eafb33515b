"""Files that are synced to the disk, and those of a simulation that are not."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

import pytest

from motley.wire.durable import replacing, unsynced


def write(path: Path) -> None:
    with replacing(path) as stream:
        stream.write(b"content")


def test_a_file_and_its_folder_are_synced_but_for_an_unsynced_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write(tmp_path / "one")
    assert len(synced) == 2
    with unsynced():
        write(tmp_path / "two")
        assert len(synced) == 2
        # A server in the same process, on another thread, keeps its promise.
        other = Thread(target=write, args=(tmp_path / "three",))
        other.start()
        other.join()
        assert len(synced) == 4
    write(tmp_path / "four")
    assert len(synced) == 6
    assert (tmp_path / "two").read_bytes() == b"content"
