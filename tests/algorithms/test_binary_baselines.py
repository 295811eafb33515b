"""ProxQuant and BinaryRelax against short loops of their papers' update rules, in float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.testing as npt
import pytest
import torch
from loops import binaryrelax, proxquant
from pydantic import ValidationError
from test_baselines import batches, module
from test_quped import Float32, same
from test_quped_step import named
from together import IN_DOUBLES, DoubleDigits, assert_close, contexts
from toy import SEED, Toy, context, member, run, sent

from motley.algorithms import registry
from motley.algorithms.base import Algorithm, Tensors
from motley.algorithms.binaryrelax import BinaryRelax
from motley.algorithms.local import Local
from motley.algorithms.proxquant import ProxQuant
from motley.errors import PlanError, RunFileError, TrainingError
from motley.models.units import variant_table
from motley.plan import FULL_PRECISION
from motley.quantize.centres import initial_centres
from motley.runfile import parse
from motley.training.personal import initial_tensors
from motley.wire import Codebook
from motley.workloads.digits import Digits

SETTINGS: dict[str, bool | int | float | str] = {
    "local_steps": 10,
    "batch_size": 7,
    "learning_rate": 0.2,
    "iterations_per_epoch": 3,
}
QUANTIZED = ("fc2.weight", "fc3.weight")
BOTH = [ProxQuant, BinaryRelax]


def start() -> Tensors:
    return initial_tensors(Toy().variants()["own"], "own", SEED)


def check(state: Tensors | None, expected: Mapping[str, torch.Tensor]) -> None:
    assert state is not None
    for name, values in expected.items():
        npt.assert_allclose(state[f"model/{name}"], values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("penalty", [0.05, 1.0])
@pytest.mark.parametrize("frozen", [0, 8])
def test_proxquant_is_its_binary_prox(penalty: float, frozen: int) -> None:
    method = ProxQuant.configure({**SETTINGS, "penalty": penalty, "finetune_iterations": frozen})
    # Two tasks of ten iterations.
    state = run(method, member(1), 2).personal
    expected = proxquant(
        module("own"),
        named(start()),
        QUANTIZED,
        batches(0, 20),
        rate=0.2,
        threshold=lambda t: 0.2 * penalty * (t // 3 + 1),
        freeze_at=20 - frozen,
    )
    check(state, expected)
    assert state is not None
    for name in QUANTIZED:
        npt.assert_array_equal(state[f"centres/{name}"], [-1.0, 1.0])
        if frozen:
            assert set(np.unique(state[f"model/{name}"])) == {-1.0, 1.0}
    # The penalty did something, and the clip too where it is strong.
    on_the_values = float((np.abs(state["model/fc2.weight"]) == 1).mean())
    assert on_the_values > 0.5 if penalty == 1 or frozen else on_the_values < 0.5


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_proxquant_scales_to_the_layer_and_keeps_weights_between_its_values(factor: float) -> None:
    scaled = {"scale": "magnitude", "scale_factor": factor}
    method = ProxQuant.configure({**SETTINGS, **scaled, "finetune_fraction": 0.0})
    state = run(method, member(1), 2).personal
    assert state is not None
    for name in QUANTIZED:
        scale = factor * np.abs(start()[name]).mean()
        npt.assert_allclose(state[f"centres/{name}"], [-scale, scale], rtol=1e-15)
        assert np.abs(state[f"model/{name}"]).max() <= scale


def test_proxquant_automatic_penalty_carries_weights_to_their_values() -> None:
    """Moves of η λ, summed over the iterations before fine-tuning, are the mean distance."""
    method = ProxQuant.configure({**SETTINGS, "finetune_fraction": 0.4})
    first = method.state_of(context(method, member(1), 1, 2), None)
    distance = np.concatenate([(1 - np.abs(start()[n])).ravel() for n in QUANTIZED])
    steps = sum(0.2 * first["penalty"][0] / 2 * (t // 3 + 1) for t in range(12))
    npt.assert_allclose(steps, np.abs(distance).mean(), rtol=1e-12)


@pytest.mark.parametrize("hard", [0.0, 0.4, 1.0])
def test_binaryrelax_is_its_algorithm_1(hard: float) -> None:
    method = BinaryRelax.configure(
        {**SETTINGS, "relaxation": 0.7, "growth": 1.5, "hard_fraction": hard}
    )
    state = run(method, member(1), 2).personal
    expected = binaryrelax(
        module("own"),
        named(start()),
        QUANTIZED,
        batches(0, 20),
        rate=0.2,
        relaxation=lambda t: 0.7 * 1.5 ** (t // 3),
        hard_from=20 - round(20 * hard),
    )
    check(state, expected)
    assert state is not None
    for name in QUANTIZED:
        scale = float(expected[name].abs().mean())
        npt.assert_allclose(state[f"centres/{name}"], [-scale, scale], rtol=1e-12)
    _, tensors = method.model_for(context(method, member(1), 2, 2), "personal", sent({}), state)
    for name, values in expected.items():
        wanted = values.abs().mean() * values.sign() if name in QUANTIZED else values
        npt.assert_allclose(tensors[name], wanted, rtol=0, atol=1e-12)


def test_the_projection_is_the_nearest_point() -> None:
    """Against all signs and a grid of scales, for a few weights."""
    from motley.training.relaxed import project

    torch.manual_seed(1)
    weights = torch.randn(1, 5, dtype=torch.float64)
    found = ((project(weights) - weights) ** 2).sum()
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 5)
    for scale in torch.linspace(0.01, 3, 200, dtype=torch.float64):
        assert found <= ((scale * signs - weights) ** 2).sum(1).min() + 1e-12


@pytest.mark.parametrize("method", BOTH)
def test_in_full_precision_both_are_plain_sgd(method: type[Algorithm]) -> None:
    one = run(method.configure(SETTINGS), member(FULL_PRECISION), 2).personal
    same(one, run(Local.configure(SETTINGS), member(FULL_PRECISION), 2).personal)


@pytest.mark.parametrize("method", BOTH)
def test_the_packed_model_is_the_evaluated_one(method: type[Algorithm]) -> None:
    """Statistics of BatchNorm included, which come from the model that ran."""
    workload, algorithm = Float32(), method.configure({**SETTINGS, "local_steps": 3})
    who, state = member(1, workload=workload), None
    fresh = initial_tensors(workload.variants()["own"], "own", SEED)
    for round_ in (1, 2, 3, 4):
        task = context(algorithm, who, round_, 4, workload)
        state = algorithm.train(task, sent({}), state).personal
        assert state is not None
        assert int(state["model/norm.num_batches_tracked"]) == 3 * round_
    assert state is not None
    assert (state["model/norm.running_mean"] != fresh["norm.running_mean"]).any()
    finished = algorithm.finish(task, sent({}), state)
    assert isinstance(finished.model["fc2.weight"].encoding, Codebook)
    packed = {name: tensor.decode() for name, tensor in finished.model.items()}
    same(packed, algorithm.model_for(task, "personal", sent({}), state)[1])
    assert np.unique(packed["fc2.weight"]).size == 2
    with pytest.raises(PlanError, match="no global model"):
        algorithm.model_for(task, "global", sent({}), state)


@pytest.mark.parametrize("start", ["unit", "magnitude"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_centres_that_start_at_fixed_places(start: str, count: int) -> None:
    weights = torch.tensor([[-3.0, 1.0, 2.0], [0.5, 0.5, 0.5]])
    ends = {"unit": [1.0, 1.0], "magnitude": [2.0, 0.5]}[start]
    found = initial_centres(weights, count, start)  # type: ignore[arg-type]
    if count == 1:
        npt.assert_array_equal(found, [[1.0], [0.5]])
        return
    wanted = [[-e, 0.0, e] if count == 3 else [-e, e] for e in ends]
    npt.assert_array_equal(found, wanted)


@pytest.mark.parametrize("variant", ["cnn1", "resnet20"])
def test_one_step_of_many_clients_is_that_of_each(variant: str) -> None:
    method = BinaryRelax.configure({"local_steps": 1, "batch_size": 12, "learning_rate": 0.05})
    workload, bound = (DoubleDigits(), IN_DOUBLES) if variant == "resnet20" else (Digits(), 1e-6)
    units = dict.fromkeys(variant_table(workload.variants()[variant]).quantized_units, 1)
    made = contexts(workload, method, variant, bits=units)
    found = method.train_together(made, [sent({})] * 4, [None] * 4)
    assert found is not None
    for task, together in zip(made, found, strict=True):
        alone = method.train(task, sent({}), None)
        assert not isinstance(together, TrainingError)
        assert together.personal is not None
        assert alone.personal is not None
        assert_close(together.personal, alone.personal, bound)
        assert together.metrics["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-5)


RUN = """
[run]
name = "r"
algorithm = "{name}"
rounds = 1
[workload]
name = "digits"
[clients]
expected = 1
[[tiers]]
name = "all"
{tier}
"""


@pytest.mark.parametrize(
    ("name", "tier", "message"),
    [
        ("proxquant", "bits = 2", "tiers.all.bits: proxquant knows 1 bit alone"),
        ("binaryrelax", "bits = 8", "tiers.all.bits: binaryrelax knows 1 bit alone"),
        ("fml", "bits = 2", "tiers.all.bits: fml trains in full precision"),
        ("pfedme", "bits = 2", "variant and bits have no place"),
        ("perfedavg", 'variant = "cnn2"', "variant and bits have no place"),
        ("qupel", 'variant = "cnn2"', "so variant has no place"),
    ],
)
def test_tiers_that_a_method_cannot_train_are_refused(name: str, tier: str, message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        parse(RUN.format(name=name, tier=tier))


@pytest.mark.parametrize(
    ("name", "tier"),
    [
        ("qupel", "bits = 2\nup_bits = 8"),
        ("fml", 'variant = "cnn2"\nup_bits = 4'),
        ("proxquant", "bits = 1"),
        ("perfedavg", "down_bits = 4"),
        ("pfedme", "up_bits = 4"),
    ],
)
def test_tiers_that_a_method_can_train_are_taken(name: str, tier: str) -> None:
    text = RUN.format(name=name, tier=tier) + '[evaluate]\nevery = 1\nsubject = "personal"\n'
    assert parse(text).run.algorithm == name


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [("binaryrelax", "growth", 0.9), ("binaryrelax", "relaxation", 0), ("proxquant", "scale", "x")],
)
def test_settings_out_of_range_are_refused(name: str, setting: str, value: float | str) -> None:
    with pytest.raises(ValidationError, match=setting):
        registry.find(name).configure({setting: value})
