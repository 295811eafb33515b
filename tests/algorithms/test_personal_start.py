"""Where a personal model begins: drawn from the seed, or the global model as it came down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy.testing as npt
import pytest
from pydantic import ValidationError
from together import contexts, global_model

from motley.algorithms import registry
from motley.algorithms.base import Broadcast, ClientContext, Tensors
from motley.algorithms.local import Local
from motley.algorithms.personal_model import PersonalModel
from motley.execution.executor import Executor
from motley.execution.together import Assignment, run_together
from motley.models.units import variant_table
from motley.training.personal import deployed_tensors, initial_tensors
from motley.wire import encode_dense, quantize_uniform, write_payload
from motley.workload import Scalar
from motley.workloads.digits import Digits

SETTINGS: Mapping[str, Scalar] = {"local_steps": 2, "batch_size": 8, "learning_rate": 0.05}
METHODS = ("quped", "fml")


def method(name: str, **settings: Scalar) -> PersonalModel:
    algorithm = registry.find(name).configure({**SETTINGS, **settings})
    assert isinstance(algorithm, PersonalModel)
    return algorithm


def received(context: ClientContext, variant: str = "cnn1") -> tuple[ClientContext, Broadcast]:
    """Return a context as an executor makes it, and a model that no seed of the run draws."""
    broadcast = global_model(Digits(), variant, seed=99)
    task = replace(context.task, global_variant=variant)
    return replace(context, task=task, received=broadcast), broadcast


def drawn(context: ClientContext) -> Tensors:
    name = context.plan.variant
    return initial_tensors(Digits().variants()[name], name, context.task.run_seed)


def same(found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    assert list(found) == list(expected)
    for name in expected:
        npt.assert_array_equal(found[name], expected[name])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHODS)
def test_the_global_model_where_it_is_asked_for_and_fits(name: str) -> None:
    shared, seeded = method(name, personal_start="global"), method(name)
    context, broadcast = received(contexts(Digits(), shared, "cnn1")[0])
    same(deployed_tensors(shared.state_of(context, None)), broadcast.tensors)
    plain, _ = received(contexts(Digits(), seeded, "cnn1")[0])
    same(deployed_tensors(seeded.state_of(plain, None)), drawn(plain))
    # Another size, or nothing came down: drawn.
    other, _ = received(contexts(Digits(), shared, "cnn1")[0], "mlp")
    same(deployed_tensors(shared.state_of(other, None)), drawn(other))
    none = replace(context, received=None)
    same(deployed_tensors(shared.state_of(none, None)), drawn(none))
    # A state that is there is gone on with.
    state = seeded.state_of(context, None)
    assert shared.state_of(context, state) is state


def test_centres_are_those_of_the_global_models_weights() -> None:
    shared = method("quped", personal_start="global")
    bits = {"conv2": 1, "fc1": 2}
    context, broadcast = received(contexts(Digits(), shared, "cnn1", bits=bits)[0])
    state = shared.state_of(context, None)
    weights = broadcast.tensors["conv2.weight"]
    centres = [weights[weights < 0].mean(), weights[weights >= 0].mean()]
    npt.assert_allclose(state["centres/conv2.weight"], centres, rtol=1e-6)
    same({"w": state["model/fc2.weight"]}, {"w": broadcast.tensors["fc2.weight"]})


def test_a_model_that_came_down_in_few_bits_is_pulled_as_any_other() -> None:
    """Its weights lie on levels that the first centres fall on: their distance tells nothing."""
    shared = method("quped", personal_start="global")
    context, broadcast = received(contexts(Digits(), shared, "cnn1", bits={"fc1": 2})[0])
    plain = shared.state_of(replace(context, received=None), None)["penalty"]
    few = {
        name: quantize_uniform(values, 2, None) if name == "fc1.weight" else encode_dense(values)
        for name, values in broadcast.tensors.items()
    }
    plan = replace(context.plan, down_bits=2)
    context = replace(context, received=Broadcast(few), task=replace(context.task, plan=plan))
    assert shared.state_of(context, None)["penalty"] >= plain > 0


def test_it_is_for_methods_with_a_global_model() -> None:
    with pytest.raises(ValidationError, match="personal_start"):
        Local.configure({**SETTINGS, "personal_start": "global"})
    with pytest.raises(ValidationError, match="'seed' or 'global'"):
        method("quped", personal_start="first")


class Store:
    """Keeps one state."""

    def __init__(self) -> None:
        self.state: Tensors | None = None

    def load(self, version: str) -> Tensors | None:
        return self.state

    def save(self, version: str, tensors: Tensors) -> None:
        self.state = tensors


@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
def test_a_client_that_runs_its_first_task_begins_there(tmp_path: Path, together: bool) -> None:
    """A rate of next to nothing: what is kept after the task is what it began with."""
    still = method("fml", learning_rate=1e-30, personal_start="global")
    clients = contexts(Digits(), still, "cnn1", sizes=(8, 8))[: 2 if together else 1]
    broadcast, path = global_model(Digits(), "cnn1", seed=99), tmp_path / "broadcast"
    table = variant_table(Digits().variants()["cnn1"]).tensor_table
    encoded = [(name, encode_dense(values)) for name, values in broadcast.tensors.items()]
    digest = write_payload(path, encoded, table).sha256
    stores = [Store() for _ in clients]
    work = [
        Assignment(
            executor=Executor(Digits(), context.data),
            task=replace(context.task, payload_sha256=digest),
            personal=store,
            broadcast=path,
            update=tmp_path / f"{context.task.client}.update",
            model=tmp_path / f"{context.task.client}.model",
            privacy=None,
        )
        for context, store in zip(clients, stores, strict=True)
    ]
    for outcome in run_together(work, 2):
        assert not isinstance(outcome, Exception)
    for store in stores:
        assert store.state is not None
        for name, values in deployed_tensors(store.state).items():
            npt.assert_allclose(values, broadcast.tensors[name], rtol=0, atol=1e-25)
