"""FedMPQ against its baselines and without its parts, on Fashion-MNIST with ten clients.

    python benchmarks/fedmpq_tables.py [--data FOLDER] [--seeds 3]

Each cell is one simulated run: the server's engine, real payloads, one thread. First the learning
rate of every method is chosen on images that none trains on, from the same few; then method by
partition by seed. A cell that lies in benchmarks/out/fedmpq or docs/results/fedmpq.json is not run
again. Ends with docs/results/fedmpq.md, .json and .png, also over what cells there are
(`--summary`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import structlog
from fedmpq_methods import BUDGETS, METHODS, PARTITIONS, Schedule, run_file, tier_counts
from fedmpq_results import RESULTS, write_record, write_results

from fedserver.simulate.population import population_of
from fedserver.simulate.simulation import simulate
from motley.runfile import parse

CELLS = Path(__file__).parent / "out" / "fedmpq"
RATES = (0.1, 0.3)
TUNED_ON, TUNING = "alpha 0.5", Schedule(rounds=6)
Cell = Mapping[str, Any]


def run_cell(
    method: str, partition: str, seed: int, rate: float, folder: str, tuning: bool
) -> Cell:
    """Simulate one run; return what the tables need of its record."""
    schedule, chosen = (TUNING if tuning else Schedule()), METHODS[method]
    text = run_file(chosen, rate=rate, seed=seed, schedule=schedule, folder=folder)
    data = f"{folder}?clients={{clients}}&client={{client}}{PARTITIONS[partition]}&seed={seed}"
    workload = "FashionTuning" if tuning else "FashionSmall"
    result = simulate(
        text,
        population=population_of(
            parse(text), clients=len(BUDGETS), data=data, tiers=tier_counts(chosen), threads=1
        ),
        mappings={"fashion": f"fedmpq_workload:{workload}"},
    )
    if result.status != "finished":
        raise SystemExit(f"{method}, {partition}, seed {seed}: {result.status}: {result.reason}")
    return {
        "tuning": tuning,
        "method": method,
        "partition": partition,
        "seed": seed,
        "rate": rate,
        "schedule": asdict(schedule),
        "seconds": result.seconds,
        **_figures(result.record["history"]),
    }


def _figures(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return accuracies by round, bytes by client and round, and the last round's widths."""
    trained = [entry for entry in history if entry["kind"] == "train"]
    curve = {
        entry["round"]: entry["metrics"]["held_out_accuracy"]
        for entry in history
        if "held_out_accuracy" in entry["metrics"]
    }
    tasks = [task for entry in trained for task in entry["clients"].values()]
    last = trained[-1]["clients"]
    return {
        "curve": curve,
        "accuracy": curve[max(curve)],
        "up": statistics.mean(task["bytes_up"] for task in tasks),
        "down": statistics.mean(task["bytes_down"] for task in tasks),
        "widths": {name: list(last[name].get("bits", {}).values()) for name in sorted(last)},
        "metrics": {name: last[name]["metrics"] for name in sorted(last)},
    }


def path_of(method: str, partition: str, seed: int, rate: float, tuning: bool) -> Path:
    """Return where a cell lies."""
    kind = f"tune-{rate}" if tuning else "cell"
    return CELLS / f"{kind}-{method}-{partition.replace(' ', '-')}-{seed}.json"


def write_cell(path: Path, cell: Cell) -> None:
    """Write a cell whole, or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(cell, indent=1) + "\n")
    part.rename(path)


def lay_out(record: Path) -> None:
    """Put the cells on record where cells lie, unless others are there."""
    CELLS.mkdir(parents=True, exist_ok=True)
    cells = json.loads(record.read_text())["cells"] if record.exists() else []
    for cell in cells:
        keys = ("method", "partition", "seed", "rate", "tuning")
        path = path_of(*(cell[key] for key in keys))
        if not path.exists():
            write_cell(path, cell)


class Runs:
    """Cells by name of their file: read where they are, else run and written."""

    def __init__(self, folder: str, total: int) -> None:
        self._folder, self._total, self._done = folder, total, 0
        self.new = 0
        """Cells that were run."""

    def __call__(self, method: str, partition: str, seed: int, rate: float, tuning: bool) -> Cell:
        """Return a cell."""
        path = path_of(method, partition, seed, rate, tuning)
        if not path.exists():
            began = time.process_time()
            cell = run_cell(method, partition, seed, rate, self._folder, tuning)
            cell = {**cell, "cpu_seconds": time.process_time() - began}
            write_cell(path, cell)
            self.new += 1
        found: Cell = json.loads(path.read_text())
        self._done += 1
        print(
            f"{self._done}/{self._total} {path.name}: {found['accuracy']:.4f}, "
            f"{found['up'] / 1e3:.1f} KB up, {found['cpu_seconds']:.0f} s of processor",
            flush=True,
        )
        return found


def tuned_rates(runs: Runs) -> dict[str, float]:
    """Return each method's learning rate: the best of `RATES` on held-back training images."""
    rates = {}
    for method in (name for name, entry in METHODS.items() if not entry.rate_of):
        scores = {rate: runs(method, TUNED_ON, 0, rate, True)["accuracy"] for rate in RATES}
        rates[method] = max(scores, key=lambda rate: scores[rate])
    return {name: rates[entry.rate_of or name] for name, entry in METHODS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(os.environ.get("MOTLEY_DATA_DIR", "")) / "fashion-mnist"
    parser.add_argument("--data", type=Path, default=default, help="folder of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--summary", action="store_true", help="write the tables, run nothing")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    lay_out(RESULTS / "fedmpq.json")
    ran = 0
    if not options.summary:
        tuned = sum(not entry.rate_of for entry in METHODS.values())
        total = tuned * len(RATES) + len(METHODS) * len(PARTITIONS) * options.seeds
        runs = Runs(str(options.data), total)
        rates = tuned_rates(runs)
        for seed, partition, method in product(range(options.seeds), reversed(PARTITIONS), METHODS):
            runs(method, partition, seed, rates[method], False)
        ran = runs.new
    cells = [json.loads(path.read_text()) for path in sorted(CELLS.glob("*.json"))]
    if ran:
        write_record(cells)
    write_results(cells)


if __name__ == "__main__":
    main()
