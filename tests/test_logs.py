"""Logs: words for people, fields as they are for machines and for those who listen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from motley.logs import LogFormat, configure, in_words, listened_to, printable

FIELDS: dict[str, Any] = {
    "ports": ["join 0.0.0.0:9401", "dashboard 127.0.0.1:9480"],
    "metrics": {"accuracy": 0.944444, "samples": 36},
    "reason": "run.toml is not valid:\n  run.rounds: missing\n  clients: missing",
}
SHOWN = (
    "metrics='accuracy 0.9444, samples 36' ports='join 0.0.0.0:9401, dashboard 127.0.0.1:9480' "
    "reason='run.toml is not valid: run.rounds: missing; clients: missing'"
)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_a_terminals_commands_are_written_out() -> None:
    assert in_words("a\x1b[2J\x9b1m\u202eb\r") == "a\\x1b[2J\\x9b1m\\u202eb"
    assert in_words("kept\rovertyped") == "kept; overtyped"
    assert in_words({"\x1b[2Jloss": 0.5}) == "\\x1b[2Jloss 0.5"
    assert printable("two\n\tlines\x07") == "two\n\tlines\\x07"


def test_people_read_words_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogFormat.CONSOLE)
    heard: list[dict[str, Any]] = []

    def listen(logger: Any, method: str, fields: Any) -> Any:
        heard.append(dict(fields))
        return fields

    with listened_to(listen):
        structlog.get_logger().info("said", **FIELDS)
    (line,) = capsys.readouterr().err.splitlines()
    assert " ".join(line.split()).endswith(f"[info ] said {SHOWN}")
    assert {name: heard[0][name] for name in FIELDS} == FIELDS


def test_a_stack_trace_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogFormat.CONSOLE)
    try:
        raise ValueError("a fault")
    except ValueError:
        structlog.get_logger().exception("failed", client="pi")
    first, *trace = capsys.readouterr().err.splitlines()
    assert "failed" in first
    assert "client=pi" in first
    assert len(trace) >= 3
    assert trace[-1].endswith("ValueError: a fault")


def test_machines_get_fields_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogFormat.JSON)
    structlog.get_logger().info("said", **FIELDS)
    record = json.loads(capsys.readouterr().err)
    assert {name: record[name] for name in FIELDS} == FIELDS


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("one line", "one line"),
        (7, 7),
        (None, None),
        (b"raw\n", b"raw\n"),
        ((), ""),
        (["\x1b[2Jgone\x07"], "\\x1b[2Jgone\\x07"),
        ("Müller \x9b", "Müller \\x9b"),
        (("charging", "idle"), "charging, idle"),
        ({"phone": ["a", "b"]}, "phone a, b"),
        (0.123456, 0.123456),
    ],
)
def test_words(value: object, words: object) -> None:
    assert in_words(value) == words


def test_spaces_of_all_kinds_are_shown_and_a_terminals_commands_written_out() -> None:
    name = "Screenshot 10.00\u202fAM\u00a0\u3000\U0001f469\u200d\U0001f52c.png"
    assert printable(name) == name
    assert printable("\x1b[2J\u202e\x85") == "\\x1b[2J\\u202e\\x85"
