"""What every benchmark ends with: a table on the screen and `benchmarks/out/NAME.json`."""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

OUT = Path(__file__).parent / "out"


@dataclass(frozen=True)
class Ratio:
    """One measured ratio. `target` is its upper bound, or lower bound with `at_least`."""

    name: str
    value: float
    target: float | None = None
    at_least: bool = False
    detail: str = ""
    """Times or sizes behind the ratio, for people."""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None when there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def report(name: str, compared: str, ratios: Sequence[Ratio], out: Path = OUT) -> Path:
    """Print the ratios and write them to `out`/NAME.json; return that path.

    `compared` says in a sentence what was divided by what, and on which input.
    """
    Console().print(_table(name, compared, ratios))
    return write(name, compared, ratios, out)


def write(name: str, compared: str, ratios: Sequence[Ratio], out: Path = OUT) -> Path:
    """Write ratios as `report` does, and print nothing: what a long benchmark has so far."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    content = {
        "name": name,
        "compared": compared,
        "ratios": {ratio.name: ratio.value for ratio in ratios},
        "rows": [{**asdict(ratio), "met": ratio.met} for ratio in ratios],
        **environment(),
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def environment() -> Mapping[str, object]:
    """Return versions, commit, processor count and date of this measurement."""
    return {
        "versions": {"python": platform.python_version(), **_libraries("numpy", "torch")},
        "commit": _commit(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _table(name: str, compared: str, ratios: Sequence[Ratio]) -> Table:
    table = Table(title=name, caption=compared)
    table.add_column("ratio")
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    table.add_column("detail")
    for ratio in ratios:
        target = "" if ratio.target is None else f"{'≥' if ratio.at_least else '≤'} {ratio.target}"
        colour = {None: "", True: "[green]", False: "[red]"}[ratio.met]
        table.add_row(ratio.name, f"{colour}{ratio.value:.3g}", target, ratio.detail)
    return table


def _libraries(*names: str) -> dict[str, str]:
    versions = {}
    for name in names:
        try:
            versions[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            continue
    return versions


def _commit() -> str:
    """Return the commit, with "+changes" when the working tree is not clean."""
    try:
        called = [
            subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return called[0].strip() + ("+changes" if called[1].strip() else "")
