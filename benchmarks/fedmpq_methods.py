"""What the comparison of FedMPQ runs: methods, partitions, schedule, and the run file of a cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BUDGETS = (2, 2, 4, 4, 4, 6, 6, 6, 8, 8)
"""Bits a weight of each client, as in the paper."""
CLIENTS = len(BUDGETS)
PARTITIONS = {"iid": "", "alpha 0.5": "&alpha=0.5", "alpha 0.1": "&alpha=0.1"}
"""Options of a data spec: equal shares of all classes, or Dirichlet."""
Value = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a cell trains."""

    rounds: int = 10
    local_steps: int = 15
    batch_size: int = 32


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table."""

    title: str
    algorithm: str
    settings: Mapping[str, Value] = field(default_factory=dict)
    up_bits: tuple[int, ...] = ()
    """Of each client; empty: what the algorithm does."""
    rate_of: str = ""
    """Method whose learning rate it takes; "": it is tuned itself."""


PLAIN: Mapping[str, Value] = {"lasso": 0.0, "prune_below": 0.0}
# A client of FedMPQ sends v magnitude bits and a sign; eight is the most that codes have.
EQUAL_BYTES = tuple(min(budget + 1, 8) for budget in BUDGETS)

METHODS = {
    "fp32": Method(title="FP32", algorithm="fedavg", settings={"weighting": "uniform"}),
    "fpq8": Method(
        title="FPQ8",
        algorithm="fedmpq",
        settings={**PLAIN, "allocation": "fixed", "budget": 8.0},
    ),
    "fedpaq": Method(title="FedPAQ", algorithm="fedpaq", up_bits=EQUAL_BYTES),
    "uveqfed": Method(title="UVeQFed", algorithm="uveqfed", up_bits=EQUAL_BYTES),
    "aqfl": Method(title="AQFL", algorithm="fedmpq", settings={**PLAIN, "allocation": "fixed"}),
    "fedmpq": Method(title="FedMPQ", algorithm="fedmpq"),
    "no-lasso": Method(
        title="FedMPQ, lasso off", algorithm="fedmpq", settings={"lasso": 0.0}, rate_of="fedmpq"
    ),
    "no-pruning": Method(
        title="FedMPQ, pruning off",
        algorithm="fedmpq",
        settings={"prune_below": 0.0},
        rate_of="fedmpq",
    ),
    "no-allocation": Method(
        title="FedMPQ, allocation off",
        algorithm="fedmpq",
        settings={"allocation": "fixed"},
        rate_of="fedmpq",
    ),
    "no-removed-bits": Method(
        title="FedMPQ, allocation by size alone",
        algorithm="fedmpq",
        settings={"use_removed_bits": False},
        rate_of="fedmpq",
    ),
}


def run_file(method: Method, *, rate: float, seed: int, schedule: Schedule, folder: str) -> str:
    """Return a cell's run file; `folder` holds the published files, for the server's own test."""
    settings: dict[str, Value] = {
        "local_steps": schedule.local_steps,
        "batch_size": schedule.batch_size,
        "learning_rate": rate,
        "momentum": 0.9,
        **method.settings,
    }
    lines = [
        "[run]",
        'name = "cell"',
        f'algorithm = "{method.algorithm}"',
        f"rounds = {schedule.rounds}",
        f"seed = {seed}",
        "[workload]",
        'name = "fashion"',
        "[clients]",
        f"expected = {CLIENTS}",
        "[settings]",
        *(f"{name} = {_toml(value)}" for name, value in settings.items()),
        "[evaluate]",
        f"every = {schedule.rounds // 2}",
        "fraction = 0.1",
        f'held_out = "{folder}"',
        *_tiers(method),
    ]
    return "\n".join(lines) + "\n"


def tier_counts(method: Method) -> dict[str, int]:
    """Return how many clients each tier of a cell's run file has, in order."""
    widths = method.up_bits or (BUDGETS if method.algorithm == "fedmpq" else ())
    names = [f"b{bits}" for bits in widths] or ["all"] * CLIENTS
    return {name: names.count(name) for name in dict.fromkeys(names)}


def _tiers(method: Method) -> list[str]:
    lines = []
    for name in tier_counts(method):
        lines += ["[[tiers]]", f'name = "{name}"']
        if name != "all":
            field_name = "up_bits" if method.up_bits else "bits"
            lines.append(f"{field_name} = {name[1:]}")
    return lines


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
