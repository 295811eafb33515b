"""What rows leave behind in docs/results/TABLE: ROW-SEED.json, and check.json of the short one."""

from __future__ import annotations

import hashlib
import platform
import statistics
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, RootModel

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
    """Its name and the instructions that torch uses, e.g. "AMD EPYC, AVX2"; or a GPU's name."""
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


def result_of(
    row: str,
    seed: int,
    text: str,
    record: Mapping[str, Any],
    *,
    measure: str,
    device: str = "cpu",
) -> Result:
    """Build the result of a finished run from its record; `device` is what trained."""
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
        processor=_processor(device),
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


def checks(table: str) -> list[Result]:
    """Return what a table's short row ended in, on each kind of processor it is on record for."""
    path = _checks_path(table)
    return _Checks.model_validate_json(path.read_text()).root if path.exists() else []


def save_check(table: str, result: Result) -> None:
    """Put a short row on record, in place of what its kind of processor had."""
    others = [one for one in checks(table) if one.processor != result.processor]
    kept = sorted([*others, result], key=lambda one: one.processor)
    path = _checks_path(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(one.model_dump_json() for one in kept) + "\n]\n")


def forget(table: str, row: str) -> None:
    """Remove a row's results: its run file is another one now."""
    for one in all_saved(table, row):
        path_of(table, row, one.seed).unlink()


def all_saved(table: str, row: str) -> list[Result]:
    """Return the results of a row, in order of seed."""
    found = (RESULTS / table).glob(f"{row}-[0-9]*.json")
    results = [Result.model_validate_json(path.read_text()) for path in found]
    return sorted((r for r in results if r.row == row), key=lambda result: result.seed)


class _Checks(RootModel[list[Result]]):
    """The file of a table's short row."""


def _checks_path(table: str) -> Path:
    return RESULTS / table / "check.json"


def _commit() -> str:
    called = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    return called.stdout.strip()[:12] or "unknown"


def _processor(device: str) -> str:
    """Return a GPU's name, or the processor's and the widest instructions that torch uses of it.

    Kernels for other instructions add in another order: their last digits, and all digests, differ.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    if device != "cpu":
        return device
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = named[0] if named else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
