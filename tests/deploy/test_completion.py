"""Shell completion and versions: both programs print them, and the shell completes commands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from motley import __version__


def run(module: str, **extra: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}.cli as c; c.app(prog_name={module!r})"],
        env={**os.environ, **extra},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout


@pytest.mark.parametrize("module", ["fedclient", "fedserver"])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed(module: str, shell: str) -> None:
    code = (
        "import typer.completion, sys\n"
        f"import {module}.cli as c\n"
        f"sys.argv = [{module!r}, '--show-completion', {shell!r}]\n"
        f"c.app(prog_name={module!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"_{module.upper()}_COMPLETE" in done.stdout
    assert module in done.stdout


@pytest.mark.parametrize(
    ("module", "typed", "offered"),
    [
        ("fedclient", "fedclient st", {"start"}),
        ("fedserver", "fedserver re", {"resume", "remove", "replay"}),
    ],
)
def test_commands_are_completed(module: str, typed: str, offered: set[str]) -> None:
    asked = {
        f"_{module.upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": "1",
    }
    assert set(run(module, **asked).split()) == offered


@pytest.mark.parametrize("module", ["fedclient", "fedserver"])
def test_the_version_is_printed_with_the_programs_name(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"{module}.cli", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"{module} {__version__}\n")
