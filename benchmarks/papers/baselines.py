"""Every baseline on the FEMNIST stand-in: does it learn, and how well beside the others?

MNIST by writer (QMNIST's writers): the 198 with most digits, three to a client, 66 clients, 90 % of
each writer's digits for training. A *reduced* schedule and one seed, so figures show that methods
learn and say little about their order: QuPeD's own schedule is 180 rounds and three seeds.

`--tune` gives every method the same number of candidates on a few clients, scored on a part of
their *training* samples that none trains on (`validate`), and prints the best. Its choices stand in
`CHOSEN`. Without it each method runs once on all clients and is scored on their test samples: the
mean over clients of the packed model's accuracy after the last round.

    python benchmarks/papers/baselines.py --mnist DIR --qmnist DIR [--tune] [--out FILE]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

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
    "FedAvg": RATES,
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
    "Federated Mutual Learning": tuple({"learning_rate": rate} for rate in (0.4, 0.8, 0.2)),
    "ProxQuant, 1 bit, alone": tuple({**rate, "scale": "magnitude"} for rate in RATES),
    "BinaryRelax, 1 bit, alone": tuple({**rate, "growth": 2.0} for rate in RATES),
}

CHOSEN: Mapping[str, Settings] = {
    "FedAvg": {"learning_rate": 0.4},
    "local": {"learning_rate": 0.2},
    "local, 2 bits": {"learning_rate": 0.2},
    "QuPeD": {"learning_rate": 0.4, "shared_rate": 1.0},
    "QuPeD, 2 bits": {"learning_rate": 0.4, "shared_rate": 1.0},
    "QuPeL, 2 bits": {"learning_rate": 0.2, "proximity": 0.1, "shared_rate": 2.0},
    "pFedMe": {"learning_rate": 0.2, "proximity": 5.0, "shared_rate": 0.2},
    "Per-FedAvg": {"learning_rate": 0.4, "adaptation_rate": 0.03, "adaptation_steps": 10},
    "Federated Mutual Learning": {"learning_rate": 0.2},
    "ProxQuant, 1 bit, alone": {"learning_rate": 0.4, "scale": "magnitude"},
    "BinaryRelax, 1 bit, alone": {"learning_rate": 0.4, "growth": 2.0},
}
"""What `--tune` found best; of "Federated Mutual Learning" it scored rates that are too high alone,
and 0.2 is what suits training alone (docs/results/baselines.md)."""


def run_file(method: Method, settings: Settings, data: str, clients: int, seed: int) -> str:
    """Return the run file of one method."""
    values = {**SCHEDULE, **settings}
    lines = [f"{name} = {_toml(value)}" for name, value in values.items()]
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
            f"data = {_toml(data)}",
            "[[tiers]]",
            'name = "all"',
            *([] if method.bits == 32 else [f"bits = {method.bits}"]),
            "",
        ]
    )


def _toml(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


def accuracies(text: str, batch: int = 1) -> list[float]:
    """Run a run file; return each client's final accuracy in percent."""
    result = simulate(text, batch=batch)
    if result.status != "finished":
        raise SystemExit(f"the run is {result.status}: {result.reason}")
    return [100 * c["metrics"]["finish"]["accuracy"] for c in result.record["clients"]]


def tune(data: str, seed: int, chosen: Iterable[Method]) -> list[str]:
    """Score all candidates; return the lines of a table."""
    lines = ["| method | candidate | validation accuracy |", "|---|---|---|"]
    for method in chosen:
        scores: list[tuple[float, str]] = []
        for settings in CANDIDATES[method.title]:
            text = run_file(method, settings, f"{data}&validate={VALIDATE}", TUNED_ON, seed)
            found = statistics.fmean(accuracies(text, TUNED_ON))
            scores.append((found, _listed(settings)))
            print(f"{method.title:28} {found:6.2f}  {_listed(settings)}", flush=True)
        best = max(scores)[1]
        for found, named in scores:
            mark = "**" if named == best else ""
            lines.append(f"| {method.title} | {named} | {mark}{found:.2f}{mark} |")
    return lines


def compare(data: str, options: argparse.Namespace, chosen: Iterable[Method]) -> list[str]:
    """Run every method once; return the lines of a table."""
    lines = [
        "| method | mean accuracy | lowest client | settings | seconds |",
        "|---|---|---|---|---|",
    ]
    for method in chosen:
        settings = CHOSEN[method.tuned_as or method.title]
        began = time.monotonic()
        text = run_file(method, settings, data, options.clients, options.seed)
        found = accuracies(text, options.batch)
        line = f"| {method.title} | {statistics.fmean(found):.2f} | {min(found):.1f} "
        line += f"| {_listed(settings)} | {time.monotonic() - began:.0f} |"
        print(line, flush=True)
        lines.append(line)
    return lines


def _listed(settings: Settings) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--mnist", type=Path, required=True, help="folder of MNIST's files")
    parser.add_argument("--qmnist", type=Path, required=True, help="folder of QMNIST's labels")
    parser.add_argument("--tune", action="store_true", help="score candidates instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=66, help="how many of the 66 take part")
    parser.add_argument("--batch", type=int, default=1, help="clients that train at once")
    parser.add_argument("--only", nargs="+", default=[], help="titles of methods")
    parser.add_argument("--out", type=Path, help="where the table goes too, as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    data = f"{options.mnist}?writers=3&qmnist={options.qmnist}&client={{client}}"
    wanted = [m for m in METHODS if not options.only or m.title in options.only]
    if options.tune:
        lines = tune(data, options.seed, [m for m in wanted if not m.tuned_as])
    else:
        lines = compare(data, options, wanted)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    main()
