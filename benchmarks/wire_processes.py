"""What processes cost, read from /proc, and a federation of real daemons to read it from."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration"))

import itertools

from federation import Federation
from wire_phases import phases, when

TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 900.0
RUN = """
[run]
name = "wire"
algorithm = "fedavg"
rounds = {rounds}
seed = 1
[workload]
name = "identity"
arguments = {{ megabytes = {megabytes} }}
[clients]
expected = {clients}
[settings]
local_steps = 1
batch_size = 1
weighting = "uniform"
[wire]
up_bits = {bits}
down_bits = {bits}
"""


def processor(pid: int) -> float:
    """Return the processor seconds that a process has used, 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak(pid: int | Literal["self"]) -> float:
    """Return VmHWM in bytes, 0 when the process is gone."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM:")


def share(pid: int) -> float:
    """Return PSS in bytes: own pages, and this process's part of those that it shares."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def _kilobytes(path: Path, key: str) -> float:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(key):
                return float(line.split()[1]) * 1024
    return 0.0


def children() -> dict[int, list[int]]:
    """Return every process's children."""
    found: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            found.setdefault(int(fields[1]), []).append(int(path.parent.name))
    return found


def descendants(pid: int) -> list[int]:
    """Return a process and all that come from it."""
    tree, found = children(), [pid]
    for one in found:
        found += tree.get(one, [])
    return found


def loopback() -> int:
    """Return the bytes that the loopback interface has carried, of all programs here."""
    return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


def busy() -> float:
    """Return the processor seconds that all programs of this machine have used."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def carried(port: str) -> int:
    """Return the TCP payload bytes, both ways, of the connections that a port has now."""
    called = subprocess.run(
        ["ss", "-tinH", f"sport = :{port}"], capture_output=True, text=True, check=True
    )
    return sum(int(n) for n in re.findall(r"bytes_(?:acked|received):(\d+)", called.stdout))


@dataclass(frozen=True)
class Snapshot:
    """Counters at one moment."""

    server: float
    clients: float
    """Processor seconds of daemons and training processes."""
    machine: float
    socket: int
    loopback: int
    rounds: int
    """Rounds that were closed by then."""
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Rounds:
    """What the rounds of one federation took."""

    first: float
    """Seconds of the first round, from its opening."""
    seconds: Sequence[float]
    """Of the others: from one round's end to the next one's."""
    before: Snapshot
    after: Snapshot
    peaks: Mapping[str, float]
    """VmHWM by kind of process: the largest."""
    shares: float
    """PSS of all processes together."""
    processes: int
    phases: Mapping[str, float]
    """Median seconds of the steps of a round (`wire_phases.py`)."""


class Daemons(Federation):
    """One `fedserver` and its `fedclient`s on the identity workload."""

    def __init__(self, root: Path, *, tls: bool, environment: Mapping[str, str]) -> None:
        super().__init__(root, certificates=[] if tls else None, forked=False)
        self._environment = environment

    def _start(self, name: str, arguments: list[str], **extra: str) -> None:
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **self._environment}
        super()._start(name, arguments, **own, **extra)

    def open(self, clients: int) -> None:
        """Start everything."""
        workload = ("--workload", "identity=wire_workload:Identity")
        self.serve(*workload)
        for number in range(clients):
            self.client(self.name(number), "any", *workload)

    @staticmethod
    def name(number: int) -> str:
        return f"c{number:02d}"

    def wait(self, kind: str, count: int) -> list[dict[str, Any]]:
        """Return the log entries of one kind when there are so many."""
        end = time.monotonic() + PATIENCE
        while len(found := self.events("server", kind)) < count:
            if time.monotonic() > end or self.processes["server"].poll() is not None:
                raise RuntimeError(f"{len(found)} {kind} of {count}: {self.tails()}")
            time.sleep(0.01)
        return found

    def pids(self) -> dict[str, list[int]]:
        """Return process ids: the server's, the daemons', their training processes'."""
        tree = children()
        daemons = [process.pid for name, process in self.processes.items() if name != "server"]
        workers = [pid for daemon in daemons for pid in tree.get(daemon, [])]
        return {
            "server": [self.processes["server"].pid],
            "daemon": daemons,
            "worker": workers,
        }

    def snapshot(self) -> Snapshot:
        pids = self.pids()
        return Snapshot(
            processor(pids["server"][0]),
            sum(processor(pid) for pid in (*pids["daemon"], *pids["worker"])),
            busy(),
            carried(self.address.rpartition(":")[2]),
            loopback(),
            len(self.events("server", "round_closed")),
        )

    def measure(self, clients: int, megabytes: float, bits: int, rounds: int) -> Rounds:
        """Run some rounds and return what they took."""
        # More rounds than are measured, so that no client finishes meanwhile.
        text = RUN.format(rounds=rounds + 5, clients=clients, megabytes=float(megabytes), bits=bits)
        run = self.submit(text)
        opened = when(self.wait("round_opened", 1)[0])
        self.wait("round_closed", 1)
        before = self.snapshot()
        closed = [when(event) for event in self.wait("round_closed", rounds)][:rounds]
        after, pids = self.snapshot(), self.pids()
        peaks = {kind: max(map(peak, found), default=0.0) for kind, found in pids.items()}
        every = [pid for found in pids.values() for pid in found]
        shares = sum(map(share, every))
        self.command("stop", run, check=False)
        return Rounds(
            first=closed[0] - opened,
            seconds=[late - early for early, late in itertools.pairwise(closed)],
            before=before,
            after=after,
            peaks=peaks,
            shares=shares,
            processes=len(every),
            phases=phases(
                self.events("server"),
                {name: self.events(name) for name in self.processes if name != "server"},
            ),
        )

    def events(self, name: str, event: str = "") -> list[dict[str, Any]]:
        """Return a process's log events, of one kind or all; a line half written is left out."""
        lines = [line for line in self.log(name).splitlines() if line[:1] + line[-1:] == "{}"]
        entries = [json.loads(line) for line in lines]
        return [entry for entry in entries if event in ("", entry["event"])]
