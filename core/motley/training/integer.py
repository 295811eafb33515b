"""Layers whose only stored weights are integers, and their training steps (FedMPQ).

W = step · q, |q| <= M = 2^b - 1. Full precision exists for one layer at a time: the forward pass
of a layer makes W, uses it and lets it go, and the backward pass makes it again, takes the
gradient in W (straight through the rounding) and moves the integers at once, before the layer
below is looked at. What stays besides the integers is the momentum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from motley.errors import PlanError
from motley.quantize.planes import clip_to_bits, lasso_gradient, magnitude_counts, pruned_bits
from motley.wire import EncodedTensor, encode_planes

WIDEST_INT8 = 7
"""Magnitude bits that fit into int8 with their sign."""

Rounding = Literal["stochastic", "power_of_two", "nearest"]


@dataclass(frozen=True, kw_only=True)
class IntegerRules:
    """How integers move."""

    momentum: float = 0.9
    rounding: Rounding = "stochastic"
    """Of a step in units of the last bit: unbiased; to powers of two with an unbiased last bit
    (the released code's intent); or to nearest, under which few bits hardly move."""
    frozen_signs: bool = False
    """Whether a weight keeps its sign within a task, as in the released code."""
    range_rate: float = 1.0
    """Speed of a layer's range S against that of its weights; 0 freezes it, and the largest
    weight can then only shrink from round to round."""


class IntegerLayer:
    """The weight of one convolution or linear layer as integers; takes the place of the module's.

    Built into a module by `replace_weight`.
    """

    def __init__(
        self,
        codes: npt.NDArray[np.int16],
        step: float,
        bits: int,
        rules: IntegerRules,
        generator: torch.Generator,
    ) -> None:
        """Take over codes of |q| < 2^bits, and the step that they are multiples of."""
        self.bits, self.step, self.rules, self._generator = bits, step, rules, generator
        dtype = torch.int8 if bits <= WIDEST_INT8 else torch.int16
        self.codes = torch.from_numpy(codes).to(generator.device, dtype)
        self._velocity: torch.Tensor | None = None
        self._signs: torch.Tensor | None = None
        if rules.frozen_signs:
            one = torch.ones((), dtype=dtype, device=self.codes.device)
            self._signs = torch.where(self.codes > 0, one, -one)
        self.anchor = torch.zeros((), device=self.codes.device, requires_grad=True)
        """Ties the layer into the graph, also where its input needs no gradient."""
        self.rate = 0.0
        self.lasso = 0.0
        """Weight of this layer's group lasso; set with `rate` before each backward pass."""
        self.moved: torch.Tensor | None = None
        """Which weights ever moved in this task."""

    @property
    def top(self) -> int:
        """The largest magnitude, M."""
        return (1 << self.bits) - 1

    def weight(self) -> torch.Tensor:
        """Return the weights in full precision, float32 in the layer's shape; not kept."""
        return self.codes.to(torch.float32).mul_(self.step)

    def take(self, gradient: torch.Tensor) -> None:
        """Move the integers by one step of SGD with momentum.

        Args:
            gradient: of the loss in the weights, float32 in their shape; used up.
        """
        if self.step <= 0:
            return  # a layer of zeros has no unit to move by
        towards = float((gradient * self.codes).sum()) if self.rules.range_rate else 0.0
        if self.lasso:
            gradient += lasso_gradient(self.codes, self.bits, self.step, self.lasso)
        if self._velocity is None:
            self._velocity = torch.zeros_like(gradient)
            self.moved = torch.zeros_like(self.codes, dtype=torch.bool)
        self._velocity.mul_(self.rules.momentum).add_(gradient)
        units = self._rounded(self._velocity * (self.rate / self.step))
        self._move(units)
        self._widen(towards)

    def prune(self, threshold: float) -> int:
        """Drop top planes whose share of ones is 0 or below `threshold`; return how many."""
        before = self.bits
        self.bits = pruned_bits(magnitude_counts(self.codes, self.bits), self.bits, threshold)
        self.codes = clip_to_bits(self.codes, self.bits)
        return before - self.bits

    def moved_count(self) -> int:
        """Return how many weights ever moved."""
        return 0 if self.moved is None else int(self.moved.sum())

    def encode(self) -> EncodedTensor:
        """Return the weights as they are sent: a sign plane and `bits` planes."""
        codes = self.codes.to("cpu", torch.int16).numpy()
        return encode_planes(codes, self.step, self.bits)

    def _rounded(self, units: torch.Tensor) -> torch.Tensor:
        """Return steps in whole units of the last bit; `units` is used up."""
        rounding = self.rules.rounding
        if rounding == "nearest":
            return units.round_()
        chance = torch.rand(
            units.shape, generator=self._generator, device=units.device, dtype=units.dtype
        )
        if rounding == "stochastic":
            return units.add_(chance).floor_()
        size = units.abs()
        powers = torch.exp2(torch.log2(size.clamp(min=1.0)).round_())
        steps = torch.where(size >= 1, powers, (chance < size).to(units.dtype))
        return steps.mul_(units.sign_())

    def _move(self, units: torch.Tensor) -> None:
        wide = self.codes.to(torch.float32).sub_(units)
        if self._signs is None:
            wide.clamp_(-self.top, self.top)
        else:
            wide.mul_(self._signs).clamp_(0, self.top).mul_(self._signs)
        codes = wide.to(self.codes.dtype)
        assert self.moved is not None
        self.moved |= codes != self.codes
        self.codes = codes

    def _widen(self, towards: float) -> None:
        """Move the range S by its own gradient, Σ g q / M, scaled as in LSQ (arXiv 1902.08153).

        `towards` is Σ g q. The range at most halves or doubles in a step, so it stays positive.
        """
        if not self.rules.range_rate:
            return
        top = self.top
        reach = self.step * top
        rate = self.rules.range_rate * self.rate / (self.codes.numel() * top) ** 0.5
        wanted = reach - rate * towards / top
        self.step = float(np.float32(min(max(wanted, reach / 2), reach * 2) / top))


def lasso_weights(layers: Mapping[str, IntegerLayer], lasso: float) -> dict[str, float]:
    """Return λ P_l b_l / P for each layer (the weights' share, BSQ's reweighing by memory)."""
    if not lasso:
        return {}
    total = sum(layer.codes.numel() for layer in layers.values())
    return {
        name: lasso * layer.codes.numel() * layer.bits / total for name, layer in layers.items()
    }


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        anchor: torch.Tensor,
        layer: IntegerLayer,
        module: nn.Conv2d,
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.layer, ctx.module, ctx.has_bias = layer, module, bias is not None
        return functional.conv2d(
            x,
            layer.weight(),
            bias,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
        )

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        layer, module = ctx.layer, ctx.module
        to_x, to_weight, to_bias = torch.ops.aten.convolution_backward(
            gradients[0],
            x,
            layer.weight(),
            [module.out_channels] if ctx.has_bias else None,
            module.stride,
            module.padding,
            module.dilation,
            False,
            [0, 0],
            module.groups,
            [ctx.needs_input_grad[0], True, ctx.has_bias],
        )
        layer.take(to_weight)
        return to_x, to_bias, None, None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        anchor: torch.Tensor,
        layer: IntegerLayer,
        module: nn.Linear,
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.layer, ctx.has_bias = layer, bias is not None
        return functional.linear(x, layer.weight(), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (x,), g = ctx.saved_tensors, gradients[0]
        layer = ctx.layer
        rows, inputs = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        to_x = (g @ layer.weight()) if ctx.needs_input_grad[0] else None
        to_bias = rows.sum(0) if ctx.has_bias else None
        layer.take(rows.t() @ inputs)
        return to_x, to_bias, None, None, None


def owner_of_integers(module: nn.Module, name: str) -> nn.Module:
    """Return the layer that owns the parameter `name`, for which integers can stand in.

    Raises:
        PlanError: the owner is not a plain Conv2d or Linear, the layers that this works for.
    """
    owner = module.get_submodule(name.rpartition(".")[0])
    plain_padding = isinstance(owner, nn.Conv2d) and (
        owner.padding_mode == "zeros" and not isinstance(owner.padding, str)
    )
    if not name.endswith("weight") or not (plain_padding or type(owner) is nn.Linear):
        raise PlanError(
            f"{name} belongs to a {type(owner).__name__}; integers stand in for the weights of "
            f"Conv2d (padding in numbers, with zeros) and Linear alone: leave it in full precision"
        )
    return owner


def replace_weight(module: nn.Module, name: str, layer: IntegerLayer) -> None:
    """Let the layer that owns the parameter `name` compute with integers; the parameter goes.

    Raises:
        PlanError: as `owner_of_integers` does.
    """
    owner = owner_of_integers(module, name)
    function = _Convolution if isinstance(owner, nn.Conv2d) else _Linear

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = function.apply(  # type: ignore[no-untyped-call]
            x, self.bias, layer.anchor, layer, self
        )
        return result

    owner.register_parameter("weight", None)
    owner.forward = MethodType(forward, owner)


@dataclass
class IntegerModel:
    """A model of which some layers are integers; the rest trains in full precision."""

    module: nn.Module
    layers: Mapping[str, IntegerLayer]
    """By name of the tensor that they stand for, in order of the model."""

    def __post_init__(self) -> None:
        self.tail = [p for p in self.module.parameters() if p.requires_grad]
        self._velocity = [torch.zeros_like(p) for p in self.tail]
        self._anchors = [layer.anchor for layer in self.layers.values()]

    def step(
        self, loss: torch.Tensor, rate: float, momentum: float, lasso: Mapping[str, float]
    ) -> None:
        """Take one step: the integers in the backward pass, the rest behind it.

        Args:
            loss: scalar.
            rate: learning rate, in units of the weights.
            momentum: of the full-precision part.
            lasso: weight of each layer's group lasso; a layer not named has none.
        """
        for name, layer in self.layers.items():
            layer.rate, layer.lasso = rate, lasso.get(name, 0.0)
        found = torch.autograd.grad(loss, [*self.tail, *self._anchors], allow_unused=True)
        with torch.no_grad():
            pairs = zip(self.tail, self._velocity, found[: len(self.tail)], strict=True)
            for parameter, velocity, gradient in pairs:
                if gradient is not None:
                    velocity.mul_(momentum).add_(gradient)
                    parameter.add_(velocity, alpha=-rate)
