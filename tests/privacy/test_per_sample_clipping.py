"""Clipping is per record: against a loop of plain autograd, and one record's reach is bounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from motley.models.cnn import cnn1
from motley.models.mlp import mlp
from motley.privacy.clipping import PerSampleClipper


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


class Recurrent(nn.Module):
    """An LSTM, which torch does not vectorise over records."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.lstm(x)
        logits: torch.Tensor = self.head(outputs[:, -1])
        return logits


class Counting(nn.Module):
    """A layer that notes what it saw in a buffer and uses it: records would mix."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(x.detach().sum(dim=0))
        logits: torch.Tensor = self.head(x * (1 + self.seen))
        return logits


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )


MODELS = {
    "mlp": (lambda: mlp(inputs=4, hidden=(6,), classes=3), (4,)),
    "cnn": (lambda: cnn1(channels=1, classes=3, side=8), (1, 8, 8)),
    "group norm": (grouped, (1, 8, 8)),
    "lstm": (Recurrent, (7, 4)),
    "counting": (Counting, (4,)),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    build, shape = MODELS[request.param]
    torch.manual_seed(1)
    module = build()
    return module, torch.randn(9, *shape), torch.randint(3, (9,))


def by_hand(module: nn.Module, x: torch.Tensor, y: torch.Tensor, clip: float) -> list[torch.Tensor]:
    """Clip each record's gradient on its own, one backward pass after the other, in float64."""
    start = {name: buffer.clone() for name, buffer in module.named_buffers()}
    parameters = [p for p in module.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for j in range(len(x)):
        for name, buffer in module.named_buffers():
            buffer.copy_(start[name])
        loss = cross_entropy(module(x[j : j + 1]), y[j : j + 1])[0]
        gradients = [g.double() for g in torch.autograd.grad(loss, parameters)]
        norm = sum(float((g**2).sum()) for g in gradients) ** 0.5
        for place, g in zip(total, gradients, strict=True):
            place += g * min(1.0, clip / norm)
    for name, buffer in module.named_buffers():
        buffer.copy_(start[name])
    return total


@pytest.mark.parametrize("microbatch", [1, 4, 0])
@pytest.mark.parametrize("clip", [0.3, 1e6])
def test_the_sum_is_that_of_a_loop_over_records(case, clip: float, microbatch: int) -> None:
    module, x, y = case
    clipper = PerSampleClipper(module, cross_entropy, clip, microbatch=microbatch)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for found, expected in zip(clipper.clipped_sum(x, y), by_hand(module, x, y, clip), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} was changed"


def test_one_record_moves_the_sum_by_at_most_the_clip_however_large_it_is() -> None:
    torch.manual_seed(2)
    module = mlp(inputs=4, hidden=(6,), classes=3)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    clipper = PerSampleClipper(module, cross_entropy, 0.7)

    def total(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.cat([s.flatten() for s in clipper.clipped_sum(inputs, targets)])

    without = total(x, y)
    for size in (0.01, 1.0, 1e4, 1e20, float("inf"), float("nan")):
        extra = torch.full((1, 4), 1.0) * size
        moved = total(torch.cat([x, extra]), torch.cat([y, torch.tensor([2])])) - without
        assert moved.isfinite().all(), size
        assert float(moved.norm()) <= 0.7 * (1 + 1e-5)
    assert float(moved.norm()) == 0.0, "a record without a finite gradient counts as none"


def test_no_records_are_zeros_and_frozen_layers_have_no_part() -> None:
    module = mlp(inputs=4, hidden=(6,), classes=3)
    module.fc1.weight.requires_grad_(False)
    clipper = PerSampleClipper(module, cross_entropy, 1.0)
    assert clipper.names == ("fc1.bias", "fc2.weight", "fc2.bias")
    found = clipper.clipped_sum(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert [tuple(s.shape) for s in found] == [(6,), (3, 6), (3,)]
    assert not any(s.any() for s in found)


def test_a_mask_on_the_parameters_masks_gradients_and_norms() -> None:
    torch.manual_seed(3)
    module = mlp(inputs=4, hidden=(6,), classes=3)
    x, y = torch.randn(5, 4), torch.randint(3, (5,))
    mask = (torch.rand(6, 4) > 0.5).float()

    def masked(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**values, "fc1.weight": values["fc1.weight"] * mask}

    found = PerSampleClipper(module, cross_entropy, 0.2, forward=masked).clipped_sum(x, y)
    moving = {"fc1.weight": mask.bool()}
    with torch.no_grad():
        module.fc1.weight *= mask
    expected = by_hand(module, x, y, 1e9)
    assert float(expected[0].norm()) > 0
    np.testing.assert_array_equal(found[0][mask == 0].numpy(), 0.0)
    only = [torch.zeros_like(s) for s in found]
    for j in range(5):
        parts = by_hand(module, x[j : j + 1], y[j : j + 1], 1e9)
        parts[0] *= mask
        norm = sum(float((g**2).sum()) for g in parts) ** 0.5
        for place, g in zip(only, parts, strict=True):
            place += (g * min(1.0, 0.2 / norm)).float()
    # The same from another side: the weights are masked for good, and only gradients are masked.
    partly = PerSampleClipper(module, cross_entropy, 0.2, moving=moving).clipped_sum(x, y)
    for a, b, c in zip(found, only, partly, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(c, b, rtol=1e-4, atol=1e-6)
