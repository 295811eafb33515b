"""What `--help` says of every command of both programs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import typer
from structlog.stdlib import get_logger
from typer.testing import CliRunner

import fedclient.cli
import fedserver.cli
from fedclient import profile_view
from fedserver.cli_options import read_run_file
from fedserver.client import Operator
from motley.command_line import Program
from motley.errors import RunFileError

PROGRAMS = {"fedclient": fedclient.cli.app, "fedserver": fedserver.cli.app}


def commands(command: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the names that lead to a command, and to those below it."""
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, *path, name)


EVERY = [
    (program, *path)
    for program, app in PROGRAMS.items()
    for path in commands(typer.main.get_command(app))
]


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_help_shows_flags_without_a_value(path: tuple[str, ...]) -> None:
    program, *words = path
    wide = {"COLUMNS": "300", "TERMINAL_WIDTH": "300"}
    shown = CliRunner(env=wide).invoke(PROGRAMS[program], [*words, "--help"])
    assert shown.exit_code == 0, shown.output
    assert "--help" in shown.output
    assert "bool" not in shown.output.lower()


def test_an_option_with_a_value_says_so() -> None:
    program = Program()

    @program.command()
    def start(
        loud: bool = typer.Option(False, "--loud", help="Say more."),
        name: str = typer.Option("", metavar="NAME", help="Of whom."),
    ) -> None:
        print(loud, name)

    told = CliRunner().invoke(program, ["--help"]).output.split()
    assert told[told.index("--loud") + 1] == "Say"
    assert told[told.index("--name") + 1] == "NAME"
    assert CliRunner().invoke(program, ["--loud", "--name", "x"]).output.split() == ["True", "x"]


@pytest.mark.parametrize("command", [["submit", "--data", "nowhere"], ["simulate"]])
def test_a_run_file_that_is_not_utf_8_is_refused(tmp_path: Path, command: list[str]) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes('[run]\nname = "café"\n'.encode("latin-1"))
    told = CliRunner().invoke(fedserver.cli.app, [*command, str(latin)])
    assert isinstance(told.exception, RunFileError)
    assert "is not UTF-8" in str(told.exception)


def test_a_run_file_may_begin_with_the_mark_of_windows_editors(tmp_path: Path) -> None:
    path = tmp_path / "marked.toml"
    path.write_bytes(b"\xef\xbb\xbf[run]\n")
    assert read_run_file(path) == "[run]\n"


def test_the_profile_as_json_is_json_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def measured(*_: object) -> dict[str, object]:
        get_logger().info("device_measured")
        return {"cores": 2}

    monkeypatch.setattr(profile_view, "measured_profile", measured)
    before = structlog.get_config()
    try:
        command = CliRunner().invoke(fedclient.cli.app, ["profile", "--json"])
    finally:
        structlog.configure(**before)
    assert json.loads(command.stdout) == {"cores": 2}
    assert "device_measured" in command.stderr


@pytest.mark.parametrize("more", [(), ("--data", "my folder")])
@pytest.mark.parametrize(
    ("status", "hint", "command"),
    [("queued", "follow it", "watch"), ("stopped", "take it up", "resume")],
)
def test_the_command_that_is_told_next_names_the_same_server(
    more: tuple[str, ...], status: str, hint: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Operator, "extend", lambda *_: ("0d5a1791", status))
    result = CliRunner().invoke(fedserver.cli.app, ["extend", "run", "--rounds", "1", *more])
    told = shlex.join(["fedserver", command, "0d5a1791", *more])
    assert result.output == f"run 0d5a1791 is {status}; {hint} with `{told}`\n"
