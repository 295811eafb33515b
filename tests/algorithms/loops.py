"""The baselines' papers as short loops with autograd: tensors by name, no buffers, no `motley`.

What the methods are compared with. `batches` are (inputs, targets) in the order of use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from naive import Naive, Named
from torch import nn
from torch.func import functional_call
from torch.nn import functional

Batch = tuple[torch.Tensor, torch.Tensor]


def gradients(objective: Callable[[Named], torch.Tensor], at: Named) -> Named:
    """Return the objective's gradient at named values."""
    leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
    found = torch.autograd.grad(objective(leaves), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def label_loss(module: nn.Module, values: Named, batch: Batch) -> torch.Tensor:
    return functional.cross_entropy(functional_call(module, values, (batch[0],)), batch[1])


def moved(values: Named, gradient: Named, rate: float) -> Named:
    return {name: value.detach() - rate * gradient[name] for name, value in values.items()}


def apart(one: Named, other: Named) -> torch.Tensor:
    """Return ½ ||one - other||²."""
    return 0.5 * torch.stack([((one[n] - other[n]) ** 2).sum() for n in one]).sum()


def pfedme(
    module: nn.Module,
    w: Named,
    batches: Sequence[Batch],
    *,
    inner: int,
    lam: float,
    rate: Callable[[int], float],
    eta: Callable[[int], float],
    mu: float,
) -> tuple[Named, Named]:
    """Return (θ, w_i) after a step for each batch."""
    theta, own = dict(w), dict(w)
    for t, batch in enumerate(batches):
        for _ in range(inner):

            def envelope(values: Named, batch: Batch = batch, own: Named = own) -> torch.Tensor:
                shrink = 0.5 * mu * torch.stack([(v**2).sum() for v in values.values()]).sum()
                return label_loss(module, values, batch) + lam * apart(values, own) + shrink

            theta = moved(theta, gradients(envelope, theta), rate(t))
        own = {n: own[n] - eta(t) * lam * (own[n] - theta[n]) for n in own}
    return theta, own


def perfedavg(
    module: nn.Module,
    w: Named,
    batches: Sequence[Batch],
    *,
    alpha: float,
    beta: Callable[[int], float],
    decay: float,
) -> Named:
    """Return w after a step for each pair of batches."""
    w = dict(w)
    for t in range(len(batches) // 2):
        first, second = batches[2 * t], batches[2 * t + 1]
        adapted = moved(w, gradients(lambda v, b=first: label_loss(module, v, b), w), alpha)
        g = gradients(lambda v, b=second: label_loss(module, v, b), adapted)
        w = {n: w[n] - beta(t) * (g[n] + decay * w[n]) for n in w}
    return w


def mutual(
    private: nn.Module,
    meme: nn.Module,
    batches: Sequence[Batch],
    *,
    shares: tuple[float, float],
    rates: Callable[[int], tuple[float, float]],
    momentum: float,
    decay: float,
) -> None:
    """Train both modules in place with torch's optimizers."""
    sgd = [
        torch.optim.SGD(m.parameters(), lr=1.0, momentum=momentum, weight_decay=decay)
        for m in (private, meme)
    ]
    for t, (inputs, targets) in enumerate(batches):
        z = (private(inputs), meme(inputs))
        for own, other, share, optimizer, rate in zip(
            z, z[::-1], shares, sgd, rates(t), strict=True
        ):
            kl = functional.kl_div(
                functional.log_softmax(own, 1),
                functional.softmax(other.detach(), 1),
                reduction="batchmean",
            )
            loss = share * functional.cross_entropy(own, targets) + (1 - share) * kl
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss.backward()
        for optimizer in sgd:
            optimizer.step()


class Quantized(dict[str, torch.Tensor]):
    """Values that come out of the quantizer."""


class NaiveTied(Naive):
    """QuPeL: `Naive` with another objective and another step on w."""

    ties: str = "both"

    def quantized(self, x: Named, c: Named) -> Named:
        return Quantized(super().quantized(x, c))

    def _tied(self, x: Named) -> bool:
        if not self.c or self.ties == "both":
            return True
        return isinstance(x, Quantized) == (self.ties == "centres")

    def objective(self, x: Named, w: Named, batch: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = label_loss(self.student, x, (batch, y))
        return loss + self.share * apart(x, w) if self._tied(x) else loss

    def step(
        self,
        batch: torch.Tensor,
        y: torch.Tensor,
        *,
        eta1: float,
        eta2: float,
        eta3: float,
        lam: float,
        decay: float,
    ) -> None:
        self._weights(batch, y, eta1, lam, decay)
        if self.c:
            self._centres(batch, y, eta2, lam)
        models = [self.x, self.quantized(self.x, self.c)] if self.c else [self.x]
        tied = [m for m in models if self._tied(m)]
        g = gradients(lambda w: self.share * torch.stack([apart(m, w) for m in tied]).sum(), self.w)
        self.w = moved(self.w, g, eta3)


def proxquant(
    module: nn.Module,
    x: Named,
    quantized: Sequence[str],
    batches: Sequence[Batch],
    *,
    rate: float,
    threshold: Callable[[int], float],
    freeze_at: int,
) -> Named:
    """Return x; from `freeze_at` on the quantized tensors are ±1 and stay."""
    x = dict(x)
    for t, batch in enumerate(batches):
        if t == freeze_at:
            x |= {n: x[n].sign() for n in quantized}
        x_new = moved(x, gradients(lambda v, b=batch: label_loss(module, v, b), x), rate)
        for name in quantized:
            size = x_new[name].abs()
            near = torch.relu((size - 1).abs() - threshold(t)) * (size - 1).sign() + 1
            x_new[name] = (x_new[name].sign() * near).clamp(-1, 1) if t < freeze_at else x[name]
        x = x_new
    return x


def binaryrelax(
    module: nn.Module,
    y: Named,
    quantized: Sequence[str],
    batches: Sequence[Batch],
    *,
    rate: float,
    relaxation: Callable[[int], float],
    hard_from: int,
) -> Named:
    """Return y after a step for each batch."""
    y = dict(y)
    for t, batch in enumerate(batches):
        x = dict(y)
        for name in quantized:
            projected = y[name].abs().mean() * y[name].sign()
            lam = relaxation(t)
            x[name] = projected if t >= hard_from else (lam * projected + y[name]) / (lam + 1)
        y = moved(y, gradients(lambda v, b=batch: label_loss(module, v, b), x), rate)
    return y
