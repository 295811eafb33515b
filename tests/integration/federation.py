"""Real server and client processes on localhost, for tests."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from forge import SHARED, Forge, Forged, OwnForge

from fedserver.client import Operator

PATIENCE = 90.0
"""Seconds that a condition may take on a busy machine before a test fails."""


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Return the condition's first true value; fail with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


@functools.cache
def shared_forge() -> Forge:
    """Return the process that forks for all tests of this session; it ends with it."""
    if SHARED in os.environ:
        return Forge(Path(os.environ[SHARED]))
    folder = tempfile.TemporaryDirectory(prefix="forge-")
    forge = OwnForge(Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(forge.close)
    return forge


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `fedserver` or `fedclient` to its end, with all of its words behind its name."""
    program, *arguments = words
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = shared_forge().start(
            [f"{program}.cli", *arguments], os.environ, Path.cwd(), output, errors, brief=True
        )
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = None
        for file in (output, errors):
            file.seek(0)
        assert status is not None, f"{words} went on for {PATIENCE} s: {errors.read()}"
        return subprocess.CompletedProcess(words, status, output.read(), errors.read())


class Federation:
    """One server and its clients, each a process with a folder of its own."""

    def __init__(
        self, root: Path, certificates: list[str] | None = None, *, forked: bool = True
    ) -> None:
        """Make a federation of which nothing runs yet.

        Args:
            root: a folder for everything.
            certificates: options of `fedserver init`; None: plain text.
            forked: start processes by forking (forge.py), else plainly.
        """
        self.root, self.certificates = root, certificates
        self._forge = shared_forge() if forked else None
        self.data = root / "server"
        self.processes: dict[str, subprocess.Popen[bytes] | Forged] = {}
        self.address = self.join_address = self.control_address = ""
        self.ports: dict[str, str] = {}
        """Addresses of the server's further listeners by name: `dashboard`, `metrics` and so on."""

    # --- processes ---------------------------------------------------------------------------

    def _start(self, name: str, arguments: list[str], **extra: str) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **extra}
        with (self.root / f"{name}.log").open("ab") as log:
            if self._forge is not None:
                environment["FORGE"] = str(self._forge.socket)
                forged = self._forge.start(arguments, environment, self.root, log)
                self.processes[name] = forged
                return
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.root,
                start_new_session=True,
            )

    def serve(self, *options: str) -> None:
        """Start the server; on a restart it takes the same ports."""
        ready = self.root / "ready"
        ready.unlink(missing_ok=True)
        listen = self.address or "127.0.0.1:0"
        arguments = ["fedserver.cli", "serve", "--data", str(self.data), "--listen", listen]
        if self.certificates is None:
            arguments += ["--insecure"]
        else:
            if not (self.data / "identity").exists():
                self.command("init", "--address", "127.0.0.1", *self.certificates)
            arguments += ["--join-listen", self.join_address or "127.0.0.1:0"]
        arguments += ["--ready-file", str(ready), "--log-format", "json", *options]
        self._start("server", arguments)

        def listening() -> list[str]:
            assert self.processes["server"].poll() is None, self.log("server")
            return ready.read_text().splitlines() if ready.exists() else []

        self.address, *others = until(listening, "the server listens")
        self.ports = dict(line.split(" ") for line in others)
        self.join_address = self.ports.get("join", "")
        self.control_address = self.ports.get("control", "")

    def join(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Let a device join with a token of its own; `options` are those of the token."""
        created = self.command("tokens", "create", "--json", *options).stdout
        token = json.loads(created)["token"]
        state = ["--name", name, "--state", str(self.root / name)]
        return run_command("fedclient", "join", token, *state)

    def client(self, name: str, data: str, *options: str) -> None:
        """Start a client; with certificates it joins first, if it has not yet."""
        arguments = ["fedclient.cli", "start", "--name", name]
        arguments += ["--state", str(self.root / name), "--data", data]
        if self.certificates is None:
            arguments += ["--server", self.address, "--insecure"]
        elif not (self.root / name / "identity").exists():
            done = self.join(name)
            assert done.returncode == 0, done.stderr
        self._start(name, [*arguments, "--log-format", "json", "--threads", "1", *options])

    def kill(self, name: str) -> None:
        """Kill a process and its children as a power cut would."""
        process = self.processes.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def terminate(self, name: str) -> int:
        """Ask a process to leave; return its exit status."""
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(20)

    def close(self) -> None:
        """End everything."""
        for name in list(self.processes):
            self.kill(name)

    # --- the operator ------------------------------------------------------------------------

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a `fedserver` command against this server."""
        done = run_command("fedserver", *arguments, "--data", str(self.data))
        assert not check or done.returncode == 0, done.stderr
        return done

    def submit(self, runfile: str) -> str:
        """Submit a run file's text; return the run's id."""
        with Operator(self.data) as operator:
            return operator.submit(runfile, "run.toml")

    def show(self, run: str) -> dict[str, Any]:
        """Return a run's record."""
        with Operator(self.data) as operator:
            return operator.show(run)

    def finished(self, run: str) -> dict[str, Any]:
        """Wait until a run has finished and every client reported; return its record."""

        def done() -> dict[str, Any] | None:
            record = self.show(run)
            assert record["status"] not in ("paused", "failed"), record["reason"]
            over = record["status"] == "finished" and not record["finish_waiting"]
            return record if over else None

        record: dict[str, Any] = until(done, f"run {run} finishes; {self.tails()}")
        return record

    def log(self, name: str) -> str:
        """Return a process's log."""
        path = self.root / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def events(self, name: str, event: str) -> list[dict[str, Any]]:
        """Return a process's log events of a kind."""
        lines = [line for line in self.log(name).splitlines() if line.startswith("{")]
        return [entry for entry in map(json.loads, lines) if entry["event"] == event]

    def tails(self) -> str:
        """Return the ends of all logs, for messages."""
        return "; ".join(f"{name}: {self.log(name)[-300:]}" for name in self.processes)


@contextmanager
def federation(
    root: Path, certificates: list[str] | None = None, *, forked: bool = True
) -> Iterator[Federation]:
    """Give a federation that is ended whatever happens; see `Federation`."""
    found = Federation(root, certificates, forked=forked)
    try:
        yield found
    finally:
        found.close()
