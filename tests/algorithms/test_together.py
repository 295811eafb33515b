"""Training many clients at once against training them one by one, with uneven data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from together import assert_close, contexts, global_model
from torch import nn

from motley.algorithms import registry
from motley.algorithms.base import Broadcast, ClientContext, Tensors, Trained
from motley.algorithms.fedavg import FedAvg
from motley.algorithms.fml import FML
from motley.algorithms.local import Local
from motley.algorithms.personal_model import PersonalModel
from motley.algorithms.proxquant import ProxQuant
from motley.algorithms.quped import QuPeD
from motley.algorithms.qupel import QuPeL
from motley.errors import TrainingError
from motley.training.many import form_of
from motley.workload import DataSpec, LocalData, Variant, Workload
from motley.workloads.digits import Digits

ONE_STEP = 1e-6
"""Largest difference of a value after one step from equal values, learning rate 0.1."""


QUANTIZED = {"normed": ("grouped.weight",)}


class Own(Workload):
    """Models with layers of many kinds."""

    def __init__(self, **builders: object) -> None:
        self._builders = builders

    def variants(self) -> Mapping[str, Variant]:
        return {
            name: Variant(build, QUANTIZED.get(name))  # type: ignore[arg-type]
            for name, build in self._builders.items()
        }

    def load(self, spec: DataSpec) -> LocalData:
        raise NotImplementedError


class Normed(nn.Module):
    """A convolution with stride, groups and no bias, and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 8, 3, groups=2)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        out: torch.Tensor = self.fc(self.grouped(x).flatten(1))
        return out


class Layered(nn.Module):
    """Layer normalisation, which has no folded form, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(64))
        self.norm = nn.LayerNorm(64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.norm(x.flatten(1) * self.scale))
        return out


class Mixing(nn.Module):
    """Looks at the whole batch: no form may take it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(x.flatten(1) - float(x.mean()))
        return out + float(out.mean())


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.second(torch.relu(self.first(x.flatten(1)))))
        return out


class Bypassing(nn.Module):
    """Uses a layer's weight without the layer, below a last layer that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fc = nn.Linear(64, 16, bias=False), nn.Linear(16, 10)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(nn.functional.linear(x.flatten(1), self.first.weight))
        out: torch.Tensor = self.fc(hidden)
        return out


def flat_norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


DIGITS = Digits()
OWN = Own(
    flat_norm=flat_norm,
    normed=Normed,
    layered=Layered,
    mixing=Mixing,
    tied=Tied,
    bypassing=Bypassing,
)


@pytest.mark.parametrize(
    ("workload", "variant", "form"),
    [
        (Digits(), "cnn1", "folded"),
        (Digits(), "mlp", "folded"),
        (Digits(), "resnet20", "folded"),
        (OWN, "normed", "folded"),
        (OWN, "layered", "mapped"),
        (OWN, "mixing", ""),
        (OWN, "tied", ""),
        (OWN, "bypassing", "mapped"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_form_that_fits_is_found(workload: Workload, variant: str, form: str) -> None:
    states = [global_model(workload, variant, seed).tensors for seed in (1, 2)]
    assert form_of(workload, variant, states, torch.rand(2, 1, 8, 8)) == form


@pytest.mark.parametrize("batch", [5, 12])
@pytest.mark.parametrize(
    ("workload", "variant"),
    [(Digits(), "cnn1"), (Digits(), "cnn2"), (Digits(), "mlp"), (OWN, "normed"), (OWN, "layered")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_step_of_fedavg(workload: Workload, variant: str, batch: int) -> None:
    algorithm = FedAvg.configure({"local_steps": 1, "batch_size": batch, "weight_decay": 0.01})
    made = contexts(workload, algorithm, variant)
    received = [global_model(workload, variant, seed) for seed in (1, 2, 3, 4)]
    found = algorithm.train_together(made, received, [None] * 4)
    assert found is not None
    for context, broadcast, trained in zip(made, received, found, strict=True):
        alone = algorithm.train(context, broadcast, None)
        assert not isinstance(trained, TrainingError)
        assert_close(trained.update, alone.update, ONE_STEP)
        assert trained.samples == alone.samples
        assert trained.metrics["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-6)


def test_a_task_of_many_steps_with_momentum_stays_close() -> None:
    algorithm = FedAvg.configure({"local_steps": 20, "batches_per_pass": 4, "momentum": 0.9})
    made = contexts(Digits(), algorithm, "cnn1", round_number=2)
    broadcast = global_model(Digits(), "cnn1")
    found = algorithm.train_together(made, [broadcast] * 4, [None] * 4)
    assert found is not None
    for context, trained in zip(made, found, strict=True):
        assert not isinstance(trained, TrainingError)
        assert_close(trained.update, algorithm.train(context, broadcast, None).update, 1e-4)


def test_a_client_that_diverges_fails_alone() -> None:
    algorithm = FedAvg.configure({"local_steps": 3, "batch_size": 10})
    made = contexts(Digits(), algorithm, "mlp")
    made[1].data.train.inputs[:] = np.inf
    broadcast = global_model(Digits(), "mlp")
    found = algorithm.train_together(made, [broadcast] * 4, [None] * 4)
    assert found is not None
    assert isinstance(found[1], TrainingError)
    assert "client-1" in str(found[1])
    for number in (0, 2, 3):
        trained = found[number]
        assert not isinstance(trained, TrainingError)
        alone = algorithm.train(made[number], broadcast, None)
        assert_close(trained.update, alone.update, 1e-5)


def test_a_variant_without_a_form_is_left_to_training_alone() -> None:
    algorithm = FedAvg.configure({"local_steps": 1})
    made = contexts(OWN, algorithm, "mixing")
    broadcast = global_model(OWN, "mixing")
    assert algorithm.train_together(made, [broadcast] * 4, [None] * 4) is None


def test_a_batch_that_normalisation_refuses_is_refused_together_too() -> None:
    """Of one value there is no variance; torch says so, and the client is left to fail alone."""
    algorithm = FedAvg.configure({"local_steps": 1, "batch_size": 12})
    broadcast = global_model(OWN, "flat_norm")
    for sizes, refused in (((17, 40, 1), True), ((17, 40, 2), False)):
        made = contexts(OWN, algorithm, "flat_norm", sizes=sizes)
        if refused:
            with pytest.raises(ValueError, match="more than 1 value"):
                algorithm.train(made[2], broadcast, None)
            with pytest.raises(ValueError, match="a single sample"):
                algorithm.train_together(made, [broadcast] * 3, [None] * 3)
        else:
            assert algorithm.train_together(made, [broadcast] * 3, [None] * 3) is not None


# --- personal models -------------------------------------------------------------------------

PERSONAL = {"local": Local, "quped": QuPeD}
UNITS = {"cnn1": ("conv2", "fc1", "fc2"), "mlp": ("fc2",), "normed": ("grouped",)}


def after_rounds(
    algorithm: PersonalModel, made: list[ClientContext], broadcasts: list[Broadcast]
) -> list[Tensors]:
    """Return states that differ from client to client: each has trained alone."""
    states = []
    for context, broadcast in zip(made, broadcasts, strict=True):
        personal = algorithm.train(context, broadcast, None).personal
        assert personal is not None
        states.append(personal)
    return states


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("bits", [32, 1, 2])
@pytest.mark.parametrize("name", PERSONAL)
@pytest.mark.parametrize("variant", ["cnn1", "normed"])
@pytest.mark.parametrize("round_number", [2, 4])
def test_one_step_on_personal_models(
    variant: str, name: str, bits: int, mode: str, round_number: int
) -> None:
    """Rounds 1 to 3 train, the fourth fine-tunes."""
    workload = OWN if variant == "normed" else DIGITS
    settings = {"local_steps": 1, "batch_size": 12, "mode": mode, "finetune_iterations": 1}
    if bits != 32:
        settings["penalty"] = 0.01
    algorithm = PERSONAL[name].configure(settings)
    widths = dict.fromkeys(UNITS[variant], bits) if bits != 32 else {}
    received = [global_model(workload, variant, seed) for seed in (1, 2, 3, 4)]
    first = contexts(workload, algorithm, variant, bits=widths)
    states = after_rounds(algorithm, first, received)
    made = contexts(workload, algorithm, variant, bits=widths, round_number=round_number)
    found = algorithm.train_together(made, received, states)
    assert found is not None
    for context, broadcast, state, trained in zip(made, received, states, found, strict=True):
        alone = algorithm.train(context, broadcast, state)
        assert not isinstance(trained, TrainingError)
        assert trained.personal is not None
        assert alone.personal is not None
        assert trained.metrics["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-5)
        assert_close(trained.update, alone.update, ONE_STEP)
        compare_states(trained.personal, alone.personal)


@pytest.mark.parametrize(
    ("method", "bits"),
    [(QuPeL, 32), (QuPeL, 2), (FML, 32), (ProxQuant, 1)],
    ids=lambda v: getattr(v, "name", v),
)
def test_one_step_of_the_baselines(method: type[PersonalModel], bits: int) -> None:
    """With normalisation: the shared model's statistics too are those of training alone."""
    algorithm = method.configure({"local_steps": 1, "batch_size": 12})
    widths = {"grouped": bits} if bits != 32 else {}
    first = contexts(OWN, algorithm, "normed", bits=widths)
    received = [global_model(OWN, "normed", seed) for seed in (1, 2, 3, 4)]
    states = after_rounds(algorithm, first, received[:1] * 4)
    made = contexts(OWN, algorithm, "normed", bits=widths, round_number=2)
    found = algorithm.train_together(made, received, states)
    assert found is not None
    for context, broadcast, state, trained in zip(made, received, states, found, strict=True):
        alone = algorithm.train(context, broadcast, state)
        assert not isinstance(trained, TrainingError)
        assert trained.personal is not None
        assert alone.personal is not None
        assert_close(trained.update, alone.update, ONE_STEP)
        compare_states(trained.personal, alone.personal)


def test_clients_whose_penalties_differ_do_not_train_together() -> None:
    """λ₀ follows from the first weights, and QuPeL's are what came, at each one's `down_bits`."""
    received = [global_model(OWN, "normed", seed) for seed in (1, 2, 3, 4)]
    for penalty, differ in (("auto", True), (0.01, False)):
        algorithm = QuPeL.configure({"local_steps": 1, "penalty": penalty})
        made = contexts(OWN, algorithm, "normed", bits={"grouped": 2})
        found = algorithm.train_together(made, received, [None] * 4)
        assert (found is None) == differ


def compare_states(found: Tensors, expected: Tensors) -> None:
    """Counts and codes hang on comparisons that rounding may turn: a few may differ."""
    exact = {n: v for n, v in expected.items() if n.startswith("codes/") or n == "centre_updates"}
    assert list(found) == list(expected)
    for name, values in exact.items():
        if name == "centre_updates":
            assert abs(int(found[name][0]) - int(values[0])) <= 0.1 * int(values[1])
            assert found[name][1] == values[1]
        else:
            assert np.mean(found[name] != values) <= 0.001
    rest = [n for n in expected if n not in exact]
    assert_close({n: found[n] for n in rest}, {n: expected[n] for n in rest}, 1e-5)


def test_states_of_another_kind_are_another_group() -> None:
    algorithm = Local.configure({"local_steps": 1, "finetune_iterations": 1})
    made = contexts(DIGITS, algorithm, "cnn1", bits={"conv2": 1})
    state = algorithm.train(made[0], Broadcast({}), None).personal
    tuned = contexts(DIGITS, algorithm, "cnn1", bits={"conv2": 1}, round_number=4)
    frozen = algorithm.train(tuned[0], Broadcast({}), state).personal
    kinds = {algorithm.kind_of(made[0], found) for found in (None, state, frozen)}
    assert len(kinds) == 3


def test_a_train_of_its_own_is_not_bypassed_by_an_inherited_train_together() -> None:
    class Changed(FedAvg):
        def train(
            self, context: ClientContext, broadcast: Broadcast, personal: Tensors | None
        ) -> Trained:
            return replace(super().train(context, broadcast, personal), samples=1)

    class Renamed(FedAvg):
        pass

    class Meant(Changed):
        trains_together = True

    assert [c.trains_together for c in (Changed, Renamed, Meant)] == [False, True, True]
    for name in registry.names():
        method = registry.find(name)
        order = method.__mro__
        defines = {n: next(c for c in order if n in vars(c)) for n in ("train", "train_together")}
        if method.trains_together:
            assert issubclass(defines["train_together"], defines["train"]), name
