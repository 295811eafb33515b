"""Simulations that train clients together: groups, fallbacks, and whole runs over seeds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from test_simulation import run

from fedserver.rounds.tasks import Arrived, Receipt, TaskDesk
from fedserver.simulate.simulation import simulate
from motley.algorithms import registry
from motley.algorithms.base import Algorithm, Broadcast, ClientContext, Tensors, Trained
from motley.algorithms.fedavg import FedAvg
from motley.algorithms.fedmpq import FedMPQ
from motley.algorithms.fedp3 import FedP3
from motley.errors import TrainingError
from motley.training.subnetwork import stacked
from motley.workload import DataSpec, LocalData
from motley.workloads.digits import Digits


class Alone(Digits):
    """Digits that may not be batched."""

    batchable: ClassVar[bool] = False


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return which clients trained together, filled while a simulation of FedAvg runs."""
    return groups_of(FedAvg, monkeypatch)


def groups_of(method: type[Algorithm], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    seen: list[list[str]] = []
    plain = method.train_together

    def noted(
        self: Algorithm,
        contexts: Sequence[ClientContext],
        broadcasts: Sequence[Broadcast],
        personals: Sequence[Tensors | None],
    ) -> list[Trained | TrainingError] | None:
        seen.append([context.task.client for context in contexts])
        return plain(self, contexts, broadcasts, personals)

    monkeypatch.setattr(method, "train_together", noted)
    return seen


TIERS = """
[[tiers]]
name = "slow"
settings = { learning_rate = 0.05 }
[[tiers]]
name = "fast"
"""


def mixed(**changes: Any) -> str:
    text = run(clients=5, rounds=1, sections=TIERS, **changes)
    return text.replace("[simulate]", "[simulate]\ntiers = { slow = 2, fast = 3 }")


def test_clients_with_equal_plans_train_together(groups: list[list[str]]) -> None:
    result = simulate(mixed(), batch=5)
    assert result.status == "finished"
    assert groups == [["client-0", "client-1"], ["client-2", "client-3", "client-4"]]


def test_a_batch_bounds_how_many_train_together(groups: list[list[str]]) -> None:
    simulate(run(clients=5, rounds=1), batch=2)
    assert groups == [["client-0", "client-1"], ["client-2", "client-3"]]


def test_several_batches_are_put_on_record_in_one_go(
    groups: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what another thread writes meanwhile is not synced either."""
    accepted, synced, plain = [], [], TaskDesk.accept_all

    def noted(self: TaskDesk, updates: Sequence[Arrived]) -> list[Receipt]:
        accepted.append([update.task_id.rpartition("-")[2] for update in updates])
        return plain(self, updates)

    monkeypatch.setattr(TaskDesk, "accept_all", noted)
    monkeypatch.setattr(os, "fsync", synced.append)
    result = simulate(run(clients=10, rounds=1), batch=2)
    assert result.status == "finished"
    assert [len(group) for group in groups] == [2] * 5
    assert accepted == [[str(n) for n in range(8)], ["8", "9"]]
    assert synced == []


def test_clients_of_other_budgets_train_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each ends with the packed model of its own widths."""
    groups = groups_of(FedMPQ, monkeypatch)
    tiers = "".join(BITS.format(bits=b).replace("phone", f"b{b}") for b in (2, 4))
    text = run(algorithm="fedmpq", clients=4, rounds=1, sections=tiers)
    result = simulate(text.replace("[simulate]", "[simulate]\ntiers = { b2 = 1, b4 = 3 }"), batch=4)
    assert groups == [[f"client-{number}" for number in range(4)]]
    ends = {c["name"]: c["metrics"]["finish"]["packed_bytes"] for c in result.record["clients"]}
    assert ends["client-0"] < ends["client-1"] == ends["client-2"] == ends["client-3"]


PRUNED = """
[[tiers]]
name = "{name}"
down_bits = {bits}
settings = {{ plan = "tier", group = {group}, keep = {keep}, upload_keep = {sent} }}
"""


def test_subnetworks_that_train_together_have_masks_on_the_same_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of layers that are not sent where less than all of them comes down; of sparse uploads too."""
    tiers = {
        "half": PRUNED.format(name="half", bits=32, group=0, keep=0.5, sent=1.0),
        "narrow": PRUNED.format(name="narrow", bits=8, group=0, keep=0.5, sent=1.0),
        "other": PRUNED.format(name="other", bits=32, group=1, keep=0.5, sent=1.0),
        "whole": PRUNED.format(name="whole", bits=32, group=0, keep=1.0, sent=1.0),
        "sparse": PRUNED.format(name="sparse", bits=32, group=0, keep=1.0, sent=0.5),
    }
    groups, masked, plain = groups_of(FedP3, monkeypatch), [], FedP3._moving

    def noted(self: FedP3, context: ClientContext, *rest: Any) -> Any:
        found = plain(self, context, *rest)
        masked.append((context.task.client, frozenset(found)))
        return found

    monkeypatch.setattr(FedP3, "_moving", noted)
    text = run(algorithm="fedp3", clients=10, rounds=1, sections="".join(tiers.values()))
    counts = ", ".join(f"{name} = 2" for name in tiers)
    result = simulate(text.replace("[simulate]", f"[simulate]\ntiers = {{ {counts} }}"), batch=10)
    assert result.status == "finished", result.reason
    assert groups == [[f"client-{n}" for n in some] for some in (range(4), (4, 5), (6, 7), (8, 9))]
    by_client = dict(masked)
    (half,), (other,), (whole,), (sparse,) = ({by_client[c] for c in group} for group in groups)
    assert len({half, other, whole, sparse}) == 4
    assert half
    assert not whole


def test_masks_of_unequal_plans_are_not_mixed() -> None:
    first, second = (dict.fromkeys(names, np.ones((2, 2), np.bool_)) for names in ("ab", "abc"))
    assert stacked([first, first], "cpu")["a"].shape == (2, 2, 2)
    with pytest.raises(AssertionError, match="unequal plans"):
        stacked([first, second], "cpu")


def test_a_workload_that_is_not_batchable_gives_the_models_of_one_by_one(
    groups: list[list[str]],
) -> None:
    text = one_thread(run(clients=4)).replace('name = "digits"', 'name = "alone"')
    mappings = {"alone": "test_batches:Alone"}
    together, alone = (simulate(text, mappings=mappings, batch=b) for b in (4, 1))
    assert groups == []
    assert models(together.record) == models(alone.record)


def one_thread(text: str) -> str:
    """Without this clients that train together get all cores, and sums another order."""
    return text.replace("[simulate]", "[simulate]\nthreads = 1")


def models(record: Mapping[str, Any]) -> list[str]:
    return [e["state_after"] for e in record["history"]]


PHONE = '[[tiers]]\nname = "phone"\nvariant = "cnn1"\nbits = 2\n'
BITS = '[[tiers]]\nname = "phone"\nbits = {bits}\n'
UP = "[wire]\nup_bits = 4\n"
SECTIONS = dict.fromkeys(registry.names(), "") | {
    "quped": PHONE,
    "local": PHONE,
    "fedmpq": BITS.format(bits=2),
    "qupel": BITS.format(bits=2),
    "proxquant": BITS.format(bits=1) + 'settings = { scale = "magnitude" }\n',
    "binaryrelax": BITS.format(bits=1),
    "fedpaq": UP,
    "uveqfed": UP,
}


@pytest.mark.parametrize("algorithm", registry.names())
def test_a_batched_run_measures_what_one_by_one_does(algorithm: str) -> None:
    """Few steps: rounding has no time to grow, but for what moves a value to another level.

    A method that has no batched form is equal.
    """
    text = run(algorithm=algorithm, clients=4, rules="count = 3", sections=SECTIONS[algorithm])
    text = one_thread(text)
    alone, together = (simulate(text, batch=batch) for batch in (1, 4))
    assert [alone.status, together.status] == ["finished"] * 2, together.reason
    for one, other in zip(alone.record["history"], together.record["history"], strict=True):
        assert list(one["clients"]) == list(other["clients"])
        assert one["metrics"].keys() == other["metrics"].keys()
        bound = 1e-3 if SECTIONS[algorithm] == UP else 1e-4
        assert other["metrics"]["loss"] == pytest.approx(one["metrics"]["loss"], abs=bound)
    if not registry.find(algorithm).trains_together:
        assert models(alone.record) == models(together.record)


SEEDS = range(5)


@pytest.mark.parametrize("algorithm", ["fedavg", "quped", "fedmpq", "fedp3"])
def test_whole_runs_agree_within_two_standard_errors(algorithm: str) -> None:
    means = []
    for batch in (1, 4):
        scores = [accuracy(algorithm, seed, batch) for seed in SEEDS]
        means.append((np.mean(scores), np.std(scores, ddof=1) / np.sqrt(len(scores))))
    (alone, error), (together, other) = means
    assert abs(alone - together) <= 2 * max(error, other, 0.002)


def accuracy(algorithm: str, seed: int, batch: int) -> float:
    """Return the mean over clients of their final accuracy on their own samples."""
    text = run(algorithm=algorithm, clients=4, rounds=2, sections=SECTIONS[algorithm])
    text = text.replace("seed = 3", f"seed = {seed}").replace("local_steps = 2", "local_steps = 20")
    text = text.replace("every = 2", "every = 0")  # `finish` measures the same once more
    result = simulate(one_thread(text), batch=batch)
    return float(np.mean([c["metrics"]["finish"]["accuracy"] for c in result.record["clients"]]))


class Failing(Digits):
    """A loss that one client's targets break."""

    def loss(self, outputs: Any, targets: Any) -> Any:
        if int(targets.max()) > 9:
            raise RuntimeError("no such class")
        return super().loss(outputs, targets)

    def load(self, spec: DataSpec) -> LocalData:
        data = super().load(spec)
        if spec.options["client"] == "1":
            data.train.targets[:] = 99
        return data


def test_a_workload_that_fails_for_one_client_fails_for_that_one_alone() -> None:
    text = run(clients=3, rounds=1).replace('name = "digits"', 'name = "failing"')
    result = simulate(text, mappings={"failing": "test_batches:Failing"}, batch=3)
    assert result.status == "finished"
    cohort = result.record["history"][0]["clients"]
    assert {name: c["status"] for name, c in cohort.items()} == {
        "client-0": "counted",
        "client-1": "failed",
        "client-2": "counted",
    }
    assert "no such class" in cohort["client-1"]["reason"]


class Untestable(Failing):
    """Test samples that break the loss, of one client."""

    def load(self, spec: DataSpec) -> LocalData:
        data = Digits.load(self, spec)
        if spec.options["client"] == "1":
            data.test.targets[:] = 99
        return data


def test_test_samples_that_fail_a_client_fail_that_one_alone() -> None:
    text = run(clients=3, rounds=1).replace('name = "digits"', 'name = "failing"')
    result = simulate(text, mappings={"failing": "test_batches:Untestable"}, batch=3)
    tested = next(e for e in result.record["history"] if e["kind"] == "evaluate")
    assert {name: c["status"] for name, c in tested["clients"].items()} == {
        "client-0": "done",
        "client-1": "failed",
        "client-2": "done",
    }
    finished = {c["name"]: "finish" in c["metrics"] for c in result.record["clients"]}
    assert finished == {"client-0": True, "client-1": False, "client-2": True}
