"""One task from its payload to its outcome, wherever it runs.

The daemon's worker process and the simulation both call `Executor.run`; they differ only in
the `PersonalStore` they hand in. What comes out is a function of the task, the personal state
and the local data, but for the seconds it took.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from structlog.stdlib import get_logger

from motley.algorithms import registry
from motley.algorithms.base import Algorithm, Array, Broadcast, ClientContext, Tensors, Trained
from motley.errors import LostStateError, PlanError, TrainingError, did_you_mean
from motley.execution.encoding import encode_update
from motley.execution.protection import covered, is_protected, withholding
from motley.models.units import UnitTable, load_tensors, variant_table
from motley.privacy.ledger import PrivacyStore, TaskPrivacy
from motley.seeding import numpy_generator
from motley.task import RESERVED_METRICS, UNTRAINED, TaskKind, TaskSpec
from motley.wire import (
    EncodedTensor,
    PayloadInfo,
    PayloadReader,
    write_payload,
)
from motley.workload import ArrayWorkload, LocalData, Split, Variant, Workload

if TYPE_CHECKING:
    import torch

log = get_logger()


class PersonalStore(Protocol):
    """Versions of one run's personal state; a version is the id of the task that made it."""

    def load(self, version: str) -> Tensors | None:
        """Return the state of `version`, or None when it is not there."""

    def save(self, version: str, tensors: Tensors) -> None:
        """Keep a new, uncounted state beside the counted one, replacing an uncounted one."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a task."""

    payload: PayloadInfo | None = None
    """The encoded update; None for kinds of task that send none."""
    samples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """All finite."""
    seconds: float = 0.0
    restarted: bool = False
    """Whether the personal state was lost and started afresh."""
    withheld: bool = False
    """Whether metrics are for this device alone: they are data, and no guarantee covers them."""
    variant: str = ""
    """Of a finished model; "" for other kinds of task."""
    workload_version: int = 0
    """Of the code that built the finished model."""


class Executor:
    """Runs tasks of one workload over one client's data."""

    def __init__(self, workload: Workload, data: LocalData, device: str = "cpu") -> None:
        self._workload, self._data, self._device = workload, data, device
        self._variants = workload.variants()
        self._tables: dict[str, UnitTable] = {}
        if self.needs_torch:
            from motley.training.accelerator import compute_exactly

            compute_exactly(device)

    def over(self, data: LocalData) -> Executor:
        """Return an executor for another client of the workload; unit tables are shared."""
        other = copy.copy(self)
        other._data = data
        return other

    def run(
        self,
        task: TaskSpec,
        *,
        personal: PersonalStore,
        broadcast: Path | None,
        update: Path,
        model: Path,
        progress: Callable[[float], None] = lambda fraction: None,
        privacy: PrivacyStore | None = None,
    ) -> Outcome:
        """Do one task.

        Args:
            task: what to do.
            personal: the client's personal states of this run.
            broadcast: payload file of the global model; None when the task names none.
            update: where a training task writes its encoded update.
            model: where a finishing task writes the packed model.
            progress: called with the finished fraction, 0 to 1.
            privacy: what this device spent of its data's privacy; None where no ledger is kept,
                so that no private run can be taken part in.

        Raises:
            LostStateError: the personal state is gone, and the task is no training that may start
                afresh.
            PayloadError: the broadcast is not what the task names.
            PlanError: the plan asks for what this workload does not have.
            PrivacyError: the task would break a guarantee, or spend more than a budget holds.
            TrainingError: the loss or an updated value is not finite.
            WithheldError: the workload's code failed in a private task.
        """
        started = time.monotonic()
        algorithm = registry.find(task.algorithm).configure(task.plan.settings)
        context = self.context(task, progress, privacy)
        withheld = is_protected(algorithm, context)
        state, restarted = personal_state(algorithm, task, personal)
        with ExitStack() as stack, withholding(withheld):
            received = self.open(task, broadcast, stack)
            context = replace(context, received=received if task.payload_sha256 else None)
            outcome = self._do(algorithm, context, received, state, personal, update, model)
        return replace(
            outcome,
            metrics=finite_metrics(outcome.metrics, task),
            # How long a private task took tells how many records it saw.
            seconds=0.0 if withheld else time.monotonic() - started,
            restarted=restarted,
            withheld=withheld,
        )

    def context(
        self,
        task: TaskSpec,
        progress: Callable[[float], None] = lambda fraction: None,
        privacy: PrivacyStore | None = None,
    ) -> ClientContext:
        """Return what an algorithm's client half works with."""
        return ClientContext(
            task=task,
            workload=self._workload,
            data=self._data,
            device=self._device,
            progress=progress,
            privacy=TaskPrivacy(privacy, task) if privacy else None,
        )

    def _do(
        self,
        algorithm: Algorithm,
        context: ClientContext,
        received: Broadcast,
        state: Tensors | None,
        personal: PersonalStore,
        update: Path,
        model: Path,
    ) -> Outcome:
        task = context.task
        if self.needs_torch:
            _seed_torch(task)
        if task.kind is TaskKind.TRAIN:
            trained = covered(algorithm, context, algorithm.train(context, received, state))
            return self.keep(task, trained, received, personal, update)
        if task.kind is TaskKind.EVALUATE:
            return self._evaluate(algorithm, context, received, state)
        return self._finish(algorithm, context, received, state, model)

    @property
    def needs_torch(self) -> bool:
        """Whether the workload's models are torch modules; nothing else here imports torch."""
        return not isinstance(self._workload, ArrayWorkload)

    def table(self, variant: str) -> UnitTable:
        """Return the unit table of a variant; raise PlanError when the workload has none."""
        if variant not in self._tables:
            self._tables[variant] = variant_table(self._variant(variant))
        return self._tables[variant]

    def _variant(self, name: str) -> Variant:
        if name not in self._variants:
            known = ", ".join(self._variants) + did_you_mean(name, self._variants)
            raise PlanError(f"this workload has no model variant {name!r}; it has {known}")
        return self._variants[name]

    def _build(self, variant: str) -> torch.nn.Module:
        import torch

        with torch.random.fork_rng(devices=[]):
            return self._variant(variant).build()

    def open(self, task: TaskSpec, broadcast: Path | None, stack: ExitStack) -> Broadcast:
        """Return the broadcast, whose packed tensors lie in a file that `stack` closes."""
        if not task.payload_sha256:
            return Broadcast({})
        if broadcast is None:
            raise PlanError(f"task {task.task_id} names a broadcast, but none was handed in")
        table = self.table(task.global_variant).tensor_table
        reader = stack.enter_context(PayloadReader(broadcast, table))
        return Broadcast({name: reader[name] for name in reader.names})

    def keep(
        self,
        task: TaskSpec,
        trained: Trained,
        received: Broadcast,
        personal: PersonalStore,
        update: Path,
    ) -> Outcome:
        """Encode what came of a training task, and keep its personal state, uncounted."""
        _check_finite(trained.update, task)
        table = self.table(task.global_variant) if task.global_variant else UnitTable(())
        # Whole, and so written without a temporary file beside it: dense values are not copied, and
        # others take their few bits.
        encoded = list(encode_update(task, table, trained.update, received))
        info = write_payload(update, encoded, table.tensor_table)
        if trained.personal is not None:
            _check_finite(trained.personal, task)
            personal.save(task.task_id, trained.personal)
        return Outcome(payload=info, samples=trained.samples, metrics=trained.metrics)

    def _evaluate(
        self,
        algorithm: Algorithm,
        context: ClientContext,
        received: Broadcast,
        state: Tensors | None,
    ) -> Outcome:
        def scores(subject: str) -> dict[str, float]:
            if subject == "personal" and algorithm.keeps_personal_state and state is None:
                return {UNTRAINED: 1.0}
            return self._score(*algorithm.model_for(context, subject, received, state))

        subject = context.task.subject
        if subject != "both":
            return Outcome(metrics=scores(subject))
        both = {one: scores(one) for one in ("global", "personal")}
        return Outcome(metrics={f"{one}_{n}": v for one, of in both.items() for n, v in of.items()})

    def _finish(
        self,
        algorithm: Algorithm,
        context: ClientContext,
        received: Broadcast,
        state: Tensors | None,
        model: Path,
    ) -> Outcome:
        """Write the packed model and report on what the *re-read* file predicts."""
        variant, tensors, metrics = self.pack(algorithm, context, received, state, model)
        return Outcome(
            metrics={**self._score(variant, tensors), **metrics},
            variant=variant,
            workload_version=type(self._workload).version,
        )

    def pack(
        self,
        algorithm: Algorithm,
        context: ClientContext,
        received: Broadcast,
        state: Tensors | None,
        model: Path,
    ) -> tuple[str, Tensors, dict[str, float]]:
        """Write the packed model; return its variant, what the file holds, and its figures."""
        finished = algorithm.finish(context, received, state)
        info = write_payload(model, list(finished.model.items()), None)
        with PayloadReader(model, None) as reader:
            tensors = {name: reader[name].decode() for name in reader.names}
        table = self.table(finished.variant)
        sizes = {
            "packed_bytes": float(info.size),
            "dense_bytes": float(sum(np.dtype(r.dtype).itemsize * r.size for r in table.rows)),
        }
        metrics = {**finished.metrics, **sizes}
        if algorithm.keeps_personal_state and state is None:
            # Never sampled, or never counted: the model is the one that training would start from.
            metrics[UNTRAINED] = 1.0
        return finished.variant, tensors, metrics

    def _score(self, variant: str, tensors: Tensors) -> dict[str, float]:
        return self.score_for_all(variant, tensors, [self._data.test])[0]

    def score_for_all(
        self, variant: str, tensors: Tensors, splits: Sequence[Split]
    ) -> list[dict[str, float]]:
        """Return what one model scores on each split, without names that the server counts by."""
        if isinstance(self._workload, ArrayWorkload):
            scores = [dict(self._workload.score(tensors, split)) for split in splits]
        else:
            from motley.training.evaluation import evaluate_all

            module = self._build(variant)
            load_tensors(module, tensors)
            module.to(self._device)
            scores = evaluate_all(module, self._workload, splits, self._device)
        if taken := RESERVED_METRICS.intersection(name for one in scores for name in one):
            # Not refused: the run may be at its end, and its models are what counts.
            reason = "the server counts clients without a trained model by it; rename it"
            log.warning("metric_dropped", metric=min(taken), reason=reason)
        return [{n: v for n, v in one.items() if n not in RESERVED_METRICS} for one in scores]


def _seed_torch(task: TaskSpec) -> None:
    """Seed the global generator: schedules draw from none, but a workload (dropout) may."""
    import torch

    torch.manual_seed(
        numpy_generator(task.run_seed, "torch", task.round, task.client).integers(2**62)
    )


def personal_state(
    algorithm: Algorithm, task: TaskSpec, personal: PersonalStore
) -> tuple[Tensors | None, bool]:
    """Return (state to start from, whether it was lost and starts afresh)."""
    if not algorithm.keeps_personal_state or not task.base_version:
        return None, False
    state = personal.load(task.base_version)
    if state is not None:
        return state, False
    lost = f"personal state {task.base_version} of run {task.run_name}"
    if not task.fresh_if_lost:
        raise LostStateError(
            f"{lost} is not on this device, and the run excludes clients that lost theirs "
            f"(on_lost_state = exclude)"
        )
    if task.kind is TaskKind.FINISH:
        raise LostStateError(
            f"{lost} is not on this device: there is no trained model to finish, and an untrained "
            f"one would be no result; put the state directory back, or train in a new run"
        )
    if task.kind is TaskKind.EVALUATE:
        raise LostStateError(
            f"{lost} is not on this device: an untrained model's scores would say nothing about "
            f"this client; its next training starts afresh (on_lost_state = restart)"
        )
    return None, True


def finite_metrics(metrics: Mapping[str, float], task: TaskSpec) -> dict[str, float]:
    """Return the metrics without NaN and infinity: JSON cannot say them, no mean can use them."""
    kept = {}
    for name, value in metrics.items():
        if math.isfinite(value):
            kept[name] = float(value)
        else:
            log.warning(
                "metric_dropped",
                metric=name,
                value=str(float(value)),
                run=task.run_name,
                round=task.round,
                reason="not finite",
            )
    return kept


def _check_finite(tensors: Mapping[str, Array | EncodedTensor], task: TaskSpec) -> None:
    for name, values in tensors.items():
        if isinstance(values, EncodedTensor):
            continue  # an encoded tensor of planes or codes holds finite numbers alone
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise TrainingError(
                f"{name} is not finite after round {task.round} of run {task.run_name}; "
                f"lower the learning rate of this client's tier"
            )
