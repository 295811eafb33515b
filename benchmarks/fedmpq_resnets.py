"""FedMPQ on the paper's networks: ResNet-20 and ResNet-44 on CIFAR-10, ten clients, reduced.

    python benchmarks/fedmpq_resnets.py [--data FOLDER] [--rounds 6]

A few rounds on a processor: rows that learn and whose bytes are right, no table of the paper. Ends
with docs/results/fedmpq-resnets.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
from pathlib import Path

import structlog
from fedmpq_methods import BUDGETS, METHODS, Schedule, run_file, tier_counts

from fedserver.simulate.population import population_of
from fedserver.simulate.simulation import simulate
from motley.models.units import variant_table
from motley.runfile import parse
from motley.workloads.images import Cifar10

ROWS = (
    ("resnet20", "fp32", 0.1),
    ("resnet20", "fpq8", 0.1),
    ("resnet20", "aqfl", 0.1),
    ("resnet20", "fedmpq", 0.1),
    ("resnet44", "fedmpq", 0.1),
)
PAGE = Path(__file__).parent.parent / "docs" / "results" / "fedmpq-resnets.md"
HEAD = (
    "# FedMPQ on ResNet-20 and ResNet-44, reduced\n\n"
    "`python benchmarks/fedmpq_resnets.py --data FOLDER --rounds {rounds}`: CIFAR-10, equal shares "
    "of all classes, ten clients with budgets 2, 2, 4, 4, 4, 6, 6, 6, 8, 8, {rounds} rounds of "
    "{steps} steps of {batch} images, learning rate 0.1, momentum 0.9, one seed, no augmentation.\n"
    "**The paper trains 50 rounds of 5 epochs**: these rows show that the networks learn (chance "
    "is 10 %) and what travels, and nothing about the order of methods. The full schedule needs a "
    "GPU and was not run.\n\n"
    "| network | method | held-out accuracy, % after {half} and {rounds} rounds | KB up a client "
    "and round, least / mean / most | mean over fp32 |\n|---|---|---|---|---|\n"
)


def row(network: str, method: str, rate: float, schedule: Schedule, folder: Path) -> str:
    """Simulate one run; return its line of the table."""
    chosen = METHODS[method]
    text = run_file(chosen, rate=rate, seed=0, schedule=schedule, folder=str(folder))
    text = text.replace('name = "fashion"', 'name = "cifar10"')
    text = text.replace("[workload]", f'global_variant = "{network}"\n[workload]')
    data = f"{folder}?clients={{clients}}&client={{client}}"
    population = population_of(
        parse(text), clients=len(BUDGETS), data=data, tiers=tier_counts(chosen), threads=1
    )
    result = simulate(text, population=population)
    if result.status != "finished":
        raise SystemExit(f"{network}, {method}: {result.status}: {result.reason}")
    history = result.record["history"]
    scores = [
        entry["metrics"]["held_out_accuracy"]
        for entry in history
        if "held_out_accuracy" in entry["metrics"]
    ]
    up = [
        task["bytes_up"] / 1e3
        for entry in history
        if entry["kind"] == "train"
        for task in entry["clients"].values()
    ]
    curve = " and ".join(f"{100 * score:.1f}" for score in scores)
    full = sum(info.nbytes for info in variant_table(Cifar10().variants()[network])) / 1e3
    return (
        f"| {network} | {chosen.title} | {curve} | {min(up):.0f} / {statistics.mean(up):.0f} / "
        f"{max(up):.0f} | {statistics.mean(up) / full:.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(os.environ.get("MOTLEY_DATA_DIR", "")) / "cifar-10-batches-bin"
    parser.add_argument("--data", type=Path, default=default, help="folder of CIFAR-10")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    schedule = Schedule(rounds=options.rounds, local_steps=12, batch_size=32)
    lines = []
    for network, method, rate in ROWS:
        lines.append(row(network, method, rate, schedule, options.data))
        print(lines[-1], flush=True)
    head = HEAD.format(
        rounds=schedule.rounds,
        half=schedule.rounds // 2,
        steps=schedule.local_steps,
        batch=schedule.batch_size,
    )
    PAGE.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
