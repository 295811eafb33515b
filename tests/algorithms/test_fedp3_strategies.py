"""FedP3's uploads, and its parts that can be exchanged by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
import torch
from fedp3_cases import Lab, Tensors

from fedserver.rounds.updates import check_update
from motley.algorithms import fedp3_strategies as strategies
from motley.algorithms.base import Broadcast, ClientContext
from motley.errors import PlanError, RunFileError, UpdateError
from motley.prune.masks import PRUNING_RULES, UploadMasks
from motley.training.subnetwork import Step, Subnetwork
from motley.wire import Mask, PayloadReader, smallest_mask

WHOLE = 'layers = "all"\nkeep = 1.0\naggregation = "mean"\n'


# --- sparse and quantized uploads ----------------------------------------------------------------


@pytest.mark.parametrize("rule", ["random", "ordered"])
def test_a_sparse_upload_moves_what_it_sends_and_no_more(tmp_path: Path, rule: str) -> None:
    more = f'layers = "opu2"\nkeep = 0.5\nupload_keep = 0.4\nupload_pruning = "{rule}"'
    bench = Lab(tmp_path, more)
    before = bench.tensors()
    after = bench.round(1)
    sent = {name: np.zeros(values.shape, int) for name, values in before.items()}
    total = {name: np.zeros(values.shape) for name, values in before.items()}
    for member in bench.members:
        plan, own = bench.plan(member), bench.personal[member.name].saved
        masks = UploadMasks.of(plan, 7, 1, member.name)
        assert own is not None
        assert masks is not None
        for row in bench.table:
            if row.unit not in plan.upload:
                continue
            mask = masks(row)
            bits = np.ones(row.shape, bool) if mask is None else mask.bits().reshape(row.shape)
            npt.assert_array_equal(own[row.name][~bits], before[row.name][~bits])
            sent[row.name] += bits
            total[row.name] += np.where(bits, own[row.name], 0)
    assert any((count == 0).any() for count in sent.values())
    for name, values in after.items():
        mean = np.where(sent[name] > 0, total[name] / np.maximum(1, sent[name]), before[name])
        npt.assert_allclose(values, mean, atol=1e-6)
        npt.assert_array_equal(values[sent[name] == 0], before[name][sent[name] == 0])


@pytest.mark.parametrize("head", ["global", "personal"])
def test_sparse_layers_can_be_quantized_both_ways(tmp_path: Path, head: str) -> None:
    more = f'layers = "opu3"\nkeep = 0.6\nupload_keep = 0.7\nhead = "{head}"'
    bench = Lab(tmp_path, more, "[wire]\nup_bits = 8\ndown_bits = 8\n")
    before = bench.tensors()
    after = bench.round(1)
    received = bench.read(bench.broadcasts["c0"])
    with PayloadReader(bench.broadcasts["c0"], bench.table.tensor_table) as reader:
        for name, tensor in reader.items():
            inner = tensor if tensor.kept is None else tensor.kept
            assert inner.encoding.name == "uniform"
            step = float(inner.scale[1])
            kept = np.ones(tensor.shape, bool)
            if tensor.mask is not None:
                kept = tensor.mask.bits().reshape(tensor.shape)
            assert abs(received[name] - before[name])[kept].max() <= step * 1.001
    for member in bench.members:
        own = bench.personal[member.name].saved
        with PayloadReader(bench.updates[member.name], bench.table.tensor_table) as reader:
            for name, tensor in reader.items():
                inner = tensor if tensor.kept is None else tensor.kept
                stays = head == "personal" and bench.table[name].unit == "fc5"
                assert inner.encoding.name == ("dense" if stays else "uniform")
                if stays:
                    assert own is not None
                    npt.assert_array_equal(tensor.decode(), own[name])
    assert all(np.isfinite(values).all() for values in after.values())
    assert any((after[name] != before[name]).any() for name in after)


# --- strategies ----------------------------------------------------------------------------------


def keep_first_half(values: np.ndarray, keep: float, seed: int) -> Mask:
    bits = np.zeros(values.size, bool)
    bits[: values.size // 2] = True
    return smallest_mask(bits)


def stand_still(network: Subnetwork, *_: object) -> Step:
    """A trainer that adds 1 to every value that may move, and then takes steps of no length."""
    ones = [torch.ones_like(p) for p in network.parameters.values()]
    network.move(ones, -1.0, {})
    return lambda iteration: torch.tensor(0.5)


def doubled(values: Tensors, broadcast: Broadcast, context: ClientContext) -> Tensors:
    return {name: (2 * value).astype(value.dtype) for name, value in values.items()}


def test_each_strategy_can_be_exchanged_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRUNING_RULES, "half", keep_first_half)
    monkeypatch.setitem(strategies.TRAINERS, "plus-one", f"{__name__}:stand_still")
    monkeypatch.setitem(strategies.UPLOAD_STEPS, "doubled", f"{__name__}:doubled")
    monkeypatch.setitem(
        strategies.AGGREGATIONS, "first", lambda s, t: {n: float(n == "c0") for n in s}
    )
    bench = Lab(
        tmp_path,
        'layers = "lowerb"\npruning = "half"\ntrainer = "plus-one"\nupload_step = "doubled"\n'
        'aggregation = "first"',
    )
    before = bench.tensors()
    after = bench.round(1)
    received = bench.read(bench.broadcasts["c0"])["fc2.weight"].reshape(-1)
    npt.assert_array_equal(received[:45], before["fc2.weight"].reshape(-1)[:45])
    npt.assert_array_equal(received[45:], 0)
    assert bench.metrics["c0"]["loss"] == 0.5
    for name, values in after.items():
        if bench.table[name].unit in ("fc1", "fc5"):
            npt.assert_array_equal(values, 2 * (before[name] + np.float32(1)))
        else:
            npt.assert_array_equal(values, before[name])


@pytest.mark.parametrize(
    "field",
    ["layers", "pruning", "local_pruning", "trainer", "upload_step", "aggregation"],
)
def test_a_strategy_that_does_not_exist_is_named(tmp_path: Path, field: str) -> None:
    with pytest.raises(RunFileError, match=f"settings.{field}: no strategy is called 'none'"):
        Lab(tmp_path, f'{field} = "none"')
    with pytest.raises(PlanError, match="'none'"):
        strategies.resolve(strategies.TRAINERS, "none")


def test_weights_by_number_of_layers(tmp_path: Path) -> None:
    """OPU1-2-3: of a layer's senders, one that sends three layers counts three times."""
    bench = Lab(tmp_path, 'layers = "mixed"\naggregation = "weighted"')
    after = bench.round(1)
    layers = {m.name: len(bench.plan(m).upload) - 1 for m in bench.members}
    assert layers == {"c0": 1, "c1": 2, "c2": 3, "c3": 1}
    for name, values in after.items():
        senders = [m.name for m in bench.members if bench.table[name].unit in bench.plan(m).upload]
        total = sum(layers[s] for s in senders)
        expected = sum(layers[s] / total * bench.read(bench.updates[s])[name] for s in senders)
        npt.assert_allclose(values, expected, atol=1e-6)


def test_attention_is_a_softmax_over_distances(tmp_path: Path) -> None:
    bench = Lab(
        tmp_path, 'layers = "all"\nkeep = 1.0\naggregation = "attention"\ntemperature = 0.5'
    )
    before = bench.tensors()
    after = bench.round(1)
    updates = {m.name: bench.read(bench.updates[m.name]) for m in bench.members}
    for unit in bench.table.units:
        names = [row.name for row in bench.table.tensors_of(unit)]
        distances = np.array(
            [
                np.sqrt(sum(((u[n] - before[n]).astype(float) ** 2).sum() for n in names))
                for u in updates.values()
            ]
        )
        scores = np.exp(distances / (0.5 * distances.mean()))
        weights = scores / scores.sum()
        assert weights.max() / weights.min() > 1.01
        for name in names:
            expected = sum(w * u[name] for w, u in zip(weights, updates.values(), strict=True))
            npt.assert_allclose(after[name], expected, atol=1e-6)


def test_distances_of_sparse_updates_are_those_of_what_was_sent(tmp_path: Path) -> None:
    more = 'layers = "lowerb"\nupload_keep = 0.4\naggregation = "attention"'
    bench = Lab(tmp_path, more)
    before = bench.tensors()
    bench.open()
    member = bench.members[0]
    found = check_update(bench.train(member), bench.ticket(member))
    own = bench.personal["c0"].saved
    assert own is not None
    assert set(found.distances) == {"fc1", "fc5"}
    for unit, distance in found.distances.items():
        names = [row.name for row in bench.table.tensors_of(unit)]
        squares = sum(((own[n] - before[n]).astype(float) ** 2).sum() for n in names)
        assert distance > 0
        assert abs(distance - np.sqrt(squares)) < 1e-6


def test_an_upload_in_the_wrong_form_is_refused(tmp_path: Path) -> None:
    bench = Lab(tmp_path, 'layers = "lowerb"')
    bench.open()
    update = bench.train(bench.members[0])
    with pytest.raises(UpdateError, match=r"missing: fc2\.bias"):
        check_update(update, bench.ticket(bench.members[1]))
