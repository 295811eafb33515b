"""Accuracy against epsilon, for both private modes and without privacy.

    python benchmarks/privacy_utility.py [--seeds 3] [--plot docs/results/privacy-utility.png]

Simulated FedAvg on scikit-learn's digits with an MLP of 6,570 values: 10 clients with about 126
records each for "ldp-sgd", 60 with about 21 each for "release", whose noise only many clients
average away. Every figure is the accuracy of the server's model on all clients' test samples
after the last round, the mean over seeds. epsilon is of one *record* in "ldp-sgd" and of one
*client's releases* in "release": the two are not the same promise. delta is 1e-5 for both.

The settings were chosen once, at epsilon 16, and are the same at every epsilon. A run that lies in
benchmarks/out/privacy_utility_runs.json is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import structlog
from report import OUT, Ratio, report

from fedserver.simulate.simulation import simulate

EPSILONS = (2.0, 8.0, 32.0, 128.0)
RUN = """
[run]
name = "privacy-utility"
algorithm = "fedavg"
rounds = {rounds}
seed = {seed}
global_variant = "mlp"
[workload]
name = "digits"
[clients]
expected = {clients}
[settings]
weighting = "uniform"
local_steps = {steps}
{settings}
[evaluate]
every = {rounds}
held_out = "digits?clients={clients}"
[simulate]
clients = {clients}
data = "digits?clients={clients}&client={{client}}"
"""
PROMISE = """
privacy = "{mode}"
epsilon = {epsilon}
delta = 1e-5
"""


@dataclass(frozen=True)
class Study:
    """One mode's runs: how many clients, how long, with which settings with and without noise."""

    unit: str
    clients: int
    rounds: int
    steps: int
    private: str
    plain: str


STUDIES = {
    "ldp-sgd": Study(
        "one record", 10, 10, 5,
        "clip = 0.5\nsampling_rate = 0.5\nbatch_size = 63\nlearning_rate = 1.0",
        "batch_size = 63\nlearning_rate = 0.5",
    ),
    "release": Study(
        "one client's releases", 60, 8, 10,
        "clip = 0.5\nbatch_size = 13\nlearning_rate = 0.5",
        "batch_size = 13\nlearning_rate = 0.5",
    ),
}  # fmt: skip
Runs = dict[str, float]
"""Accuracy by `mode epsilon seed`; epsilon 0 stands for no privacy."""


def accuracy(mode: str, epsilon: float, seed: int) -> float:
    """Return the accuracy of the server's model after a simulated run; epsilon 0: no privacy."""
    study = STUDIES[mode]
    settings = study.plain
    if epsilon:
        settings = PROMISE.format(mode=mode, epsilon=epsilon) + study.private
    text = RUN.format(
        rounds=study.rounds, seed=seed, clients=study.clients, steps=study.steps, settings=settings
    )
    result = simulate(text)
    assert result.status == "finished", result.reason
    evaluated = [entry for entry in result.record["history"] if entry["kind"] == "evaluate"]
    return float(evaluated[-1]["metrics"]["held_out_accuracy"])


def run_missing(seeds: int, minutes: float, path: Path) -> Runs:
    """Return all runs; those that are not in the file are run and written, for so many minutes."""
    runs: Runs = json.loads(path.read_text()) if path.exists() else {}
    began = time.monotonic()
    for seed, epsilon, mode in product(range(seeds), (0.0, *EPSILONS), STUDIES):
        name = f"{mode} {epsilon:g} {seed}"
        if name in runs or time.monotonic() - began > 60 * minutes:
            continue
        runs[name] = accuracy(mode, epsilon, seed)
        print(f"{name}: {runs[name]:.3f}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(runs, indent=1) + "\n")
    return runs


def of(runs: Mapping[str, float], mode: str, epsilon: float) -> list[float]:
    """Return a mode's figures at an epsilon over the seeds that were run."""
    return [value for name, value in runs.items() if name.startswith(f"{mode} {epsilon:g} ")]


def standard_error(values: Sequence[float]) -> float:
    """Return that of the mean; 0 for one value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def plot(runs: Mapping[str, float], target: Path) -> None:
    """Draw accuracy by epsilon with standard errors, a colour for each mode that was run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=110, layout="tight")
    axes = figure.add_subplot()
    for colour, (mode, study) in zip(("tab:blue", "tab:orange"), STUDIES.items(), strict=True):
        groups = {epsilon: of(runs, mode, epsilon) for epsilon in EPSILONS}
        groups = {epsilon: values for epsilon, values in groups.items() if values}
        if not groups:
            continue
        axes.errorbar(
            list(groups),
            [statistics.fmean(values) for values in groups.values()],
            [standard_error(values) for values in groups.values()],
            marker="o", capsize=3, color=colour,
            label=f"{mode}: ε of {study.unit}, {study.clients} clients",
        )  # fmt: skip
        plain = of(runs, mode, 0.0)
        axes.axhline(
            statistics.fmean(plain), color=colour, linestyle="--", label=f"the same without {mode}"
        )
    axes.axhline(0.1, color="grey", linestyle=":", label="chance")
    axes.set(xscale="log", xlabel="ε at δ = 1e-5", ylabel="accuracy", ylim=(0, 1))
    axes.legend(fontsize="x-small", loc="lower right")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)


def rows(runs: Mapping[str, float]) -> list[Ratio]:
    """Return the table: a line for each mode and epsilon that was run."""
    found = []
    for mode, epsilon in product(STUDIES, (0.0, *EPSILONS)):
        values, plain = of(runs, mode, epsilon), of(runs, mode, 0.0)
        if not values:
            continue
        mean = statistics.fmean(values)
        part = f"{mean / statistics.fmean(plain):.2f} of the accuracy without; " if epsilon else ""
        detail = f"{part}standard error {standard_error(values):.3f}, {len(values)} seeds"
        name = f"{mode}, epsilon {epsilon:g}" if epsilon else f"as {mode}, without privacy"
        found.append(Ratio(name, mean, detail=detail))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--plot", type=Path, default=None)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    runs = run_missing(arguments.seeds, arguments.minutes, OUT / "privacy_utility_runs.json")
    sizes = "; ".join(
        f"{mode}: {s.clients} clients, {s.rounds} rounds of {s.steps} steps"
        for mode, s in STUDIES.items()
    )
    what = f"accuracy of simulated FedAvg on digits ({sizes})"
    report("privacy_utility", what, rows(runs))
    if arguments.plot:
        plot(runs, arguments.plot)


if __name__ == "__main__":
    main()
