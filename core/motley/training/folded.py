"""Layers with a client dimension: K models of one variant in one forward pass.

Clients are folded into the batch: inputs are [K·B, ...], client by client, and every operation that
works sample by sample (ReLU, pools, `flatten(1)`) needs no change. Only layers that own tensors do:
each client's samples meet that client's tensors, [K, ...] each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from motley.models.pooled import POOL
from motley.training.columns import convolution, pooled_convolution

FEW_CHANNELS = 16
"""Channels below which a convolution is one product over all of a client's columns. From there on
the library's own convolution, client by client, is faster on a processor: it works on sixteen
channels at once (docs/simulation.md)."""
SMALL_BATCH = 8
"""The same of a client's samples, for a convolution without a pool."""


class Rows:
    """The tensors of K models by name, [K, ...] each, and which samples of a batch count."""

    def __init__(self, tensors: dict[str, torch.Tensor], clients: int) -> None:
        self.tensors, self.clients = tensors, clients
        self.mask: torch.Tensor | None = None
        """[K, B], 1 where a sample counts and 0 where it fills a short batch; None: all count."""


def fold(module: nn.Module, rows: Rows) -> bool:
    """Let a module compute with `rows` on folded inputs; False when a layer of it cannot.

    The module's own values are not used any more. What is changed after a False is of no use.
    """
    covered: set[str] = set()
    for name, child in module.named_modules():
        own = [
            n for n, _ in (*child.named_parameters(recurse=False), *child.named_buffers("", False))
        ]
        if not own:
            continue
        forward = _FORWARDS.get(type(child))
        if forward is None or not name or not _is_plain(child):
            return False
        child.forward = partial(forward, child, rows, name)
        if isinstance(child, nn.Conv2d) and _is_square(child) and child.stride == (1, 1):
            vars(child)["rectified_pool"] = partial(_rectified_pool, child, rows, name)
        covered.update(f"{name}.{tensor}" for tensor in own)
    return covered == set(module.state_dict())


def _is_plain(child: nn.Module) -> bool:
    if isinstance(child, nn.Conv2d):
        return child.padding_mode == "zeros" and not isinstance(child.padding, str)
    return True


def _by_client(x: torch.Tensor, clients: int) -> torch.Tensor:
    return x.reshape(clients, -1, *x.shape[1:])


def _linear(module: nn.Linear, rows: Rows, name: str, x: torch.Tensor) -> torch.Tensor:
    weight, bias = rows.tensors[f"{name}.weight"], rows.tensors.get(f"{name}.bias")
    inputs = x.reshape(rows.clients, -1, x.shape[-1])
    result: torch.Tensor = _Linear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
    return result.view(*x.shape[:-1], weight.shape[1])


def _convolution(module: nn.Conv2d, rows: Rows, name: str, x: torch.Tensor) -> torch.Tensor:
    weight, bias = rows.tensors[f"{name}.weight"], rows.tensors.get(f"{name}.bias")
    stride, padding = module.stride, cast(tuple[int, ...], module.padding)
    samples = x.shape[0] // rows.clients
    result: torch.Tensor
    if _is_square(module) and (x.is_cuda or (samples < SMALL_BATCH and _has_few(weight))):
        return convolution(_bordered(module, x), weight, bias, stride[0])
    options = (stride, padding, module.dilation, module.groups)
    result = _OneByOne.apply(x, weight, bias, options)  # type: ignore[no-untyped-call]
    return result


def _rectified_pool(module: nn.Conv2d, rows: Rows, name: str, x: torch.Tensor) -> torch.Tensor:
    """Return what `motley.models.pooled.rectified_pool` does, in one step where that is faster."""
    weight, bias = rows.tensors[f"{name}.weight"], rows.tensors.get(f"{name}.bias")
    if not (x.is_cuda or _has_few(weight)):
        return functional.max_pool2d(torch.relu(_convolution(module, rows, name, x)), POOL)
    return pooled_convolution(_bordered(module, x), weight, bias)


def _has_few(weight: torch.Tensor) -> bool:
    return weight.shape[2] < FEW_CHANNELS


def _is_square(module: nn.Conv2d) -> bool:
    """Tell whether a window as `motley.training.columns` moves them does for a convolution."""
    same = [len({*pair}) == 1 for pair in (module.kernel_size, module.stride)]
    return all(same) and module.groups == 1 and module.dilation == (1, 1)


def _bordered(module: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    down, right = cast(tuple[int, ...], module.padding)
    return functional.pad(x, (right, right, down, down)) if down or right else x


def _normalisation(
    module: nn.BatchNorm1d | nn.BatchNorm2d, rows: Rows, name: str, x: torch.Tensor
) -> torch.Tensor:
    """Return each client's samples normalised by their own statistics; fillers count for none."""
    own = rows.tensors
    by_client = _by_client(x, rows.clients)
    over = [1, *range(3, by_client.dim())]
    shape = (rows.clients, 1, -1, *[1] * (by_client.dim() - 3))
    running = f"{name}.running_mean" in own
    if module.training or not running:
        counts = torch.ones_like(by_client[:, :, :1])
        if rows.mask is not None:
            counts = counts * rows.mask.view(*rows.mask.shape, *[1] * (by_client.dim() - 2))
        number = counts.sum(over, keepdim=True)
        if by_client[0, 0, 0].numel() == 1 and number.min() < 2:
            raise ValueError("normalisation over one value: a batch has a single sample")
        mean = (by_client * counts).sum(over, keepdim=True) / number
        centred = by_client - mean
        variance = (centred.square() * counts).sum(over, keepdim=True) / number
        if module.training and running:
            _track(module, rows, name, mean, variance * number / (number - 1).clamp(min=1))
    else:
        centred = by_client - own[f"{name}.running_mean"].view(shape)
        variance = own[f"{name}.running_var"].view(shape)
    result = centred * torch.rsqrt(variance + module.eps)
    if module.affine:
        result = result * own[f"{name}.weight"].view(shape) + own[f"{name}.bias"].view(shape)
    normalised: torch.Tensor = result.flatten(0, 1)
    return normalised


@torch.no_grad()
def _track(
    module: nn.BatchNorm1d | nn.BatchNorm2d,
    rows: Rows,
    name: str,
    mean: torch.Tensor,
    variance: torch.Tensor,
) -> None:
    """Move running statistics, as torch does in training."""
    own = rows.tensors
    own[f"{name}.num_batches_tracked"] += 1
    for key, found in (("running_mean", mean), ("running_var", variance)):
        kept = own[f"{name}.{key}"]
        share: torch.Tensor | float | None = module.momentum
        if share is None:
            share = (1.0 / own[f"{name}.num_batches_tracked"]).unsqueeze(1).to(kept.dtype)
        kept += (found.reshape(kept.shape) - kept) * share


_FORWARDS: Mapping[type[nn.Module], Callable[..., torch.Tensor]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _normalisation,
    nn.BatchNorm2d: _normalisation,
}


class _Linear(torch.autograd.Function):
    """Inputs [K, B, in] by weights [K, out, in] and biases [K, out] or None.

    The graph's own rule gives the weights' gradient transposed, which costs a slow copy.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        turned = weight.transpose(1, 2)
        if bias is None:
            return torch.bmm(x, turned)
        return torch.baddbmm(bias.unsqueeze(1), x, turned)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        to_x = torch.bmm(gradients[0], weight) if ctx.needs_input_grad[0] else None
        turned = gradients[0].transpose(1, 2)
        to_weight = torch.bmm(turned, x) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, gradients[0].sum(1) if ctx.has_bias else None


class _OneByOne(torch.autograd.Function):
    """The library's convolution for each client in turn, as one step of the graph."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        options: tuple[Any, ...],
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.has_bias = options, bias is not None
        own = _by_client(x, weight.shape[0])
        return torch.cat(
            [
                functional.conv2d(own[k], weight[k], None if bias is None else bias[k], *options)
                for k in range(weight.shape[0])
            ]
        )

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        clients, filters = weight.shape[:2]
        own, gs = _by_client(x, clients), _by_client(gradients[0], clients)
        wanted = [ctx.needs_input_grad[0], True, ctx.has_bias]
        bias = [filters] if ctx.has_bias else None
        parts = [
            torch.ops.aten.convolution_backward(
                *(gs[k], own[k], weight[k], bias, stride, padding, dilation, False, [0, 0]),
                *(groups, wanted),
            )
            for k in range(clients)
        ]
        to_x = torch.cat([part[0] for part in parts]) if wanted[0] else None
        to_bias = torch.stack([part[2] for part in parts]) if ctx.has_bias else None
        return to_x, torch.stack([part[1] for part in parts]), to_bias, None
