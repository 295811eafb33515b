"""One task in this process: what a lost personal state and values that are not finite end in."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from linear_workload import Linear
from structlog.testing import capture_logs

from fedclient.personal import PersonalFiles
from fedclient.protocol import Done, Failed, Job, Setup, read_reply
from fedclient.worker import TrainingProcess, failure
from motley.errors import LostStateError, PlanError, WithheldError
from motley.execution.executor import Executor, Outcome
from motley.plan import Plan
from motley.task import TaskKind, TaskSpec
from motley.wire.stubs import common_pb2 as pb
from motley.workload import DataSpec

SETTINGS = {"local_steps": 2, "learning_rate": 0.1}


def task(kind: TaskKind, **changes: object) -> TaskSpec:
    values = {
        "task_id": "t-2", "kind": kind, "run_id": "r", "run_name": "demo", "round": 2, "rounds": 3,
        "algorithm": "local", "workload": "linear", "run_seed": 7, "client": "phone-1",
        "plan": Plan(variant="linear", settings=SETTINGS, iterations=6), "subject": "personal",
        **changes,
    }  # fmt: skip
    return TaskSpec(**values)  # type: ignore[arg-type]


def done(folder: Path, spec: TaskSpec, workload: Linear | None = None) -> Outcome:
    workload = workload or Linear()
    executor = Executor(workload, workload.load(DataSpec.parse("synthetic")))
    return executor.run(
        spec,
        personal=PersonalFiles(folder / "runs" / "r"),
        broadcast=None,
        update=folder / "update.payload",
        model=folder / "demo.motley",
    )


@pytest.mark.parametrize(
    ("kind", "fresh", "words"),
    [
        (TaskKind.FINISH, True, "no trained model to finish"),
        (TaskKind.EVALUATE, True, "next training starts afresh"),
        (TaskKind.FINISH, False, "excludes clients"),
        (TaskKind.EVALUATE, False, "excludes clients"),
        (TaskKind.TRAIN, False, "excludes clients"),
    ],
)
def test_a_lost_state_is_said_and_no_untrained_model_is_passed_off(tmp_path, kind, fresh, words):
    with pytest.raises(LostStateError, match=words) as caught:
        done(tmp_path, task(kind, base_version="t-1", fresh_if_lost=fresh))
    assert "personal state t-1 of run demo is not on this device" in str(caught.value)
    assert not (tmp_path / "demo.motley").exists()


def test_training_starts_afresh_after_a_loss_and_goes_on_from_there(tmp_path):
    assert done(tmp_path, task(TaskKind.TRAIN, base_version="t-1")).restarted
    finished = done(tmp_path, task(TaskKind.FINISH, task_id="t-3", base_version="t-2"))
    assert not finished.restarted
    assert (tmp_path / "demo.motley").exists()


def test_a_model_that_was_never_trained_has_no_scores(tmp_path):
    assert done(tmp_path, task(TaskKind.EVALUATE)).metrics == {"untrained": 1.0}
    finished = done(tmp_path, task(TaskKind.FINISH)).metrics
    assert finished["untrained"] == 1.0
    assert "accuracy" in finished
    done(tmp_path, task(TaskKind.TRAIN))
    trained = done(tmp_path, task(TaskKind.EVALUATE, task_id="t-3", base_version="t-2")).metrics
    assert "accuracy" in trained
    assert "untrained" not in trained


class Counting(Linear):
    """Reports a metric by a name that the server counts by."""

    name = "untrained"

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {**super().metrics(outputs, targets), self.name: torch.ones(len(outputs))}


class CountingBoth(Counting):
    name = "personal_untrained"


@pytest.mark.parametrize("workload", [Counting, CountingBoth])
def test_a_workloads_metric_that_the_server_counts_by_is_dropped(tmp_path, workload):
    done(tmp_path, task(TaskKind.TRAIN), workload())
    for kind in (TaskKind.EVALUATE, TaskKind.FINISH):
        with capture_logs() as logs:
            scored = done(tmp_path, task(kind, task_id="t-3", base_version="t-2"), workload())
        assert workload.name not in scored.metrics
        assert "accuracy" in scored.metrics
        (entry,) = (entry for entry in logs if entry["event"] == "metric_dropped")
        assert entry["metric"] == workload.name


@pytest.mark.parametrize(("fresh", "permanent"), [(True, False), (False, True)])
def test_a_lost_state_ends_the_membership_only_where_the_run_excludes(tmp_path, fresh, permanent):
    replies = io.BytesIO()
    message = pb.Task(
        task_id="t-2", kind=pb.TASK_KIND_EVALUATE, run_id="r", run_name="demo", round=2, rounds=3,
        algorithm="local", workload="linear", subject="personal", base_version="t-1",
        fresh_if_lost=fresh, plan=pb.Plan(variant="linear", up_bits=32, down_bits=32), threads=1,
    )  # fmt: skip
    message.plan.settings["local_steps"].integer = 2
    job = Job(
        client="phone-1", task=Job.encode_task(message.SerializeToString()), update="", model="",
        personal=str(tmp_path / "r"),
    )  # fmt: skip
    setup = Setup(data="synthetic", workloads={"linear": "linear_workload:Linear"})
    TrainingProcess(setup, replies).answer(job)
    failed = read_reply.validate_json(replies.getvalue())
    assert isinstance(failed, Failed)
    assert (failed.code, failed.permanent) == ("lost_state", permanent)


def test_other_permanent_failures_do_not_depend_on_the_policy():
    assert failure(PlanError("no such unit"), 0, may_restart=True).permanent
    assert not failure(ValueError("a user's mistake"), 0, may_restart=False).permanent


def test_a_private_task_that_runs_out_of_memory_says_so():
    hidden = WithheldError("RuntimeError in a private task")
    assert failure(hidden, 0, may_restart=True).code == "crash"
    hidden.__cause__ = MemoryError()
    assert failure(hidden, 0, may_restart=True).code == "out_of_memory"


class Unmeasurable(Linear):
    def metrics(self, outputs, targets):
        count = len(targets)
        return {
            **super().metrics(outputs, targets),
            "perplexity": torch.full((count,), float("inf")),
            "precision": torch.full((count,), float("nan")),
        }


def test_metrics_that_are_not_finite_are_dropped_and_named(tmp_path):
    done(tmp_path, task(TaskKind.TRAIN), Unmeasurable())
    with capture_logs() as logs:
        outcome = done(tmp_path, task(TaskKind.EVALUATE, base_version="t-2"), Unmeasurable())
    assert {"loss", "accuracy", "samples"} <= set(outcome.metrics)
    assert not {"perplexity", "precision"} & set(outcome.metrics)
    dropped = [entry for entry in logs if entry["event"] == "metric_dropped"]
    assert {(entry["metric"], entry["value"]) for entry in dropped} == {
        ("perplexity", "inf"),
        ("precision", "nan"),
    }
    line = Done(metrics=outcome.metrics).line()
    assert read_reply.validate_json(line) == Done(metrics=outcome.metrics)


def test_progress_that_is_no_number_is_told_as_none():
    replies = io.BytesIO()
    TrainingProcess(Setup(data="synthetic"), replies)._progress(float("nan"))
    assert read_reply.validate_json(replies.getvalue()).fraction == 0.0  # type: ignore[union-attr]
