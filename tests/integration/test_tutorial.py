"""The commands of docs/tutorial.md in order, as processes of three machines with own homes.

What differs from the page: addresses and ports, fewer rounds, nothing is installed, and commands
that do not last are forked.
`deploy/check/three-machines.sh` runs it with the page's own addresses, ports, rounds and
installation.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from browser import CHROMIUM, DRIVER, browser
from federation import until
from tutorial import LASTING, PAGE, TOKEN, Command, File, Machines, free_pair, plain, steps

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

MACHINES = ("server", "pi", "desk")
TABLE = "┏┃┡│├└"
SLOW = 300.0
"""Seconds that one command may take on a busy machine."""
ROUNDS = {"rounds = 20": "rounds = 4", "every = 10": "every = 2", "--rounds 10": "--rounds 2"}


class Reader:
    """Does what the page says, and keeps what was printed."""

    def __init__(self, root: Path) -> None:
        self.apart = os.environ.get("MOTLEY_THREE_MACHINES", "")
        self.machines = Machines(root, MACHINES, self.apart)
        self.port, self.token = free_pair(), ""
        self.printed: list[tuple[Command, str]] = []

    def put(self, file: File) -> None:
        for name in MACHINES:
            text = file.text if self.apart else shorter(file.text)
            (self.machines.folder(name) / file.name).write_text(text)

    def type(self, command: Command) -> None:
        line = (command.line if self.apart else self.here(command.line)).replace(
            "motley1-...", self.token
        )
        if line.startswith(LASTING):
            self.machines.start(command.machine, line)
            self.wait(command)
            self.printed.append((command, self.machines.log(command.machine).read_text()))
            return
        if line.startswith("fedclient models"):
            until(lambda: not self.server("show", "wine")["finish_waiting"], "all models", SLOW)
        done = self.machines.run(command.machine, line, SLOW)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        self.printed.append((command, done.stdout + done.stderr))
        if token := TOKEN.search(done.stdout):
            self.token = self.token or token.group()

    def here(self, line: str) -> str:
        """Return a command for one machine whose ports may be taken, and for fewer rounds."""
        line = re.sub(r"192\.168\.7\.1\b", f"127.0.0.1:{self.port}", shorter(line))
        line = line.replace("fedserver serve", f"fedserver serve --listen 127.0.0.1:{self.port}")
        return line.replace("--dashboard 127.0.0.1:9480", "--dashboard 127.0.0.1:0")

    def server(self, *words: str) -> Any:
        done = self.machines.run("server", " ".join(["fedserver", *words, "--json"]), SLOW)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @property
    def dashboard(self) -> str:
        """Where the live page is, as the server's log says; "" before the server listens."""
        log = self.machines.log("server")
        found = re.search(r"address=http://(\S+)/", log.read_text()) if log.exists() else None
        return found[1] if found else ""

    def wait(self, command: Command) -> None:
        """Wait until a lasting command does what it is for."""
        name, log = command.machine, self.machines.log(command.machine)

        def ready(condition: Callable[[], bool]) -> Callable[[], bool]:
            def holds() -> bool:
                assert self.machines.lasting[name].poll() is None, log.read_text()
                return condition()

            return holds

        if command.line.startswith("fedserver"):
            until(ready(lambda: "serving" in log.read_text()), "the server listens", SLOW)
            return
        until(ready(lambda: "client_started" in log.read_text()), f"{name} starts", SLOW)
        here = ready(lambda: any(c["name"] == name and c["here"] for c in self.server("clients")))
        until(here, f"{name} is here", SLOW)


def shorter(text: str) -> str:
    for long, short in ROUNDS.items():
        text = text.replace(long, short)
    return text


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder that leaves room for the server's socket, whose path may have 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="tutorial-") as folder:
        yield Path(folder).resolve()


@contextmanager
def window() -> Iterator[Any]:
    """Give a browser, or None where there is none: all but the look at the page is done then."""
    if CHROMIUM and DRIVER and find_spec("selenium"):
        with browser() as opened:
            yield opened
    else:
        yield None


def test_the_tutorial_leads_from_nothing_to_models_that_predict(short_path: Path) -> None:
    reader = Reader(short_path)
    with window() as page:
        follow(reader, page)
    check_output(reader)


def follow(reader: Reader, page: Any) -> None:
    """Do all that the tutorial says, with its page open from the server's start on."""
    try:
        for step in steps(PAGE.read_text()):
            if isinstance(step, File):
                reader.put(step)
            elif not step.machine.startswith("install"):
                reader.type(step)
            if page and reader.dashboard and page.current_url == "data:,":
                page.get(f"http://{reader.dashboard}/")
        check_page(reader, page)
        record = reader.server("show", "wine")
        assert record["status"] == "finished"
        assert record["round"] == record["rounds"] == (30 if reader.apart else 6)
        assert [c["name"] for c in record["clients"]] == ["desk", "pi"]
        for name, line in (("pi", "--half-ends"), ("desk", "")):
            check_model(reader, name, line)
        for name in ("pi", "desk", "server"):
            assert reader.machines.interrupt(name, SLOW) == 0, name
    finally:
        reader.machines.close()


def check_page(reader: Reader, page: Any) -> None:
    """Hold what the live page was told, and what the browser shows, to what happened."""
    assert ask(reader.dashboard, "/").headers["content-type"].startswith("text/html")
    (run,) = ask(reader.dashboard, "/api/runs").json
    assert (run["name"], run["status"]) == ("wine", "finished")
    clients = ask(reader.dashboard, "/api/clients").json
    assert [client["name"] for client in clients] == ["desk", "pi"]
    if page:
        # Opened before there was any device, and not loaded again.
        until(lambda: page.find_element("id", "run-heading").text == "Run wine", "the run", SLOW)
        until(lambda: "finished" in page.find_element("id", "runs").text, "its end", SLOW)
        table = page.find_element("id", "clients").text
        assert "pi" in table
        assert "desk" in table


def check_model(reader: Reader, name: str, option: str) -> None:
    """Export again, after the added rounds, and compare with what the device reported."""
    place = "--workload wine=wine:Wine"
    run = reader.machines.run
    assert run(name, f"fedclient export wine {option} -o last {place}", SLOW).returncode == 0
    done = run(name, f"fedclient predict last --json {place}", SLOW)
    found = json.loads(done.stdout)
    right = [p == t for p, t in zip(found["predictions"], found["targets"], strict=True)]
    reported = {c["name"]: c["metrics"]["finish"] for c in reader.server("show", "wine")["clients"]}
    assert sum(right) / len(right) == pytest.approx(reported[name]["accuracy"])
    assert sum(right) / len(right) > 0.45  # 71 of 178 are of the most frequent sort


def check_output(reader: Reader) -> None:
    """Every line that the page shows is printed, numbers apart; tables are left out."""
    for command, printed in reader.printed:
        home = str(reader.machines.root / command.machine)
        lines = {plain(line, home) for line in printed.splitlines()}
        shown = [line for line in command.shown if line[0] not in TABLE]
        missing = [line for line in shown if plain(line, "/home/you") not in lines]
        assert not missing, f"{command.line} printed\n{printed}\nand the page shows {missing}"
