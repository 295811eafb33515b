"""Accuracy against epsilon, for both private modes and without privacy.

    python benchmarks/privacy_utility.py [--seeds 3] [--plot docs/results/privacy-utility.png]

Simulated FedAvg on scikit-learn's digits: 10 clients with about 126 records each, an MLP of
6,570 values. Every figure is the accuracy of the server's model on all clients' test samples
after the last round, the mean over seeds. epsilon is of one *record* in "ldp-sgd" and of one
*client's releases* in "release": the two are not the same promise. delta is 1e-5 for both.

The settings were chosen once, at epsilon 16, and are the same at every epsilon.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path

import structlog
from report import Ratio, report

from fedserver.simulate.simulation import simulate

EPSILONS = (2.0, 8.0, 32.0, 128.0)
CLIENTS = 10
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
{settings}
[evaluate]
every = {rounds}
{evaluate}
[simulate]
clients = {clients}
data = "digits?clients={clients}&client={{client}}"
"""
PLAIN = """
local_steps = 5
batch_size = 63
learning_rate = 0.5
"""
SETTINGS = {
    "ldp-sgd": """
privacy = "ldp-sgd"
epsilon = {epsilon}
delta = 1e-5
clip = 0.5
sampling_rate = 0.5
batch_size = 63
local_steps = 5
learning_rate = 1.0
""",
    "release": """
privacy = "release"
epsilon = {epsilon}
delta = 1e-5
clip = 0.5
local_steps = 30
batch_size = 13
learning_rate = 0.5
""",
}
ROUNDS = {"ldp-sgd": 10, "release": 2}
"""The fewer rounds, the less noise a release needs; it makes up for them with local steps."""


def accuracy(settings: str, *, rounds: int, seed: int) -> float:
    """Return the accuracy of the server's model after a simulated run."""
    evaluate = f'held_out = "digits?clients={CLIENTS}"'
    text = RUN.format(
        rounds=rounds, seed=seed, clients=CLIENTS, settings=settings, evaluate=evaluate
    )
    result = simulate(text)
    assert result.status == "finished", result.reason
    evaluated = [entry for entry in result.record["history"] if entry["kind"] == "evaluate"]
    return float(evaluated[-1]["metrics"]["held_out_accuracy"])


def mean_accuracy(settings: str, *, rounds: int, seeds: int) -> tuple[float, float]:
    """Return (mean, range) over seeds."""
    found = [accuracy(settings, rounds=rounds, seed=seed) for seed in range(seeds)]
    return statistics.fmean(found), max(found) - min(found)


def plot(
    curves: dict[str, Sequence[tuple[float, float, float]]], plain: float, target: Path
) -> None:
    """Draw (epsilon, accuracy, range) of each mode."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), dpi=110, layout="tight")
    axes = figure.add_subplot()
    for mode, unit in (("ldp-sgd", "one record"), ("release", "one client's releases")):
        xs, ys, ranges = zip(*curves[mode], strict=True)
        axes.errorbar(
            xs, ys, [r / 2 for r in ranges], marker="o", capsize=3, label=f"{mode}: ε of {unit}"
        )
    axes.axhline(plain, color="grey", linestyle="--", label="without privacy")
    axes.axhline(0.1, color="grey", linestyle=":", label="chance")
    axes.set(xscale="log", xlabel="ε at δ = 1e-5", ylabel="accuracy", ylim=(0, 1))
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(0.12, 0.36))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, default=None)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    plain, spread = mean_accuracy(PLAIN, rounds=10, seeds=arguments.seeds)
    rows = [Ratio("without privacy", plain, detail=f"range {spread:.3f}")]
    curves: dict[str, Sequence[tuple[float, float, float]]] = {}
    for mode, settings in SETTINGS.items():
        points = []
        for epsilon in EPSILONS:
            text = settings.format(epsilon=epsilon)
            found, spread = mean_accuracy(text, rounds=ROUNDS[mode], seeds=arguments.seeds)
            points.append((epsilon, found, spread))
            detail = f"{found / plain:.2f} of the accuracy without; range {spread:.3f}"
            rows.append(Ratio(f"{mode}, epsilon {epsilon:g}", found, detail=detail))
        curves[mode] = points
    what = (
        f"accuracy of simulated FedAvg on digits: {CLIENTS} clients, 10 rounds of 5 steps "
        f"(release: 2 of 30), mean over {arguments.seeds} seeds"
    )
    report("privacy_utility", what, rows)
    if arguments.plot:
        plot(curves, plain, arguments.plot)


if __name__ == "__main__":
    main()
