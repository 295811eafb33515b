"""What docs/tutorial.md says to do: its files and its commands, machine by machine, in order."""

from __future__ import annotations

import functools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from federation import shared_forge

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
LASTING = ("fedserver serve", "fedclient start")
"""Commands that run until they are told to stop."""
TOKEN = re.compile(r"motley1-[a-z0-9.]+")


@dataclass(frozen=True)
class File:
    """A file that every machine gets."""

    name: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command, where it is typed, and the lines that the page shows below it."""

    machine: str
    line: str
    shown: tuple[str, ...]


def steps(text: str) -> Iterator[File | Command]:
    """Yield what the titled blocks of a page hold, in order.

    A `console` block's title begins with its machine; any other block's is a file's name.
    """
    for language, title, body in re.findall(
        r'^```(\w+) title="([^"]+)"\n(.*?)^```$', text, flags=re.M | re.S
    ):
        if language == "console":
            yield from commands(title.partition(",")[0], body)
        else:
            yield File(title, body)


def commands(machine: str, body: str) -> Iterator[Command]:
    """Yield the commands of a console block with what is shown below each."""
    for part in re.split(r"^\$ ", body.replace("\\\n", ""), flags=re.M)[1:]:
        line, *shown = part.splitlines()
        yield Command(machine, line, tuple(s for s in shown if s.strip() not in ("", "...")))


def plain(line: str, home: str) -> str:
    """Return a line without what differs from run to run: numbers, ids, widths of tables."""
    line = TOKEN.sub("TOKEN", line.replace(home, "/home/you"))
    line = re.sub(r"[│┃━┏┓┡┩└┘─┴┬┳╇╈┼┻]+", " ", line)
    line = re.sub(r"\b(?=[a-z]*\d)[0-9a-f]{8,}\b", "#", line)
    return " ".join(re.sub(r"[-+]?\d[\d.,:T]*(Z|%|\b)", "#", line).split())


def free_pair() -> int:
    """Return a port that is free together with the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


class Machines:
    """Machines that are homes in one folder; what runs on them is ended by `close`.

    With `apart` each is a network namespace, the first the one that this process is in, and has
    the programs that were installed in that folder (deploy/check/three-machines.sh).
    """

    def __init__(self, root: Path, names: Sequence[str], apart: str = "") -> None:
        self.root, self.names, self.apart = root, names, apart
        self.lasting: dict[str, subprocess.Popen[bytes]] = {}
        for name in names:
            self.folder(name).mkdir(parents=True)

    def folder(self, name: str) -> Path:
        """Return the folder in which a machine's commands are typed."""
        return self.root / name / "wine"

    @functools.cached_property
    def _brief(self) -> str:
        """Where programs are that fork: commands that do not last, twenty of them, start there."""
        if self.apart:
            return ""
        folder = self.root / "forked"
        folder.mkdir()
        for program in ("fedserver", "fedclient"):
            words = shared_forge().command(f"{program}.cli")
            text = f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'
            (folder / program).write_text(text)
            (folder / program).chmod(0o755)
        return f"{folder}:"

    def environment(self, name: str, before: str = "") -> dict[str, str]:
        """Return a machine's environment: its own home, and no other place of the host's."""
        left = ("XDG_", "MOTLEY_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(left)}
        programs = f"{before}{self._programs(name)}:{kept['PATH']}"
        home = str(self.root / name)
        return {**kept, "HOME": home, "PATH": programs, "COLUMNS": "120", "PYTHONUNBUFFERED": "1"}

    def _programs(self, name: str) -> Path:
        found = Path(self.apart, name, "motley", ".venv", "bin")
        return found if self.apart else Path(sys.executable).parent

    def _shell(self, name: str, line: str) -> list[str]:
        elsewhere = self.apart and name != self.names[0]
        there = ["ip", "netns", "exec", f"motley-{name}"] if elsewhere else []
        return [*there, "bash", "-c", line]

    def run(self, name: str, line: str, seconds: float) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self._shell(name, line),
            capture_output=True,
            text=True,
            env=self.environment(name, self._brief),
            cwd=self.folder(name),
            timeout=seconds,
        )

    def start(self, name: str, line: str) -> None:
        """Start a command that lasts; its output goes to the machine's log."""
        with self.log(name).open("wb") as log:
            self.lasting[name] = subprocess.Popen(
                self._shell(name, f"exec {line}"),
                stdout=log,
                stderr=log,
                env=self.environment(name),
                cwd=self.folder(name),
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        """Return the file that a machine's lasting command writes to."""
        return self.root / f"{name}.log"

    def interrupt(self, name: str, seconds: float) -> int:
        """Press control and C; return the exit status."""
        process = self.lasting.pop(name)
        process.send_signal(signal.SIGINT)
        return process.wait(seconds)

    def close(self) -> None:
        """End everything."""
        for process in self.lasting.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
