"""QuPeD's Algorithm 2 in full batch, with the gradient of Theorem 2 (arXiv 2107.13892, section 4).

Clients fit softmax regressions, all at once, in float64, with the soft quantizer and λ = 0, so that
every function is smooth. Clients of one number of centres make a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from motley.quantize.centres import initial_centres
from motley.quantize.quantizer import SoftQuantizer

FEATURES, CLASSES, SAMPLES = 6, 3, 40
SHARE = 0.5
"""λ_p."""


@dataclass
class Group:
    """K clients with as many centres each."""

    inputs: torch.Tensor
    """[K, N, FEATURES]."""
    targets: torch.Tensor
    """[K, N] of classes."""
    x: torch.Tensor
    """Personal weights [K, FEATURES * CLASSES]."""
    c: torch.Tensor
    """Centres [K, m]."""
    sharpness: torch.Tensor
    """P, [K, 1]."""

    @classmethod
    def of(
        cls,
        clients: Sequence[tuple[torch.Tensor, torch.Tensor]],
        *,
        centres: int,
        sharpness: float = 4.0,
    ) -> Group:
        """Build a group whose clients all start from the same weights."""
        generator = torch.Generator().manual_seed(11)
        width = FEATURES * CLASSES
        x = 0.3 * torch.randn(1, width, generator=generator, dtype=torch.float64)
        x = x.repeat(len(clients), 1)
        return cls(
            inputs=torch.stack([inputs for inputs, _ in clients]),
            targets=torch.stack([targets for _, targets in clients]),
            x=x,
            c=initial_centres(x, centres),
            sharpness=torch.full((len(clients), 1), sharpness, dtype=torch.float64),
        )

    def objective(self, x: torch.Tensor, c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """Return each client's F_i, [K]: equation (2) with λ = 0."""
        teacher = self._logits(w)
        total = torch.zeros(len(x), dtype=torch.float64)
        for values in (x, SoftQuantizer.apply(x, c, self.sharpness)):
            student = self._logits(values)
            label = -student.gather(2, self.targets[:, :, None])[:, :, 0].mean(1)
            distilled = (teacher.exp() * (teacher - student)).sum(2).mean(1)
            total = total + (1 - SHARE) * label + SHARE * distilled
        return total

    def gradient(
        self, x: torch.Tensor, c: torch.Tensor, w: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients of each client's F_i in x, c and w."""
        x, c, w = (value.detach().requires_grad_() for value in (x, c, w))
        of_x, of_c, of_w = torch.autograd.grad(self.objective(x, c, w).sum(), (x, c, w))
        return of_x, of_c, of_w

    def _logits(self, values: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities [K, N, CLASSES]."""
        weights = values.view(-1, FEATURES, CLASSES)
        return torch.log_softmax(self.inputs @ weights, 2)


def clients(count: int, *, apart: Sequence[float]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Draw the data of clients, whose labels follow a common rule mixed with one of their own.

    Args:
        count: how many.
        apart: of each, 0 (the common rule and the common inputs) to 1 (all its own).
    """
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    common, rule = draw(SAMPLES, FEATURES), draw(FEATURES, CLASSES)
    found = []
    for index in range(count):
        own, own_rule, share = draw(SAMPLES, FEATURES), draw(FEATURES, CLASSES), apart[index]
        inputs = common if share == 0 else own
        mixed = (1 - share) * rule + share * own_rule
        found.append((inputs, (inputs @ mixed).argmax(1)))
    return found


@dataclass(frozen=True)
class Rates:
    """η₁, η₂ and η₃."""

    weights: float = 0.3
    centres: float = 0.02
    shared: float = 0.0


def algorithm_2(groups: Sequence[Group], *, steps: int, gap: int, rates: Rates) -> list[float]:
    """Run Algorithm 2 with all clients in every round; change the groups.

    Args:
        groups: the clients.
        steps: T.
        gap: τ, iterations between synchronisations.
        rates: step sizes.

    Returns:
        The mean over clients of |G_i^t|² after each iteration, at the mean w of all clients.
    """
    total = sum(len(group.x) for group in groups)
    shared = [group.x.clone() for group in groups]
    squares = []
    for step in range(steps):
        mean = torch.cat(shared).mean(0, keepdim=True)
        square = 0.0
        for index, group in enumerate(groups):
            w = shared[index]
            of_x = group.gradient(group.x, group.c, w)[0]
            x = group.x - rates.weights * of_x
            at_mean = mean.expand_as(w)
            square += float(group.gradient(x, group.c, at_mean)[0].square().sum())
            of_c = group.gradient(x, group.c, w)[1]
            group.x, group.c = x, (group.c - rates.centres * of_c).sort(1).values
            shared[index] = w - rates.shared * group.gradient(x, group.c, w)[2]
            _, of_c, of_w = group.gradient(x, group.c, at_mean)
            square += float(of_c.square().sum() + of_w.square().sum())
        squares.append(square / total)
        if (step + 1) % gap == 0:
            mean = torch.cat(shared).mean(0, keepdim=True)
            shared = [mean.expand_as(group.x).clone() for group in groups]
    return squares
