from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from motley.algorithms.base import Broadcast, ClientContext, Member, Moment, Tensors, UpdateFacts
from motley.algorithms.fedmpq import FedMPQ
from motley.errors import PlanError, TrainingError
from motley.models.mlp import mlp
from motley.models.resnet import resnet
from motley.models.units import fresh_tensors, load_tensors, variant_table
from motley.seeding import derive
from motley.task import TaskKind, TaskSpec
from motley.training.batches import Batches
from motley.training.integer import (
    IntegerLayer,
    IntegerModel,
    IntegerRules,
    lasso_weights,
    replace_weight,
)
from motley.wire import EncodedTensor, encode_dense, quantize_planes
from motley.workload import DataSpec, LocalData, Split, Variant, Workload

SEED = 11
RATE, MOMENTUM, STEPS, ROUNDS = 0.2, 0.9, 5, 3
CLIENTS = {"c0": 2, "c1": 5}
PLAIN = {
    "local_steps": STEPS,
    "learning_rate": RATE,
    "batch_size": 8,
    "activation_bits": 0,
    "lasso": 0.0,
    "prune_below": 0.0,
    "tail": "fp32",
}
VARIANT = Variant(partial(mlp, inputs=6, hidden=(9, 8), classes=4))
LAYERS = ("fc1.weight", "fc2.weight", "fc3.weight")


class Points(Workload):
    """Random points of six numbers in four classes, other ones for each client."""

    def variants(self) -> Mapping[str, Variant]:
        return {"mlp": VARIANT}

    def load(self, spec: DataSpec) -> LocalData:
        rng = np.random.default_rng(int(spec.location[1:]))
        inputs = rng.normal(size=(40, 6)).astype(np.float32)
        targets = inputs[:, :4].argmax(1)
        return LocalData(Split(inputs[:32], targets[:32]), Split(inputs[32:], targets[32:]))


def member(name: str, bits: int = 32, **settings: float) -> Member:
    table = variant_table(VARIANT, ends=True)
    return Member(name=name, tier="t", variant="mlp", units=table, bits=bits, settings=settings)


def context(algorithm: FedMPQ, who: Member, moment: Moment) -> ClientContext:
    task = TaskSpec(
        task_id=f"t{moment.round}{who.name}",
        kind=TaskKind.TRAIN,
        run_id="r",
        run_name="run",
        round=moment.round,
        rounds=moment.rounds,
        algorithm="fedmpq",
        workload="points",
        plan=algorithm.plan(who, moment),
        run_seed=SEED,
        client=who.name,
        global_variant="mlp",
    )
    data = Points().load(DataSpec(who.name))
    return ClientContext(task=task, workload=Points(), data=data)


def broadcast(task: TaskSpec, state: Tensors) -> Broadcast:
    """Encode the global state as the server does for a plan in planes."""
    widths = {f"{unit}.weight": bits for unit, bits in task.plan.bits.items()}
    return Broadcast(
        {
            name: quantize_planes(values, widths[name]) if name in widths else encode_dense(values)
            for name, values in state.items()
        }
    )


def decoded(update: Mapping[str, object]) -> Tensors:
    assert all(isinstance(tensor, EncodedTensor) for tensor in update.values())
    return {name: tensor.decode() for name, tensor in update.items()}  # type: ignore[attr-defined]


def federated(settings: Mapping[str, float], budgets: Mapping[str, int]) -> tuple[Tensors, list]:
    """Run both halves for some rounds; return the state and every round's measures."""
    algorithm = FedMPQ.configure({**PLAIN, **settings})
    state, last, history = fresh_tensors(VARIANT, derive(SEED, "init")), {}, []
    for number in range(1, ROUNDS + 1):
        moment = Moment(round=number, rounds=ROUNDS, seed=SEED, last=last)
        sums, last = None, {}
        for name, budget in budgets.items():
            job = context(algorithm, member(name, budget), moment)
            trained = algorithm.train(job, broadcast(job.task, state), None)
            values = decoded(trained.update)
            widths = {n.rpartition(".")[0]: trained.update[n].encoding.bits for n in LAYERS}
            last[name] = algorithm.measure(
                UpdateFacts(samples=32, metrics={}, plan=job.plan, bits=widths)
            )
            sums = values if sums is None else {n: sums[n] + values[n] for n in values}
        state = {n: total / np.float32(len(budgets)) for n, total in sums.items()}
        history.append(last)
    return state, history


def aqfl() -> Tensors:
    """Adaptive quantization, one width a client, by hand: integers, stochastic rounding, mean."""
    state = fresh_tensors(VARIANT, derive(SEED, "init"))
    for number in range(1, ROUNDS + 1):
        sums: Tensors | None = None
        for client, bits in CLIENTS.items():
            data, top = Points().load(DataSpec(client)).train, 2**bits - 1
            x, y = torch.from_numpy(data.inputs), torch.from_numpy(data.targets)
            values = {n: torch.from_numpy(v.copy()) for n, v in state.items()}
            steps, codes, draws = {}, {}, {}
            for n in LAYERS:
                steps[n] = float(values[n].abs().max() / top)
                codes[n] = (values[n] / steps[n]).round()
                draws[n] = torch.Generator().manual_seed(
                    derive(SEED, "rounding", number, client, n)
                )
            speed = {n: torch.zeros_like(v) for n, v in values.items()}
            batches = Batches(len(data), seed=SEED, client=client, batch_size=8)
            for step in range(STEPS):
                index = torch.from_numpy(batches((number - 1) * STEPS + step))
                for n in LAYERS:
                    values[n] = codes[n] * steps[n]
                p = {n: v.clone().requires_grad_() for n, v in values.items()}
                h = functional.linear(x[index], p["fc1.weight"], p["fc1.bias"]).relu()
                h = functional.linear(h, p["fc2.weight"], p["fc2.bias"]).relu()
                h = functional.linear(h, p["fc3.weight"], p["fc3.bias"])
                functional.cross_entropy(h, y[index], reduction="none").mean().backward()
                for n, v in p.items():
                    speed[n].mul_(MOMENTUM).add_(v.grad)
                    if n not in LAYERS:
                        values[n].add_(speed[n], alpha=-RATE)
                        continue
                    towards = float((v.grad * codes[n]).sum())
                    move = speed[n] * (RATE / steps[n])
                    move = (move + torch.rand(move.shape, generator=draws[n])).floor()
                    codes[n] = (codes[n] - move).clamp(-top, top)
                    reach = steps[n] * top
                    wanted = reach - RATE / (codes[n].numel() * top) ** 0.5 * towards / top
                    steps[n] = float(np.float32(min(max(wanted, reach / 2), reach * 2) / top))
            for n in LAYERS:
                values[n] = codes[n] * steps[n]
            found = {n: v.numpy() for n, v in values.items()}
            sums = found if sums is None else {n: sums[n] + found[n] for n in found}
        state = {n: total / np.float32(len(CLIENTS)) for n, total in sums.items()}
    return state


def test_without_its_parts_it_is_aqfl_to_the_last_bit() -> None:
    state, _ = federated({"allocation": "fixed"}, CLIENTS)
    expected = aqfl()
    assert list(state) == list(expected)
    for name, values in expected.items():
        assert np.array_equal(state[name], values), name


def test_widths_follow_budgets_and_what_was_pruned() -> None:
    budgets = {"c0": 2, "c1": 4, "c2": 8}
    _, history = federated({"prune_below": 0.6}, budgets)
    for number, last in enumerate(history):
        for name, budget in budgets.items():
            sizes = {"fc1": 54, "fc2": 72, "fc3": 32}
            sent = {u: last[name][f"bits.{u}"] + last[name][f"removed.{u}"] for u in sizes}
            assert sum(sizes[u] * sent[u] for u in sizes) <= budget * sum(sizes.values())
            if number == 0:
                assert set(sent.values()) == {budget}
    assert any(last[c][f"removed.{u}"] > 0 for last in history for c in budgets for u in sizes)


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8])
def test_integers_move_at_every_width(bits: int) -> None:
    algorithm = FedMPQ.configure({**PLAIN, "allocation": "fixed"})
    job = context(algorithm, member("c0", bits), Moment(round=1, rounds=1, seed=SEED))
    state = fresh_tensors(VARIANT, 3)
    trained = algorithm.train(job, broadcast(job.task, state), None)
    assert trained.metrics["moved"] > 0.05
    again = algorithm.train(job, broadcast(job.task, state), None)
    for name, tensor in trained.update.items():
        assert np.array_equal(tensor.segment, again.update[name].segment), name


def test_rounding_to_nearest_hardly_moves_few_bits() -> None:
    """The reason why stochastic rounding is the default."""
    moved = {}
    for rounding in ("stochastic", "nearest"):
        settings = {**PLAIN, "allocation": "fixed", "rounding": rounding, "learning_rate": 0.05}
        algorithm = FedMPQ.configure(settings)
        job = context(algorithm, member("c0", 2), Moment(round=1, rounds=1, seed=SEED))
        start = broadcast(job.task, fresh_tensors(VARIANT, 3))
        moved[rounding] = algorithm.train(job, start, None).metrics["moved"]
    assert 3 * moved["nearest"] < moved["stochastic"], moved


def layer(values: list[float], bits: int, **rules: object) -> IntegerLayer:
    tensor = quantize_planes(np.array(values, np.float32), bits)
    generator = torch.Generator().manual_seed(1)
    codes, step = tensor.codes(), float(tensor.scale[1])
    return IntegerLayer(codes, step, bits, IntegerRules(**rules), generator)  # type: ignore[arg-type]


def test_stored_weights_are_integers_of_the_smallest_type() -> None:
    assert layer([1.0, -0.5], 7).codes.dtype == torch.int8
    assert layer([1.0, -0.5], 8).codes.dtype == torch.int16
    assert layer([1.0, -0.25], 8).codes.tolist() == [255, -64]


def test_steps_are_unbiased_and_stay_in_range() -> None:
    rest = {"momentum": 0.0, "range_rate": 0.0}
    made = layer([1.0] + [0.0] * 20_000, 3, **rest)
    made.rate = 1.0
    made.take(torch.full((20_001,), 0.3 / 7))  # 0.3 units of the last bit
    assert abs(float(made.codes[1:].double().mean()) + 0.3) < 0.02
    assert set(made.codes[1:].tolist()) == {-1, 0}
    made.take(torch.full((20_001,), 100.0))
    assert set(made.codes.tolist()) == {-7}


def test_powers_of_two_and_frozen_signs() -> None:
    made = layer([7.0, 3.0, -2.0, 0.0], 3, momentum=0.0, range_rate=0.0, rounding="power_of_two")
    made.rate = 1.0
    made.take(torch.tensor([3.0, -5.0, 0.0, 0.0]))  # 3 -> 4 (log2 1.58 rounds up), -5 -> -4
    assert made.codes.tolist() == [3, 7, -2, 0]
    kept = layer([7.0, 3.0, -2.0], 3, momentum=0.0, range_rate=0.0, frozen_signs=True)
    kept.rate = 1.0
    kept.take(torch.tensor([9.0, -1.0, -5.0]))
    assert kept.codes.tolist() == [0, 4, 0]


def test_pruning_a_layer_is_a_clip_with_the_scale_corrected() -> None:
    values = [1.0, -0.9] + [0.4, -0.3, 0.2, -0.1, 0.0] * 20
    made = layer(values, 5)  # a range of 1 in 31 steps; two of 102 weights have the top plane
    before, reach = made.encode().decode(), made.step * made.top
    assert made.prune(0.03) == 1
    after = made.encode().decode()
    assert made.step * made.top == pytest.approx(reach * 15 / 31, rel=1e-6)
    assert np.array_equal(after[2:], before[2:])
    assert after[:2].tolist() == pytest.approx([15 / 31, -15 / 31], rel=1e-6)


def test_the_lasso_shares_the_momentum_of_the_loss() -> None:
    made = layer([7.0, 4.0, 1.0], 3, momentum=0.5, range_rate=0.0, rounding="nearest")
    made.rate, made.lasso = 1e-9, 2.0
    made.take(torch.tensor([0.25, 0.0, 0.0]))
    first = made._velocity.clone()  # type: ignore[union-attr]
    # Σ_j 2^j B_j / ||B_j||: planes have 2, 1 and 2 ones; S = 7, 2^b + 1 = 9.
    pull = [1 / 2**0.5 + 2 + 4 / 2**0.5, 4 / 2**0.5, 1 / 2**0.5]
    expected = torch.tensor([2 * 3 / (7 * 9) * p for p in pull])
    expected[0] += 0.25
    assert torch.allclose(first, expected, rtol=1e-4)
    made.take(torch.zeros(3))
    pulled = expected - torch.tensor([0.25, 0.0, 0.0])
    assert torch.allclose(made._velocity, 0.5 * first + pulled, rtol=1e-4)  # type: ignore[arg-type]


def test_a_range_grows_from_round_to_round_unless_it_is_frozen() -> None:
    """A layer without normalisation behind it, whose best weights are twice its range."""
    reach = {}
    for rate in (0.0, 1.0):
        values = np.full(4, 1.0, np.float32)
        for number in range(6):
            tensor = quantize_planes(values, 4)
            generator = torch.Generator().manual_seed(number)
            rules = IntegerRules(momentum=0.0, range_rate=rate)
            made = IntegerLayer(tensor.codes(), float(tensor.scale[1]), 4, rules, generator)
            made.rate = 0.2
            for _ in range(30):
                made.take(made.weight() - 2.0)  # gradient of (w - 2)^2 / 2
            values = made.weight().numpy()
        reach[rate] = float(np.abs(values).max())
    assert reach[0.0] <= 1.0 + 1e-6
    assert 1.8 < reach[1.0] < 2.2


def test_a_layer_of_zeros_stays_and_can_be_sent() -> None:
    made = layer([0.0, 0.0], 3)
    made.rate = 1.0
    made.take(torch.ones(2))
    made.prune(0.03)
    assert made.encode().decode().tolist() == [0.0, 0.0]
    assert made.bits == 1


def test_gradients_are_those_of_autograd_through_convolutions() -> None:
    torch.manual_seed(0)
    module, plain = (resnet(20, channels=1, classes=3) for _ in range(2))
    plain.load_state_dict(module.state_dict())
    names = [n for n, p in module.named_parameters() if p.dim() > 1 and "shortcut" not in n]
    layers, found = {}, {}
    for name in names:
        tensor = quantize_planes(module.get_parameter(name).detach().numpy(), 4)
        made = IntegerLayer(
            tensor.codes(), float(tensor.scale[1]), 4, IntegerRules(), torch.Generator()
        )
        made.take = partial(found.__setitem__, name)  # type: ignore[method-assign]
        with torch.no_grad():
            plain.get_parameter(name).copy_(made.weight())
        replace_weight(module, name, made)
        layers[name] = made
    x, y = torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    model = IntegerModel(module, layers)
    tail = {n: p.detach().clone() for n, p in plain.named_parameters() if n not in names}
    model.step(functional.cross_entropy(module(x), y), 1.0, 0.0, {})
    functional.cross_entropy(plain(x), y).backward()
    for name in names:
        assert torch.equal(found[name], plain.get_parameter(name).grad), name  # type: ignore[arg-type]
    for name, before in tail.items():
        expected = before - plain.get_parameter(name).grad  # type: ignore[operator]
        assert torch.equal(dict(module.named_parameters())[name], expected), name


def test_lasso_weights_are_shares_of_memory() -> None:
    layers = {"a": layer([1.0] * 3, 2), "b": layer([1.0], 8)}
    assert lasso_weights(layers, 0.5) == {"a": 0.5 * 3 * 2 / 4, "b": 0.5 * 8 / 4}
    assert lasso_weights(layers, 0.0) == {}


def test_what_cannot_be_integers_is_refused() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, padding="same"), torch.nn.Embedding(3, 2))
    for name in ("0.weight", "0.bias", "1.weight"):
        with pytest.raises(PlanError, match="leave it in full precision"):
            replace_weight(module, name, layer([1.0], 2))


def test_a_loss_that_is_not_finite_says_where() -> None:
    algorithm = FedMPQ.configure({**PLAIN, "learning_rate": 3e38})
    job = context(algorithm, member("c0", 4), Moment(round=2, rounds=3, seed=SEED))
    with pytest.raises(TrainingError, match=r"'c0' became .* at iteration [67] \(round 2"):
        algorithm.train(job, broadcast(job.task, fresh_tensors(VARIANT, 1)), None)


def test_the_tail_can_be_half_as_large() -> None:
    algorithm = FedMPQ.configure({**PLAIN, "tail": "fp16"})
    job = context(algorithm, member("c0", 4), Moment(round=1, rounds=1, seed=SEED))
    assert job.plan.tail_bits == 16
    update = algorithm.train(job, broadcast(job.task, fresh_tensors(VARIANT, 1)), None).update
    assert update["fc1.bias"].nbytes == 2 * 9
    module = VARIANT.build()
    load_tensors(module, decoded(update))


@pytest.mark.parametrize("tail", ["fp32", "fp16"])
def test_a_client_ends_with_the_global_model_at_its_own_widths(tail: str) -> None:
    algorithm = FedMPQ.configure({**PLAIN, "tail": tail, "budget": 3.0, "allocation": "fixed"})
    values = fresh_tensors(VARIANT, derive(SEED, "init", "mlp"))
    who = context(algorithm, member("c0"), Moment(round=1, rounds=1, seed=SEED))
    finished = algorithm.finish(who, Broadcast.of(values), None)
    assert finished.variant == "mlp"
    assert list(finished.model) == list(values)
    for name, tensor in finished.model.items():
        found = tensor.decode()
        if name in LAYERS:
            # Seven magnitudes and a sign: 3 planes and one, by the largest magnitude.
            reach = np.abs(values[name]).max()
            expected = np.rint(np.abs(values[name]) * 7 / reach) * np.sign(values[name]) * reach / 7
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
            assert tensor.nbytes == 4 + 4 * -(-values[name].size // 8)
        else:
            exact = values[name] if tail == "fp32" else values[name].astype(np.float16)
            np.testing.assert_array_equal(found, exact.astype(np.float32))
