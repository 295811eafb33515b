"""One client's work in one round, as both sides see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from motley.plan import Plan
from motley.workload import Scalar

UNTRAINED = "untrained"
"""Metric, 1: the client has no personal model of its own yet, since no update of it counted. A
finished model that is marked so is the one that training would start from; an evaluation tells
nothing else of it. Evaluations of both models say `personal_untrained`."""
RESERVED_METRICS = frozenset({UNTRAINED, f"personal_{UNTRAINED}"})
"""Counted over clients, where other metrics are averaged; those of workloads are dropped."""


class TaskKind(str, Enum):
    """What a task asks of a client."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    FINISH = "finish"


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A task with its plan. `messages.py` translates it to and from the wire."""

    task_id: str
    kind: TaskKind
    run_id: str
    run_name: str
    round: int
    """1-based."""
    rounds: int
    attempt: int = 0
    """0-based: a round that stays below its minimum is tried again."""
    algorithm: str
    workload: str
    workload_arguments: Mapping[str, Scalar] = field(default_factory=dict)
    plan: Plan
    run_seed: int
    client: str
    """The client's name: with the run's seed and the round it seeds every draw."""
    payload_sha256: bytes = b""
    """Digest of the broadcast; empty when the task needs none."""
    payload_size: int = 0
    base_version: str = ""
    """Personal state to start from: id of the last counted task, "" for none yet."""
    fresh_if_lost: bool = True
    """Whether to start afresh when `base_version` is not on the device."""
    seconds_left: float = 0.0
    """Until the round's deadline; 0 when it has none."""
    subject: str = ""
    """Of an evaluation: "global", "personal" or "both"."""
    global_variant: str = ""
    """Variant of the global model; "" when the algorithm has none."""
    threads: int = 1
    """Training threads, frozen at the start of the run: results depend on them."""
