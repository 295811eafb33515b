"""The table and the chart of the comparison of FedMPQ."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmpq_methods import BUDGETS, METHODS, PARTITIONS
from report import environment

RESULTS = Path(__file__).parent.parent / "docs" / "results"
Cell = Mapping[str, Any]
IMAGE = "![accuracy by method](fedmpq.png)"
HEADING = """\
Fashion-MNIST, a convolutional network of 25,000 weights with batch normalisation, ten clients with
budgets {budgets}; {trained}. The paper trains a ResNet-20 for 50 rounds of
five epochs: this is a small fraction of that, and says which way things go, not how far. Accuracy
of the global model in full precision on the published test part, in per cent, with standard errors
over seeds; n is the number of seeds of each column. KB are those of a payload, means over clients
and rounds."""


def write_results(cells: Sequence[Cell], folder: Path = RESULTS) -> None:
    """Write fedmpq.md and fedmpq.png to `folder`, and print the table."""
    final = [cell for cell in cells if not cell["tuning"]]
    if not final:
        raise SystemExit("no cell has been run yet")
    page = "\n".join([*_heading(final), *_table(final), *_rates(cells), ""])
    print(page)
    (folder / "fedmpq.md").write_text(page)
    _chart(final, folder / "fedmpq.png")


def write_record(cells: Sequence[Cell], folder: Path = RESULTS) -> None:
    """Write fedmpq.json: cells that have just been run, what the table says, and the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    final = [cell for cell in cells if not cell["tuning"]]
    content = {"rows": _rows(final), "cells": list(cells), **environment()}
    (folder / "fedmpq.json").write_text(json.dumps(content, indent=1) + "\n")


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error (0 for one value)."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.mean(values), error


def _of(cells: Sequence[Cell], method: str, partition: str) -> list[Cell]:
    found = [c for c in cells if c["method"] == method and c["partition"] == partition]
    return sorted(found, key=lambda c: int(c["seed"]))


def _rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return what the table says, as plain values."""
    rows = []
    for method in METHODS:
        for partition in PARTITIONS:
            found = _of(cells, method, partition)
            if not found:
                continue
            accuracy, error = mean_and_error([c["accuracy"] for c in found])
            rows.append(
                {
                    "method": method,
                    "partition": partition,
                    "seeds": [c["seed"] for c in found],
                    "accuracy": accuracy,
                    "standard_error": error,
                    "bytes_up": statistics.mean(c["up"] for c in found),
                    "bytes_down": statistics.mean(c["down"] for c in found),
                }
            )
    return rows


def _heading(cells: Sequence[Cell]) -> list[str]:
    schedule = cells[0]["schedule"]
    trained = (
        f"{schedule['rounds']} rounds of {schedule['local_steps']} local steps with batches of "
        f"{schedule['batch_size']}"
    )
    text = HEADING.format(budgets=", ".join(map(str, BUDGETS)), trained=trained)
    return ["# FedMPQ against its baselines, reduced schedule", "", text, "", IMAGE, ""]


def _table(cells: Sequence[Cell]) -> list[str]:
    lines = [
        f"| method | {' | '.join(PARTITIONS)} | KB up | KB down | n |",
        "|---|" + "---|" * (len(PARTITIONS) + 3),
    ]
    for method, entry in METHODS.items():
        found = {partition: _of(cells, method, partition) for partition in PARTITIONS}
        mine = [cell for group in found.values() for cell in group]
        if not mine:
            continue
        texts = []
        for group in found.values():
            accuracy, error = mean_and_error([c["accuracy"] for c in group] or [0.0])
            spread = f" ± {100 * error:.1f}" if len(group) > 1 else ""
            texts.append(f"{100 * accuracy:.1f}{spread}" if group else "–")
        up, down = (statistics.mean(c[way] for c in mine) / 1000 for way in ("up", "down"))
        seeds = "/".join(str(len(group)) for group in found.values())
        lines.append(f"| {entry.title} | {' | '.join(texts)} | {up:.1f} | {down:.1f} | {seeds} |")
    return [*lines, ""]


def _rates(cells: Sequence[Cell]) -> list[str]:
    """Return the search for learning rates as a table."""
    tuned = [cell for cell in cells if cell["tuning"]]
    if not tuned:
        return []
    rates = sorted({cell["rate"] for cell in tuned})
    schedule = tuned[0]["schedule"]
    lines = [
        f"Learning rates were chosen for each method from the same ones by {schedule['rounds']} "
        f"rounds at {tuned[0]['partition']}, seed 0, on 10,000 training images that no client "
        f"held; FedMPQ without a part takes FedMPQ's:",
        "",
        f"| method | {' | '.join(str(rate) for rate in rates)} |",
        "|---|" + "---|" * len(rates),
    ]
    for method, entry in METHODS.items():
        scores = {c["rate"]: c["accuracy"] for c in tuned if c["method"] == method}
        if scores:
            best = max(scores.values())
            texts = [_score(scores.get(rate), best) for rate in rates]
            lines.append(f"| {entry.title} | {' | '.join(texts)} |")
    return lines


def _score(value: float | None, best: float) -> str:
    if value is None:
        return "–"
    return f"**{100 * value:.1f}**" if value == best else f"{100 * value:.1f}"


def _chart(cells: Sequence[Cell], path: Path) -> None:
    """Draw accuracy by method, a bar for each partition."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4.5))
    shown = [method for method in METHODS if any(c["method"] == method for c in cells)]
    width = 0.8 / len(PARTITIONS)
    for place, partition in enumerate(PARTITIONS):
        groups = [_of(cells, method, partition) for method in shown]
        pairs = [mean_and_error([100 * c["accuracy"] for c in g] or [0.0]) for g in groups]
        axes.bar(
            [index + (place - 1) * width for index in range(len(shown))],
            [accuracy for accuracy, _ in pairs],
            width,
            yerr=[error for _, error in pairs],
            label=partition,
            capsize=2,
        )
    axes.set_xticks(range(len(shown)))
    titles = [METHODS[method].title.replace(", ", ",\n") for method in shown]
    axes.set_xticklabels(titles, rotation=35, ha="right", fontsize=8)
    axes.set_ylabel("accuracy, %")
    axes.set_title("Fashion-MNIST, ten clients, reduced schedule")
    axes.legend(loc="lower right", ncols=len(PARTITIONS))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
