"""Training at once where every client has widths or layers of its own: FedMPQ and FedP3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from together import DoubleDigits, assert_close, contexts, global_model
from torch import nn

from motley.algorithms.base import Broadcast, ClientContext, Trained
from motley.algorithms.fedmpq import FedMPQ
from motley.algorithms.fedp3 import FedP3
from motley.errors import TrainingError
from motley.models.rectifier import Rectifier
from motley.models.units import fresh_tensors, variant_table
from motley.prune.layers import choosable_units, final_unit
from motley.prune.masks import by_magnitude, is_pruned
from motley.sparsity import Sparsity
from motley.wire import EncodedTensor, encode_dense, encode_masked, quantize_planes
from motley.wire.encodings.planes import UniformPlanes
from motley.workload import DataSpec, LocalData, Scalar, Variant, Workload
from motley.workloads.digits import Digits

ONE_STEP = 1e-6
"""Largest difference of a value after one step from equal values, learning rate 0.1."""

WIDTHS = (2, 5, 8, 3)
DIGITS = Digits()


class SmoothDigits(Digits):
    """Digits for networks with softplus in the place of ReLU.

    Of a deep network's many activations one may be 0 but for rounding, and with ReLU fall on
    either side. Masks travel in single precision, so that doubles are no way out here.
    """

    def variants(self) -> Mapping[str, Variant]:
        """Return the same variants without kinks."""
        return {
            name: replace(variant, build=lambda variant=variant: smooth(variant.build()))
            for name, variant in super().variants().items()
        }


def smooth(module: nn.Module) -> nn.Module:
    """Return a network with softplus in the place of each ReLU."""
    for name, child in module.named_children():
        if isinstance(child, (nn.ReLU, Rectifier)):
            setattr(module, name, nn.Softplus())
        else:
            smooth(child)
    return module


class Layered(Workload):
    """A model with a layer that has no folded form."""

    def variants(self) -> Mapping[str, Variant]:
        return {
            "layered": Variant(
                lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10))
            )
        }

    def load(self, spec: DataSpec) -> LocalData:
        raise NotImplementedError


def mixed(
    algorithm: FedMPQ, variant: str, workload: Workload = DIGITS
) -> tuple[list[ClientContext], list[Broadcast]]:
    """Return clients whose widths differ, also from layer to layer, and what each was sent."""
    table = variant_table(workload.variants()[variant], ends=True)
    made, received = [], []
    for number, context in enumerate(contexts(workload, algorithm, variant)):
        units = enumerate(table.quantized_units)
        bits = {unit: min(8, WIDTHS[number] + place % 2) for place, unit in units}
        settings = {**context.plan.settings, "budget": float(WIDTHS[number])}
        plan = replace(context.plan, bits=bits, layout="planes", settings=settings)
        made.append(replace(context, task=replace(context.task, plan=plan)))
        values = fresh_tensors(workload.variants()[variant], 1)
        received.append(
            Broadcast(
                {
                    row.name: quantize_planes(values[row.name], bits[row.unit])
                    if row.quantized
                    else encode_dense(values[row.name])
                    for row in table
                }
            )
        )
    return made, received


def compare_integers(
    found: Mapping[str, object], expected: Mapping[str, object], bound: float, turned: float
) -> None:
    """Compare updates in planes; rounding may turn the draw of a share `turned` of the integers."""
    assert list(found) == list(expected)
    differ = total = 0
    for name, alone in expected.items():
        together = found[name]
        assert isinstance(together, EncodedTensor)
        assert isinstance(alone, EncodedTensor)
        assert together.encoding == alone.encoding, name
        if not isinstance(alone.encoding, UniformPlanes):
            assert_close({name: together.decode()}, {name: alone.decode()}, bound)
            continue
        np.testing.assert_allclose(together.scale, alone.scale, rtol=1e-5)
        apart = np.abs(np.subtract(together.codes(), alone.codes(), dtype=np.int64))
        assert apart.max(initial=0) <= 1
        differ, total = differ + int(np.count_nonzero(apart)), total + apart.size
    assert differ <= turned * total


@pytest.mark.parametrize(
    ("variant", "activation_bits", "rounding"),
    [
        ("cnn1", 0, "stochastic"),
        ("cnn1", 4, "stochastic"),
        ("cnn1", 4, "power_of_two"),
        ("cnn1", 4, "nearest"),
        ("mlp", 4, "stochastic"),
        ("resnet20", 0, "stochastic"),
        ("resnet20", 4, "stochastic"),
    ],
)
def test_one_step_on_integers(variant: str, activation_bits: int, rounding: str) -> None:
    settings: dict[str, Scalar] = {"local_steps": 1, "batch_size": 12, "lasso": 0.01}
    settings |= {"activation_bits": activation_bits, "rounding": rounding, "tail": "fp32"}
    algorithm = FedMPQ.configure(settings)
    made, received = mixed(algorithm, variant)
    # In so many layers some activation lies between two levels, and rounding turns it.
    through_levels = variant == "resnet20" and activation_bits > 0
    found = algorithm.train_together(made, received, [None] * 4)
    assert found is not None
    for context, broadcast, trained in zip(made, received, found, strict=True):
        alone = algorithm.train(context, broadcast, None)
        assert isinstance(trained, Trained)
        bound, turned = (1e-3, 0.01) if through_levels else (ONE_STEP, 0.001)
        compare_integers(trained.update, alone.update, bound, turned)
        assert trained.samples == alone.samples
        assert trained.personal is None
        for name, value in alone.metrics.items():
            assert trained.metrics[name] == pytest.approx(value, abs=1e-3), name


def test_a_client_whose_integers_diverge_fails_alone() -> None:
    algorithm = FedMPQ.configure({"local_steps": 3, "batch_size": 10, "activation_bits": 0})
    made, received = mixed(algorithm, "mlp")
    made[1].data.train.inputs[:] = np.inf
    found = algorithm.train_together(made, received, [None] * 4)
    assert found is not None
    assert [isinstance(one, TrainingError) for one in found] == [False, True, False, False]
    assert "client-1" in str(found[1])
    for number in (0, 2, 3):
        alone, together = algorithm.train(made[number], received[number], None), found[number]
        assert isinstance(together, Trained)
        compare_integers(together.update, alone.update, 1e-5, 0.01)


def test_integers_need_layers_that_fold() -> None:
    """Of a model that runs through a map the activations of clients cannot be told apart."""
    algorithm = FedMPQ.configure({"local_steps": 1})
    made, received = mixed(algorithm, "layered", Layered())
    assert algorithm.train_together(made, received, [None] * 4) is None


# --- FedP3 ---------------------------------------------------------------------------------------


def pruned(
    algorithm: FedP3, variant: str, round_number: int = 1, workload: Workload = DIGITS
) -> tuple[list[ClientContext], list[Broadcast]]:
    """Return clients that send two layers, and the pruned model that came down to each."""
    table = variant_table(workload.variants()[variant])
    final, settings = final_unit(table), algorithm.settings
    sparsity = Sparsity(
        final=final,
        final_stays=settings.head == "personal",
        down_keep=0.6,
        down_rule="magnitude",
        up_keep=settings.upload_keep,
        up_rule=settings.upload_pruning,
    )
    made, received = [], []
    for seed, context in enumerate(
        contexts(workload, algorithm, variant, round_number=round_number)
    ):
        upload = (choosable_units(table)[1], final)
        plan = replace(context.plan, upload=upload, sparsity=sparsity)
        made.append(replace(context, task=replace(context.task, plan=plan)))
        values = fresh_tensors(workload.variants()[variant], seed)
        encoded = {}
        for row in table:
            if plan.withholds(row.unit):
                continue
            encoded[row.name] = encode_dense(values[row.name])
            if is_pruned(row, plan):
                mask = by_magnitude(values[row.name], 0.6)
                kept = encode_dense(mask.take(values[row.name]))
                encoded[row.name] = encode_masked(kept, mask, row.shape)
        received.append(Broadcast(encoded))
    return made, received


@pytest.mark.parametrize("variant", ["cnn1", "resnet20"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"local_pruning": "uniform", "local_keep": 0.5, "gradient_clip": 0.1},
        {"local_pruning": "ordered", "local_keep": 0.5, "trainer": "fedprox", "proximal": 0.5},
        {"upload_keep": 0.5, "momentum": 0.9, "weight_decay": 0.01, "head": "personal"},
    ],
    ids=["fixed", "uniform", "ordered", "sparse"],
)
def test_one_step_on_subnetworks(settings: dict[str, Scalar], variant: str) -> None:
    rest: dict[str, Scalar] = {"local_steps": 1, "batch_size": 12}
    algorithm = FedP3.configure({**rest, **settings})
    workload = SmoothDigits() if variant == "resnet20" else DIGITS
    first, received = pruned(algorithm, variant, 1, workload)
    states = [algorithm.train(c, b, None).personal for c, b in zip(first, received, strict=True)]
    made, _ = pruned(algorithm, variant, 2, workload)
    found = algorithm.train_together(made, received, states)
    assert found is not None
    each = zip(made, received, states, found, strict=True)
    for context, broadcast, state, trained in each:
        alone = algorithm.train(context, broadcast, state)
        assert isinstance(trained, Trained)
        assert trained.personal is not None
        assert alone.personal is not None
        bound = 1e-5 if variant == "resnet20" else ONE_STEP
        assert_close(trained.update, alone.update, bound)
        assert_close(trained.personal, alone.personal, bound)
        assert trained.samples == alone.samples
        assert trained.metrics["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-5)
        for name, tensor in broadcast.encoded.items():
            if tensor.mask is not None:
                cut = ~tensor.mask.bits().reshape(tensor.shape)
                assert not np.any(trained.personal[name][cut])
        assert any((trained.personal[n] != broadcast.tensors[n]).any() for n in broadcast.encoded)


def test_a_model_without_anything_to_prune_trains_whole() -> None:
    """Masks travel with single precision alone."""
    algorithm = FedP3.configure({"local_steps": 1, "local_pruning": "uniform", "local_keep": 0.5})
    context = contexts(DoubleDigits(), algorithm, "cnn1")[0]
    broadcast = global_model(DoubleDigits(), "cnn1")
    trained = algorithm.train(context, broadcast, None)
    assert trained.personal is not None
    values = {**trained.personal, **trained.update}
    assert list(values) == list(broadcast.tensors)
    for name, before in broadcast.tensors.items():
        assert values[name].dtype == np.float64
        assert (values[name] != before).any(), name


def test_a_subnetwork_that_diverges_fails_alone() -> None:
    algorithm = FedP3.configure({"local_steps": 3, "batch_size": 10, "local_pruning": "uniform"})
    made, received = pruned(algorithm, "mlp")
    made[1].data.train.inputs[:] = np.inf
    found = algorithm.train_together(made, received, [None] * 4)
    assert found is not None
    assert [isinstance(one, TrainingError) for one in found] == [False, True, False, False]
    assert "client-1" in str(found[1])
    for number in (0, 2, 3):
        alone, together = algorithm.train(made[number], received[number], None), found[number]
        assert isinstance(together, Trained)
        assert_close(together.update, alone.update, 1e-5)
