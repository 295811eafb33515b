"""Dataclasses to and from the protobuf messages that both daemons exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

from motley.errors import PlanError
from motley.plan import FULL_PRECISION, Plan
from motley.sparsity import Sparsity
from motley.task import TaskKind, TaskSpec
from motley.wire.stubs import common_pb2 as pb
from motley.workload import Scalar

_KINDS = {
    TaskKind.TRAIN: pb.TASK_KIND_TRAIN,
    TaskKind.EVALUATE: pb.TASK_KIND_EVALUATE,
    TaskKind.FINISH: pb.TASK_KIND_FINISH,
}
_KINDS_BACK = {value: kind for kind, value in _KINDS.items()}


def scalar_to_proto(value: Scalar) -> pb.Scalar:
    """Wrap a plain value; bool before int, because a bool is an int in Python."""
    if isinstance(value, bool):
        return pb.Scalar(boolean=value)
    if isinstance(value, int):
        return pb.Scalar(integer=value)
    if isinstance(value, float):
        return pb.Scalar(real=value)
    return pb.Scalar(text=value)


def scalar_from_proto(message: pb.Scalar) -> Scalar:
    """Unwrap a plain value; raise PlanError when none is set."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise PlanError("a setting carries no value; expected boolean, integer, real or text")
    return cast(Scalar, getattr(message, kind))


def _scalars(values: Mapping[str, Scalar]) -> dict[str, pb.Scalar]:
    return {name: scalar_to_proto(values[name]) for name in sorted(values)}


def plan_to_proto(plan: Plan) -> pb.Plan:
    """Return the wire form of a plan."""
    return pb.Plan(
        variant=plan.variant,
        bits=dict(plan.bits),
        upload=plan.upload,
        settings=_scalars(plan.settings),
        up_bits=plan.up_bits,
        down_bits=plan.down_bits,
        iteration=plan.iteration,
        iterations=plan.iterations,
        layout=plan.layout,
        tail_bits=plan.tail_bits,
        sparsity=None if plan.sparsity is None else pb.Sparsity(**asdict(plan.sparsity)),
    )


def plan_from_proto(message: pb.Plan) -> Plan:
    """Return the plan of a message; raise PlanError on widths that do not exist."""
    return Plan(
        variant=message.variant,
        bits=dict(message.bits),
        upload=tuple(message.upload),
        settings={name: scalar_from_proto(value) for name, value in message.settings.items()},
        up_bits=message.up_bits,
        down_bits=message.down_bits,
        iteration=message.iteration,
        iterations=message.iterations,
        layout=cast(Any, message.layout),
        tail_bits=message.tail_bits or FULL_PRECISION,
        sparsity=_sparsity(message.sparsity) if message.HasField("sparsity") else None,
    )


def _sparsity(message: pb.Sparsity) -> Sparsity:
    return Sparsity(
        final=message.final,
        final_stays=message.final_stays,
        down_keep=message.down_keep,
        down_rule=message.down_rule,
        up_keep=message.up_keep,
        up_rule=message.up_rule,
    )


def task_to_proto(task: TaskSpec) -> pb.Task:
    """Return the wire form of a task; the client's name does not travel."""
    return pb.Task(
        task_id=task.task_id,
        kind=_KINDS[task.kind],
        run_id=task.run_id,
        run_name=task.run_name,
        round=task.round,
        rounds=task.rounds,
        attempt=task.attempt,
        algorithm=task.algorithm,
        workload=task.workload,
        workload_arguments=_scalars(task.workload_arguments),
        plan=plan_to_proto(task.plan),
        run_seed=task.run_seed,
        payload=pb.PayloadRef(sha256=task.payload_sha256, size=task.payload_size),
        base_version=task.base_version,
        fresh_if_lost=task.fresh_if_lost,
        seconds_left=task.seconds_left,
        subject=task.subject,
        global_variant=task.global_variant,
        threads=task.threads,
    )


def task_from_proto(message: pb.Task, client: str) -> TaskSpec:
    """Return the task of a message for `client`; raise PlanError when it cannot be understood."""
    if message.kind not in _KINDS_BACK:
        raise PlanError(f"task {message.task_id!r} is of kind {message.kind}, which is not known")
    return TaskSpec(
        task_id=message.task_id,
        kind=_KINDS_BACK[message.kind],
        run_id=message.run_id,
        run_name=message.run_name,
        round=message.round,
        rounds=message.rounds,
        attempt=message.attempt,
        algorithm=message.algorithm,
        workload=message.workload,
        workload_arguments={
            name: scalar_from_proto(value) for name, value in message.workload_arguments.items()
        },
        plan=plan_from_proto(message.plan),
        run_seed=message.run_seed,
        client=client,
        payload_sha256=message.payload.sha256,
        payload_size=message.payload.size,
        base_version=message.base_version,
        fresh_if_lost=message.fresh_if_lost,
        seconds_left=message.seconds_left,
        subject=message.subject,
        global_variant=message.global_variant,
        threads=message.threads,
    )
