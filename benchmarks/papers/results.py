"""What running a row leaves behind: docs/results/TABLE/ROW-SEED.json."""

from __future__ import annotations

import hashlib
import platform
import statistics
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

RESULTS = Path(__file__).parent.parent.parent / "docs" / "results"


class Result(BaseModel):
    """One row run once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: str
    seed: int
    run_file: str
    """SHA-256 of the run file as it was run."""
    commit: str
    versions: dict[str, str]
    processor: str
    seconds: float
    """Wall time of all rounds."""
    accuracy: dict[str, float]
    """Of each client's final model on its own test samples, in per cent."""
    curve: list[tuple[int, float]]
    """Round, and the mean over clients in per cent."""
    bytes_up: int
    bytes_down: int
    digests: list[str]
    """First 16 hex digits of the global model's SHA-256 after each training round."""

    @property
    def mean(self) -> float:
        """The mean over clients."""
        return statistics.fmean(self.accuracy.values())


def result_of(row: str, seed: int, text: str, record: Mapping[str, Any], *, measure: str) -> Result:
    """Build the result of a finished run from its record."""
    rounds = [entry for entry in record["history"] if entry["status"] == "closed"]
    trained = [entry for entry in rounds if entry["kind"] == "train"]
    tested = [entry for entry in rounds if entry["kind"] == "evaluate"]
    seconds = [
        sum(spent for phase, spent in entry["seconds"].items() if phase != "train_slowest")
        for entry in rounds
    ]
    return Result(
        row=row,
        seed=seed,
        run_file=digest(text),
        commit=_commit(),
        versions={name: version(name) for name in ("torch", "numpy")},
        processor=_processor(),
        seconds=round(sum(seconds), 1),
        accuracy={
            client["name"]: round(100 * client["metrics"]["finish"][measure], 4)
            for client in record["clients"]
        },
        curve=[(entry["round"], round(100 * entry["metrics"][measure], 3)) for entry in tested],
        bytes_up=record["bytes_up"],
        bytes_down=record["bytes_down"],
        digests=[entry["state_after"][:16] for entry in trained],
    )


def digest(text: str) -> str:
    """Return the SHA-256 of a run file."""
    return hashlib.sha256(text.encode()).hexdigest()


def path_of(table: str, row: str, seed: int) -> Path:
    """Return where a result is kept."""
    return RESULTS / table / f"{row}-{seed}.json"


def save(table: str, result: Result) -> None:
    """Write a result whole, or not at all."""
    path = path_of(table, result.row, result.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(result.model_dump_json() + "\n")
    temporary.replace(path)


def saved(table: str, row: str, seed: int) -> Result | None:
    """Return a result, if there is one."""
    path = path_of(table, row, seed)
    return Result.model_validate_json(path.read_text()) if path.exists() else None


def forget(table: str, row: str) -> None:
    """Remove a row's results: its run file is another one now."""
    for one in all_saved(table, row):
        path_of(table, row, one.seed).unlink()


def all_saved(table: str, row: str) -> list[Result]:
    """Return the results of a row, in order of seed."""
    found = (RESULTS / table).glob(f"{row}-[0-9]*.json")
    results = [Result.model_validate_json(path.read_text()) for path in found]
    return sorted((r for r in results if r.row == row), key=lambda result: result.seed)


def _commit() -> str:
    called = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    return called.stdout.strip()[:12] or "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
