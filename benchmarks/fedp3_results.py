"""The tables and the chart of FedP3's accuracy, from docs/results/fedp3.json."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import environment

RESULTS = Path(__file__).parent.parent / "docs" / "results"
Run = Mapping[str, Any]
MODELS = {"server": "server's model", "clients": "clients' models"}
SETS = {"fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


@dataclass(frozen=True)
class Entry:
    """A table's line: the runs' row of that name."""

    row: str
    title: str


TABLES: dict[str, tuple[Entry, ...]] = {
    "layers": (
        Entry("all, p = 1.0", "FedAvg (all layers, nothing pruned)"),
        Entry("opu3, p = 0.9", "OPU3, p = 0.9"),
        Entry("opu2, p = 0.9", "OPU2, p = 0.9"),
        Entry("lowerb, p = 0.9", "LowerB, p = 0.9"),
    ),
    "keep": tuple(
        Entry(f"opu2, p = {keep}", f"OPU2, p = {keep}") for keep in (1.0, 0.9, 0.7, 0.5, 0.1)
    ),
    "local": (
        Entry("opu2, p = 0.9", "fixed"),
        *(
            Entry(f"opu2, p = 0.9, {rule}, q = {keep}", f"{rule}, q = {keep}")
            for rule in ("uniform", "ordered")
            for keep in (0.9, 0.7)
        ),
    ),
}
"""By name; a table's first line is what its others are compared with."""
TITLES = {"layers": "layer sets", "keep": "keep ratio", "local": "local pruning, OPU2, p = 0.9"}


def read_runs(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the runs that are on record; none when there is no record."""
    path = folder / "fedp3.json"
    found: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []
    return found


def write_runs(runs: Sequence[Run], folder: Path = RESULTS) -> None:
    """Put the runs on record."""
    part = folder / "fedp3.json.part"
    lines = ",\n".join(json.dumps(run) for run in runs)
    about = json.dumps(environment(), indent=1)[1:]
    part.write_text(f'{{\n "runs": [\n{lines}\n ],{about}\n')
    part.rename(folder / "fedp3.json")


def write_pages(runs: Sequence[Run], folder: Path = RESULTS) -> None:
    """Put the tables between their marks in fedp3.md, draw fedp3.png, print the tables."""
    page = folder / "fedp3.md"
    text = page.read_text()
    for dataset in SETS:
        for name in TABLES:
            lines = _table(runs, dataset, name)
            mark = f"<!-- {dataset} {name} -->"
            if lines and mark not in text:
                raise SystemExit(f"{page}: expected a line {mark} where that table belongs")
            print("\n".join(lines), end="\n" if lines else "")
            block = "\n".join((mark, *lines, "<!-- end -->"))
            pattern = f"{re.escape(mark)}.*?<!-- end -->"
            text = re.sub(pattern, lambda found, new=block: new, text, flags=re.DOTALL)
    page.write_text(text)
    _chart(runs, folder / "fedp3.png")


def _of(runs: Sequence[Run], dataset: str, row: str, model: str) -> dict[int, float]:
    """Return a row's figures by seed, in per cent."""
    mine = [run for run in runs if run["set"] == dataset and run["row"] == row]
    return {run["seed"]: 100 * run[model] for run in sorted(mine, key=lambda r: int(r["seed"]))}


def _spread(values: Sequence[float]) -> float:
    """Return the standard error of a mean; 0 for one value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def _table(runs: Sequence[Run], dataset: str, name: str) -> list[str]:
    """Return a table's lines; none while no run of a row but the first is there."""
    entries, lines = TABLES[name], []
    for entry in entries:
        cells = []
        for model in MODELS:
            found = _of(runs, dataset, entry.row, model)
            first = _of(runs, dataset, entries[0].row, model)
            if not found:
                break
            paired = [value - first[seed] for seed, value in found.items() if seed in first]
            cells.append(_text(list(found.values())))
            cells.append("" if entry is entries[0] or not paired else _text(paired, "+"))
        else:
            lines.append(f"| {entry.title} | {' | '.join(cells)} | {len(found)} |")
    if len(lines) < 2:
        return []
    header = " | ".join(f"{title} | to the first row" for title in MODELS.values())
    return [f"| {SETS[dataset]} | {header} | seeds |", "|---|---|---|---|---|---|", *lines]


def _text(values: Sequence[float], sign: str = "") -> str:
    error = f" ± {_spread(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{error}"


def _chart(runs: Sequence[Run], path: Path) -> None:
    """Draw accuracy by row, a panel for each table, both models."""
    from matplotlib.figure import Figure

    shown = [(d, n) for d in SETS for n in TABLES if _table(runs, d, n)]
    figure = Figure(figsize=(11, 6.8), dpi=110)
    figure.subplots_adjust(0.07, 0.09, 0.98, 0.88, wspace=0.16, hspace=0.4)
    for place, (dataset, name) in enumerate(shown):
        axes = figure.add_subplot(2, 2, place + 1)
        entries = [e for e in TABLES[name] if _of(runs, dataset, e.row, "server")]
        for shift, (model, title) in zip((-0.1, 0.1), MODELS.items(), strict=True):
            groups = [list(_of(runs, dataset, e.row, model).values()) for e in entries]
            places = [index + shift for index in range(len(entries))]
            means = [statistics.mean(group) for group in groups]
            errors = [_spread(group) for group in groups]
            axes.errorbar(places, means, errors, fmt="o", capsize=3, label=title)
        axes.set_xticks(range(len(entries)))
        axes.set_xticklabels([e.title.split(" (")[0].replace(", ", ",\n") for e in entries])
        axes.tick_params(labelsize=8)
        axes.set(title=f"{SETS[dataset]}: {TITLES[name]}", ylabel="accuracy, %")
        axes.grid(axis="y", alpha=0.3)
        axes.margins(y=0.15)
        if not place:
            figure.legend(loc="upper center", ncols=2)
    figure.savefig(path)
