"""FedP3's rounds: against plain federated averaging, masks in training, what clients keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
import torch
from fedp3_cases import Lab, Points, Tensors
from torch.nn import functional

from motley.algorithms import fedp3_strategies as strategies
from motley.algorithms.base import ClientContext
from motley.algorithms.fedp3_settings import FedP3Settings
from motley.models.units import load_tensors, read_tensors
from motley.prune.local import StepMasks
from motley.prune.masks import by_magnitude
from motley.task import TaskKind
from motley.training.batches import Batches
from motley.training.steps import Feed, take_steps
from motley.training.subnetwork import LocalTrainer, Step, Subnetwork, fedprox, sgd
from motley.wire import PayloadReader
from motley.workload import DataSpec

WHOLE = 'layers = "all"\nkeep = 1.0\naggregation = "mean"\n'


def fedavg(bench: Lab, rounds: int, clip: float) -> Tensors:
    """Plain federated averaging with torch's own SGD, in a few lines."""
    state = bench.tensors()
    for number in range(rounds):
        results = []
        for member in bench.members:
            module = Points().variants()["mlp"].build()
            load_tensors(module, state)
            data = Points().load(DataSpec("points", {"client": str(member.index)})).train
            inputs, targets = torch.from_numpy(data.inputs), torch.from_numpy(data.targets)
            batches = Batches(16, seed=7, client=member.name, batch_size=8)
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            for step in range(3):
                index = torch.from_numpy(batches(3 * number + step))
                optimizer.zero_grad()
                functional.cross_entropy(module(inputs[index]), targets[index]).backward()
                if clip:
                    torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
                optimizer.step()
            results.append(read_tensors(module))
        for name in state:
            total = results[0][name].copy()
            for result in results[1:]:
                total += result[name]
            state[name] = total / np.float32(len(results))
    return state


def test_all_layers_unpruned_are_federated_averaging_to_the_last_bit(tmp_path: Path) -> None:
    bench = Lab(tmp_path, WHOLE + "gradient_clip = 0.0")
    expected = fedavg(bench, 3, 0.0)
    for number in (1, 2, 3):
        state = bench.round(number)
    for name, values in expected.items():
        npt.assert_array_equal(state[name], values)


def test_the_gradients_norm_is_bounded_as_torch_does_it(tmp_path: Path) -> None:
    bench = Lab(tmp_path, WHOLE + "gradient_clip = 0.05")
    expected = fedavg(bench, 1, 0.05)
    state = bench.round(1)
    for name, values in expected.items():
        npt.assert_allclose(state[name], values, atol=1e-6)


def test_a_round_can_be_computed_again(tmp_path: Path) -> None:
    more = 'layers = "opu2"\nlocal_pruning = "uniform"\nupload_keep = 0.5'
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first, second = Lab(tmp_path / "a", more), Lab(tmp_path / "b", more)
    first.round(1), second.round(1, second.members[::-1])
    assert first.state == second.state
    assert first.fold is not None
    assert first.fold.run(first.payloads)[0] == first.state


# --- masks in training ---------------------------------------------------------------------------

MOVING = 'layers = "lowerb"\nkeep = 0.5\nmomentum = 0.9\nweight_decay = 0.1\n'


@pytest.mark.parametrize("trainer", ["sgd", "fedprox"])
@pytest.mark.parametrize("local", ["fixed", "uniform", "ordered"])
def test_pruned_weights_do_not_regrow(tmp_path: Path, trainer: str, local: str) -> None:
    more = f'trainer = "{trainer}"\nproximal = 0.5\nlocal_pruning = "{local}"\nlocal_keep = 0.4'
    bench = Lab(tmp_path, MOVING + more)
    bench.open()
    for member in bench.members:
        bench.train(member)
        saved = bench.personal[member.name].saved
        assert saved is not None
        pruned = 0
        with PayloadReader(bench.broadcasts[member.name], bench.table.tensor_table) as reader:
            for name, tensor in reader.items():
                if tensor.mask is None:
                    continue
                pruned += 1
                bits = tensor.mask.bits().reshape(tensor.shape)
                assert bits.sum() == int(0.5 * bits.size)
                npt.assert_array_equal(saved[name][~bits], 0)
                if local == "fixed":
                    assert (saved[name][bits] != tensor.decode()[bits]).mean() > 0.5
        assert pruned == 3


def test_what_comes_down_pruned_are_the_largest_values(tmp_path: Path) -> None:
    bench = Lab(tmp_path, 'layers = "lowerb"\nkeep = 0.3')
    bench.open()
    state = bench.tensors()
    received = bench.read(bench.broadcasts["c0"])
    for name, values in state.items():
        is_pruned = name in {"fc2.weight", "fc3.weight", "fc4.weight"}
        mask = by_magnitude(values, 0.3).bits() if is_pruned else np.ones(values.size, bool)
        npt.assert_array_equal(received[name].reshape(-1), np.where(mask, values.reshape(-1), 0))


def context(bench: Lab, member_index: int = 0) -> ClientContext:
    member = bench.members[member_index]
    spec = DataSpec("points", {"client": str(member_index)})
    return ClientContext(
        task=bench.task(member, 1, TaskKind.TRAIN),
        workload=bench.workload,
        data=bench.workload.load(spec),
    )


def train(
    trainer: LocalTrainer, network: Subnetwork, work: ClientContext, settings: FedP3Settings
) -> None:
    feed = Feed(work, settings.batches(work))
    take_steps(work, settings.local_steps, trainer(network, work.workload, feed, settings))


def test_a_weight_that_a_step_leaves_out_keeps_its_value(tmp_path: Path) -> None:
    """One step at a time, with momentum and decay, which would move a weight without a gradient."""
    bench = Lab(tmp_path, MOVING + ["local_steps = 1", 'local_pruning = "uniform"'][1])
    module = Points().variants()["mlp"].build()
    shapes = {"fc1.weight": (10, 12), "fc3.weight": (8, 9)}
    local = StepMasks(
        rule="uniform", keep=0.2, seed=7, client="c0", shapes=shapes, first="fc1.weight"
    )
    network = Subnetwork(module, {}, local)
    settings = FedP3Settings(local_steps=1, batch_size=8, momentum=0.9, weight_decay=0.1)
    left_out = local(0)
    before = read_tensors(module)
    train(sgd, network, context(bench), settings)
    after = read_tensors(module)
    for name in shapes:
        npt.assert_array_equal(after[name][~left_out[name]], before[name][~left_out[name]])
        assert (after[name] != before[name])[left_out[name]].mean() > 0.5
    assert (after["fc2.weight"] != before["fc2.weight"]).mean() > 0.5


def test_a_step_is_the_gradient_of_the_masked_model(tmp_path: Path) -> None:
    bench = Lab(tmp_path)
    torch.manual_seed(0)
    module = Points().variants()["mlp"].build()
    shapes = {"fc2.weight": (9, 10)}
    local = StepMasks(rule="ordered", keep=0.5, seed=7, client="c0", shapes=shapes, first="")
    settings = FedP3Settings(local_steps=1, batch_size=8, learning_rate=0.1, gradient_clip=0)
    work = context(bench)
    index = torch.from_numpy(settings.batches(work)(0))
    inputs = torch.from_numpy(work.data.train.inputs)[index]
    targets = torch.from_numpy(work.data.train.targets)[index]
    naive = Points().variants()["mlp"].build()
    naive.load_state_dict(module.state_dict())
    mask = torch.from_numpy(local(0)["fc2.weight"])
    kept = naive.fc2.weight.detach().clone()
    with torch.no_grad():
        naive.fc2.weight.mul_(mask)
    functional.cross_entropy(naive(inputs), targets).backward()
    with torch.no_grad():
        naive.fc2.weight.copy_(kept)
        for parameter in naive.parameters():
            update = parameter.grad * mask if parameter.grad.shape == mask.shape else parameter.grad
            parameter -= 0.1 * update
    train(sgd, Subnetwork(module, {}, local), work, settings)
    for name, value in naive.state_dict().items():
        npt.assert_allclose(module.state_dict()[name], value, atol=1e-7)


def test_a_gradient_is_bounded_by_the_norm_of_what_may_move(tmp_path: Path) -> None:
    """Pruned weights have gradients too, as zeros of the module; they have no part in the bound."""
    work = context(Lab(tmp_path))
    torch.manual_seed(0)
    module = Points().variants()["mlp"].build()
    moving = {"fc1.weight": torch.rand(module.fc1.weight.shape) < 0.2}
    with torch.no_grad():
        module.fc1.weight.mul_(moving["fc1.weight"])
    before = read_tensors(module)
    settings = FedP3Settings(local_steps=1, batch_size=8, learning_rate=1.0, gradient_clip=0.01)
    train(sgd, Subnetwork(module, moving), work, settings)
    step = [np.subtract(before[name], values) for name, values in read_tensors(module).items()]
    assert np.sqrt(sum((s.astype(np.float64) ** 2).sum() for s in step)) == pytest.approx(
        0.01, rel=1e-4
    )


def test_fedprox_pulls_back_to_what_came_down(tmp_path: Path) -> None:
    """Two steps by hand: the second one's gradient has μ (W_1 - W_0) added."""
    bench = Lab(tmp_path)
    work = context(bench)
    torch.manual_seed(0)
    module = Points().variants()["mlp"].build()
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    naive = Points().variants()["mlp"].build()
    naive.load_state_dict(module.state_dict())
    settings = FedP3Settings(
        local_steps=2, batch_size=8, learning_rate=0.1, proximal=3.0, gradient_clip=0
    )
    batches = settings.batches(work)
    inputs = torch.from_numpy(work.data.train.inputs)
    targets = torch.from_numpy(work.data.train.targets)
    for step in range(2):
        index = torch.from_numpy(batches(step))
        naive.zero_grad()
        loss = functional.cross_entropy(naive(inputs[index]), targets[index])
        for name, parameter in naive.named_parameters():
            loss = loss + 1.5 * (parameter - start[name]).square().sum()
        loss.backward()
        with torch.no_grad():
            for parameter in naive.parameters():
                parameter -= 0.1 * parameter.grad
    train(fedprox, Subnetwork(module), work, settings)
    for name, value in naive.state_dict().items():
        npt.assert_allclose(module.state_dict()[name], value, atol=1e-6)


# --- what clients keep ---------------------------------------------------------------------------


def test_a_personal_head_stays_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Lab(tmp_path, 'layers = "opu2"\nhead = "personal"\nkeep = 0.9')
    bench.round(1)
    heads = {n: m.saved["fc5.weight"] for n, m in bench.personal.items() if m.saved}
    assert len({head.tobytes() for head in heads.values()}) == 4
    # The server averages what went up, and nobody gets it back.
    npt.assert_allclose(
        bench.tensors()["fc5.weight"], sum(heads[f"c{i}"] for i in range(4)) / 4, atol=1e-7
    )
    SEEN.clear()
    bench.open(2)
    monkeypatch.setitem(strategies.TRAINERS, "sgd", f"{__name__}:look")
    bench.train(bench.members[0], 2)
    npt.assert_array_equal(SEEN["fc5.weight"], heads["c0"])


SEEN: Tensors = {}


def look(network: Subnetwork, *_: object) -> Step:
    """A trainer that only notes what it starts from."""
    SEEN.update(read_tensors(network.module))
    return lambda iteration: torch.zeros(())


def test_both_models_can_be_scored(tmp_path: Path) -> None:
    bench = Lab(tmp_path, 'layers = "lowerb"\nkeep = 0.5')
    bench.round(1)
    member = bench.members[1]
    scores = {}
    for subject in ("both", "global", "personal"):
        outcome = bench.executor(member).run(
            bench.task(member, 1, TaskKind.EVALUATE, subject),
            personal=bench.personal[member.name],
            broadcast=bench.payloads.path(bench.state),
            update=tmp_path / "u",
            model=tmp_path / "m",
        )
        scores[subject] = outcome.metrics
    assert scores["both"] == {
        **{f"global_{name}": value for name, value in scores["global"].items()},
        **{f"personal_{name}": value for name, value in scores["personal"].items()},
    }
    assert scores["global"]["loss"] != scores["personal"]["loss"]


def test_the_finished_model_is_the_clients_own_without_its_zeros(tmp_path: Path) -> None:
    bench = Lab(tmp_path, 'layers = "lowerb"\nkeep = 0.3')
    bench.round(1)
    member = bench.members[0]
    model = tmp_path / "model"
    bench.executor(member).run(
        bench.task(member, 5, TaskKind.FINISH),
        personal=bench.personal[member.name],
        broadcast=None,
        update=tmp_path / "u",
        model=model,
    )
    saved = bench.personal[member.name].saved
    assert saved is not None
    with PayloadReader(model) as reader:
        for name, values in saved.items():
            npt.assert_array_equal(reader[name].decode(), values)
        assert reader["fc2.weight"].kept is not None
        assert reader["fc2.weight"].nbytes < 0.6 * saved["fc2.weight"].nbytes
        assert reader["fc1.weight"].kept is None
