"""The federated baselines against short loops of their papers' update rules, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.testing as npt
import pytest
import torch
from loops import NaiveTied, mutual, perfedavg, pfedme
from naive import Named
from pydantic import ValidationError
from test_quped import Float32, same
from test_quped_step import SETTINGS as STEP_SETTINGS
from test_quped_step import check, follow, named
from together import IN_DOUBLES, DoubleDigits, assert_close, contexts, global_model
from toy import SEED, Toy, context, first_broadcast, member, run, sent

from motley.algorithms import registry
from motley.algorithms.base import Tensors
from motley.algorithms.fml import FML
from motley.algorithms.perfedavg import PerFedAvg
from motley.algorithms.pfedme import PFedMe
from motley.algorithms.quped import QuPeD
from motley.algorithms.qupel import QuPeL
from motley.errors import TrainingError
from motley.models.units import load_tensors, read_tensors
from motley.plan import FULL_PRECISION
from motley.training.batches import Batches
from motley.training.personal import initial_tensors
from motley.workload import DataSpec
from motley.workloads.digits import Digits

STEPS = 5
SETTINGS: dict[str, bool | int | float | str] = {
    "local_steps": STEPS,
    "batch_size": 7,
    "learning_rate": 0.05,
    "lr_decay": 0.8,
    "iterations_per_epoch": 2,
    "weight_decay": 0.02,
}
NEW = ("fml", "perfedavg", "pfedme", "qupel")
SHARED = member(FULL_PRECISION, "shared")


def batches(first: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    data = Toy().load(DataSpec("toy")).train
    draw = Batches(len(data), seed=SEED, client="c0", batch_size=7)
    index = [draw(t) for t in range(first, first + count)]
    return [(torch.from_numpy(data.inputs[i]), torch.from_numpy(data.targets[i])) for i in index]


def decayed(rate: float, start: int = 0) -> Callable[[int], float]:
    return lambda t: rate * 0.8 ** ((start + t) // 2)


def close(found: Tensors, expected: Named, prefix: str = "") -> None:
    assert set(found) == {prefix + name for name in expected}
    for name, values in expected.items():
        npt.assert_allclose(found[prefix + name], values, rtol=0, atol=1e-12)


def module(variant: str = "shared") -> torch.nn.Module:
    return Toy().variants()[variant].build()


def test_pfedme_is_its_algorithm_1() -> None:
    method = PFedMe.configure({**SETTINGS, "inner_steps": 3, "proximity": 12, "shared_rate": 0.02})
    other = {name: values + 0.01 for name, values in first_broadcast().items()}
    state: Tensors | None = None
    for round_, broadcast in ((1, first_broadcast()), (3, other)):
        # In the third round a state is there: θ begins with the broadcast all the same.
        trained = method.train(context(method, SHARED, round_, 4), sent(broadcast), state)
        state = trained.personal
        start = (round_ - 1) * STEPS
        theta, own = pfedme(
            module(),
            named(broadcast),
            batches(start, STEPS),
            inner=3,
            lam=12,
            rate=decayed(0.05, start),
            eta=decayed(0.02, start),
            mu=0.02,
        )
        assert trained.personal is not None
        close(trained.personal, theta, "model/")
        close(dict(trained.update), own)
    apart = [np.abs(trained.update[n] - trained.personal[f"model/{n}"]).max() for n in theta]
    assert max(apart) > 1e-3


def test_pfedme_evaluates_theta_and_not_the_shared_copy() -> None:
    method = PFedMe.configure(SETTINGS)
    trained = run(method, SHARED, 2)
    task = context(method, SHARED, 2, 2)
    variant, tensors = method.model_for(task, "personal", sent({}), trained.personal)
    assert variant == "shared"
    assert trained.personal is not None
    for name, values in tensors.items():
        npt.assert_array_equal(values, trained.personal[f"model/{name}"])
        assert (values != trained.update[name]).any()
    same(
        method.model_for(task, "global", sent(trained.update), trained.personal)[1], trained.update
    )
    # A client that never trained has the model that all start from.
    same(method.model_for(task, "personal", sent({}), None)[1], first_broadcast())


def test_pfedme_server_goes_beta_of_the_way() -> None:
    state, mean = np.array([1.0, -2.0], np.float32), np.array([2.0, 0.0], np.float32)
    npt.assert_array_equal(PFedMe.configure({}).finish_tile(state, mean), mean)
    beyond = PFedMe.configure({"server_rate": 2.0}).finish_tile(state, mean)
    npt.assert_array_equal(beyond, np.array([3.0, 2.0], np.float32))
    assert beyond.dtype == np.float32


def test_statistics_go_up_as_the_client_saw_them() -> None:
    """Whatever β is: the server's rule leaves statistics alone (tests/server/test_fold.py)."""
    workload = Float32()
    who = member(FULL_PRECISION, "shared", workload)
    start = initial_tensors(workload.variants()["shared"], "shared", SEED)
    found = {}
    for beta in (1.0, 4.0):
        method = PFedMe.configure({**SETTINGS, "server_rate": beta})
        trained = method.train(context(method, who, 1, 1, workload), sent(start), None)
        found[beta] = trained.update["norm.running_var"]
        assert (found[beta] != start["norm.running_var"]).any()
        assert int(trained.update["norm.num_batches_tracked"]) == STEPS * 5
    npt.assert_array_equal(found[4.0], found[1.0])


def test_perfedavg_is_its_algorithm_1_without_the_hessian() -> None:
    method = PerFedAvg.configure({**SETTINGS, "adaptation_rate": 0.3})
    task = context(method, SHARED, 2, 4)
    trained = method.train(task, sent(first_broadcast()), None)
    expected = perfedavg(
        module(),
        named(first_broadcast()),
        batches(2 * STEPS, 2 * STEPS),
        alpha=0.3,
        beta=decayed(0.05, STEPS),
        decay=0.02,
    )
    close(dict(trained.update), expected)
    assert trained.personal is None


@pytest.mark.parametrize("steps", [1, 3])
def test_perfedavg_adapts_on_training_batches(steps: int) -> None:
    method = PerFedAvg.configure({**SETTINGS, "adaptation_rate": 0.3, "adaptation_steps": steps})
    task = context(method, SHARED, 3, 4)
    variant, tensors = method.model_for(task, "personal", sent(first_broadcast()), None)
    adapted = module(variant)
    load_tensors(adapted, first_broadcast())
    sgd = torch.optim.SGD(adapted.parameters(), lr=0.3)
    for inputs, targets in batches(0, steps):
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(adapted(inputs), targets).backward()
        sgd.step()
    same(tensors, read_tensors(adapted))
    finished = method.finish(task, sent(first_broadcast()), None)
    same({name: tensor.decode() for name, tensor in finished.model.items()}, tensors)
    same(method.model_for(task, "global", sent(first_broadcast()), None)[1], first_broadcast())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fml_steps_both_models_at_once(momentum: float) -> None:
    method = FML.configure(
        {
            **SETTINGS,
            "momentum": momentum,
            "label_share": 0.3,
            "shared_label_share": 0.6,
            "shared_rate": 0.1,
        }
    )
    task = context(method, member(FULL_PRECISION), 1, 1)
    trained = method.train(task, sent(first_broadcast()), None)
    private, meme = module("own"), module("shared")
    load_tensors(private, initial_tensors(Toy().variants()["own"], "own", SEED))
    load_tensors(meme, first_broadcast())
    mutual(
        private,
        meme,
        batches(0, STEPS),
        shares=(0.3, 0.6),
        rates=lambda t: (decayed(0.05)(t), decayed(0.1)(t)),
        momentum=momentum,
        decay=0.02,
    )
    assert trained.personal is not None
    close(trained.personal, named(read_tensors(private)), "model/")
    close(dict(trained.update), named(read_tensors(meme)))


def test_fml_keeps_the_private_model_and_forgets_the_meme() -> None:
    method, who = FML.configure({**SETTINGS, "local_steps": 4}), member(FULL_PRECISION)
    first = method.train(context(method, who, 1, 3), sent(first_broadcast()), None)
    third = method.train(context(method, who, 3, 3), sent(first_broadcast()), first.personal)
    private, meme = module("own"), module("shared")
    assert first.personal is not None
    load_tensors(private, {name[6:]: values for name, values in first.personal.items()})
    load_tensors(meme, first_broadcast())
    mutual(
        private,
        meme,
        batches(8, 4),
        shares=(0.5, 0.5),
        rates=lambda t: (decayed(0.05, 8)(t),) * 2,
        momentum=0.0,
        decay=0.02,
    )
    assert third.personal is not None
    close(third.personal, named(read_tensors(private)), "model/")
    variant, tensors = method.model_for(
        context(method, who, 3, 3), "personal", sent({}), third.personal
    )
    assert variant == "own"
    close(tensors, named(read_tensors(private)))


def tied_client(state: Tensors, **options: bool | float | str) -> NaiveTied:
    def under(kind: str) -> Named:
        return named({k.split("/")[1]: v for k, v in state.items() if k.startswith(kind + "/")})

    ties = str(options.pop("ties", "both"))
    client = NaiveTied(
        student=module(),
        teacher=module(),
        x=under("model"),
        w=named(first_broadcast()),
        c=under("centres"),
        sharpness=under("sharpness"),
        longest=under("longest"),
        share=0.3,
        **options,
    )
    client.ties = ties
    return client


@pytest.mark.parametrize("bits", [FULL_PRECISION, 1, 2])
@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("ties", ["both", "weights", "centres"])
def test_qupel_is_alternating_steps_on_its_objective(bits: int, mode: str, ties: str) -> None:
    values = {k: v for k, v in STEP_SETTINGS.items() if k != "distillation"}
    qupel = QuPeL.configure({**values, "proximity": 0.3, "mode": mode, "ties": ties})
    task = context(qupel, member(bits, "shared"), 1, 1)
    trained = qupel.train(task, sent(first_broadcast()), None)
    client = tied_client(qupel.state_of(task, None), soft=mode == "soft", ties=ties)
    follow(client)
    assert trained.personal is not None
    assert len(client.c) == (0 if bits == FULL_PRECISION else 2)
    check(trained.personal, dict(trained.update), client)


def test_qupel_starts_from_the_broadcast() -> None:
    qupel = QuPeL.configure({**SETTINGS, "proximity": 0.1, "learning_rate": 1e-12})
    other = {name: values + 0.5 for name, values in first_broadcast().items()}
    trained = qupel.train(context(qupel, member(2, "shared"), 3, 4), sent(other), None)
    assert trained.personal is not None
    npt.assert_allclose(trained.personal["model/fc1.weight"], other["fc1.weight"], atol=1e-9)


def test_qupel_goes_on_through_fine_tuning() -> None:
    """x and Q_c(x) are one there: it is tied once, and w follows it with twice the speed."""
    rates = {"learning_rate": 1e-12, "centre_rate": 0.0, "proximity": 0.2, "shared_rate": 0.5}
    qupel = QuPeL.configure({"local_steps": 1, "finetune_fraction": 1.0, **rates})
    task = context(qupel, member(1, "shared"), 1, 1)
    trained = qupel.train(task, sent(first_broadcast()), None)
    assert trained.personal is not None
    w, x = first_broadcast()["fc2.weight"], trained.personal["model/fc2.weight"]
    assert np.unique(x).size == 2
    npt.assert_allclose(trained.update["fc2.weight"], w - 0.5 * 0.2 * 2 * (w - x), atol=1e-9)


@pytest.mark.parametrize("name", NEW)
def test_same_inputs_same_bytes(name: str) -> None:
    method = registry.find(name).configure(SETTINGS)
    one, other = (run(method, SHARED, 3) for _ in range(2))
    same(dict(one.update), dict(other.update))
    if method.keeps_personal_state:
        same(one.personal, other.personal)
    assert one.metrics == other.metrics


@pytest.mark.parametrize("name", NEW)
def test_the_mean_is_plain_and_the_models_end_on_the_device(name: str) -> None:
    method = registry.find(name).configure(SETTINGS)
    assert method.coefficients({"a": {"samples": 1.0}, "b": {"samples": 9.0}}) == {"a": 1, "b": 1}
    assert method.evaluated_model("") == "personal"
    workload = Float32()
    who = member(FULL_PRECISION, "shared", workload)
    start = initial_tensors(workload.variants()["shared"], "shared", SEED)
    task = context(method, who, 1, 1, workload)
    trained = method.train(task, sent(start), None)
    assert list(trained.update) == list(start)
    assert (trained.update["norm.running_mean"] != start["norm.running_mean"]).any()
    finished = method.finish(task, sent(trained.update), trained.personal)
    packed = {n: tensor.decode() for n, tensor in finished.model.items()}
    broadcast = sent(trained.update)
    same(packed, method.model_for(task, "personal", broadcast, trained.personal)[1])


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("pfedme", {"learning_rate": 0.2}, "learning_rate \\* proximity is 3"),
        ("pfedme", {"shared_rate": 0.1}, "shared_rate \\* proximity is 1.5"),
        ("qupel", {"proximity": 0.6}, "2 \\* shared_rate \\* proximity is 1.2"),
        ("qupel", {"learning_rate": 2.0, "proximity": 0.5}, "learning_rate \\* proximity is 1"),
        ("qupel", {"ties": "x"}, "ties"),
        ("fml", {"label_share": 0.0}, "label_share"),
        ("perfedavg", {"adaptation_steps": 0}, "adaptation_steps"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    name: str, values: dict[str, bool | int | float | str], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        registry.find(name).configure(values)


def test_at_full_label_share_fml_is_training_alone() -> None:
    """Nothing heard from the other: both models do what FedAvg's or `local`'s do."""
    rest = {k: v for k, v in SETTINGS.items() if k != "weight_decay"}
    fml = FML.configure({**rest, "label_share": 1.0, "shared_label_share": 1.0})
    quped = QuPeD.configure({**rest, "distillation": 0.0})
    who = member(FULL_PRECISION)
    one, other = run(fml, who, 2), run(quped, who, 2)
    same(one.personal, other.personal)


TOGETHER: dict[str, dict[str, bool | int | float | str]] = {
    "perfedavg": {"adaptation_rate": 0.1},
    "pfedme": {"inner_steps": 2, "server_rate": 1.5},
}


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("variant", ["cnn1", "resnet20"])
def test_one_step_of_many_clients_is_that_of_each(name: str, variant: str) -> None:
    """With uneven data, and with normalisation whose fillers must not count."""
    values = {"local_steps": 1, "batch_size": 12, "learning_rate": 0.05, "weight_decay": 0.01}
    method = registry.find(name).configure({**values, **TOGETHER[name]})
    workload, bound = (DoubleDigits(), IN_DOUBLES) if variant == "resnet20" else (Digits(), 1e-6)
    made = contexts(workload, method, variant)
    received = [global_model(workload, variant, seed) for seed in (1, 2, 3, 4)]
    found = method.train_together(made, received, [None] * 4)
    assert found is not None
    for task, broadcast, together in zip(made, received, found, strict=True):
        alone = method.train(task, broadcast, None)
        assert not isinstance(together, TrainingError)
        assert_close(together.update, alone.update, bound)
        assert together.samples == alone.samples
        assert together.metrics["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-5)
        if alone.personal is not None:
            assert together.personal is not None
            assert_close(together.personal, alone.personal, bound)


@pytest.mark.parametrize("name", TOGETHER)
def test_a_client_that_diverges_fails_alone(name: str) -> None:
    method = registry.find(name).configure({"local_steps": 2, "batch_size": 10})
    made = contexts(Digits(), method, "mlp")
    made[1].data.train.inputs[:] = np.inf
    broadcast = global_model(Digits(), "mlp")
    found = method.train_together(made, [broadcast] * 4, [None] * 4)
    assert found is not None
    assert [isinstance(one, TrainingError) for one in found] == [False, True, False, False]
    assert "client-1" in str(found[1])
