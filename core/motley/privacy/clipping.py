"""Gradients of single records, each clipped before they are added.

For records j of a batch with losses f_j and trained parameters w, all of them together one vector:

    s = Σ_j g_j min(1, C / ||g_j||₂),    g_j = ∇f_j(w)

So one record more or less changes s by at most C. Each record goes through the model alone, as a
batch of one: nothing of another record can reach its gradient. A gradient that is not finite counts
as zero, because a failure would tell of a record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from structlog.stdlib import get_logger
from torch.func import functional_call, grad, vmap

log = get_logger()

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(outputs [B, ...], targets [B, ...]) to losses [B]."""
Forward = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
"""All parameters by name to what the model computes with, e.g. masked ones. Sees no data."""

NO_MASKS: Mapping[str, torch.Tensor] = {}
GRADIENT_BYTES = 64 * 1024**2
"""Of per-record gradients held at once, where nothing else is said."""


class PerSampleClipper:
    """Sums of clipped per-record gradients of one model."""

    def __init__(
        self,
        module: torch.nn.Module,
        loss: Loss,
        clip: float,
        *,
        microbatch: int = 0,
        forward: Forward = dict,
        moving: Mapping[str, torch.Tensor] = NO_MASKS,
    ) -> None:
        """Look at the parameters that need a gradient; the others and all buffers stay fixed.

        Args:
            module: the model; its values are read anew at each call.
            loss: of a batch, one value for each record.
            clip: C, above 0.
            microbatch: records whose gradients are held at once; 0: what 64 MiB hold.
            forward: applied to the parameters; must not depend on data.
            moving: by name of a parameter, bool in its shape: where it may move. Gradients are 0
                elsewhere, before they are clipped.
        """
        self._module, self._loss, self._clip, self._forward = module, loss, clip, forward
        self._moving = moving
        self.names = tuple(name for name, p in module.named_parameters() if p.requires_grad)
        size = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
        self._microbatch = microbatch or max(1, GRADIENT_BYTES // max(1, size))
        self._vectorised = True

    def clipped_sum(self, inputs: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
        """Return s, a tensor for each of `names` in its shape and dtype; zeros for no records.

        Args:
            inputs: [B, ...], B may be 0.
            targets: [B, ...].
        """
        named = dict(self._module.named_parameters())
        values = {name: named[name].detach() for name in self.names}
        total = [torch.zeros_like(value) for value in values.values()]
        for start in range(0, len(inputs), self._microbatch):
            chosen = slice(start, start + self._microbatch)
            gradients = self._gradients(values, inputs[chosen], targets[chosen])
            for place, part in zip(total, _clipped(gradients, self._clip), strict=True):
                place.add_(part)
        return total

    def _gradients(
        self, values: dict[str, torch.Tensor], inputs: torch.Tensor, targets: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return each record's gradient, [B, ...] for each of `names`."""
        frozen = {n: p.detach() for n, p in self._module.named_parameters() if n not in values}
        buffers = dict(self._module.named_buffers())

        def one(trained: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            # Fresh copies: what a layer notes there of one record must not reach the next.
            own = {name: buffer.clone() for name, buffer in buffers.items()}
            tensors = {**self._forward({**frozen, **trained}), **own}
            outputs = functional_call(self._module, tensors, (x.unsqueeze(0),))
            return self._loss(outputs, y.unsqueeze(0)).sum()

        found = self._of_each(grad(one), values, inputs, targets)
        for place, name in enumerate(self.names):
            if name in self._moving:
                found[place] = found[place] * self._moving[name]
        return found

    def _of_each(
        self,
        gradient: Callable[..., dict[str, torch.Tensor]],
        values: dict[str, torch.Tensor],
        inputs: torch.Tensor,
        targets: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Return a function's result for each record, stacked."""
        if self._vectorised:
            try:
                found = vmap(gradient, in_dims=(None, 0, 0), randomness="different")(
                    values, inputs, targets
                )
                return [found[name] for name in self.names]
            except (RuntimeError, NotImplementedError) as error:
                # Layers that torch cannot vectorise (some recurrent ones): one record at a time.
                log.warning("per_sample_gradients_looped", reason=str(error).splitlines()[0])
                self._vectorised = False
        rows = [gradient(values, x, y) for x, y in zip(inputs, targets, strict=True)]
        return [torch.stack([row[name] for row in rows]) for name in self.names]


def _clipped(gradients: Sequence[torch.Tensor], clip: float) -> Iterator[torch.Tensor]:
    """Yield Σ_j g_j min(1, C / ||g_j||) for each tensor [B, ...] of gradients."""
    norms = torch.stack([_row_norms(g) for g in gradients]).square().sum(dim=0).sqrt()
    finite = norms.isfinite()
    factors = clip / norms.clamp(min=clip)
    if not finite.all():
        # Not 0 times: a NaN times 0 is a NaN.
        gradients, factors = [g[finite] for g in gradients], factors[finite]
    for g in gradients:
        yield torch.tensordot(factors.to(g.dtype), g, dims=1)


def _row_norms(gradients: torch.Tensor) -> torch.Tensor:
    """Return the L2 norm of each record's gradient, [B], summed in float64 where there is one."""
    rows = gradients.flatten(1)
    if rows.device.type == "cpu":
        # Row by row: a copy of all in float64 costs more than everything else here.
        return torch.stack([torch.linalg.vector_norm(row, dtype=torch.float64) for row in rows])
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=exact)
    return norms
