"""QuPeD over rounds: state, schedule, fine-tuning, what is kept on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.testing as npt
import pytest
import torch
from torch import nn
from toy import CLASSES, SEED, Toy, context, first_broadcast, member, run, sent

from motley.algorithms.base import Algorithm, Tensors
from motley.algorithms.local import Local
from motley.algorithms.quped import QuPeD
from motley.errors import PlanError
from motley.plan import FULL_PRECISION
from motley.workload import Variant

Values = dict[str, bool | int | float | str]
SETTINGS: Values = {
    "local_steps": 6,
    "batch_size": 8,
    "learning_rate": 0.2,
    "iterations_per_epoch": 4,
    "centre_rate": 0.01,
}
QUANTIZED = ("fc2.weight", "fc3.weight")


def same(one: Tensors | None, other: Tensors | None) -> None:
    assert one is not None
    assert other is not None
    assert list(one) == list(other)
    for name in one:
        npt.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("bits", [FULL_PRECISION, 2])
def test_same_inputs_same_bytes(bits: int) -> None:
    algorithm = QuPeD.configure(SETTINGS)
    one, other = (run(algorithm, member(bits), 3) for _ in range(2))
    same(one.personal, other.personal)
    same(one.update, other.update)
    assert one.metrics == other.metrics


@pytest.mark.parametrize("method", [QuPeD, Local])
@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("bits", [FULL_PRECISION, 1, 2])
def test_two_tasks_are_one_long_task(method: type[Algorithm], mode: str, bits: int) -> None:
    """With one client the average is its own copy of w, so cutting the run changes nothing."""
    short = method.configure({**SETTINGS, "mode": mode, "finetune_fraction": 0.4})
    long = method.configure({**SETTINGS, "mode": mode, "finetune_fraction": 0.4, "local_steps": 24})
    one, other = run(short, member(bits), 4), run(long, member(bits), 1)
    same(one.personal, other.personal)
    same(one.update, other.update)


def test_schedule_follows_the_run_not_the_client() -> None:
    """A client first sampled in round 3 trains there as the plan's iteration says."""
    algorithm = QuPeD.configure({**SETTINGS, "lr_decay": 0.5})
    late = context(algorithm, member(1), 3, 4)
    assert late.plan.iteration == 12
    first = algorithm.train(context(algorithm, member(1), 1, 4), sent(first_broadcast()), None)
    third = algorithm.train(late, sent(first_broadcast()), None)

    def moved(update: Tensors) -> float:
        start = first_broadcast()
        return max(float(np.abs(update[name] - start[name]).max()) for name in start)

    assert moved(third.update) < 0.3 * moved(first.update)


@pytest.mark.parametrize(("bits", "count"), [(1, 2), (2, 4)])
def test_fine_tuning_keeps_as_many_values_as_centres(bits: int, count: int) -> None:
    algorithm = QuPeD.configure({**SETTINGS, "finetune_fraction": 0.5})
    broadcast, personal = first_broadcast(), None
    states = []
    for number in range(1, 5):
        trained = algorithm.train(
            context(algorithm, member(bits), number, 4), sent(broadcast), personal
        )
        broadcast, personal = trained.update, trained.personal
        assert personal is not None
        states.append(personal)
    for name in QUANTIZED:
        assert f"codes/{name}" not in states[1]
        for state in states[2:]:
            centres, codes = state[f"centres/{name}"], state[f"codes/{name}"]
            assert centres.shape == (count,)
            npt.assert_array_equal(state[f"model/{name}"], centres[codes])
        # Cells are frozen, centres and tensors in full precision still move.
        npt.assert_array_equal(states[2][f"codes/{name}"], states[3][f"codes/{name}"])
        assert (states[2][f"centres/{name}"] != states[3][f"centres/{name}"]).any()
    assert (states[2]["model/fc1.weight"] != states[3]["model/fc1.weight"]).any()


def test_a_client_that_comes_in_for_fine_tuning_is_frozen_from_its_next_task_on() -> None:
    """Before it, nothing was learnt that could be kept; who begins before is frozen amid a task."""
    algorithm = QuPeD.configure({**SETTINGS, "finetune_fraction": 0.5})
    broadcast, personal, frozen = first_broadcast(), None, []
    for number in (3, 4):
        task = context(algorithm, member(1), number, 4)
        personal = algorithm.train(task, sent(broadcast), personal).personal
        assert personal is not None
        frozen.append(f"codes/{QUANTIZED[0]}" in personal)
    assert frozen == [False, True]
    early = QuPeD.configure({**SETTINGS, "finetune_fraction": 0.9})
    first = early.train(context(early, member(1), 1, 4), sent(broadcast), None).personal
    assert first is not None
    assert f"codes/{QUANTIZED[0]}" in first


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_what_is_evaluated_is_quantized(fraction: float) -> None:
    algorithm = QuPeD.configure({**SETTINGS, "finetune_fraction": fraction})
    trained = run(algorithm, member(2), 2)
    task = context(algorithm, member(2), 2, 2)
    variant, tensors = algorithm.model_for(task, "personal", sent(trained.update), trained.personal)
    assert variant == "own"
    for name, values in tensors.items():
        few = np.unique(values).size <= 4
        assert few == (name in QUANTIZED or values.size <= 4)
    variant, tensors = algorithm.model_for(task, "global", sent(trained.update), trained.personal)
    assert variant == "shared"
    same(tensors, trained.update)


class Normalised(nn.Module):
    """A small network in float32 with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.fc2, self.fc3 = nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.fc1(x.float())))
        out: torch.Tensor = self.fc3(torch.relu(self.fc2(hidden)))
        return out


class Float32(Toy):
    def variants(self) -> Mapping[str, Variant]:
        return {"shared": Variant(Normalised), "own": Variant(Normalised)}


def trained_float32(
    bits: int, fraction: float
) -> tuple[Algorithm, Tensors, Tensors, dict[str, np.ndarray]]:
    from motley.training.personal import initial_tensors

    algorithm = QuPeD.configure({**SETTINGS, "finetune_fraction": fraction})
    start = initial_tensors(Float32().variants()["shared"], "shared", SEED)
    broadcast, personal = start, None
    for number in (1, 2):
        task = context(algorithm, member(bits, workload=Float32()), number, 2, Float32())
        trained = algorithm.train(task, sent(broadcast), personal)
        broadcast, personal = trained.update, trained.personal
    assert personal is not None
    return algorithm, broadcast, personal, start


@pytest.mark.parametrize("bits", [FULL_PRECISION, 1, 3])
@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_finish_packs_what_was_evaluated(bits: int, fraction: float) -> None:
    algorithm, broadcast, personal, _ = trained_float32(bits, fraction)
    task = context(algorithm, member(bits, workload=Float32()), 2, 2, Float32())
    finished = algorithm.finish(task, sent(broadcast), personal)
    _, tensors = algorithm.model_for(task, "personal", sent(broadcast), personal)
    assert list(finished.model) == list(tensors)
    for name, encoded in finished.model.items():
        npt.assert_array_equal(encoded.decode(), tensors[name])
        assert encoded.decode().dtype == tensors[name].dtype
    if bits == FULL_PRECISION:
        assert finished.metrics == {}
    else:
        assert finished.model["fc2.weight"].nbytes == 4 * 2**bits + 64 * bits // 8
        assert 0 <= finished.metrics["unused_centres"] < 2**bits
        assert 0 < finished.metrics["centre_updates_moved"] <= 1


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_buffers_travel_and_are_those_of_the_deployed_model(fraction: float) -> None:
    _, broadcast, personal, start = trained_float32(1, fraction)
    assert (broadcast["norm.running_mean"] != start["norm.running_mean"]).any()
    assert int(broadcast["norm.num_batches_tracked"]) == 12
    assert (personal["model/norm.running_var"] != start["norm.running_var"]).any()
    assert broadcast["norm.num_batches_tracked"].dtype == np.int64


def test_exact_centre_step_locks_centres_and_linear_does_not() -> None:
    def share(step: str) -> float:
        algorithm = Local.configure(
            {**SETTINGS, "centre_step": step, "penalty": 30.0, "finetune_fraction": 0.0}
        )
        task = context(algorithm, member(1), 4, 4)
        moved, updates = run(algorithm, member(1), 4).personal["centre_updates"]  # type: ignore[index]
        assert task.plan.bits == {"fc2": 1, "fc3": 1}
        return float(moved / updates)

    assert share("exact") < 0.9 < share("linear")


def test_automatic_penalty_is_kept_with_the_state() -> None:
    algorithm = Local.configure(SETTINGS)
    task = context(algorithm, member(2), 1, 4)
    first = algorithm.state_of(task, None)
    assert first["penalty"][0] > 0
    last = run(algorithm, member(2), 4).personal
    assert last is not None
    assert last["penalty"][0] == first["penalty"][0]
    explicit = Local.configure({**SETTINGS, "penalty": 0.125})
    assert explicit.state_of(task, None)["penalty"][0] == 0.125


def test_a_plan_that_does_not_fit_is_refused() -> None:
    algorithm = QuPeD.configure(SETTINGS)
    state = run(algorithm, member(2), 1).personal
    with pytest.raises(PlanError, match="cannot change within a run"):
        algorithm.train(context(algorithm, member(1), 2, 2), sent(first_broadcast()), state)
    # Quantizing a unit of another variant.
    task = context(algorithm, member(1), 1, 1)
    object.__setattr__(task.task.plan, "bits", {"fc9": 1})
    with pytest.raises(PlanError, match="'fc9'"):
        algorithm.train(task, sent(first_broadcast()), None)


def test_only_quantized_units_get_the_tiers_bits() -> None:
    assert context(QuPeD.configure({}), member(2), 1, 1).plan.bits == {"fc2": 2, "fc3": 2}
    assert context(QuPeD.configure({}), member(FULL_PRECISION), 1, 1).plan.bits == {}


class Blocks(Toy):
    """The same models, with the hidden layers of a client's own as one unit."""

    def variants(self) -> Mapping[str, Variant]:
        variants = dict(super().variants())
        hidden = {"fc2": "hidden", "fc3": "hidden"}
        return {**variants, "own": replace(variants["own"], units=hidden)}


def test_layers_of_one_unit_get_its_bits_and_centres_each() -> None:
    algorithm, workload = QuPeD.configure(SETTINGS), Blocks()
    broadcast, personal = first_broadcast(), None
    for number in (1, 2):
        task = context(algorithm, member(2, workload=workload), number, 2, workload)
        assert task.plan.bits == {"hidden": 2}
        trained = algorithm.train(task, sent(broadcast), personal)
        broadcast, personal = trained.update, trained.personal
    layers = run(algorithm, member(2), 2)
    same(personal, layers.personal)
    same(broadcast, layers.update)
