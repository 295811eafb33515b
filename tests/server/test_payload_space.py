"""Free space that uploads under way are promised, on top of what they have written."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedserver.errors import StorageError
from fedserver.storage.payloads import PayloadStore
from motley.wire import partial_path


def test_uploads_under_way_leave_each_other_the_space_they_were_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with room for 100 bytes beside the reserve."""
    store, incoming = PayloadStore(tmp_path, reserve=1000), tmp_path / "incoming"

    def statvfs(path: Path) -> SimpleNamespace:
        taken = sum(file.stat().st_size for file in incoming.iterdir())
        return SimpleNamespace(f_bavail=1100 - taken, f_frsize=1)

    monkeypatch.setattr(os, "statvfs", statvfs)

    def begin(task: str, size: int) -> Path:
        return partial_path(store.begin_incoming(task, "ab" * 32, size))

    with store.claimed("a"):
        begun = begin("a", 60)
        with store.claimed("b"):
            with pytest.raises(StorageError, match=r"41 bytes are needed, 60 yet to come"):
                begin("b", 41)
            store.require(100)  # rounds do not wait for what was announced alone
            begin("b", 40)
            begin("b", 40)  # an upload does not stand in its own way
            begun.write_bytes(bytes(30))  # what came is not counted a second time
            with store.claimed("c"), pytest.raises(StorageError):
                begin("c", 1)
        with store.claimed("c"):
            begin("c", 40)
            begun.write_bytes(bytes(60))
            store.require(0)
    with store.claimed("d"):
        begin("d", 40)
        with store.claimed("a"):
            begin("a", 60)  # it is all there
    begin("e", 40)  # nobody receives it
    store.require(40)
    assert not store._coming
