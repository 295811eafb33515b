"""A server's memory and data directory after round 200, over those after round 20.

Run with `python benchmarks/memory.py`; it takes about two minutes. One server and four clients,
each a process, train an MLP of 1.1 MB with FedAvg, 8 bits up and down; once with the allocator as
the C library has it, once as the server sets it, so that freed memory stays mapped.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from report import Ratio, report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration"))

from federation import Federation

from motley.allocator import SWITCH
from motley.workload import DataSpec, LocalData, Split, Variant, Workload

if TYPE_CHECKING:
    from torch import nn

CLIENTS, EARLY, LATE, WINDOW = 4, 20, 200, 5
TARGET = 1.10
PATIENCE = 600.0
RUN = f"""
[run]
name = "memory"
algorithm = "fedavg"
rounds = {LATE + WINDOW}
seed = 3
[workload]
name = "wide"
[clients]
expected = {CLIENTS}
[settings]
local_steps = 1
batch_size = 10
learning_rate = 0.01
[wire]
up_bits = 8
down_bits = 8
"""


class Wide(Workload):
    """A model of some size on a few random points: inputs float32 [N, 16], targets int64 [N]."""

    def variants(self) -> Mapping[str, Variant]:
        return {"mlp": Variant(partial(_mlp, 512))}

    def load(self, spec: DataSpec) -> LocalData:
        rng = np.random.default_rng(0)
        inputs = rng.normal(size=(40, 16)).astype(np.float32)
        targets = rng.integers(0, 4, 40)
        return LocalData(Split(inputs[:20], targets[:20]), Split(inputs[20:], targets[20:]))


def _mlp(hidden: int) -> nn.Module:
    from torch import nn

    layers = (nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(hidden, 4))


class Measured(Federation):
    """A federation whose server runs under settings of its own."""

    def __init__(self, root: Path, settings: Mapping[str, str]) -> None:
        super().__init__(root, forked=False)
        self._settings = settings

    def _start(self, name: str, arguments: list[str], **extra: str) -> None:
        own = dict(self._settings) if name == "server" else {}
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        super()._start(name, arguments, PYTHONPATH=path, OMP_NUM_THREADS="1", **own, **extra)

    def memory(self) -> int:
        """Return the server's share of memory in bytes: its own pages, and its part of others."""
        rollup = Path(f"/proc/{self.processes['server'].pid}/smaps_rollup").read_text()
        line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
        return int(line.split()[1]) * 1024

    def payloads(self) -> int:
        """Return the bytes of all payloads in the data directory."""
        return _size(self.data) - self.records()

    def records(self) -> int:
        """Return the bytes of the record."""
        return sum(path.stat().st_size for path in self.data.glob("motley.sqlite*"))

    def rounds(self) -> int:
        """Return how many rounds closed; read from the log, so that nobody asks the server."""
        return self.log("server").count('"round_closed"')


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # removed meanwhile
    return total


def measure(root: Path, name: str, settings: Mapping[str, str]) -> list[Ratio]:
    """Run a federation; return late over early of memory and of payloads."""
    samples: dict[int, list[tuple[int, int, int]]] = {EARLY: [], LATE: []}
    world = Measured(root, settings)
    try:
        workload = ("--workload", "wide=memory:Wide")
        world.serve(*workload)
        for index in range(CLIENTS):
            world.client(f"c{index}", "any", *workload)
        world.submit(RUN)
        end, done = time.monotonic() + PATIENCE, 0
        while done < LATE + WINDOW:
            assert time.monotonic() < end, world.tails()
            done = world.rounds()
            for mark, found in samples.items():
                if mark <= done < mark + WINDOW:
                    found.append((world.memory(), world.payloads(), world.records()))
            time.sleep(0.05)
    finally:
        world.close()
    early, late = (
        [median(values) for values in zip(*samples[mark], strict=True)] for mark in (EARLY, LATE)
    )
    memory, payloads, records = zip(early, late, strict=True)
    return [
        Ratio(f"memory, {name}", memory[1] / memory[0], TARGET, detail=_detail(memory)),
        Ratio(f"payloads, {name}", payloads[1] / payloads[0], TARGET, detail=_detail(payloads)),
        Ratio(f"record, {name}", records[1] / records[0], detail=_detail(records)),
    ]


def _detail(pair: tuple[float, float]) -> str:
    return f"{pair[0] / 2**20:.2f} -> {pair[1] / 2**20:.2f} MiB"


def main() -> None:
    """Measure under both allocators."""
    ratios: list[Ratio] = []
    for name, settings in (("plain", {SWITCH: "plain"}), ("kept mapped", {})):
        with tempfile.TemporaryDirectory() as folder:
            ratios += measure(Path(folder), name, settings)
    compared = (
        f"after round {LATE} / after round {EARLY}: the server's PSS, its payloads, its record; "
        f"medians over {WINDOW} rounds"
    )
    report("memory", compared, ratios)


if __name__ == "__main__":
    main()
