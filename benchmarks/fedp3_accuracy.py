"""Accuracy of FedP3 by layer policy, keep ratio and local pruning, simulated; reduced by default.

    python benchmarks/fedp3_accuracy.py --set fashion-mnist --data /data/fashion-mnist

Every client holds five of ten classes (the paper's S1). The paper has a hundred clients, 500 rounds
of 90 steps and a network of 2.8 million parameters (`cnn1-1024`); the defaults are far smaller.
Both models are scored on the clients' own test samples: the server's, and each client's as it came
out of its last training. Means over clients, and over `--seeds`.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass

import structlog
from report import OUT, environment
from rich.console import Console
from rich.table import Table

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
every = {rounds}
subject = "both"
[simulate]
clients = {clients}
data = "{data}?clients={clients}&client={{client}}&split=cyclic&classes=5&pool=0.7&train={train}"
"""


@dataclass(frozen=True)
class Row:
    """One run's settings."""

    table: str
    name: str
    settings: str


def rows() -> list[Row]:
    """Return all runs, by table."""
    found = [Row("layers", "FedAvg (all)", 'layers = "all"\nkeep = 1.0')]
    for name in ("opu3", "opu2", "lowerb"):
        found.append(Row("layers", name.upper(), f'layers = "{name}"\nkeep = 0.9'))
    for keep in (1.0, 0.9, 0.7, 0.5):
        settings = f'layers = "opu2"\nkeep = {keep}'
        found.append(Row("keep ratio, OPU2", f"p = {keep}", settings))
    for rule in ("uniform", "ordered"):
        for keep in (0.9, 0.7):
            local = f'local_pruning = "{rule}"\nlocal_keep = {keep}'
            settings = f'layers = "opu2"\nkeep = 0.9\n{local}'
            found.append(Row("local pruning, OPU2, p = 0.9", f"{rule}, q = {keep}", settings))
    found.append(Row("local pruning, OPU2, p = 0.9", "fixed", 'layers = "opu2"\nkeep = 0.9'))
    return found


@dataclass(frozen=True)
class Scores:
    """Means over clients and seeds, shares of right answers."""

    server: float
    clients: float


class Runs:
    """Simulates rows; equal settings are run once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._known: dict[str, Scores] = {}

    def score(self, row: Row) -> Scores:
        """Return what a row ends in."""
        if row.settings not in self._known:
            pairs = [self._run(row, seed) for seed in range(self._options.seeds)]
            self._known[row.settings] = Scores(
                sum(pair.server for pair in pairs) / len(pairs),
                sum(pair.clients for pair in pairs) / len(pairs),
            )
        return self._known[row.settings]

    def _run(self, row: Row, seed: int) -> Scores:
        options = {**vars(self._options), "seed": seed, "settings": row.settings}
        result = simulate(RUN.format(**options))
        assert result.status == "finished", result.reason
        metrics = result.record["history"][-1]["metrics"]
        return Scores(metrics["global_accuracy"], metrics["personal_accuracy"])


def main() -> None:
    """Print the tables and write `benchmarks/out/fedp3_accuracy-SET.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="fashion-mnist", help="name of the workload")
    parser.add_argument("--data", required=True, help="folder of the set")
    parser.add_argument("--variant", default="cnn1")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--train", type=int, default=400, help="training samples of a client")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, default=0.9, help="the paper has none")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="a table's name")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    runs, found = Runs(options), []
    for row in rows():
        if options.only in row.table:
            scores = runs.score(row)
            found.append((row, scores))
            print(f"{row.table}: {row.name}: {scores.server:.4f} {scores.clients:.4f}", flush=True)
    _print(options, found)
    OUT.mkdir(parents=True, exist_ok=True)
    content = {
        "options": vars(options),
        "rows": [{**vars(row), **vars(scores)} for row, scores in found],
        **environment(),
    }
    path = OUT / f"fedp3_accuracy-{options.set}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")


def _print(options: argparse.Namespace, found: list[tuple[Row, Scores]]) -> None:
    table = Table(
        title=f"FedP3 on {options.set}, {options.variant}, {options.clients} clients, "
        f"{options.rounds} rounds of {options.steps} steps, {options.seeds} seeds: top-1 %"
    )
    for column in ("table", "row", "server's model", "clients' models"):
        table.add_column(column)
    for row, scores in found:
        table.add_row(
            row.table, row.name, f"{100 * scores.server:.1f}", f"{100 * scores.clients:.1f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
