"""Full precision is plain SGD: FedAvg's clients bit for bit, training alone too."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.testing as npt
import pytest
import torch
from pydantic import ValidationError
from toy import SEED, Toy, context, first_broadcast, member, run, sent

from motley.algorithms import registry
from motley.algorithms.base import Tensors
from motley.algorithms.fedavg import FedAvg
from motley.algorithms.local import Local
from motley.errors import PlanError, TrainingError
from motley.models.units import load_tensors, read_tensors
from motley.plan import FULL_PRECISION
from motley.training.batches import Batches
from motley.training.personal import initial_tensors
from motley.workload import DataSpec

SETTINGS: dict[str, bool | int | float | str] = {
    "local_steps": 5,
    "batch_size": 7,
    "learning_rate": 0.3,
    "lr_decay": 0.8,
    "iterations_per_epoch": 4,
    "weight_decay": 0.02,
}


def batches(steps: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    data = Toy().load(DataSpec("toy")).train
    draw = Batches(len(data), seed=SEED, client="c0", batch_size=7)
    for t in range(steps):
        index = draw(t)
        yield t, torch.from_numpy(data.inputs[index]), torch.from_numpy(data.targets[index])


def plain_sgd(variant: str, start: Tensors, steps: int, momentum: float = 0.0) -> Tensors:
    """Do what the settings say with torch's own optimizer."""
    module = Toy().variants()[variant].build()
    load_tensors(module, start)
    sgd = torch.optim.SGD(module.parameters(), lr=0.3, momentum=momentum, weight_decay=0.02)
    for t, inputs, targets in batches(steps):
        sgd.param_groups[0]["lr"] = 0.3 * 0.8 ** (t // 4)
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs), targets).backward()
        sgd.step()
    return read_tensors(module)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_fedavg_client_is_plain_sgd(momentum: float) -> None:
    fedavg = FedAvg.configure({**SETTINGS, "momentum": momentum})
    trained = fedavg.train(
        context(fedavg, member(FULL_PRECISION, "shared"), 1, 1),
        sent(first_broadcast()),
        None,
    )
    expected = plain_sgd("shared", first_broadcast(), 5, momentum)
    assert list(trained.update) == list(expected)
    for name, values in expected.items():
        npt.assert_array_equal(trained.update[name], values)
    assert trained.personal is None
    assert trained.samples == 30


def test_training_alone_is_plain_sgd() -> None:
    local = Local.configure(SETTINGS)
    personal = run(local, member(FULL_PRECISION), rounds=3).personal
    assert personal is not None
    start = initial_tensors(Toy().variants()["own"], "own", SEED)
    for name, values in plain_sgd("own", start, 15).items():
        npt.assert_array_equal(personal[f"model/{name}"], values)


def test_fedavg_weighs_by_samples_or_equally() -> None:
    scalars = {"a": {"samples": 10.0}, "b": {"samples": 30.0}}
    assert FedAvg.configure({}).coefficients(scalars) == {"a": 10.0, "b": 30.0}
    equal = FedAvg.configure({"weighting": "uniform"})
    assert equal.coefficients(scalars) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("name", registry.names())
def test_a_misspelt_setting_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=r"learning_rat\b"):
        registry.find(name).configure({"learning_rat": 0.1})


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("setting", ["learning_rate", "local_steps"])
def test_a_setting_out_of_range_is_refused(name: str, setting: str) -> None:
    with pytest.raises(ValidationError, match=setting):
        registry.find(name).configure({setting: -1})


@pytest.mark.parametrize("name", ["fedavg", "local", "quped"])
def test_a_loss_that_is_not_finite_says_where(name: str) -> None:
    algorithm = registry.find(name).configure({**SETTINGS, "learning_rate": 1e200})
    who = member(FULL_PRECISION, "shared" if name == "fedavg" else "own")
    task = context(algorithm, who, 2, 3)
    broadcast = first_broadcast() if algorithm.has_global_model else {}
    with pytest.raises(TrainingError, match=r"'c0' became .* at iteration [67] \(round 2"):
        algorithm.train(task, sent(broadcast), None)


def test_training_alone_has_no_global_model() -> None:
    local = Local.configure(SETTINGS)
    assert not local.has_global_model
    task = context(local, member(FULL_PRECISION), 1, 1)
    with pytest.raises(PlanError, match="no global model"):
        local.model_for(task, "global", sent({}), None)
    variant, tensors = local.model_for(task, "personal", sent({}), None)
    start = initial_tensors(Toy().variants()["own"], "own", SEED)
    assert variant == "own"
    assert all(np.array_equal(tensors[name], start[name]) for name in start)
