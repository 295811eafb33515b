"""The fast local step against a naive one, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from naive import Naive
from toy import Toy, context, first_broadcast, member, sent

from motley.algorithms.base import Tensors
from motley.algorithms.local import Local
from motley.algorithms.quped import QuPeD
from motley.models.mlp import MLP
from motley.plan import FULL_PRECISION
from motley.training.batches import Batches
from motley.workload import DataSpec

STEPS = 6
SETTINGS: dict[str, bool | int | float | str] = {
    "local_steps": STEPS,
    "batch_size": 8,
    "learning_rate": 0.2,
    "lr_decay": 0.9,
    "iterations_per_epoch": 2,
    "weight_decay": 0.01,
    "centre_rate": 0.02,
    "shared_rate": 0.7,
    "distillation": 0.3,
    "penalty": 0.05,
    "finetune_fraction": 0.0,
}


def named(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values.copy()) for name, values in tensors.items()}


def naive_client(state: Tensors, **options: bool | float) -> Naive:
    def under(kind: str) -> dict[str, torch.Tensor]:
        return named({k.split("/")[1]: v for k, v in state.items() if k.startswith(kind + "/")})

    variants = Toy().variants()
    return Naive(
        student=variants["own"].build(),
        teacher=variants["shared"].build(),
        x=under("model"),
        w=named(first_broadcast()),
        c=under("centres"),
        sharpness=under("sharpness"),
        longest=under("longest"),
        **options,
    )


def follow(client: Naive, penalty: float = 0.05, eta3: float = 0.7) -> None:
    """Do the steps of one task as the settings say."""
    data = Toy().load(DataSpec("toy")).train
    batches = Batches(len(data), seed=5, client="c0", batch_size=8)
    for t in range(STEPS):
        index = batches(t)
        factor = 0.9 ** (t // 2)
        client.step(
            torch.from_numpy(data.inputs[index]),
            torch.from_numpy(data.targets[index]),
            eta1=0.2 * factor,
            eta2=0.02 * factor,
            eta3=eta3 * factor,
            lam=penalty * (t // 2 + 1),
            decay=0.01,
        )


def check(state: Tensors, update: Tensors, client: Naive) -> None:
    for name, values in client.x.items():
        np.testing.assert_allclose(state[f"model/{name}"], values, rtol=0, atol=1e-12)
    for name, values in client.c.items():
        np.testing.assert_allclose(state[f"centres/{name}"], values, rtol=0, atol=1e-12)
    for name, values in update.items():
        np.testing.assert_allclose(values, client.w[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("bits", [FULL_PRECISION, 1, 2])
@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("centre_step", ["linear", "exact"])
def test_a_task_is_algorithm_2(bits: int, mode: str, centre_step: str) -> None:
    quped = QuPeD.configure({**SETTINGS, "mode": mode, "centre_step": centre_step})
    task = context(quped, member(bits), 1, 1)
    trained = quped.train(task, sent(first_broadcast()), None)
    client = naive_client(
        quped.state_of(task, None), soft=mode == "soft", exact=centre_step == "exact"
    )
    follow(client)
    assert trained.personal is not None
    assert len(client.c) == (0 if bits == FULL_PRECISION else 2)
    check(trained.personal, trained.update, client)


@pytest.mark.parametrize("centres", [1, 3, 20])
def test_any_number_of_centres(centres: int) -> None:
    quped = QuPeD.configure({**SETTINGS, "centres": centres})
    task = context(quped, member(2), 1, 1)
    trained = quped.train(task, sent(first_broadcast()), None)
    client = naive_client(quped.state_of(task, None))
    follow(client)
    assert trained.personal is not None
    check(trained.personal, trained.update, client)


def test_temperature() -> None:
    quped = QuPeD.configure({**SETTINGS, "temperature": 3.0})
    task = context(quped, member(1), 1, 1)
    trained = quped.train(task, sent(first_broadcast()), None)
    client = naive_client(quped.state_of(task, None), temperature=3.0)
    follow(client)
    assert trained.personal is not None
    check(trained.personal, trained.update, client)


@pytest.mark.parametrize("bits", [FULL_PRECISION, 1])
def test_training_alone_is_algorithm_1(bits: int) -> None:
    """Without a teacher: λ_p = 0, and the shared model stays where it is."""
    own = {k: v for k, v in SETTINGS.items() if k not in ("shared_rate", "distillation")}
    local = Local.configure(own)
    task = context(local, member(bits), 1, 1)
    trained = local.train(task, sent({}), None)
    client = naive_client(local.state_of(task, None), share=0.0)
    follow(client, eta3=0.0)
    assert trained.update == {}
    assert trained.personal is not None
    check(trained.personal, {}, client)


@pytest.mark.parametrize(
    ("bits", "mode", "frozen", "expected"),
    [
        (1, "hard", 0.0, (5, 3)),
        (1, "soft", 0.0, (6, 4)),
        (1, "hard", 1.0, (3, 2)),
        (FULL_PRECISION, "hard", 0.0, (3, 2)),
    ],
)
def test_passes_of_an_iteration(
    monkeypatch: pytest.MonkeyPatch, bits: int, mode: str, frozen: float, expected: tuple[int, int]
) -> None:
    """Count (forward, backward) passes: w once with its graph, x and Q(x) before and after."""
    quped = QuPeD.configure({**SETTINGS, "mode": mode, "finetune_fraction": frozen})
    forward, backward = [], []
    gradient, call = torch.autograd.grad, MLP.forward

    def counted_gradient(*arguments: Any, **options: Any) -> Any:
        backward.append(1)
        return gradient(*arguments, **options)

    def counted_call(self: MLP, x: torch.Tensor) -> torch.Tensor:
        forward.append(1)
        return call(self, x)

    monkeypatch.setattr(torch.autograd, "grad", counted_gradient)
    monkeypatch.setattr(MLP, "forward", counted_call)
    quped.train(context(quped, member(bits), 1, 1), sent(first_broadcast()), None)
    assert (len(forward), len(backward)) == (expected[0] * STEPS, expected[1] * STEPS)
