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

SMALL_BATCH = 8
"""Samples of a client below which a convolution is one product over all clients' columns. From
there on the library's own convolution, client by client, is faster on a processor
(benchmarks/simulation.py --layers)."""


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
    turned = weight.transpose(1, 2)
    if bias is None:
        result = torch.bmm(inputs, turned)
    else:
        result = torch.baddbmm(bias.unsqueeze(1), inputs, turned)
    return result.view(*x.shape[:-1], weight.shape[1])


def _convolution(module: nn.Conv2d, rows: Rows, name: str, x: torch.Tensor) -> torch.Tensor:
    weight, bias = rows.tensors[f"{name}.weight"], rows.tensors.get(f"{name}.bias")
    stride, padding = module.stride, cast(tuple[int, ...], module.padding)
    samples = x.shape[0] // rows.clients
    simple = module.groups == 1 and module.dilation == (1, 1)
    result: torch.Tensor
    if simple and (samples < SMALL_BATCH or x.is_cuda):
        if any(padding):
            x = functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
        result = _Columns.apply(x, weight, bias, stride)  # type: ignore[no-untyped-call]
        return result
    options = (stride, padding, module.dilation, module.groups)
    result = _OneByOne.apply(x, weight, bias, options)  # type: ignore[no-untyped-call]
    return result


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


class _Columns(torch.autograd.Function):
    """Convolution as one product of all clients' weights with the columns under the kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: tuple[int, int],
    ) -> torch.Tensor:
        samples, channels, height, width = x.shape
        clients, filters = weight.shape[:2]
        kernel = weight.shape[3:]
        out = [
            (size - k) // s + 1 for size, k, s in zip((height, width), kernel, stride, strict=True)
        ]
        n, c, h, w = x.stride()
        columns = x.as_strided(
            (samples, channels, *kernel, *out), (n, c, h, w, h * stride[0], w * stride[1])
        ).reshape(samples, -1, out[0] * out[1])
        spread = weight.flatten(2).repeat_interleave(samples // clients, 0)
        result = torch.bmm(spread, columns)
        if bias is not None:
            result += bias.repeat_interleave(samples // clients, 0).unsqueeze(2)
        ctx.save_for_backward(columns, spread)
        ctx.sizes, ctx.stride = (x.shape, weight.shape, out, bias is not None), stride
        return result.view(samples, filters, *out)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        columns, spread = ctx.saved_tensors
        (samples, channels, height, width), shape, out, has_bias = ctx.sizes
        g = gradients[0].reshape(samples, shape[1], out[0] * out[1])
        each = torch.bmm(g, columns.transpose(1, 2))
        to_weight = each.view(shape[0], -1, *each.shape[1:]).sum(1).view(shape)
        to_bias = g.sum(2).view(shape[0], -1, shape[1]).sum(1) if has_bias else None
        if not ctx.needs_input_grad[0]:
            return None, to_weight, to_bias, None
        under = torch.bmm(spread.transpose(1, 2), g).view(samples, channels, *shape[3:], *out)
        to_x = g.new_zeros(samples, channels, height, width)
        down, right = ctx.stride
        for i in range(shape[3]):
            for j in range(shape[4]):
                to_x[
                    :,
                    :,
                    i : i + down * (out[0] - 1) + 1 : down,
                    j : j + right * (out[1] - 1) + 1 : right,
                ] += under[:, :, i, j]
        return to_x, to_weight, to_bias, None


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
