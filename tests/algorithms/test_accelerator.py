"""Samples kept on a GPU: the same batches, and gone with their split."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from together import assert_close, contexts, global_model

from motley.algorithms.fedavg import FedAvg
from motley.errors import TrainingError
from motley.execution.executor import Executor
from motley.training import accelerator, padded
from motley.training.evaluation import to_torch
from motley.training.padded import PaddedBatches
from motley.workload import Split
from motley.workloads.digits import Digits

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("sizes", [(17, 40, 23, 9), (20, 20, 20), (12,)])
def test_kept_samples_give_the_same_batches(
    sizes: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = contexts(Digits(), FedAvg.configure({}), "mlp", sizes=sizes)
    drawn = [FedAvg.configure({"batch_size": 7}).settings.batches(c) for c in made]
    monkeypatch.setattr(padded, "resident", lambda split, device: None)
    expected = PaddedBatches(made, drawn)
    monkeypatch.setattr(padded, "resident", to_torch)
    monkeypatch.setattr(padded, "has_room", lambda size, device: True)
    found = PaddedBatches(made, drawn)
    for iteration in range(8):
        before, now = expected(iteration), found(iteration)
        assert torch.equal(before.inputs, now.inputs)
        assert torch.equal(before.targets, now.targets)
        assert torch.equal(before.weights, now.weights)


def test_batches_are_the_equal_parts_of_a_permutation() -> None:
    made = contexts(Digits(), FedAvg.configure({}), "mlp", sizes=(23,))
    for per_pass in (1, 5, 23, 40):
        batches = FedAvg.configure({"batches_per_pass": per_pass}).settings.batches(made[0])
        parts = [batches(iteration) for iteration in range(batches.per_pass)]
        expected = np.array_split(np.concatenate(parts), min(per_pass, 23))
        assert [part.tolist() for part in parts] == [part.tolist() for part in expected]
        assert sorted(np.concatenate(parts)) == list(range(23))


def test_nothing_is_kept_for_a_processor() -> None:
    split = Split(np.zeros((3, 2), np.float32), np.zeros(3, np.int64))
    assert accelerator.resident(split, "cpu") is None


def test_kept_samples_go_with_their_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """The card here is a stand-in of 100 bytes, on which tensors stay in memory."""
    kept: dict[object, object] = {}
    monkeypatch.setattr(accelerator, "_kept", kept)
    monkeypatch.setattr(accelerator, "to_torch", lambda split, device: to_torch(split, "cpu"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80, 100))
    split = Split(np.zeros((3, 2), np.float32), np.zeros(3, np.int64))
    first = accelerator.resident(split, "cuda")
    assert first is not None
    assert first is accelerator.resident(split, "cuda")
    larger = Split(np.zeros((4, 2), np.float32), np.zeros(4, np.int64))
    assert accelerator.resident(larger, "cuda") is None, "the card would be more than half full"
    assert len(kept) == 1
    del split
    gc.collect()
    assert not kept


def test_executors_on_a_gpu_compute_exactly() -> None:
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [place.allow_tf32 for place in switches]
    data = contexts(Digits(), FedAvg.configure({}), "mlp")[0].data
    try:
        for place in switches:
            place.allow_tf32 = True
        Executor(Digits(), data, "cpu")
        assert [place.allow_tf32 for place in switches] == [True, True]
        Executor(Digits(), data, "cuda")
        assert [place.allow_tf32 for place in switches] == [False, False]
    finally:
        for place, value in zip(switches, before, strict=True):
            place.allow_tf32 = value


@needs_gpu
def test_a_gpu_trains_as_a_processor_does(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = FedAvg.configure({"local_steps": 5, "batch_size": 10})
    broadcast = global_model(Digits(), "cnn1")
    accelerator.compute_exactly("cuda")
    trained = []
    for device in ("cpu", "cuda"):
        monkeypatch.setattr("together.DEVICE", device)
        made = contexts(Digits(), algorithm, "cnn1")
        found = algorithm.train_together(made, [broadcast] * 4, [None] * 4)
        assert found is not None
        trained.append(found)
    for expected, now in zip(*trained, strict=True):
        assert not isinstance(expected, TrainingError)
        assert not isinstance(now, TrainingError)
        assert_close(now.update, expected.update, 1e-5)
