"""Where a server listens, as it notes that and its doctor takes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedserver.doctor import Patient, ports
from fedserver.listening import FILE, Listening, note, noted


def test_what_a_server_notes_is_read_again(tmp_path: Path) -> None:
    assert noted(tmp_path) is None
    note(tmp_path, ["0.0.0.0:9500", "join 0.0.0.0:9501", "metrics [::1]:9464"], insecure=False)
    addresses = {"client": "0.0.0.0:9500", "join": "0.0.0.0:9501", "metrics": "[::1]:9464"}
    assert noted(tmp_path) == Listening(addresses, insecure=False)
    note(tmp_path, ["127.0.0.1:9400"], insecure=True)
    assert noted(tmp_path) == Listening({"client": "127.0.0.1:9400"}, insecure=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"addresses": 3, "insecure": true}',
        '{"addresses": {}, "insecure": true}',
        '{"addresses": {"client": "nonsense"}, "insecure": true}',
        '{"addresses": {"client": "h:1", "join": "h:x"}, "insecure": false}',
        "\xff",
    ],
)
def test_a_damaged_note_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="latin-1")
    assert noted(tmp_path) is None


def test_a_note_that_cannot_be_written_ends_no_server_and_leaves_no_older_one(
    tmp_path: Path,
) -> None:
    note(tmp_path, ["127.0.0.1:9500"], insecure=True)
    (tmp_path / f"{FILE}.new").mkdir()
    note(tmp_path, ["127.0.0.1:9400"], insecure=True)
    assert noted(tmp_path) is None


NOTED = Listening({"client": "h:9500", "join": "h:9600", "dashboard": "h:80"}, insecure=False)


@pytest.mark.parametrize(
    ("options", "known", "insecure", "expected"),
    [
        ({}, None, False, {"client": "0.0.0.0:9400", "join": "0.0.0.0:9401"}),
        ({}, None, True, {"client": "127.0.0.1:9400"}),
        ({}, NOTED, False, dict(NOTED.addresses)),
        ({"no_join": True}, NOTED, False, {"client": "h:9500", "dashboard": "h:80"}),
        ({"join_listen": "h:1"}, None, False, {"client": "0.0.0.0:9400", "join": "h:1"}),
        ({"listen": "h:7"}, None, False, {"client": "h:7", "join": "h:8"}),
        ({"listen": "h:7", "no_join": True}, None, False, {"client": "h:7"}),
    ],
)
def test_addresses_come_from_the_note_or_as_serve_takes_them(
    options: dict[str, object], known: Listening | None, insecure: bool, expected: dict[str, str]
) -> None:
    patient = Patient(data=Path(), **options)
    assert ports(patient, known, insecure=insecure) == expected
