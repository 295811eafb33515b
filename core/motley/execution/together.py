"""Tasks of many clients at once, as a simulation does them.

Clients train together where their method and workload can and their plans are equal; one model that
many clients test is tested once on all of their samples. All else is done client by client.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from structlog.stdlib import get_logger

from motley.algorithms import registry
from motley.algorithms.base import Algorithm, Broadcast, ClientContext, Tensors, Trained
from motley.errors import TrainingError
from motley.execution.executor import (
    Executor,
    Outcome,
    PersonalStore,
    finite_metrics,
    personal_state,
)
from motley.execution.protection import is_protected
from motley.privacy.ledger import PrivacyStore
from motley.seeding import numpy_generator
from motley.task import TaskKind, TaskSpec

log = get_logger()


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A task, the client that does it, and where its files lie."""

    executor: Executor
    task: TaskSpec
    personal: PersonalStore
    broadcast: Path | None
    update: Path
    model: Path
    privacy: PrivacyStore | None = None

    def run(self) -> Outcome | Exception:
        """Do the task alone; what it raises is returned."""
        try:
            return self.executor.run(
                self.task,
                personal=self.personal,
                broadcast=self.broadcast,
                update=self.update,
                model=self.model,
                privacy=self.privacy,
            )
        except Exception as error:  # as on a device: what user code raises ends its task alone
            return error


Found = dict[int, Outcome | Exception]
"""What came of tasks, by their place."""


def run_together(
    assignments: Sequence[Assignment], most: int | None = None
) -> list[Outcome | Exception]:
    """Do tasks of one workload; return what came of each, in order.

    At most `most` of them are done at the same time; what some trained is encoded and written
    while the next ones train.
    """
    found: Found = {}
    with ExitStack() as stack:
        opened = _Opened(stack)
        ready = []
        for number, assignment in enumerate(assignments):
            try:
                entry = opened.entry(number, assignment)
            except Exception as error:
                found[number] = error
                continue
            if entry is not None:
                ready.append(entry)
        keeper = stack.enter_context(_Keeper())
        for group in _groups(ready, most or len(assignments)):
            kind = group[0].context.task.kind
            if kind is TaskKind.TRAIN:
                found.update(keeper.take(group, *_train(group)))
            else:
                found.update(_DO[kind](group))
        found.update(keeper.last())
    for number, assignment in enumerate(assignments):
        if number not in found:
            found[number] = assignment.run()
    return [found[number] for number in range(len(assignments))]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A task that may be done with others."""

    number: int
    assignment: Assignment
    algorithm: Algorithm
    context: ClientContext
    received: Broadcast
    state: Tensors | None
    restarted: bool
    key: Hashable
    """What has to be equal among those who do it together."""
    model: tuple[str, Tensors] | None = None
    """Of an evaluation."""


class _Opened:
    """Broadcasts by digest, each decoded once for all clients that got it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._received: dict[bytes, Broadcast] = {}

    def entry(self, number: int, assignment: Assignment) -> _Entry | None:
        """Return a task made ready to be done with others; None when it is done alone."""
        task, executor = assignment.task, assignment.executor
        algorithm = registry.find(task.algorithm).configure(task.plan.settings)
        context = executor.context(task, privacy=assignment.privacy)
        if is_protected(algorithm, context):
            return None  # noise and ledgers are each client's own
        if task.kind is TaskKind.TRAIN:
            alone = not (algorithm.trains_together and context.workload.batchable)
        else:
            about_global = task.kind is TaskKind.EVALUATE and task.subject == "global"
            own_model = algorithm.has_personal_models() and not about_global
            alone = own_model or task.subject == "both"
        if alone:
            return None
        state, restarted = personal_state(algorithm, task, assignment.personal)
        received = self._open(assignment)
        context = replace(context, received=received if task.payload_sha256 else None)
        model = None
        if task.kind is TaskKind.EVALUATE:
            model = algorithm.model_for(context, task.subject, received, state)
            key: Hashable = (task.kind, model[0], id(model[1]))
        elif task.kind is TaskKind.FINISH:
            key = (task.kind, _key(task, task.plan.to_json()), task.payload_sha256)
        else:
            joint = algorithm.joint_plan(task.plan)
            key = (task.kind, _key(task, joint), algorithm.kind_of(context, state))
        return _Entry(
            number=number,
            assignment=assignment,
            algorithm=algorithm,
            context=context,
            received=received,
            state=state,
            restarted=restarted,
            key=key,
            model=model,
        )

    def _open(self, assignment: Assignment) -> Broadcast:
        digest = assignment.task.payload_sha256
        if digest not in self._received:
            self._received[digest] = assignment.executor.open(
                assignment.task, assignment.broadcast, self._stack
            )
        return self._received[digest]


def _key(task: TaskSpec, plan: Mapping[str, object]) -> Hashable:
    return task.algorithm, task.global_variant, task.round, json.dumps(plan, sort_keys=True)


def _groups(entries: Sequence[_Entry], most: int) -> Iterator[list[_Entry]]:
    """Yield those who can work together, up to `most`; one who is left alone is not yielded."""
    groups: dict[Hashable, list[_Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.key, []).append(entry)
    for group in groups.values():
        parts = (group[start : start + most] for start in range(0, len(group), most))
        yield from (part for part in parts if len(part) > 1)


class _Keeper:
    """Keeps what clients trained on a thread of its own; of one group at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "keeper")
        self._context = copy_context()  # files are synced there as here, or not
        self._under_way: Future[Found] | None = None

    def take(
        self,
        group: Sequence[_Entry],
        trained: Sequence[Trained | TrainingError],
        seconds: float,
    ) -> Found:
        """Begin to keep what came of a group; return what came of the one before."""
        before = self.last()
        self._under_way = self._pool.submit(self._context.run, _keep, group, trained, seconds)
        return before

    def last(self) -> Found:
        """Wait until the group that was taken last is kept; return what came of it."""
        found = self._under_way.result() if self._under_way else {}
        self._under_way = None
        return found

    def __enter__(self) -> _Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def _train(group: Sequence[_Entry]) -> tuple[Sequence[Trained | TrainingError], float]:
    """Train clients together; return what came of each, none where they cannot, and its seconds."""
    began = time.monotonic()
    first = group[0].context.task
    # As for one client: schedules draw from no global generator, but workloads (dropout) may.
    names = [entry.context.task.client for entry in group]
    torch.manual_seed(numpy_generator(first.run_seed, "torch", first.round, *names).integers(2**62))
    try:
        trained = group[0].algorithm.train_together(
            [entry.context for entry in group],
            [entry.received for entry in group],
            [entry.state for entry in group],
        )
    except Exception as error:  # one by one it shows whose fault it is
        log.warning("not_trained_together", run=first.run_name, reason=repr(error))
        trained = None
    return trained or (), (time.monotonic() - began) / len(group)


def _keep(
    group: Sequence[_Entry], trained: Sequence[Trained | TrainingError], seconds: float
) -> Found:
    """Return what came of clients that trained; nothing where they did not."""
    if not trained:
        return {}
    return {
        entry.number: _kept(entry, result, seconds)
        for entry, result in zip(group, trained, strict=True)
    }


def _kept(entry: _Entry, trained: Trained | TrainingError, seconds: float) -> Outcome | Exception:
    if isinstance(trained, TrainingError):
        return trained
    task, assignment = entry.context.task, entry.assignment
    try:
        outcome = assignment.executor.keep(
            task, trained, entry.received, assignment.personal, assignment.update
        )
    except Exception as error:
        return error
    return replace(
        outcome,
        metrics=finite_metrics(outcome.metrics, task),
        seconds=seconds,
        restarted=entry.restarted,
    )


def _evaluate(group: Sequence[_Entry]) -> Found:
    """Test one model on the samples of all clients that got it."""
    assert group[0].model is not None
    return _scored(group, *group[0].model, {})


def _finish(group: Sequence[_Entry]) -> Found:
    """Pack the one model that all clients of a group end with, and test it for each.

    Nothing is returned where that fails.
    """
    first, *others = group
    source = first.assignment.model
    try:
        packed = first.assignment.executor.pack(
            first.algorithm, first.context, first.received, first.state, source
        )
        for other in others:
            shutil.copyfile(source, other.assignment.model)
    except Exception as error:  # one by one it shows whose fault it is
        log.warning("not_finished_together", run=first.context.task.run_name, reason=repr(error))
        return {}
    return _scored(group, *packed)


def _scored(
    group: Sequence[_Entry], variant: str, tensors: Tensors, more: Mapping[str, float]
) -> Found:
    """Test one model on the samples of all; nothing is returned where that fails."""
    began = time.monotonic()
    try:
        scores = group[0].assignment.executor.score_for_all(
            variant, tensors, [entry.context.data.test for entry in group]
        )
    except Exception as error:  # one by one it shows whose fault it is
        log.warning("not_tested_together", run=group[0].context.task.run_name, reason=repr(error))
        return {}
    seconds = (time.monotonic() - began) / len(group)
    return {
        entry.number: Outcome(
            metrics=finite_metrics({**score, **more}, entry.context.task), seconds=seconds
        )
        for entry, score in zip(group, scores, strict=True)
    }


_DO = {TaskKind.EVALUATE: _evaluate, TaskKind.FINISH: _finish}
