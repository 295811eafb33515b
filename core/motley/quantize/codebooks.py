"""The centres of all quantized layers of a model, beside one flat buffer of its weights.

What is element-wise runs once over the whole buffer [K, d] or over all centres [K, M]; only what
depends on a layer's own centres loops over layers. The rules themselves are in `penalty`,
`quantizer` and `cells`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from motley.quantize import centres as start
from motley.quantize.cells import Cells, cells_of, nearest_cells
from motley.quantize.penalty import exact_centres, linear_pull, shrink
from motley.quantize.quantizer import soft_gradients, soft_quantize
from motley.quantize.rules import CentreRules, Rates


@dataclass(frozen=True)
class Layer:
    """One quantized tensor: its place among the weights and among the centres."""

    name: str
    weights: slice
    centres: slice

    @property
    def count(self) -> int:
        """Number of centres, m."""
        return int(self.centres.stop - self.centres.start)


def lay_out(sizes: Sequence[tuple[str, int, int]]) -> list[Layer]:
    """Return layers one behind the other from (name, weights, centres) of each."""
    layers, place, centre = [], 0, 0
    for name, size, count in sizes:
        layers.append(Layer(name, slice(place, place + size), slice(centre, centre + count)))
        place, centre = place + size, centre + count
    return layers


class Codebooks:
    """Centres, their constants, and the cells that the weights lie in."""

    def __init__(
        self,
        layers: Sequence[Layer],
        centres: torch.Tensor,
        sharpness: torch.Tensor,
        bounds: torch.Tensor,
    ) -> None:
        """Take values of all layers one behind the other.

        Args:
            layers: as `lay_out` places them.
            centres: [K, M], sorted within each layer.
            sharpness: P of each layer, [K, number of layers].
            bounds: longest pull of each layer's centres, [K, number of layers].
        """
        self.layers = tuple(layers)
        self.centres, self.sharpness, self.bounds = centres, sharpness, bounds
        self.frozen = False
        counts = torch.tensor([layer.count for layer in layers], device=bounds.device)
        self._longest = bounds.repeat_interleave(counts, dim=1, output_size=centres.shape[1])
        self._cells: list[Cells] = []
        self._residual = centres.new_zeros(0)
        self.moved = torch.zeros(len(centres), dtype=torch.int64, device=centres.device)
        """Updates of a centre that changed it, since this object was made, [K]."""
        self.updates = torch.zeros(1, dtype=torch.int64, device=centres.device)
        """All updates of a client's centres, since this object was made, [1]."""

    @classmethod
    def fresh(cls, layers: Sequence[Layer], weights: torch.Tensor, rules: CentreRules) -> Codebooks:
        """Return initial centres for the weights [K, d] and the constants set from them."""
        centres, sharpness, bounds = [], [], []
        for layer in layers:
            own = weights[:, layer.weights]
            first = start.initial_centres(own, layer.count, rules.start) * rules.factor
            centres.append(first)
            sharpness.append(start.sharpness(first, rules.steepness))
            bounds.append(start.longest_step(own, first, rules.pull_clip))
        return cls(layers, torch.cat(centres, 1), torch.cat(sharpness, 1), torch.cat(bounds, 1))

    def quantize(self, weights: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write Q_c(weights) into `out`, both [K, d], and keep the cells for what follows."""
        if not self.frozen:
            old: Sequence[Cells | None] = self._cells or [None] * len(self.layers)
            self._cells = [
                nearest_cells(weights[:, layer.weights], self.centres[:, layer.centres], used)
                for layer, used in zip(self.layers, old, strict=True)
            ]
        return self.fill(out)

    def fill(self, out: torch.Tensor) -> torch.Tensor:
        """Write each weight's centre by its cell into `out` [K, d]."""
        for layer, cells in zip(self.layers, self._cells, strict=True):
            cells.values(self.centres[:, layer.centres], out[:, layer.weights])
        return out

    def soft_quantize(self, weights: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write Q̃_c(weights) into `out`, both [K, d]. Cells stay as they are."""
        for number, layer in enumerate(self.layers):
            out[:, layer.weights] = soft_quantize(*self._layer(number, weights))
        return out

    def settle(self, weights: torch.Tensor, out: torch.Tensor, threshold: float) -> None:
        """Take the weights' proximal step in place; write Q_c of the result into `out`.

        The step never leaves a weight's cell, so its nearest centre is found once.
        """
        self.quantize(weights, out)
        self._keep_residual(weights, out)
        if threshold > 0:
            shrink(self._residual, threshold, out=self._residual)
            torch.add(out, self._residual, out=weights)

    def clamp(self, weights: torch.Tensor, out: torch.Tensor, *, fixed: bool = False) -> None:
        """Keep settled weights in [-1, 1], in place, and quantize them again into `out`.

        Between the outer centres instead, where centres are fixed.
        """
        if fixed:
            for layer in self.layers:
                own, centres = weights[:, layer.weights], self.centres[:, layer.centres]
                own.copy_(torch.clamp(own, centres[:, :1], centres[:, -1:]))
        else:
            weights.clamp_(-1, 1)
        self.quantize(weights, out)
        self._keep_residual(weights, out)

    def gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the centres' gradient [K, M] from that in the quantized weights [K, d]."""
        return torch.cat(
            [
                cells.sums(gradient[:, layer.weights])
                for layer, cells in zip(self.layers, self._cells, strict=True)
            ],
            1,
        )

    def soft_gradient(
        self, gradient: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return gradients in weights [K, d] and centres [K, M] through the soft quantizer."""
        pairs = [
            soft_gradients(gradient[:, layer.weights], *self._layer(number, weights))
            for number, layer in enumerate(self.layers)
        ]
        return torch.cat([pair[0] for pair in pairs], 1), torch.cat([pair[1] for pair in pairs], 1)

    def move(
        self, gradient: torch.Tensor, weights: torch.Tensor, rates: Rates, rules: CentreRules
    ) -> None:
        """Take the centres' step from their gradient [K, M], penalty included, and sort them.

        In place, so that a step that is replayed finds them where they were. `weights` [K, d] are
        those that `settle` left.
        """
        moved = (
            self.centres - gradient.clamp(-rules.gradient_clip, rules.gradient_clip) * rates.centres
        )
        threshold = rates.centres * rates.penalty / 2
        if rules.penalised and threshold > 0 and not self.frozen:
            if rules.step == "linear":
                moved += linear_pull(self.gradient(self._residual.sign()), threshold, self._longest)
            else:
                moved = self._exact(moved, weights, threshold)
        self.moved += (moved != self.centres).sum(1)
        self.updates += moved.shape[1]
        self.centres.copy_(moved if self.frozen else self._sorted(moved))

    def freeze(self, codes: Sequence[torch.Tensor] | None = None) -> None:
        """Keep each weight's cell from here on: as it is now, or as `codes` (uint8 [K, d]) say.

        Without codes the weights must just have been quantized. Centres are no longer sorted, as
        codes name them by their place.
        """
        if codes is not None:
            self._cells = [
                cells_of(own, layer.count, self.centres.dtype)
                for layer, own in zip(self.layers, codes, strict=True)
            ]
        self.frozen = True

    def codes(self) -> list[torch.Tensor]:
        """Return each layer's codes, uint8 [K, d]; the weights must have been quantized."""
        return [cells.codes() for cells in self._cells]

    def _keep_residual(self, weights: torch.Tensor, out: torch.Tensor) -> None:
        if self._residual.shape != weights.shape:
            self._residual = torch.empty_like(weights)
        torch.sub(weights, out, out=self._residual)

    def _layer(
        self, number: int, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        layer = self.layers[number]
        return (
            weights[:, layer.weights],
            self.centres[:, layer.centres],
            self.sharpness[:, number : number + 1],
        )

    def _exact(self, moved: torch.Tensor, weights: torch.Tensor, threshold: float) -> torch.Tensor:
        parts = [
            exact_centres(moved[:, layer.centres], weights[:, layer.weights], cells, threshold)
            for layer, cells in zip(self.layers, self._cells, strict=True)
        ]
        return torch.cat(parts, 1)

    def _sorted(self, centres: torch.Tensor) -> torch.Tensor:
        return torch.cat([centres[:, layer.centres].sort(1).values for layer in self.layers], 1)
