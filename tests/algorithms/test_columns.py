"""Convolutions of many clients as products of columns, against the library's, one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from motley.models.pooled import rectified_pool
from motley.models.rectifier import Rectifier
from motley.training.columns import convolution, pooled_convolution
from motley.training.folded import FEW_CHANNELS, Rows, fold

CLIENTS, SAMPLES = 3, 2
Form = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def plain(stride: int) -> Form:
    def form(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return functional.conv2d(x, weight, bias, stride)

    return form


def pooled(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return functional.max_pool2d(torch.relu(functional.conv2d(x, weight, bias)), 2)


def drawn(
    side: tuple[int, int], channels: int, kernel: int, *, bias: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return images that are flat in their upper half, where all places of a square tie."""
    generator = torch.Generator().manual_seed(sum(side) + kernel)
    options = {"generator": generator, "dtype": torch.float64}
    x = torch.randn(CLIENTS * SAMPLES, channels, *side, **options)  # type: ignore[call-overload]
    x[:, :, : side[0] // 2] = 0.5
    weight = torch.randn(CLIENTS, 4, channels, kernel, kernel, **options)  # type: ignore[call-overload]
    shift = torch.randn(CLIENTS, 4, **options) if bias else None  # type: ignore[call-overload]
    return x, weight, shift


def check(found: Form, expected: Form, *given: torch.Tensor | None) -> None:
    """Compare outputs and gradients, client by client."""
    inputs = [None if t is None else t.clone().requires_grad_() for t in given]
    x, weight, bias = inputs
    assert x is not None
    assert weight is not None
    own = [t for t in inputs if t is not None]
    outputs = found(x, weight, bias)
    each = [
        expected(part, weight[k], None if bias is None else bias[k])
        for k, part in enumerate(x.view(CLIENTS, SAMPLES, *x.shape[1:]))
    ]
    torch.testing.assert_close(outputs, torch.cat(each))
    upstream = torch.linspace(-1, 2, outputs.numel(), dtype=torch.float64).view(outputs.shape)
    gradients = torch.autograd.grad(outputs, own, upstream)
    wanted = torch.autograd.grad(torch.cat(each), own, upstream)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("side", [(12, 12), (9, 14), (6, 7)])
@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (3, 1), (3, 2), (2, 3), (1, 2), (5, 2)])
def test_a_convolution(side: tuple[int, int], kernel: int, stride: int, *, bias: bool) -> None:
    given = drawn(side, 2, kernel, bias=bias)
    check(lambda x, w, b: convolution(x, w, b, stride), plain(stride), *given)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("side", [(12, 12), (9, 14), (6, 7)])
@pytest.mark.parametrize("kernel", [5, 4, 3, 1])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_convolution_with_its_pool(
    side: tuple[int, int], kernel: int, channels: int, *, bias: bool
) -> None:
    check(pooled_convolution, pooled, *drawn(side, channels, kernel, bias=bias))


class Stage(nn.Module):
    """One layer with its pool."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer, self.rectifier = layer, Rectifier()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rectified_pool(self.layer, self.rectifier, x)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, 3, padding=(1, 0)),
        nn.Conv2d(2, 4, 3, padding=2, bias=False),
        nn.Conv2d(FEW_CHANNELS, 4, 3),
        nn.Conv2d(2, 4, (3, 5)),
        nn.Conv2d(2, 4, 3, stride=2),
        nn.Conv2d(2, 4, 3, dilation=2),
        nn.Conv2d(2, 4, 3, groups=2),
    ],
    ids=str,
)
def test_a_folded_layer_with_its_pool(layer: nn.Conv2d) -> None:
    """Whatever the layer is, folding changes no value."""
    stage = Stage(copy.deepcopy(layer).double())
    state = {name: tensor.detach().clone() for name, tensor in stage.state_dict().items()}
    x = torch.rand(CLIENTS * SAMPLES, layer.in_channels, 12, 13, dtype=torch.float64)
    states = [{n: t * (1 + k) for n, t in state.items()} for k in range(CLIENTS)]
    expected = []
    for number, own in enumerate(states):
        stage.load_state_dict(own)
        expected.append(stage(x[number * SAMPLES : (number + 1) * SAMPLES]))
    rows = Rows({n: torch.stack([own[n] for own in states]) for n in state}, CLIENTS)
    assert fold(stage, rows)
    torch.testing.assert_close(stage(x), torch.cat(expected))


def test_activations_in_few_bits_are_rounded_before_the_pool() -> None:
    layer, rectifier = nn.Conv2d(1, 4, 3), Rectifier()
    rectifier.bits = 2
    tensors = {f"layer.{n}": t.detach().unsqueeze(0) for n, t in layer.state_dict().items()}
    x = torch.rand(2, 1, 8, 8)
    expected = functional.max_pool2d(rectifier(layer(x)), 2)
    holder = nn.ModuleDict({"layer": layer})
    assert fold(holder, Rows(tensors, 1))
    torch.testing.assert_close(rectified_pool(layer, rectifier, x), expected)
    rectifier.bits = 0
    assert not torch.allclose(rectified_pool(layer, rectifier, x), expected)
