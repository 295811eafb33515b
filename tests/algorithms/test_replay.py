"""Steps that are recorded and replayed against the same steps, taken one by one.

Where there is no GPU a tape does what a CUDA graph does: the same operations with the same numbers
at the same addresses, and nothing that would have to wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from test_together import OWN
from together import DEVICE, assert_close, contexts, global_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from motley.algorithms import registry
from motley.algorithms.base import Algorithm, Tensors, Trained
from motley.training import replay
from motley.training.replay import recorder_of
from motley.workload import Workload
from motley.workloads.digits import Digits

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,
    aten.lift_fresh.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
}
"""Operations that bring a value to the processor, or one from it to the device."""
BOUND = 0.0 if DEVICE == "cpu" else 1e-5
"""On a GPU some sums are taken in another order each time."""


class Tape(TorchDispatchMode):
    """Runs a step while it takes it down, so that its first replay does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded = self.replayed = 0
        self._operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in WAITING:
            raise RuntimeError(f"{func} waits for the device")
        out = func(*args, **(kwargs or {}))
        self._operations.append((func, args, kwargs or {}, out))
        return out

    def record(self, step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Take down a step."""
        self._operations = []
        self.recorded += 1
        with self:
            loss = step()
        operations, ran = self._operations, True

        @torch.no_grad()
        def again() -> None:
            nonlocal ran
            if ran:
                ran = False
                return
            self.replayed += 1
            for func, args, kwargs, out in operations:
                for new, old in zip(
                    tree_leaves(func(*args, **kwargs)), tree_leaves(out), strict=True
                ):
                    if isinstance(old, torch.Tensor) and new.data_ptr() != old.data_ptr():
                        old.copy_(new)

        return again, loss


QUANTIZED = {"finetune_iterations": 14, "penalty": 0.01}
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "fedavg": ("fedavg", 32, {"momentum": 0.9, "weight_decay": 0.01}),
    "local": ("local", 32, {"weight_decay": 0.01}),
    "local-1": ("local", 1, QUANTIZED),
    "local-2-soft": ("local", 2, {**QUANTIZED, "mode": "soft"}),
    "local-4": ("local", 4, QUANTIZED),
    "proxquant": ("proxquant", 1, QUANTIZED),
    "binaryrelax": ("binaryrelax", 1, {"hard_fraction": 0.4}),
    "quped": ("quped", 32, {}),
    "quped-2": ("quped", 2, QUANTIZED),
    "qupel-2": ("qupel", 2, QUANTIZED),
    "pfedme": ("pfedme", 32, {"inner_steps": 2}),
    "perfedavg": ("perfedavg", 32, {"batch_size": 11}),
    "fml": ("fml", 32, {"momentum": 0.9}),
}
"""Method, bit-width and settings."""
UNITS = {"cnn1": ("conv2", "fc1", "fc2"), "normed": ("grouped",)}


def rounds(
    algorithm: Algorithm, workload: Workload, variant: str, bits: int, *, together: bool
) -> list[Trained]:
    """Return what two rounds come to for four clients with uneven data, or for one alone."""
    widths = dict.fromkeys(UNITS[variant], bits) if bits != 32 else {}
    sizes = (17, 40, 23, 9) if together else (22,)
    received = [global_model(workload, variant)] * len(sizes)
    states: list[Tensors | None] = [None] * len(sizes)
    ended: list[Trained] = []
    for number in (1, 2):
        made = contexts(
            workload, algorithm, variant, bits=widths, sizes=sizes, round_number=number, rounds=2
        )
        if together:
            found = algorithm.train_together(made, received, states)
        else:
            found = [algorithm.train(made[0], received[0], states[0])]
        assert found is not None
        ended = [one for one in found if isinstance(one, Trained)]
        assert len(ended) == len(sizes)
        states = [one.personal for one in ended]
    return ended


@pytest.mark.parametrize(
    ("workload", "variant", "together"),
    [(OWN, "normed", True), (Digits(), "cnn1", False)],
    ids=["together", "alone"],
)
@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_are_the_steps(
    case: str,
    workload: Workload,
    variant: str,
    together: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rates change every six iterations; the last fourteen of 24 fine-tune."""
    name, bits, given = CASES[case]
    settings = {"local_steps": 12, "batch_size": 8, "lr_decay": 0.8, "iterations_per_epoch": 6}
    algorithm = registry.find(name).configure({**settings, **given})
    monkeypatch.delenv("MOTLEY_CUDA_GRAPHS", raising=False)
    assert recorder_of(DEVICE) is None
    expected = rounds(algorithm, workload, variant, bits, together=together)
    monkeypatch.setenv("MOTLEY_CUDA_GRAPHS", "on")
    tape = Tape()
    if DEVICE == "cpu":
        monkeypatch.setattr(replay, "recorder_of", lambda device: tape)
    warned, replayed = [], []
    monkeypatch.setattr(replay.log, "warning", lambda event, **_: warned.append(event))
    taken = replay._Recording.replayed
    monkeypatch.setattr(
        replay._Recording, "replayed", lambda *given: (replayed.append(1), taken(*given))[1]
    )
    found = rounds(algorithm, workload, variant, bits, together=together)
    assert not warned
    if together or name != "fedavg":
        assert len(replayed) >= 8
    if DEVICE == "cpu":
        assert tape.replayed == len(replayed) - tape.recorded
    for one, other in zip(found, expected, strict=True):
        assert_close(one.update, other.update, BOUND)
        assert_close(one.personal or {}, other.personal or {}, BOUND)
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], abs=BOUND)


def test_a_step_that_cannot_be_recorded_is_taken_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refusing:
        def record(self, step: Callable[[], torch.Tensor]) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing")

    algorithm = registry.find("quped").configure({"local_steps": 6, **QUANTIZED})
    expected = rounds(algorithm, Digits(), "cnn1", 2, together=True)
    monkeypatch.setattr(replay, "recorder_of", lambda device: Refusing())
    warned: list[str] = []
    monkeypatch.setattr(replay.log, "warning", lambda event, **_: warned.append(event))
    found = rounds(algorithm, Digits(), "cnn1", 2, together=True)
    assert warned == ["steps_not_recorded"] * 2
    assert replay._recorders.pop(DEVICE) is None, "it is not tried again"
    for one, other in zip(found, expected, strict=True):
        assert_close(one.update, other.update, 0.0)
        assert_close(one.personal or {}, other.personal or {}, 0.0)


def test_a_gpu_records_where_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTLEY_CUDA_GRAPHS", "on")
    assert recorder_of("cpu") is None
    if DEVICE != "cpu":
        assert recorder_of(DEVICE) is recorder_of(DEVICE) is not None
