"""Iterations of a task recorded once and replayed, where launching operations is what takes time.

On a GPU an iteration of a small model is hundreds of operations of microseconds each, and Python
takes ten times as long to launch them as the card to do them. A CUDA graph launches them all at
once. It does again what was done when it was recorded: the same operations with the same numbers
at the same addresses. So a step that is replayed keeps its state where it is, and whatever number
it takes from elsewhere is named by `given`: where that changes, it is recorded anew.

Asked for by `MOTLEY_CUDA_GRAPHS=on`: no GPU has confirmed it yet (docs/simulation.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from structlog.stdlib import get_logger

log = get_logger()

Step = Callable[[int], torch.Tensor]
"""One iteration by its number; returns the loss, or those of many clients."""


class Drawn(Protocol):
    """A batch: of one client, or of many, folded."""

    @property
    def inputs(self) -> torch.Tensor:
        """[B, ...], or [K·B, ...]."""

    @property
    def targets(self) -> torch.Tensor:
        """[B, ...], or [K·B, ...]."""

    @property
    def tensors(self) -> Sequence[torch.Tensor]:
        """All that it holds."""

    def means(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of a value of each sample: a scalar, or each client's, [K]."""

    def copy(self) -> Drawn:
        """Return the same in memory of its own."""


class Source(Protocol):
    """Batches by number."""

    held: dict[int, Drawn]
    """What is given out for some numbers, in place of what is drawn."""
    device: str

    def draw(self, number: int) -> Drawn:
        """Return batch `number`."""


class Recorder(Protocol):
    """Takes down what a step does."""

    def record(self, step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Return what does it, each time it is called, and where the loss then lies.

        Raises:
            RuntimeError: the step does what cannot be taken down; nothing has been done.
        """


def repeated(
    step: Step,
    source: Source,
    given: Callable[[int], Hashable],
    draws: Callable[[int], Sequence[int]] = lambda number: (number,),
) -> Step:
    """Return a step that does the same, by replaying it where the device can.

    Args:
        step: takes its batches from `source`, changes its state in place, and never waits for the
            device.
        source: of its batches.
        given: what the step's numbers and its way depend on, by iteration.
        draws: numbers of the batches that it takes, by iteration.
    """
    recorder = recorder_of(source.device)
    return step if recorder is None else _Replayed(step, source, given, draws, recorder)


def recorder_of(device: str) -> Recorder | None:
    """Return what records on a device; None where nothing does."""
    if torch.device(device).type != "cuda" or os.environ.get("MOTLEY_CUDA_GRAPHS") != "on":
        return None
    if device not in _recorders:
        _recorders[device] = _Graphs(device)
    return _recorders[device]  # None from the first refusal on


class _Replayed:
    """A step that runs once for each `given` and shape, is then recorded, and replayed."""

    def __init__(
        self,
        step: Step,
        source: Source,
        given: Callable[[int], Hashable],
        draws: Callable[[int], Sequence[int]],
        recorder: Recorder,
    ) -> None:
        self._step, self._source, self._given, self._draws = step, source, given, draws
        self._recorder: Recorder | None = recorder
        self._known: Hashable = None
        self._recordings: dict[Hashable, _Recording | None] = {}
        """By the shapes of their batches, as long as `given` says the same."""

    def __call__(self, iteration: int) -> torch.Tensor:
        numbers, known = self._draws(iteration), self._given(iteration)
        batches = [self._source.draw(number) for number in numbers]
        shapes = tuple(tuple(t.shape for t in batch.tensors) for batch in batches)
        if known != self._known:
            self._known = known
            self._recordings.clear()
        if self._recorder is None or shapes not in self._recordings:
            # What is made in the first step is made, and what turns with `given` has turned.
            self._recordings[shapes] = None
            return self._taken(iteration, numbers, batches)
        recording = self._recordings[shapes]
        if recording is None:
            places = [batch.copy() for batch in batches]
            try:
                recording = _Recording(
                    places,
                    *self._recorder.record(lambda: self._taken(iteration, numbers, places)),
                )
            except RuntimeError as error:
                log.warning("steps_not_recorded", reason=str(error)[:300])
                self._recorder = _recorders[self._source.device] = None  # torch may not recover
                return self._taken(iteration, numbers, batches)
            self._recordings[shapes] = recording
        return recording.replayed(batches)

    def _taken(
        self, iteration: int, numbers: Sequence[int], batches: Sequence[Drawn]
    ) -> torch.Tensor:
        """Take the step on these batches."""
        self._source.held = dict(zip(numbers, batches, strict=True))
        try:
            return self._step(iteration)
        finally:
            self._source.held = {}


@dataclass(frozen=True)
class _Recording:
    """A step on the batches that lie in its places."""

    places: Sequence[Drawn]
    replay: Callable[[], None]
    loss: torch.Tensor

    def replayed(self, batches: Sequence[Drawn]) -> torch.Tensor:
        """Take the step on other batches of the same shapes."""
        for place, batch in zip(self.places, batches, strict=True):
            for kept, new in zip(place.tensors, batch.tensors, strict=True):
                kept.copy_(new)
        self.replay()
        return self.loss.clone()


class _Graphs:
    """Records CUDA graphs of one device, all in the same memory: one thread trains at a time."""

    def __init__(self, device: str) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._memory = torch.cuda.graph_pool_handle()
            # Kept for good: memory whose graphs are all gone is refused to the next one.
            self._first = self._record(lambda: torch.zeros(1, device=device))

    def record(self, step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Take down a step; nothing of it runs. Other threads may go on using the device."""
        with torch.cuda.device(self._device):
            graph, loss = self._record(step)
        return graph.replay, loss

    def _record(
        self, step: Callable[[], torch.Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        # Not torch.cuda.graph(), which collects garbage and gives memory back each time.
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._memory, capture_error_mode="thread_local")
            try:
                loss = step()
            except BaseException:
                with suppress(RuntimeError):  # it says that the recording is spoilt, not why
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph, loss


_recorders: dict[str, Recorder | None] = {}
