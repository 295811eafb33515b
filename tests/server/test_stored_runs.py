"""Commands choose by the data directory's lock whether to ask a server or to read the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedserver.cli_options import connect
from fedserver.control_socket import control_socket
from fedserver.errors import DataDirectoryError
from fedserver.storage.database import lock_directory, open_database
from fedserver.stored import StoredRuns


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lock_directory(tmp_path).close()
    open_database(tmp_path).dispose()
    return tmp_path


def test_the_socket_of_a_killed_server_does_not_hide_its_files(data: Path) -> None:
    control_socket(data).touch()
    with connect(data, None, "") as found:
        assert isinstance(found, StoredRuns)
        assert found.runs() == []
    (data / "lock").unlink()
    assert isinstance(connect(data, None, ""), StoredRuns)


def test_a_server_that_holds_its_directory_is_asked(data: Path) -> None:
    control_socket(data).touch()
    with lock_directory(data):
        assert not isinstance(connect(data, None, ""), StoredRuns)
    # Held without a socket, as by a simulation: nobody could be asked.
    control_socket(data).unlink()
    found = connect(data, None, "")
    with lock_directory(data), pytest.raises(DataDirectoryError, match="in use"):
        found.runs()
