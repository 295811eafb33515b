"""DP-FedP3: noise on the layers that are sent, nothing else moves or leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fedp3_cases import TEXT, Lab, Points, Tensors
from torch.func import functional_call

from motley.algorithms.base import Member
from motley.errors import RunFileError
from motley.models.units import load_tensors
from motley.privacy.ledger import MemoryStore
from motley.privacy.noise import SecretStream, derive_key
from motley.prune.masks import UploadMasks
from motley.runfile import parse
from motley.task import TaskKind
from motley.workload import DataSpec

KEY = bytes(range(32))
PROMISE = "epsilon = 40.0\ndelta = 1e-5\nclip = 0.4\n"
LDP_SGD = PROMISE + 'privacy = "ldp-sgd"\nsampling_rate = 0.5\nnoise_multiplier = 1.5\n'
RELEASE = PROMISE + 'privacy = "release"\nnoise_multiplier = 2.0\n'


class PrivateLab(Lab):
    """A lab whose clients keep ledgers."""

    store: MemoryStore

    def train(self, member: Member, number: int = 1) -> Path:
        self.store = MemoryStore(KEY)
        update = self.root / f"{member.name}.update"
        self.outcome = self.executor(member).run(
            self.task(member, number, TaskKind.TRAIN),
            personal=self.personal[member.name],
            broadcast=self.broadcasts[member.name],
            update=update,
            model=self.root / "model",
            privacy=self.store,
        )
        return update

    def key(self, member: Member) -> bytes:
        task = self.task(member, 1, TaskKind.TRAIN)
        labels = (task.run_id, task.round, task.attempt, task.payload_sha256.hex(), "0" * 32)
        return derive_key(KEY, *labels)

    def done(self, place: int) -> tuple[Member, Tensors, Tensors, Tensors]:
        """Train one member; return it with its broadcast, update and own model."""
        self.open()
        member = self.members[place]
        sent = self.read(self.train(member))
        kept = self.personal[member.name].saved
        assert kept is not None
        return member, self.read(self.broadcasts[member.name]), sent, kept


def test_private_steps_move_the_sent_layers_alone_and_tell_nothing_else(tmp_path: Path) -> None:
    bench = PrivateLab(tmp_path, LDP_SGD)
    member, came, sent, kept = bench.done(1)
    units = {bench.table[name].unit for name in sent}
    assert units == {*bench.plan(member).upload} < set(bench.table.units)
    for name, values in kept.items():
        if name in sent:
            assert (values != came[name]).all(), f"{name} has noise everywhere"
            np.testing.assert_array_equal(sent[name], values)
        else:
            np.testing.assert_array_equal(values, came[name], err_msg=f"{name} is frozen")
    assert (bench.outcome.samples, dict(bench.outcome.metrics)) == (0, {})
    assert [entry.steps for entry in bench.store.entries()] == [3]


@pytest.mark.parametrize("rule", ["fixed", "uniform", "ordered"])
def test_a_private_step_by_hand(tmp_path: Path, rule: str) -> None:
    """One step: records one by one, masks of the step on layers that are not sent, noise."""
    settings = LDP_SGD + f'local_pruning = "{rule}"\nlocal_keep = 0.5\n'
    one_step = '[[tiers]]\nname = "all"\nsettings = { local_steps = 1 }'
    bench = PrivateLab(tmp_path, settings, one_step)
    member, came, sent, _ = bench.done(2)
    module = Points().variants()["mlp"].build()
    load_tensors(module, came)
    split = Points().load(DataSpec("points", {"client": str(member.index)})).train
    batches, noise = (SecretStream(bench.key(member), what) for what in ("batches", "noise"))
    drawn = np.flatnonzero(batches.uniform(len(split)) < 0.5)
    assert 0 < len(drawn) < len(split)
    trained = {name: p for name, p in module.named_parameters() if name in sent}
    masks = step_masks(bench, member)
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in trained.items()}
    for j in drawn:
        values = {name: p * masks.get(name, 1) for name, p in module.named_parameters()}
        outputs = functional_call(module, values, (torch.from_numpy(split.inputs[j : j + 1]),))
        loss = torch.nn.functional.cross_entropy(
            outputs, torch.from_numpy(split.targets[j : j + 1])
        )
        gradients = torch.autograd.grad(loss, list(trained.values()))
        norm = sum(float((g.double() ** 2).sum()) for g in gradients) ** 0.5
        for place, g in zip(total.values(), gradients, strict=True):
            place += g.double() * min(1.0, 0.4 / norm)
    for name, s in total.items():
        drawn_noise = noise.gaussian(s.numel()).reshape(s.shape)
        expected = came[name] - 0.1 * (s.numpy() + 1.5 * 0.4 * drawn_noise) / 8
        np.testing.assert_allclose(sent[name], expected, rtol=1e-4, atol=1e-6)


def step_masks(bench: Lab, member: Member) -> dict[str, torch.Tensor]:
    """Return the first step's masks of layers that a member does not send."""
    from motley.prune.local import StepMasks

    settings, upload = bench.context.algorithm.settings, bench.plan(member).upload
    rows = [row for row in bench.table if len(row.shape) == 2]
    masks = StepMasks(
        rule=settings.local_pruning,  # type: ignore[attr-defined]
        keep=0.5,
        seed=7,
        client=member.name,
        shapes={row.name: row.shape for row in rows if row.unit not in upload},
        first=rows[0].name,
    )
    return {name: torch.from_numpy(mask) for name, mask in masks(0).items()}


def test_a_sparse_private_upload_moves_what_goes_up_alone(tmp_path: Path) -> None:
    bench = PrivateLab(tmp_path, LDP_SGD + "upload_keep = 0.5\n")
    bench.open()
    member = bench.members[0]
    bench.train(member)
    came, kept = bench.read(bench.broadcasts[member.name]), bench.personal[member.name].saved
    assert kept is not None
    masks = UploadMasks.of(bench.plan(member), 7, 1, member.name)
    assert masks is not None
    seen = 0
    for name in kept:
        row = bench.table[name]
        mask = masks(row) if row.unit in bench.plan(member).upload else None
        if mask is not None:
            bits = mask.bits().reshape(row.shape)
            np.testing.assert_array_equal(kept[name] != came[name], bits)
            seen += 1
    assert seen


@pytest.mark.parametrize("trainer", ["sgd", "fedprox"])
def test_a_release_is_one_joint_clip_over_the_sent_layers_and_noise(
    tmp_path: Path, trainer: str
) -> None:
    named = f'trainer = "{trainer}"\n'
    (tmp_path / "plain").mkdir()
    (tmp_path / "private").mkdir()
    plain = Lab(tmp_path / "plain", named)
    plain.open()
    trained = plain.read(plain.train(plain.members[3]))
    bench = PrivateLab(tmp_path / "private", RELEASE + named)
    member, came, sent, _ = bench.done(3)
    assert list(sent) == list(trained)
    deltas = {name: trained[name].astype(np.float64) - came[name] for name in sent}
    norm = sum(float((d**2).sum()) for d in deltas.values()) ** 0.5
    noise = SecretStream(bench.key(member), "noise")
    for name, delta in deltas.items():
        drawn = noise.gaussian(delta.size).reshape(delta.shape)
        expected = came[name] + delta * min(1.0, 0.4 / norm) + 2.0 * 0.4 * drawn
        np.testing.assert_allclose(sent[name], expected, rtol=1e-4, atol=1e-6)


def test_a_private_round_is_folded_over_those_who_sent(tmp_path: Path) -> None:
    bench = PrivateLab(tmp_path, LDP_SGD + 'layers = "lowerb"\n')
    before = bench.tensors()
    after = bench.round()
    for name in before:
        assert (after[name] != before[name]).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (RELEASE + 'head = "personal"', "no noise on a difference hides its values"),
        (LDP_SGD + 'head = "personal"', "no noise on a difference hides its values"),
        (LDP_SGD + 'trainer = "fedprox"', "is a trainer of its own"),
    ],
)
def test_what_breaks_the_promise_is_refused(settings: str, words: str) -> None:
    with pytest.raises(RunFileError, match=words):
        parse(TEXT.format(settings=settings, sections=""))
