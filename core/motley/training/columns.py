"""A convolution of K clients' samples by their own filters as one product of matrices each.

The values under a window become the columns of a matrix, one for each place of the window in all of
a client's samples, and the client's filters the rows of another. Two things make that fast where
batches are small: samples lie innermost, so that columns are copied in long runs, and a pool is
part of the convolution. For a 2x2 pool the window is one value wider and higher and moves two
values at a time, and a filter becomes four rows, one for each place that it has in the window:
there are less than half as many values to copy, and the pool is the largest of four rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from motley.models.pooled import POOL

HARDLY_LESS = -1e-37
"""Differences to the largest above this are ties: nothing but 0, for values of any use."""


@dataclass(frozen=True)
class Window:
    """What moves over the images, and what it meets there."""

    clients: int
    """K."""
    samples: int
    """B, of each client."""
    channels: int
    filters: int
    kernel: int
    pool: int
    """Places of a filter along one side of the window: 2 with a pool, else 1."""
    step: int
    """How far the window moves: the convolution's stride, or the pool's."""
    height: int
    """Of the result."""
    width: int

    @classmethod
    def of(cls, x: torch.Tensor, weight: torch.Tensor, *, stride: int = 1, pool: int = 1) -> Window:
        """Return the window for inputs [K·B, C, H, W] and filters [K, F, C, k, k].

        With a pool the stride has to be 1.
        """
        clients, filters, channels, kernel = weight.shape[:4]
        places = [(side - kernel) // stride + 1 for side in x.shape[2:]]
        return cls(
            clients=clients,
            samples=x.shape[0] // clients,
            channels=channels,
            filters=filters,
            kernel=kernel,
            pool=pool,
            step=stride * pool,
            height=places[0] // pool,
            width=places[1] // pool,
        )

    @property
    def reach(self) -> int:
        """How many steps the window is long."""
        return -(-(self.kernel + self.pool - 1) // self.step)

    @property
    def side(self) -> int:
        """Values along one side of the window: whole steps, of which the last may go unused."""
        return self.reach * self.step

    @property
    def area(self) -> int:
        """Values under the window, over all channels."""
        return self.side**2 * self.channels

    @property
    def phases(self) -> tuple[int, int]:
        """Height and width of what is left of an image when every `step`-th value is taken."""
        return self.height + self.reach - 1, self.width + self.reach - 1

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """Return the values under the window [K, area, height·width·B] of images [K·B, C, H, W]."""
        rows, columns = self.phases
        e, c, b = self.step, self.channels, self.samples
        x = _fitted(x, rows * e, columns * e)
        split = x.reshape(self.clients, b, c, rows, e, columns, e)
        split = split.permute(0, 4, 6, 2, 3, 5, 1).contiguous()
        down, plane = columns * b, rows * columns * b  # one value down, one channel on
        sizes = (self.clients, self.reach, e, self.reach, e, c, self.height, self.width * b)
        strides = (e * e * c * plane, down, e * c * plane, b, c * plane, plane, down, 1)
        under = split.as_strided(sizes, strides)
        return under.reshape(self.clients, self.area, -1)

    def images(self, columns: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return images [K·B, C, height, width] of what columns say of each of their values."""
        rows, right = self.phases
        e, c, b, r = self.step, self.channels, self.samples, self.reach
        parts = columns.view(self.clients, r, e, r, e, c, self.height, self.width * b)
        total = columns.new_zeros(self.clients, e, e, c, rows, right * b)
        for i in range(r):
            for j in range(r):
                place = total[..., i : i + self.height, j * b : (j + self.width) * b]
                place += parts[:, i, :, j]
        images = total.view(self.clients, e, e, c, rows, right, b).permute(0, 6, 3, 4, 1, 5, 2)
        return _fitted(images.reshape(-1, c, rows * e, right * e), height, width)

    def spread(self, weight: torch.Tensor) -> torch.Tensor:
        """Return filters [K, F, C, k, k] in all their places, [K, F·pool², area]."""
        lines = weight.permute(0, 1, 3, 4, 2)
        lines = lines.reshape(self.clients, self.filters, 1, 1, self.kernel, -1)
        wide = weight.new_zeros(self.clients, self.filters * self.pool**2, self.area)
        self._places(wide).copy_(lines)
        return wide

    def gathered(self, wide: torch.Tensor) -> torch.Tensor:
        """Return the sum over its places of what is said of each filter, [K, F, C, k, k]."""
        places = self._places(wide).flatten(2, 3)
        total = places[:, :, 0]
        for place in range(1, self.pool**2):
            total = total + places[:, :, place]
        k = self.kernel
        total = total.reshape(self.clients, self.filters, k, k, self.channels)
        return total.permute(0, 1, 4, 2, 3).contiguous()

    def _places(self, wide: torch.Tensor) -> torch.Tensor:
        """Return a view [K, F, pool, pool, k, k·C]: a filter's lines, in each of its places."""
        p, c, k, line = self.pool, self.channels, self.kernel, self.side * self.channels
        sizes = (self.clients, self.filters, p, p, k, k * c)
        one = p * p * self.area
        strides = (self.filters * one, one, p * self.area + line, self.area + c, line, 1)
        return wide.as_strided(sizes, strides)

    def folded(self, values: torch.Tensor) -> torch.Tensor:
        """Return results [K, F, height·width·B] as images [K·B, F, height, width]."""
        shape = (self.clients, self.filters, self.height, self.width, self.samples)
        return values.view(shape).permute(0, 4, 1, 2, 3).reshape(-1, *shape[1:4])

    def unfolded(self, images: torch.Tensor) -> torch.Tensor:
        """Return images [K·B, F, height, width] as [K, F, height·width·B]."""
        shape = (self.clients, self.samples, self.filters, self.height, self.width)
        turned = images.reshape(shape).permute(0, 2, 3, 4, 1)
        return turned.reshape(self.clients, self.filters, -1)


def _fitted(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return images cut or filled up with zeros at their lower and right ends."""
    missing = (0, width - x.shape[3], 0, height - x.shape[2])
    return functional.pad(x, missing) if any(missing) else x


def convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int = 1
) -> torch.Tensor:
    """Return images [K·B, F, height, width]: each client's samples by its own filters.

    Args:
        x: images [K·B, C, H, W], client by client.
        weight: square filters, [K, F, C, k, k].
        bias: [K, F], or None.
        stride: in both directions.
    """
    window = Window.of(x, weight, stride=stride)
    result: torch.Tensor = _Product.apply(x, weight, bias, window)  # type: ignore[no-untyped-call]
    return result


def pooled_convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return the same at stride 1, then ReLU and the largest of each 2x2 square."""
    window = Window.of(x, weight, pool=POOL)
    result: torch.Tensor = _Pool.apply(x, weight, bias, window)  # type: ignore[no-untyped-call]
    return result


class _Product(torch.autograd.Function):
    """Images [K·B, C, H, W] by filters [K, F, C, k, k] and biases [K, F] or None."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, window: Window
    ) -> torch.Tensor:
        columns, wide = window.columns(x), window.spread(weight)
        result = torch.bmm(wide, columns)
        if bias is not None:
            result += bias.unsqueeze(2)
        ctx.save_for_backward(columns, wide)
        ctx.window, ctx.sides, ctx.has_bias = window, x.shape[2:], bias is not None
        return window.folded(result)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gradient = ctx.window.unfolded(gradients[0])
        to_bias = gradient.sum(2) if ctx.has_bias else None
        return *_to_product(ctx, gradient, *ctx.saved_tensors), to_bias, None


class _Pool(torch.autograd.Function):
    """The same, then ReLU and the largest of each 2x2 square: [K·B, F, height, width]."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, window: Window
    ) -> torch.Tensor:
        columns, wide = window.columns(x), window.spread(weight)
        found = torch.bmm(wide, columns).view(window.clients, window.filters, window.pool**2, -1)
        largest = found.amax(2)
        found -= largest.unsqueeze(2)
        if bias is not None:
            largest += bias.unsqueeze(2)
        result = largest.relu_()
        ctx.save_for_backward(columns, wide, found, result)
        ctx.window, ctx.sides, ctx.has_bias = window, x.shape[2:], bias is not None
        return window.folded(result)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        columns, wide, below, result = ctx.saved_tensors
        window: Window = ctx.window
        masked = torch.ops.aten.threshold_backward
        left = masked(window.unfolded(gradients[0]), result, 0.0)
        to_bias = left.sum(2) if ctx.has_bias else None
        # The first of the largest takes all, as in the library's pool.
        parts = torch.empty_like(below)
        last = window.pool**2 - 1
        for place in range(last):
            part = parts[:, :, place]
            masked.grad_input(left, below[:, :, place], HARDLY_LESS, grad_input=part)
            left -= part
        parts[:, :, last] = left
        return *_to_product(ctx, parts.flatten(1, 2), columns, wide), to_bias, None


def _to_product(
    ctx: Any, gradient: torch.Tensor, columns: torch.Tensor, wide: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return a product's gradient in the images and in the filters, each where it is asked for."""
    window: Window = ctx.window
    images = filters = None
    if ctx.needs_input_grad[0]:
        images = window.images(torch.bmm(wide.transpose(1, 2), gradient), *ctx.sides)
    if ctx.needs_input_grad[1]:
        filters = window.gathered(torch.bmm(gradient, columns.transpose(1, 2)))
    return images, filters
