"""FedAvg with a guarantee: noise everywhere, nothing else leaves, what breaks it is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numpy.random import Generator, Philox
from private_cases import KEY, LDP_SGD, RELEASE, SEED, Points, first_model, flat, task, train

from motley.algorithms.base import Broadcast
from motley.errors import PrivacyError, WithheldError
from motley.execution.executor import Executor
from motley.models.units import load_tensors
from motley.privacy.ledger import MemoryStore
from motley.privacy.noise import SecretStream, derive_key
from motley.privacy.release import private_release
from motley.task import TaskKind
from motley.training.batches import Batches
from motley.wire import PayloadReader, encode_dense, write_payload
from motley.workload import DataSpec, LocalData, Split

MODES = pytest.mark.parametrize("settings", [RELEASE, LDP_SGD], ids=["release", "ldp-sgd"])


def key_of(spec: object, nonce: str = "0" * 32) -> bytes:
    """Return a task's key as the ledger derives it."""
    labels = (spec.run_id, spec.round, spec.attempt, spec.payload_sha256.hex(), nonce)  # type: ignore[attr-defined]
    return derive_key(KEY, *labels)


class Signs:
    """Draws for each sample whether its numbers change their sign."""

    def draw(self, generator: np.random.Generator, samples: int) -> npt.NDArray[np.int64]:
        return generator.integers(0, 2, samples)

    def apply(self, inputs: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        assert len(inputs) == len(drawn) == 1, "no record sees another"
        return inputs * (1 - 2 * drawn)[:, None]


class Flipped(Points):
    """Points that are changed as they are drawn."""

    augmentation = Signs()


@pytest.mark.parametrize("workload", [Points(), Flipped()], ids=["plain", "augmented"])
def test_a_private_step_is_the_papers_by_hand(workload: Points) -> None:
    """Poisson batches, clipped sums, noise over b: as a plain loop over records and steps."""
    settings = {**LDP_SGD, "momentum": 0.5, "weight_decay": 0.1, "learning_rate": 0.3}
    spec = task(settings)
    found = train(settings, spec=spec, workload=workload)
    split = workload.load(DataSpec("points")).train
    batches, noise = (SecretStream(key_of(spec), what) for what in ("batches", "noise"))
    module = Points().variants()["mlp"].build()
    load_tensors(module, first_model())
    parameters = list(module.parameters())
    velocity = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    sizes = []
    for step in range(3):
        drawn = [j for j, u in enumerate(batches.uniform(30)) if u < 0.2]
        sizes.append(len(drawn))
        total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        signs = np.ones(len(drawn), np.float32)
        if workload.augmentation is not None:
            hidden = int.from_bytes(derive_key(key_of(spec), "augment", step), "little")
            signs -= 2 * Generator(Philox(hidden)).integers(0, 2, len(drawn))
        for j, sign in zip(drawn, signs, strict=True):
            logits = module(torch.from_numpy(sign * split.inputs[j : j + 1]))
            target = torch.from_numpy(split.targets[j : j + 1])
            loss = torch.nn.functional.cross_entropy(logits, target)
            gradients = [g.double() for g in torch.autograd.grad(loss, parameters)]
            norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
            for place, g in zip(total, gradients, strict=True):
                place += g * min(1.0, 0.5 / norm)
        with torch.no_grad():
            for p, s, v in zip(parameters, total, velocity, strict=True):
                drawn_noise = torch.from_numpy(noise.gaussian(p.numel())).view(p.shape)
                v.mul_(0.5).add_((s + 1.5 * 0.5 * drawn_noise) / 6 + 0.1 * p)
                p.sub_(0.3 * v)
    assert len(set(sizes)) > 1, "batches have different sizes"
    for name, p in module.named_parameters():
        np.testing.assert_allclose(found.update[name], p.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_release_is_the_clipped_difference_and_noise_by_hand() -> None:
    spec, w = task(RELEASE), first_model()
    found = train(RELEASE, spec=spec)
    plain = {k: v for k, v in RELEASE.items() if k in ("weighting", "local_steps")}
    delta = flat(train(plain, spec=task(plain)).update) - flat(w)
    norm = float(np.linalg.norm(delta))
    noise = SecretStream(key_of(spec), "noise")
    drawn = np.concatenate([noise.gaussian(v.size) for v in w.values()])
    expected = flat(w) + delta * min(1.0, 0.5 / norm) + 4.0 * 0.5 * drawn
    np.testing.assert_allclose(flat(found.update), expected, rtol=1e-5, atol=1e-6)


@MODES
def test_noise_is_on_every_coordinate_also_where_nothing_was_learnt(settings) -> None:
    """No records at all: what is sent differs from the broadcast everywhere, by the planned σ."""

    class Nothing(Points):
        samples = 0

    if settings is RELEASE:
        w = {"a": np.zeros((40, 50), np.float32), "b": np.ones(500, np.float32)}
        moved = flat(private_release(w, w, 0.5, 4.0, KEY)) - flat(w)
        sigma = 4.0 * 0.5
    else:
        w = first_model()
        steps = {**settings, "learning_rate": 1.0, "local_steps": 60, "noise_multiplier": 6.0}
        moved = flat(train(steps, workload=Nothing()).update) - flat(w)
        sigma = 6.0 * 0.5 / 6 * math.sqrt(60)
    assert (moved != 0).all()
    spread = sigma / math.sqrt(2 * moved.size)
    assert abs(float(np.sqrt((moved**2).mean())) - sigma) < 5 * spread


def test_one_norm_binds_all_tensors_together() -> None:
    w = {"a": np.zeros(3, np.float32), "b": np.zeros(4, np.float32)}
    v = {"a": np.full(3, 3.0, np.float32), "b": np.full(4, 4.0, np.float32)}
    sent = flat(private_release(v, w, 1.0, 1e-12, KEY))
    np.testing.assert_allclose(sent, flat(v) / math.sqrt(27 + 64), rtol=1e-6)
    near = {"a": v["a"] * 0.01, "b": v["b"] * 0.01}
    np.testing.assert_allclose(
        flat(private_release(near, w, 1.0, 1e-12, KEY)), flat(near), rtol=1e-6
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 3e38])
def test_a_difference_that_is_not_finite_releases_noise_alone(wrong: float) -> None:
    w = {"a": np.zeros(300, np.float32)}
    v = {"a": np.full(300, wrong, np.float32)}
    sent = private_release(v, w, 1.0, 1.0, KEY)["a"]
    alone = private_release(w, w, 1.0, 1.0, KEY)["a"]
    if np.isfinite(wrong):  # a finite difference of any size is clipped
        assert np.linalg.norm(sent - alone) == pytest.approx(1.0, rel=1e-4)
    else:
        np.testing.assert_array_equal(sent, alone)


def test_counters_stay_as_they_came() -> None:
    w = {"a": np.zeros(2, np.float32), "count": np.array(5, np.int64)}
    v = {"a": np.ones(2, np.float32), "count": np.array(9, np.int64)}
    assert private_release(v, w, 1.0, 1.0, KEY)["count"] == 5


def test_training_that_diverges_is_no_failure_that_tells() -> None:
    diverging = {**RELEASE, "learning_rate": 1e30, "local_steps": 6}
    sent, w = train(diverging).update, first_model()
    assert np.isfinite(flat(sent)).all()
    noise = SecretStream(key_of(task(diverging)), "noise")
    expected = {name: v + 2.0 * noise.gaussian(v.size).reshape(v.shape) for name, v in w.items()}
    np.testing.assert_allclose(flat(sent), flat(expected), rtol=1e-5, atol=1e-5)


@MODES
def test_a_client_without_a_record_sends_noise_like_any_other(settings) -> None:
    class Nothing(Points):
        samples = 0

    sent = train(settings, workload=Nothing())
    assert sent.samples == 0
    assert (flat(sent.update) != flat(first_model())).all()


@MODES
def test_noise_is_secret_and_new_for_each_attempt_round_and_model(settings) -> None:
    """What the server knows (seed, round, name) does not decide; the device's secret does."""
    results = [
        train(settings, MemoryStore(bytes(32))),
        train(settings),
        train(settings, spec=task(settings, attempt=1)),
        train(settings, spec=task(settings, payload_sha256=bytes(32))),
        train(settings, spec=task(settings, round_=2)),
    ]
    vectors = [flat(r.update) for r in results]
    for i, a in enumerate(vectors):
        for b in vectors[i + 1 :]:
            assert (a != b).mean() > 0.99
    again = train(settings, spec=task(settings, run_seed=99, client="other"))
    if settings is LDP_SGD:  # sampling too is the device's own
        np.testing.assert_array_equal(flat(again.update), vectors[1])


def test_batches_of_the_public_schedule_are_not_used() -> None:
    batches = Batches(30, seed=SEED, client="c0", batch_size=6)
    stream = SecretStream(key_of(task(LDP_SGD)), "batches")
    drawn = np.flatnonzero(stream.uniform(30) < 0.2)
    assert sorted(batches(0)) != drawn.tolist()


# --- refusals ------------------------------------------------------------------------------------


@MODES
def test_batch_normalisation_is_refused_before_anything_is_spent(settings) -> None:
    store = MemoryStore(KEY)
    with pytest.raises(PrivacyError, match=r"layer 1 is a BatchNorm1d.*group normalisation"):
        train(settings, store, spec=task(settings, variant="normalised"))
    assert not store.entries()


@MODES
def test_an_uploaded_tensor_that_the_server_lacks_is_refused(settings) -> None:
    """A personal head: the difference to values unknown to the server would give them away."""
    from motley.algorithms import registry
    from motley.algorithms.base import ClientContext
    from motley.privacy.dp_sgd import Descent
    from motley.privacy.ledger import TaskPrivacy
    from motley.training.private import train_privately

    store, spec, workload = MemoryStore(KEY), task(settings), Points()
    context = ClientContext(
        task=spec, workload=workload, data=workload.load(DataSpec("p")),
        privacy=TaskPrivacy(store, spec),
    )  # fmt: skip
    module, w = workload.variants()["mlp"].build(), first_model()
    known = Broadcast.of({name: v for name, v in w.items() if not name.startswith("fc2")})
    with pytest.raises(PrivacyError, match="personal head is never uploaded"):
        train_privately(
            module, context, registry.find("fedavg").configure(spec.plan.settings).settings,
            known, list(w), lambda: None, Descent(lambda _: 0.1),
        )  # fmt: skip
    assert not store.entries()


def test_layers_that_are_not_uploaded_are_frozen_under_noisy_steps() -> None:
    from motley.algorithms import registry
    from motley.algorithms.base import ClientContext
    from motley.privacy.dp_sgd import Descent
    from motley.privacy.ledger import TaskPrivacy
    from motley.training.private import train_privately

    spec, workload = task(LDP_SGD), Points()
    context = ClientContext(
        task=spec, workload=workload, data=workload.load(DataSpec("p")),
        privacy=TaskPrivacy(MemoryStore(KEY), spec),
    )  # fmt: skip
    module, w = workload.variants()["mlp"].build(), first_model()
    load_tensors(module, w)
    settings = registry.find("fedavg").configure(spec.plan.settings).settings
    names = ["fc2.weight", "fc2.bias"]
    sent = train_privately(
        module, context, settings, Broadcast.of(w), names, lambda: None, Descent(lambda _: 0.1)
    )  # fmt: skip
    assert list(sent.update) == names
    np.testing.assert_array_equal(module.fc1.weight.detach().numpy(), w["fc1.weight"])
    np.testing.assert_array_equal(module.fc1.bias.detach().numpy(), w["fc1.bias"])
    assert (module.fc2.weight.detach().numpy() != w["fc2.weight"]).all()


# --- what a task tells ---------------------------------------------------------------------------


def execute(folder: Path, spec, store: MemoryStore | None, workload: Points | None = None):
    """Run a task as a daemon's training process does."""
    workload = workload or Points()
    executor = Executor(workload, workload.load(DataSpec("points")))
    table = executor.table("mlp").tensor_table
    broadcast = folder / "broadcast"
    write_payload(broadcast, [(n, encode_dense(v)) for n, v in first_model().items()], table)

    class Personal:
        def load(self, version):
            return None

        def save(self, version, tensors):
            raise AssertionError("FedAvg keeps no state")

    outcome = executor.run(
        spec, personal=Personal(), broadcast=broadcast, update=folder / "update",
        model=folder / "model", privacy=store,
    )  # fmt: skip
    if outcome.payload:
        with PayloadReader(folder / "update", table) as reader:
            return outcome, {name: reader[name].decode() for name in reader.names}
    return outcome, {}


@MODES
def test_an_outcome_carries_noise_and_no_figures_of_the_data(tmp_path, settings) -> None:
    store = MemoryStore(KEY)
    outcome, sent = execute(tmp_path, task(settings), store)
    assert (outcome.samples, dict(outcome.metrics), outcome.seconds) == (0, {}, 0.0)
    assert outcome.withheld
    assert len(store.entries()) == 1
    np.testing.assert_array_equal(flat(sent), flat(train(settings).update))


def test_low_bit_uploads_carry_the_noise_that_was_added_before(tmp_path) -> None:
    spec = task(RELEASE)
    from dataclasses import replace

    low = replace(spec, plan=replace(spec.plan, up_bits=8, down_bits=8))
    _, sent = execute(tmp_path, low, MemoryStore(KEY))
    delta = flat(train(RELEASE).update) - flat(first_model())
    assert np.abs(flat(sent) - delta).max() <= 2 * np.abs(delta).max() / 255


def test_no_ledger_no_private_training(tmp_path) -> None:
    with pytest.raises(PrivacyError, match="no privacy ledger is kept here"):
        execute(tmp_path, task(RELEASE), None)


def test_scores_are_not_sent_in_a_private_run_and_stay_on_the_device(tmp_path) -> None:
    store = MemoryStore(KEY)
    with pytest.raises(PrivacyError, match="evaluate on the server's own data"):
        execute(tmp_path, task(RELEASE, kind=TaskKind.EVALUATE, subject="global"), store)
    outcome, _ = execute(tmp_path, task(RELEASE, kind=TaskKind.FINISH), store)
    assert outcome.withheld
    assert "accuracy" in outcome.metrics, "the owner may know"
    assert not store.entries()


class Talkative(Points):
    """A workload whose failure quotes a record."""

    def loss(self, outputs, targets):
        raise KeyError("diagnosis of record 17")


@pytest.mark.parametrize("kind", [TaskKind.TRAIN, TaskKind.FINISH])
def test_what_a_workload_says_of_its_failure_stays_on_the_device(tmp_path, kind) -> None:
    spec = task(RELEASE, kind=kind)
    with pytest.raises(WithheldError, match="KeyError in a private task") as found:
        execute(tmp_path, spec, MemoryStore(KEY), Talkative())
    assert "diagnosis" not in str(found.value)
    plain = task({"weighting": "uniform", "local_steps": 3}, kind=kind)
    with pytest.raises(KeyError, match="record 17"):
        execute(tmp_path, plain, MemoryStore(KEY), Talkative())


@pytest.mark.parametrize("kind", [TaskKind.TRAIN, TaskKind.EVALUATE])
def test_a_run_cannot_drop_its_promise_halfway(tmp_path, kind) -> None:
    store, plain = MemoryStore(KEY), {"weighting": "uniform", "local_steps": 3}
    execute(tmp_path, task(plain), store)  # nothing was promised yet
    execute(tmp_path, task(RELEASE), store)
    with pytest.raises(PrivacyError, match=r"differential privacy|no privacy budget covers"):
        execute(tmp_path, task(plain, round_=2, kind=kind, subject="global"), store)
    other = task(plain, run_id="another", kind=kind, subject="global")
    execute(tmp_path, other, store)


def test_a_method_that_forgets_its_noise_sends_nothing(tmp_path, monkeypatch) -> None:
    from motley.algorithms.base import Trained
    from motley.algorithms.fedavg import FedAvg

    forgetful = Trained(update=first_model(), samples=30)
    monkeypatch.setattr(FedAvg, "train", lambda *_: forgetful)
    with pytest.raises(PrivacyError, match="without the noise that it promised"):
        execute(tmp_path, task(RELEASE), MemoryStore(KEY))
    assert not (tmp_path / "update").exists()


def test_data_of_any_size_is_trained_on_alike() -> None:
    class One(Points):
        def load(self, spec):
            split = super().load(spec).train
            one = Split(split.inputs[:1], split.targets[:1])
            return LocalData(one, one)

    sent = train({**LDP_SGD, "sampling_rate": 1.0, "noise_multiplier": 20.0}, workload=One())
    assert np.isfinite(flat(sent.update)).all()
