"""QuPeD's quantizers, hard and soft, with their derivatives (arXiv 2107.13892, section 2.1).

| paper | here |
|---|---|
| x, c, m | weights [K, d], centres [K, m] sorted ascending, number of centres |
| Q_c(x) | `hard_quantize`: each weight's nearest centre |
| Q̃_c(x) | `soft_quantize`: c_1 + Σ_j D_j σ(P (x - b_j)), j = 2..m |
| D_j, b_j | gap c_j - c_{j-1} and boundary (c_j + c_{j-1}) / 2 |
| P | sharpness, one number for each client's layer, [K, 1] |

P is a constant of the layer, set from its initial centres (`centres.sharpness`). Were it a function
of the current ones, its own derivative would be missing below. The hard quantizer is the limit of
large P: no gradient reaches the weights, and each centre gets the *sum* of its members' gradients.
"""

from __future__ import annotations

from typing import Any

import torch

from motley.quantize.cells import nearest_cells


def hard_quantize(weights: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return the nearest centre of each weight, [K, d]; ties go to the lower one."""
    return nearest_cells(weights, centres).values(centres)


def soft_quantize(
    weights: torch.Tensor, centres: torch.Tensor, sharpness: torch.Tensor
) -> torch.Tensor:
    """Return the sigmoid staircase over the centres, [K, d]."""
    values = centres[:, :1].expand_as(weights).clone()
    for j in range(1, centres.shape[1]):
        gap, share = _stair(weights, centres, sharpness, j)
        values.addcmul_(gap, share)
    return values


def soft_gradients(
    gradient: torch.Tensor,
    weights: torch.Tensor,
    centres: torch.Tensor,
    sharpness: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss's gradients in the weights [K, d] and the centres [K, m].

    `gradient` [K, d] is the loss's gradient in the soft-quantized weights. With
    s_j = σ(P (x - b_j)), s_1 = 1, D_1 = 0 and s_{m+1} = D_{m+1} = 0:

        ∂Q̃/∂x   = P Σ_j D_j s_j (1 - s_j)
        ∂Q̃/∂c_k = s_k - (P/2) D_k s_k (1 - s_k) - s_{k+1} - (P/2) D_{k+1} s_{k+1} (1 - s_{k+1})

    so that ∂Q̃/∂x + Σ_k ∂Q̃/∂c_k = 1: moving weights and centres alike moves the result alike.
    """
    slope = torch.zeros_like(weights)
    upper = [gradient.sum(1)]
    half = [torch.zeros_like(upper[0])]
    for j in range(1, centres.shape[1]):
        gap, share = _stair(weights, centres, sharpness, j)
        steep = sharpness * gap * share * (1 - share)
        slope += steep
        upper.append((gradient * share).sum(1))
        half.append(0.5 * (gradient * steep).sum(1))
    upper.append(torch.zeros_like(upper[0]))
    half.append(torch.zeros_like(half[0]))
    of_centres = [
        (upper[k] - half[k]) - (upper[k + 1] + half[k + 1]) for k in range(centres.shape[1])
    ]
    return gradient * slope, torch.stack(of_centres, 1)


def _stair(
    weights: torch.Tensor, centres: torch.Tensor, sharpness: torch.Tensor, j: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return step j's gap D_j [K, 1] and how far each weight has climbed it, s_j [K, d]."""
    low, high = centres[:, j - 1 : j], centres[:, j : j + 1]
    return high - low, torch.sigmoid(sharpness * (weights - 0.5 * (low + high)))


class HardQuantizer(torch.autograd.Function):
    """`hard_quantize` in a graph: centres get the sums over their members, weights nothing.

    Use as `HardQuantizer.apply(weights, centres)`.
    """

    @staticmethod
    def forward(ctx: Any, weights: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
        """Return the quantized weights [K, d]."""
        ctx.cells = nearest_cells(weights, centres)
        values: torch.Tensor = ctx.cells.values(centres)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients in (weights, centres)."""
        return None, ctx.cells.sums(gradients[0])


class SoftQuantizer(torch.autograd.Function):
    """`soft_quantize` in a graph, in a few passes and without [d, m] tensors.

    Use as `SoftQuantizer.apply(weights, centres, sharpness)`; the sharpness is a constant.
    """

    @staticmethod
    def forward(
        ctx: Any, weights: torch.Tensor, centres: torch.Tensor, sharpness: torch.Tensor
    ) -> torch.Tensor:
        """Return the soft-quantized weights [K, d]."""
        ctx.save_for_backward(weights, centres, sharpness)
        return soft_quantize(weights, centres, sharpness)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients in (weights, centres, sharpness)."""
        return *soft_gradients(gradients[0], *ctx.saved_tensors), None
