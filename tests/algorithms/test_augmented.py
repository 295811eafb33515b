"""Training samples that are changed as they are drawn: by seed, client and batch alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from together import assert_close, contexts, global_model

from motley.algorithms import registry
from motley.algorithms.base import ClientContext
from motley.algorithms.fedavg import FedAvg
from motley.algorithms.quped import QuPeD
from motley.training.padded import PaddedBatches
from motley.training.steps import Feed
from motley.workloads.crops import CropAndMirror
from motley.workloads.digits import Digits

SETTINGS: dict[str, bool | int | float | str] = {
    "local_steps": 3,
    "batch_size": 10,
    "learning_rate": 0.1,
}


class Moved(Digits):
    """Digits that are shifted by up to two pixels, and mirrored."""

    augmentation = CropAndMirror(2)


def by_hand(images: torch.Tensor, drawn: npt.NDArray[np.int64], pad: int) -> torch.Tensor:
    """Crop and mirror pixel by pixel."""
    found = torch.zeros_like(images)
    height, width = images.shape[2:]
    for number, (down, right, mirrored) in enumerate(drawn.tolist()):
        for row in range(height):
            for column in range(width):
                place = width - 1 - column if mirrored else column
                y, x = row + down - pad, place + right - pad
                if 0 <= y < height and 0 <= x < width:
                    found[number, :, row, column] = images[number, :, y, x]
    return found


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_crops_are_those_made_pixel_by_pixel(pad: int) -> None:
    images = torch.randn(40, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    before, cropping = images.clone(), CropAndMirror(pad)
    drawn = cropping.draw(np.random.default_rng(1), len(images))
    found = cropping.apply(images, torch.from_numpy(drawn))
    assert torch.equal(found, by_hand(images, drawn, pad))
    assert torch.equal(images, before)
    assert cropping.apply(images[:0], torch.from_numpy(drawn[:0])).shape == (0, 3, 6, 5)


def test_every_place_is_drawn_as_often() -> None:
    drawn = CropAndMirror(4).draw(np.random.default_rng(0), 81_000)
    for column, places in enumerate((9, 9, 2)):
        counts = np.bincount(drawn[:, column], minlength=places)
        assert len(counts) == places
        expected = len(drawn) / places
        assert np.abs(counts - expected).max() < 5 * expected**0.5


BATCHES = FedAvg.configure(SETTINGS).settings.batches


def cases() -> list[ClientContext]:
    return contexts(Moved(), FedAvg.configure(SETTINGS), "cnn1")


def feed_of(context: ClientContext) -> Feed:
    return Feed(context, BATCHES(context))


def test_a_batch_follows_from_seed_client_and_number() -> None:
    context = cases()[1]
    feed, again = feed_of(context), feed_of(context)
    plain = feed_of(replace(context, workload=Digits()))
    again(5)  # a task that begins elsewhere draws the same
    for number in (0, 3, 5):
        batch = feed(number)
        assert torch.equal(batch.inputs, again(number).inputs)
        assert torch.equal(batch.targets, plain(number).targets)
        assert not torch.equal(batch.inputs, plain(number).inputs)
    passes = 4  # of 40 samples by 10: afterwards each comes again, and is drawn for anew
    seen, later = (torch.cat([feed(n + start).inputs for n in range(passes)]) for start in (0, 4))
    assert not torch.equal(seen.sum((1, 2, 3)).sort().values, later.sum((1, 2, 3)).sort().values)
    for changed in ({"run_seed": 4}, {"client": "another"}):
        # The same samples, so that what differs is what was drawn for them.
        other = replace(context, task=replace(context.task, **changed))  # type: ignore[arg-type]
        batch = Feed(other, BATCHES(context))(2)
        assert torch.equal(batch.targets, feed(2).targets)
        assert not torch.equal(batch.inputs, feed(2).inputs)


def test_clients_that_train_together_see_what_each_sees_alone() -> None:
    """Sets of 17, 40, 23 and 9 samples: batches of 10 and fewer, filled up with the first."""
    clients = cases()
    together = PaddedBatches(clients, [BATCHES(one) for one in clients])
    short = 0
    for number in range(4):
        padded = together(number)
        inputs = padded.inputs.unflatten(0, (len(clients), -1))
        for row, context in zip(inputs, clients, strict=True):
            own = feed_of(context)(number).inputs
            assert torch.equal(row[: len(own)], own)
            for filler in row[len(own) :]:
                short += 1
                assert torch.equal(filler, own[0])
    assert short > 0


@pytest.mark.parametrize("name", ["fedavg", "quped"])
def test_training_together_is_training_alone(name: str) -> None:
    algorithm = registry.find(name).configure({**SETTINGS, "local_steps": 1})
    assert isinstance(algorithm, FedAvg | QuPeD)
    clients = contexts(Moved(), algorithm, "cnn1")
    broadcast = global_model(Moved(), "cnn1")
    together = algorithm.train_together(clients, [broadcast] * len(clients), [None] * len(clients))
    plain = replace(clients[0], workload=Digits())
    for context, many in zip(clients, together, strict=True):
        alone = algorithm.train(context, broadcast, None)
        assert not isinstance(many, Exception)
        assert_close(many.update, alone.update, 1e-6)
    unchanged = algorithm.train(plain, broadcast, None)
    moved = algorithm.train(clients[0], broadcast, None)
    assert any(not np.array_equal(moved.update[key], unchanged.update[key]) for key in moved.update)
