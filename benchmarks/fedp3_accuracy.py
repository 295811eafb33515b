"""Accuracy of FedP3 by layer policy, keep ratio and local pruning, simulated and reduced.

    python benchmarks/fedp3_accuracy.py --data FOLDER [--set fashion-mnist] [--minutes 10]

Every client holds five of ten classes (the paper's S1), so that each quarter of the clients, which
owns one layer under LowerB, sees nine of ten. Both models are scored on the clients' own test
samples: the server's, and each client's as it came out of its last training. A figure is the mean
over clients and over a run's last three evaluations.

Each run is written to docs/results/fedp3.json when it ends, and is not run again; with `--minutes`
no run begins after so long. Ends with the tables in docs/results/fedp3.md and fedp3.png, also over
what runs there are (`--summary`).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import structlog
from fedp3_results import RESULTS, TABLES, read_runs, write_pages, write_runs

from fedserver.simulate.simulation import simulate

RUN = """
[run]
name = "fedp3-accuracy"
algorithm = "fedp3"
rounds = {rounds}
seed = {seed}
global_variant = "{variant}"
[workload]
name = "{set}"
[clients]
expected = {clients}
[settings]
local_steps = {steps}
batch_size = {batch}
learning_rate = {rate}
momentum = {momentum}
{settings}
[evaluate]
every = {every}
subject = "both"
[simulate]
clients = {clients}
data = "{data}?clients={clients}&client={{client}}&split=cyclic&classes=5&pool=0.7\
&train={train}&test={test}&seed={seed}"
"""
LAST = 3
"""Evaluations at a run's end whose mean is its figure."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What all runs share; far smaller than the paper's."""

    variant: str = "cnn1"
    clients: int = 20
    rounds: int = 24
    steps: int = 20
    batch: int = 16
    rate: float = 0.03
    momentum: float = 0.9
    train: int = 400
    test: int = 170
    every: int = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row's settings."""

    name: str
    settings: str


def rows() -> list[Row]:
    """Return all rows, in the order in which they are run."""
    found = [Row(name="all, p = 1.0", settings='layers = "all"\nkeep = 1.0')]
    for layers in ("opu3", "opu2", "lowerb"):
        settings = f'layers = "{layers}"\nkeep = 0.9'
        found.append(Row(name=f"{layers}, p = 0.9", settings=settings))
    for keep in (1.0, 0.7, 0.5, 0.1):
        settings = f'layers = "opu2"\nkeep = {keep}'
        found.append(Row(name=f"opu2, p = {keep}", settings=settings))
    for rule, keep in product(("uniform", "ordered"), (0.9, 0.7)):
        local = f'local_pruning = "{rule}"\nlocal_keep = {keep}'
        name = f"opu2, p = 0.9, {rule}, q = {keep}"
        found.append(Row(name=name, settings=f'layers = "opu2"\nkeep = 0.9\n{local}'))
    return found


def run(row: Row, dataset: str, folder: Path, seed: int, schedule: Schedule) -> dict[str, Any]:
    """Simulate one run; return its figures."""
    values = {**asdict(schedule), "set": dataset, "data": folder, "seed": seed}
    began = time.process_time()
    result = simulate(RUN.format(**values, settings=row.settings))
    if result.status != "finished":
        raise SystemExit(f"{row.name}, seed {seed}: {result.status}: {result.reason}")
    tested = [e for e in result.record["history"] if e["kind"] == "evaluate"]
    return {
        "set": dataset,
        "row": row.name,
        "seed": seed,
        "server": _last(tested, "global_accuracy"),
        "clients": _last(tested, "personal_accuracy"),
        "curves": {
            str(entry["round"]): [
                entry["metrics"]["global_accuracy"],
                entry["metrics"]["personal_accuracy"],
            ]
            for entry in tested
        },
        "schedule": asdict(schedule),
        "cpu_seconds": time.process_time() - began,
    }


def _last(tested: Sequence[Mapping[str, Any]], metric: str) -> float:
    return statistics.mean(entry["metrics"][metric] for entry in tested[-LAST:])


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", default="fashion-mnist", help="name of the workload")
    parser.add_argument("--data", type=Path, help="folder of the set")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--summary", action="store_true", help="write the tables, run nothing")
    options = parser.parse_args()
    if not options.summary and options.data is None:
        parser.error("--data: expected the folder of the set, or --summary")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    began, found = time.monotonic(), read_runs()
    if any(one["schedule"] != asdict(Schedule()) for one in found):
        parser.error("docs/results/fedp3.json holds runs of another schedule; remove it")
    known = {(one["set"], one["row"], one["seed"]) for one in found}
    shown = {entry.row for table in options.tables for entry in TABLES[table]}
    wanted = [row for row in rows() if row.name in shown]
    for seed, row in product(range(options.seeds), () if options.summary else wanted):
        late = time.monotonic() - began > 60 * options.minutes
        if late or (options.set, row.name, seed) in known:
            continue
        found.append(run(row, options.set, options.data, seed, Schedule()))
        write_runs(found)
        done = found[-1]
        print(
            f"{options.set}, {row.name}, seed {seed}: server {done['server']:.4f}, clients "
            f"{done['clients']:.4f}, {done['cpu_seconds']:.0f} s of processor",
            flush=True,
        )
    write_pages(found, RESULTS)


if __name__ == "__main__":
    main()
