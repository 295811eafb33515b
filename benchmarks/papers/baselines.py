"""Every baseline on the FEMNIST stand-in: does it learn, and how well beside the others?

MNIST by writer (QMNIST's writers): the 198 with most digits, three to a client, 66 clients, 90 % of
each writer's digits for training. A *reduced* schedule and one seed, so figures show that methods
learn and say little about their order: QuPeD's own schedule is 180 rounds and three seeds.

`--tune` gives every method the same number of candidates on a few clients, scored on a part of
their *training* samples that none trains on (`validate`), and prints the best. Its choices stand in
`CHOSEN`. Without it each method runs once on all clients and is scored on their test samples: the
mean over clients of the packed model's accuracy after the last round. Each row goes into
`--results` as soon as it is there; `--table` prints what that file holds.

    python benchmarks/papers/baselines.py --mnist DIR --qmnist DIR [--tune] [--only TITLE ...]
    python benchmarks/papers/baselines.py --table
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
import torch
from rows import toml

from fedserver.simulate.simulation import simulate
from motley.workload import Scalar

Settings = Mapping[str, Scalar]

ROUNDS, STEPS, PER_PASS = 20, 10, 20
SCHEDULE: Settings = {
    "local_steps": STEPS,
    "batches_per_pass": PER_PASS,
    "iterations_per_epoch": PER_PASS,
    "lr_decay": 0.99,
    "weight_decay": 1e-4,
}
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "baselines.json"
VALIDATE = 0.2
TUNED_ON = 6
"""Clients that take part while tuning: the first ones."""


@dataclass(frozen=True)
class Method:
    """One line of the table."""

    title: str
    algorithm: str
    bits: int
    tuned_as: str = ""
    """Title of the line whose settings it takes; "": it is tuned itself."""


METHODS = (
    Method("FedAvg", "fedavg", 32),
    Method("local", "local", 32),
    Method("local, 2 bits", "local", 2),
    Method("local, 1 bit", "local", 1, "local, 2 bits"),
    Method("QuPeD", "quped", 32),
    Method("QuPeD, 2 bits", "quped", 2),
    Method("QuPeD, 1 bit", "quped", 1, "QuPeD, 2 bits"),
    Method("QuPeL, 2 bits", "qupel", 2),
    Method("QuPeL, 1 bit", "qupel", 1, "QuPeL, 2 bits"),
    Method("pFedMe", "pfedme", 32),
    Method("Per-FedAvg", "perfedavg", 32),
    Method("Federated Mutual Learning", "fml", 32),
    Method("ProxQuant, 1 bit, alone", "proxquant", 1),
    Method("BinaryRelax, 1 bit, alone", "binaryrelax", 1),
)

RATES: tuple[Settings, ...] = tuple({"learning_rate": rate} for rate in (0.2, 0.4, 0.8))
CANDIDATES: Mapping[str, tuple[Settings, ...]] = {
    "FedAvg": tuple({**rate, "weighting": "uniform"} for rate in RATES),
    "local": RATES,
    "local, 2 bits": RATES,
    "QuPeD": (
        {"learning_rate": 0.4, "shared_rate": 1.0},
        {"learning_rate": 0.4, "shared_rate": 2.0},
        {"learning_rate": 0.8, "shared_rate": 2.0},
    ),
    "QuPeD, 2 bits": (
        {"learning_rate": 0.4, "shared_rate": 1.0},
        {"learning_rate": 0.4, "shared_rate": 2.0},
        {"learning_rate": 0.2, "shared_rate": 1.0},
    ),
    "QuPeL, 2 bits": (
        {"learning_rate": 0.4, "proximity": 0.02, "shared_rate": 10.0},
        {"learning_rate": 0.4, "proximity": 0.1, "shared_rate": 2.0},
        {"learning_rate": 0.2, "proximity": 0.1, "shared_rate": 2.0},
    ),
    "pFedMe": (
        {"learning_rate": 0.2, "proximity": 5.0, "shared_rate": 0.2},
        {"learning_rate": 0.4, "proximity": 2.0, "shared_rate": 0.5},
        {"learning_rate": 0.2, "proximity": 2.0, "shared_rate": 0.3},
    ),
    "Per-FedAvg": (
        {"learning_rate": 0.4, "adaptation_rate": 0.03, "adaptation_steps": 10},
        {"learning_rate": 0.4, "adaptation_rate": 0.1, "adaptation_steps": 10},
        {"learning_rate": 0.2, "adaptation_rate": 0.03, "adaptation_steps": 10},
    ),
    "Federated Mutual Learning": (
        {"learning_rate": 0.2},
        {"learning_rate": 0.2, "label_share": 0.8, "shared_label_share": 0.8},
        {"learning_rate": 0.3, "label_share": 0.8, "shared_label_share": 0.8},
    ),
    "ProxQuant, 1 bit, alone": tuple(
        {"learning_rate": rate, "scale": "magnitude", "scale_factor": 3.0}
        for rate in (0.1, 0.2, 0.4)
    ),
    "BinaryRelax, 1 bit, alone": tuple({**rate, "growth": 2.0} for rate in RATES),
}

CHOSEN: Mapping[str, Settings] = {
    "FedAvg": {"learning_rate": 0.4, "weighting": "uniform"},
    "local": {"learning_rate": 0.2},
    "local, 2 bits": {"learning_rate": 0.2},
    "QuPeD": {"learning_rate": 0.4, "shared_rate": 1.0},
    "QuPeD, 2 bits": {"learning_rate": 0.4, "shared_rate": 1.0},
    "QuPeL, 2 bits": {"learning_rate": 0.2, "proximity": 0.1, "shared_rate": 2.0},
    "pFedMe": {"learning_rate": 0.2, "proximity": 2.0, "shared_rate": 0.3},
    "Per-FedAvg": {"learning_rate": 0.2, "adaptation_rate": 0.03, "adaptation_steps": 10},
    "Federated Mutual Learning": {
        "learning_rate": 0.2,
        "label_share": 0.8,
        "shared_label_share": 0.8,
    },
    "ProxQuant, 1 bit, alone": {"learning_rate": 0.2, "scale": "magnitude", "scale_factor": 3.0},
    "BinaryRelax, 1 bit, alone": {"learning_rate": 0.4, "growth": 2.0},
}
"""What `--tune` found best (docs/results/baselines.md)."""


def run_file(method: Method, settings: Settings, data: str, clients: int, seed: int) -> str:
    """Return the run file of one method."""
    values = {**SCHEDULE, **settings}
    lines = [f"{name} = {toml(value)}" for name, value in values.items()]
    return "\n".join(
        [
            "[run]",
            'name = "baseline"',
            f'algorithm = "{method.algorithm}"',
            f"rounds = {ROUNDS}",
            f"seed = {seed}",
            "[workload]",
            'name = "mnist"',
            "[clients]",
            f"expected = {clients}",
            "[settings]",
            *lines,
            "[simulate]",
            "threads = 1",
            f"data = {toml(data)}",
            "[[tiers]]",
            'name = "all"',
            *([] if method.bits == 32 else [f"bits = {method.bits}"]),
            "",
        ]
    )


def accuracies(text: str, batch: int = 1) -> list[float]:
    """Run a run file; return each client's final accuracy in percent."""
    result = simulate(text, batch=batch)
    if result.status != "finished":
        raise SystemExit(f"the run is {result.status}: {result.reason}")
    return [100 * c["metrics"]["finish"]["accuracy"] for c in result.record["clients"]]


@dataclass(frozen=True)
class Row:
    """What one run gave."""

    title: str
    settings: Settings
    accuracy: float
    """Mean over the clients, in percent."""
    lowest: float
    """Of one client."""
    clients: int
    seed: int
    tuning: bool
    """Whether it is a candidate's, on validation samples."""

    def line(self) -> str:
        """Return a line of a table."""
        named = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"| {self.title} | {self.accuracy:.2f} | {self.lowest:.1f} | {named} |"


class Results:
    """Rows in a JSON file; a later run with the same settings takes an earlier one's place."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def rows(self) -> list[Row]:
        """Return all rows."""
        if not self._path.exists():
            return []
        return [Row(**entry) for entry in json.loads(self._path.read_text())]

    def add(self, row: Row) -> None:
        """Print a row and write it."""
        print(row.line(), flush=True)
        order = [method.title for method in METHODS]
        kept = [r for r in self.rows() if not self._same(r, row)]
        found = sorted([*kept, row], key=lambda r: (r.tuning, order.index(r.title)))
        self._path.write_text(json.dumps([asdict(r) for r in found], indent=1) + "\n")

    def _same(self, one: Row, other: Row) -> bool:
        alike = (one.title, one.clients, one.seed, one.tuning)
        if alike != (other.title, other.clients, other.seed, other.tuning):
            return False
        return not one.tuning or dict(one.settings) == dict(other.settings)

    def table(self) -> None:
        """Print the two tables."""
        for tuning, scored in ((False, "test"), (True, "validation")):
            print(f"\n| method | mean {scored} accuracy | lowest client | settings |")
            print("|---|---|---|---|")
            for row in self.rows():
                if row.tuning == tuning:
                    print(row.line())


def run(method: Method, settings: Settings, data: str, options: argparse.Namespace) -> Row:
    """Run a method once and return what it gave."""
    text = run_file(method, settings, data, options.clients, options.seed)
    began = time.monotonic()
    found = accuracies(text, options.batch)
    print(f"{method.title}: {time.monotonic() - began:.0f} s", flush=True)
    return Row(
        title=method.title,
        settings=settings,
        accuracy=round(statistics.fmean(found), 2),
        lowest=round(min(found), 1),
        clients=options.clients,
        seed=options.seed,
        tuning=options.tune,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's files")
    parser.add_argument("--qmnist", type=Path, help="folder of QMNIST's labels")
    parser.add_argument("--tune", action="store_true", help="score candidates instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=66, help="how many of the 66 take part")
    parser.add_argument("--batch", type=int, default=22, help="clients that train at once")
    parser.add_argument("--only", nargs="+", default=[], help="titles of methods")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what --results holds")
    options = parser.parse_args()
    results = Results(options.results)
    if options.table:
        results.table()
        return
    if options.mnist is None or options.qmnist is None:
        parser.error("give --mnist and --qmnist")
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    data = f"{options.mnist}?writers=3&qmnist={options.qmnist}&client={{client}}"
    chosen = [m for m in METHODS if not options.only or m.title in options.only]
    if options.tune:
        options.clients, data = TUNED_ON, f"{data}&validate={VALIDATE}"
    for method in chosen:
        if not options.tune:
            results.add(run(method, CHOSEN[method.tuned_as or method.title], data, options))
        elif not method.tuned_as:
            for settings in CANDIDATES[method.title]:
                results.add(run(method, settings, data, options))


if __name__ == "__main__":
    main()
