"""QuPeD's Algorithm 2, line by line with autograd: tensors by name, layer by layer, no buffers.

Written from the paper's text, apart from `motley`: what the fast step is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.func import functional_call
from torch.nn import functional

Named = dict[str, torch.Tensor]


@dataclass
class Naive:
    """One client: x and w as named tensors, c by layer."""

    student: torch.nn.Module
    teacher: torch.nn.Module
    x: Named
    w: Named
    c: Named
    """Centres [m] of each quantized tensor; empty in full precision."""
    sharpness: Named
    longest: Named
    soft: bool = False
    exact: bool = False
    share: float = 0.3
    temperature: float = 1.0

    def nearest(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return (x.unsqueeze(-1) - c).abs().argmin(-1)

    def quantized(self, x: Named, c: Named) -> Named:
        """Return the quantized model, differentiable in c (and in x in soft mode)."""
        out = dict(x)
        for name, own in c.items():
            if self.soft:
                q = own[0] + 0 * x[name]
                for j in range(1, len(own)):
                    middle = (own[j] + own[j - 1]) / 2
                    q = q + (own[j] - own[j - 1]) * torch.sigmoid(
                        self.sharpness[name] * (x[name] - middle)
                    )
                out[name] = q
            else:
                out[name] = own[self.nearest(x[name], own)]
        return out

    def kd(self, z_student: torch.Tensor, z_teacher: torch.Tensor) -> torch.Tensor:
        t = self.temperature
        p, q = functional.softmax(z_teacher / t, 1), functional.softmax(z_student / t, 1)
        return (p * (p.log() - q.log())).sum(1).mean() * t * t

    def objective(self, x: Named, w: Named, batch: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = functional_call(self.student, x, (batch,))
        z_teacher = functional_call(self.teacher, w, (batch,)).detach()
        return (1 - self.share) * functional.cross_entropy(z, y) + self.share * self.kd(
            z, z_teacher
        )

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
        w = {n: t.detach().requires_grad_() for n, t in self.w.items()}
        z_teacher = functional_call(self.teacher, w, (batch,))
        models = [self.x, self.quantized(self.x, self.c)] if self.c else [self.x]
        total = sum(
            self.kd(functional_call(self.student, m, (batch,)).detach(), z_teacher) for m in models
        )
        grads = torch.autograd.grad(total, list(w.values()))
        for (name, old), g in zip(w.items(), grads, strict=True):
            self.w[name] = old.detach() - eta3 * self.share * g

    def _weights(
        self, batch: torch.Tensor, y: torch.Tensor, eta1: float, lam: float, decay: float
    ) -> None:
        x = {n: t.detach().requires_grad_() for n, t in self.x.items()}
        total = self.objective(x, self.w, batch, y)
        if self.soft and self.c:
            total = total + self.objective(self.quantized(x, self.c), self.w, batch, y)
        grads = torch.autograd.grad(total, list(x.values()))
        for (name, old), g in zip(x.items(), grads, strict=True):
            moved = old.detach() - eta1 * (g + decay * old.detach())
            if name in self.c:
                q = self.c[name][self.nearest(moved, self.c[name])]
                apart = (moved - q).abs() - eta1 * lam / 2
                moved = q + (moved - q).sign() * apart.clamp_min(0)
            self.x[name] = moved

    def _centres(self, batch: torch.Tensor, y: torch.Tensor, eta2: float, lam: float) -> None:
        c = {n: t.detach().requires_grad_() for n, t in self.c.items()}
        total = self.objective(self.quantized(self.x, c), self.w, batch, y)
        grads = torch.autograd.grad(total, list(c.values()))
        theta = eta2 * lam / 2
        for (name, old), g in zip(c.items(), grads, strict=True):
            new = old.detach() - eta2 * g.clamp(-10, 10)
            cells = self.nearest(self.x[name], self.c[name])
            for k in range(len(new)):
                members = self.x[name][cells == k]
                if self.exact:
                    n = len(members)
                    places = [new[k] + theta * (n - 2 * j) for j in range(n + 1)]
                    new[k] = torch.cat((members, torch.stack(places))).median()
                else:
                    above = int((members > old[k] + 1e-12).sum())
                    below = int((members < old[k] - 1e-12).sum())
                    bound = float(self.longest[name])
                    new[k] += max(-bound, min(bound, theta * (above - below)))
            self.c[name] = new.sort().values
