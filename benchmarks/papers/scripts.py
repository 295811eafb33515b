"""Comparisons that have scripts of their own, by the names under which `paper.py` calls them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Script:
    """A script that runs what is not on record and writes its own page."""

    file: str
    """In benchmarks/."""
    calls: tuple[tuple[str, ...], ...]
    """Arguments of each call; {folder} is where the data sets lie."""
    timed: bool
    """Whether it takes --minutes."""


SCRIPTS = {
    "fedmpq": Script("fedmpq_tables.py", (("--data", "{folder}/fashion-mnist"),), timed=False),
    "fedp3": Script(
        "fedp3_accuracy.py",
        (
            ("--data", "{folder}/fashion-mnist"),
            ("--set", "cifar10", "--data", "{folder}/cifar-10-batches-bin", "--tables", "layers"),
        ),
        timed=True,
    ),
}


def commands(name: str, folder: Path | None, minutes: float, *, pages: bool) -> list[list[str]]:
    """Return the command lines of a script; with `pages` the one that writes its page again."""
    script = SCRIPTS[name]
    start = [sys.executable, str(BENCHMARKS / script.file)]
    if pages:
        return [[*start, "--summary"]]
    if folder is None:
        raise SystemExit(f"{name}: give --data FOLDER, the folder of the data sets")
    limit = ["--minutes", f"{minutes:g}"] if script.timed else []
    return [
        [*start, *(one.replace("{folder}", str(folder)) for one in call), *limit]
        for call in script.calls
    ]


def run(name: str, folder: Path | None, minutes: float, *, pages: bool) -> None:
    """Call a script; exit as it does when it fails."""
    for command in commands(name, folder, minutes, pages=pages):
        code = subprocess.run(command, check=False).returncode
        if code:
            raise SystemExit(code)
