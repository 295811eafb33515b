"""The same work done by Flower, in an environment of its own; never imported into this one.

A superlink, supernodes and `flwr run` as its guide says, with its favourable settings: telemetry
and the installing of an app's dependencies off, apps that import numpy alone, no TLS.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from wire_processes import busy, children, loopback, peak, processor, share
from wire_workload import FLOATS_IN_A_MIB, TENSORS, TOUCH

VERSION = "1.41.0"
PATIENCE = 900.0
SPARE = 1 << 30
"""Bytes of memory; with less available it is ended, before it takes the machine with it."""
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "wire"
version = "1.0.0"
dependencies = []
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "wire_app.server_app:app"
clientapp = "wire_app.client_app:app"
[tool.flwr.app.config]
rounds = 3
clients = 2
size = 1000
marks = ""
"""
SERVER = f"""
import json, time
import numpy as np
from flwr.app import ArrayRecord, Array
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

class Timed(FedAvg):
    marks = ""
    def mark(self, what, number):
        with open(self.marks, "a") as stream:
            stream.write(json.dumps([what, number, time.time()]) + "\\n")
    def configure_train(self, number, *rest):
        self.mark("open", number)
        return super().configure_train(number, *rest)
    def aggregate_train(self, number, replies):
        replies = list(replies)
        found = super().aggregate_train(number, replies)
        if sum(not reply.has_error() for reply in replies) != self.min_train_nodes:
            self.mark("missing", number)
        self.mark("close", number)
        return found

@app.main()
def main(grid, context):
    config = context.run_config
    draw = np.random.default_rng(1)
    arrays = ArrayRecord({{
        f"layer{{n:02d}}.weight": Array(draw.standard_normal(config["size"], dtype=np.float32))
        for n in range({TENSORS})
    }})
    strategy = Timed(
        fraction_train=1.0, fraction_evaluate=0.0,
        min_train_nodes=config["clients"], min_available_nodes=config["clients"],
    )
    strategy.marks = config["marks"]
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=config["rounds"])
"""
CLIENT = f"""
import numpy as np
from flwr.app import ArrayRecord, Array, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    values = {{name: array.numpy() for name, array in message.content["arrays"].items()}}
    for name, value in values.items():
        if not value.flags.writeable:
            values[name] = value = value.copy()
        value.reshape(-1)[::{FLOATS_IN_A_MIB}] += np.float32({float(TOUCH)})
    content = RecordDict({{
        "arrays": ArrayRecord({{name: Array(value) for name, value in values.items()}}),
        "metrics": MetricRecord({{"num-examples": 1}}),
    }})
    return Message(content=content, reply_to=message)
"""


@dataclass(frozen=True)
class FlowerRounds:
    """What Flower's rounds took."""

    first: float
    seconds: list[float]
    """From one round's end to the next one's, as Motley's are taken."""
    loopback_each: float
    """Bytes on the loopback interface in a round."""
    processor_each: float
    """Processor seconds of the whole machine in a round: its processes come and go."""
    server_each: float
    """Processor seconds of the superlink and what it started, in a round."""
    peaks: dict[str, float]
    share: float
    processes: int
    missing: int
    """Rounds in which a client's reply was missing."""


def installed(folder: Path) -> Path:
    """Return the `bin` of an environment with Flower, which is made when it is not there."""
    found = folder / "bin"
    if not (found / "flwr").exists():
        print(f"installing flwr {VERSION} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(found / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, f"flwr=={VERSION}", "numpy"], check=True)
    return found


class Flower:
    """A superlink and its supernodes."""

    def __init__(self, programs: Path, root: Path, clients: int) -> None:
        self.root, self.clients, self._programs = root, clients, programs
        self.processes: list[subprocess.Popen[bytes]] = []
        home, app = root / "home", root / "app" / "wire_app"
        home.mkdir(parents=True)
        app.mkdir(parents=True)
        (app.parent / "pyproject.toml").write_text(PROJECT)
        (app / "__init__.py").write_text("")
        (app / "server_app.py").write_text(SERVER)
        (app / "client_app.py").write_text(CLIENT)
        self.port, *self._ports = _free_ports(1 + clients)
        (home / "config.toml").write_text(
            f'[superlink.bench]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        own = {"FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**os.environ, **own, "PATH": path, "PYTHONUNBUFFERED": "1"}
        self._environment.pop("PYTHONPATH", None)

    def _start(self, program: str, *options: str) -> subprocess.Popen[bytes]:
        with (self.root / f"{program}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(self._programs / program), *options],
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self.root,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def open(self) -> None:
        """Start the superlink, and the supernodes when it listens."""
        self._start(
            "flower-superlink",
            "--insecure",
            "--disable-runtime-dependency-installation",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        )
        _listens(self.port)
        for port in self._ports:
            link = f"127.0.0.1:{self.port}"
            options = ("--insecure", "--superlink", link, "--port", str(port))
            self._start("flower-supernode", *options)

    def measure(self, megabytes: float, rounds: int) -> FlowerRounds:
        """Run some rounds and return what they took."""
        marks = self.root / "marks"
        size = int(megabytes * 1e6 / 4 / TENSORS)
        config = f'rounds={rounds} clients={self.clients} size={size} marks="{marks}"'
        self._start("flwr", "run", str(self.root / "app"), "bench", "--run-config", config)
        before: tuple[float, ...] = ()
        found: list[list[object]] = []
        peaks: dict[str, float] = {}
        most, largest = 0, 0.0
        end = time.monotonic() + PATIENCE
        while _count(found, "close") < rounds:
            if _available() < SPARE:
                raise MemoryError(f"{self.clients} supernodes leave less than {SPARE >> 20} MiB")
            if time.monotonic() > end:
                raise RuntimeError(f"Flower closed {_count(found, 'close')} rounds: {self.tails()}")
            time.sleep(0.2)
            found = [json.loads(line) for line in _lines(marks)]
            if not before and _count(found, "close"):
                before = self._counters()
            pids = self._look(peaks)
            if len(pids) > most:
                most, largest = len(pids), sum(map(share, pids))
        after = self._counters()
        opened, closed = _times(found, "open"), _times(found, "close")
        each = [(late - early) / (rounds - 1) for early, late in zip(before, after, strict=True)]
        return FlowerRounds(
            first=closed[0] - opened[0],
            seconds=[late - early for early, late in itertools.pairwise(closed)],
            loopback_each=each[0],
            processor_each=each[1],
            server_each=each[2],
            peaks=peaks,
            share=largest,
            processes=most,
            missing=_count(found, "missing"),
        )

    def _counters(self) -> tuple[float, float, float]:
        superlink = [self.processes[0].pid, *_below(self.processes[0].pid)]
        return float(loopback()), busy(), sum(map(processor, superlink))

    def _look(self, peaks: dict[str, float]) -> list[int]:
        """Note the largest of each kind of process; return all process ids."""
        every = []
        for process in self.processes[: 1 + self.clients]:
            for pid in (process.pid, *_below(process.pid)):
                every.append(pid)
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                    names = [Path(word).name for word in words[:3]]
                    kind = next((n for n in names if n.startswith(("flower-", "flwr-"))), "")
                    if kind:
                        peaks[kind] = max(peaks.get(kind, 0.0), peak(pid))
        return every

    def tails(self) -> str:
        """Return the ends of all logs, for messages."""
        return "; ".join(p.read_text()[-500:] for p in sorted(self.root.glob("*.log"))[:4])

    def close(self) -> None:
        """End everything that was started here."""
        every = [pid for process in self.processes for pid in _below(process.pid)]
        for pid in (*every, *(process.pid for process in self.processes)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()


def measure_flower(programs: Path, clients: int, megabytes: float, rounds: int) -> FlowerRounds:
    """Start Flower, run some rounds, end it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flower = Flower(programs, Path(folder), clients)
        try:
            flower.open()
            return flower.measure(megabytes, rounds)
        finally:
            flower.close()


def _available() -> int:
    found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _below(pid: int) -> list[int]:
    tree, found = children(), [pid]
    for one in found:
        found += tree.get(one, [])
    return found[1:]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _times(found: list[list[object]], what: str) -> list[float]:
    return [float(str(at)) for kind, _, at in found if kind == what]


def _count(found: list[list[object]], what: str) -> int:
    return sum(kind == what for kind, _, _ in found)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _listens(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port} after 60 s")
