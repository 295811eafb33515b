"""Which centre each weight belongs to, and the two things that are done with that.

A weight's cell is the one of its nearest centre: cell k lies between the boundaries
(c_{k-1} + c_k) / 2 and (c_k + c_{k+1}) / 2 of the sorted centres, and a weight on a boundary
belongs to the lower one. Cells are found from boundaries, never by comparing values with centres.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

MOST_MASKED = 8
"""Centres up to which cells are kept as float masks; beyond, one index a weight is smaller."""


class Cells(ABC):
    """The cell of each weight of one layer. It stays as it is when the centres move."""

    @abstractmethod
    def values(self, centres: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return each weight's centre, [K, d], with the very bits of `centres` [K, m]."""

    @abstractmethod
    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` [K, d] over each cell's members, [K, m]; 0 where empty."""

    @abstractmethod
    def codes(self) -> torch.Tensor:
        """Return the index of each weight's cell, uint8 [K, d]."""


@dataclass(frozen=True)
class MaskedCells(Cells):
    """Cells as masks, so that values and sums are a few vectorised passes without a scatter."""

    above: torch.Tensor
    """1 where a weight lies above boundary j, else 0; floats [K, m - 1, d]."""

    def values(self, centres: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return each weight's centre. `lerp` gives its end points exactly."""
        if out is None:
            out = centres.new_empty(self.above.shape[0], self.above.shape[2])
        out.copy_(centres[:, :1])
        for j in range(1, centres.shape[1]):
            out.lerp_(centres[:, j : j + 1], self.above[:, j - 1])
        return out

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Return sums over members: those above boundary k less those above k + 1."""
        total = values.sum(1, keepdim=True)
        if not self.above.shape[1]:
            return total
        above = torch.bmm(self.above, values.unsqueeze(2)).squeeze(2)
        sums = torch.cat((total, above), 1)
        sums[:, :-1] -= above
        return sums

    def codes(self) -> torch.Tensor:
        """Return the number of boundaries below each weight."""
        return self.above.sum(1).to(torch.uint8)


@dataclass(frozen=True)
class IndexedCells(Cells):
    """Cells as indices, for many centres."""

    index: torch.Tensor
    """int64 [K, d]."""
    count: int
    """Number of centres, m."""

    def values(self, centres: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return each weight's centre."""
        gathered = torch.gather(centres, 1, self.index)
        return gathered if out is None else out.copy_(gathered)

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Return sums over members."""
        sums = values.new_zeros(values.shape[0], self.count)
        return sums.scatter_add_(1, self.index, values)

    def codes(self) -> torch.Tensor:
        """Return the indices, narrowed."""
        return self.index.to(torch.uint8)


def boundaries(centres: torch.Tensor) -> torch.Tensor:
    """Return the midpoints of neighbouring centres, [K, m - 1]; `centres` [K, m] are sorted."""
    return (centres[:, 1:] + centres[:, :-1]).mul_(0.5)


def nearest_cells(weights: torch.Tensor, centres: torch.Tensor, used: Cells | None = None) -> Cells:
    """Return the cells of `weights` [K, d] by distance to the sorted `centres` [K, m], m >= 1.

    Nearest for every m: the released code of QuPeD takes the sign instead when m = 2, which
    agrees while the two centres are of opposite sign and equal size.

    `used`: cells that nobody needs any more. Theirs is the memory of the new ones where it fits:
    blocks of many MB are page faults each time, which take longer than filling them.
    """
    edges = boundaries(centres)
    if centres.shape[1] > MOST_MASKED:
        index = torch.searchsorted(edges.contiguous(), weights.contiguous())
        return IndexedCells(index, centres.shape[1])
    shape = (weights.shape[0], edges.shape[1], weights.shape[1])
    if isinstance(used, MaskedCells) and used.above.shape == shape:
        above = used.above
    else:
        above = weights.new_empty(shape)
    torch.gt(weights.unsqueeze(1), edges.unsqueeze(2), out=above)
    return MaskedCells(above)


def cells_of(codes: torch.Tensor, count: int, dtype: torch.dtype) -> Cells:
    """Return the cells that `codes` (uint8 [K, d], each below `count`) name.

    `dtype` is that of the weights they will be used with.
    """
    if count > MOST_MASKED:
        return IndexedCells(codes.long(), count)
    steps = torch.arange(count - 1, device=codes.device).view(1, -1, 1)
    return MaskedCells((codes.unsqueeze(1) > steps).to(dtype))
