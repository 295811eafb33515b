"""QuPeD's Algorithm 1 on a problem whose constants are known (arXiv 2107.13892, section 3).

f is a logistic regression on n random points a_i with labels b_i = ±1, taken in full batch:
f(x) = mean log(1 + exp(-b_i a_i·x)), so that |∇f| <= G = mean |a_i| and L = |A|² / 4n. The soft
quantizer has a fixed sharpness P; over the run its centres span at most S, and so do their gaps D
(to be checked at the end). Then, element by element,

    l_Q1 = P S / 4                      L_Q1 = P² S / (6√3)
    l_Q2 = G_Q2 = √(d m) (1 + P D / 4)  L_Q2 = √d · r (P / 4 + P² D / (12√3))
    G_Q1 = √d l_Q1                      (Frobenius norms, as in A.5)

with r the largest row sum of second derivatives in the centres, in units of one of them: 2 for two
centres, 4 for more, each of which lies at two gaps. The theorem's steps are
η₁ = 1 / 2(L + G L_Q1 + G_Q1 L l_Q1), η₂ = 1 / 2(G L_Q2 + G_Q2 L l_Q2).

F is not differentiable where R is not. The gradients of the theorem are the elements of the
subdifferential that the proximal steps pick: x⁺ minimises ⟨g, x⟩ + |x - x°|²/2η₁ + λR(x, c), so
(x° - x⁺)/η₁ - g is in λ∂R at x⁺, and G_x = ∇h(x⁺, c) - ∇h(x°, c) + (x° - x⁺)/η₁ is in ∂F, with
h(x, c) = f(x) + f(Q̃_c(x)). G_c is the same for the centres. From |G| <= 3/2η |step| and the descent
of a proximal step, |step|²/4η, follows Σ |G|² <= 9 L_max (F⁰ - F^T).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

import torch

from motley.quantize.cells import nearest_cells
from motley.quantize.centres import initial_centres
from motley.quantize.penalty import exact_centres, penalty, prox_weights
from motley.quantize.quantizer import hard_quantize, soft_gradients, soft_quantize

WEIGHTS, POINTS = 10, 60


class Problem:
    """F_λ in parts, and their gradients."""

    def __init__(
        self, lam: float, *, sharpness: float = 3.0, centres: int = 2, span: float = 2.1
    ) -> None:
        """Draw the points, the same for all arguments.

        Args:
            lam: λ.
            sharpness: P.
            centres: m.
            span: bound on the centres' span that the constants assume.
        """
        generator = torch.Generator().manual_seed(4)
        self.lam, self.span, self.centres = lam, span, centres
        self.sharpness = torch.full((1, 1), sharpness, dtype=torch.float64)
        points = torch.randn(POINTS, WEIGHTS, generator=generator, dtype=torch.float64)
        truth = torch.randn(WEIGHTS, generator=generator, dtype=torch.float64)
        noise = torch.randn(POINTS, generator=generator, dtype=torch.float64)
        self.signed = points * (points @ truth + 3 * noise).sign().unsqueeze(1)
        self.x = 0.5 * torch.randn(1, WEIGHTS, generator=generator, dtype=torch.float64)
        self.c = initial_centres(self.x, centres)
        self.steps = self._steps()

    def _steps(self) -> tuple[float, float]:
        d = WEIGHTS
        bound = float(self.signed.norm(dim=1).mean())
        smooth = float(torch.linalg.matrix_norm(self.signed, 2)) ** 2 / (4 * POINTS)
        l_q1, smooth_q1, l_q2, smooth_q2 = self._constants()
        l_q2, smooth_q2 = sqrt(d) * l_q2, sqrt(d) * smooth_q2
        of_x = smooth + bound * smooth_q1 + sqrt(d) * l_q1 * smooth * l_q1
        of_c = bound * smooth_q2 + l_q2 * smooth * l_q2
        return 1 / (2 * of_x), 1 / (2 * of_c)

    def _constants(self) -> tuple[float, float, float, float]:
        """Return l_Q1, L_Q1, l_Q2 and L_Q2 of one element: bounds."""
        p, m, span = float(self.sharpness), self.centres, self.span
        row_sum = 2 if m == 2 else 4
        return (
            p * span / 4,
            p**2 * span / (6 * sqrt(3)),
            sqrt(m) * (1 + p * span / 4),
            row_sum * (p / 4 + p**2 * span / (12 * sqrt(3))),
        )

    @property
    def largest(self) -> float:
        """L_max."""
        return 1 / min(self.steps)

    @property
    def smallest(self) -> float:
        """L_min."""
        return 1 / max(self.steps)

    def loss(self, x: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Return f and its gradient."""
        against = -(self.signed @ x[0])
        gradient = -(torch.sigmoid(against) @ self.signed).unsqueeze(0) / POINTS
        return float(torch.nn.functional.softplus(against).mean()), gradient

    def soft_loss(self, x: torch.Tensor, c: torch.Tensor) -> float:
        """Return f(Q̃_c(x))."""
        return self.loss(soft_quantize(x, c, self.sharpness))[0]

    def hard_loss(self, x: torch.Tensor, c: torch.Tensor) -> float:
        """Return f(Q_c(x)), with every weight at its nearest centre."""
        return self.loss(hard_quantize(x, c))[0]

    def smooth(
        self, x: torch.Tensor, c: torch.Tensor, plain: tuple[float, torch.Tensor]
    ) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Return h = f(x) + f(Q̃_c(x)) and its gradients in x and in c; `plain`: `loss(x)`."""
        soft, outer = self.loss(soft_quantize(x, c, self.sharpness))
        of_x, of_c = soft_gradients(outer, x, c, self.sharpness)
        return plain[0] + soft, plain[1] + of_x, of_c

    def pull(self, x: torch.Tensor, c: torch.Tensor) -> float:
        """Return F_λ - h."""
        return self.lam * float(penalty(x, c))


class EvenProblem(Problem):
    """The same, with the quantizer's constants for centres that are evenly spread over the span.

    The bounds above count every gap as wide as the span, so that they grow with the number of
    centres; what they bound falls. These are found on a grid of weights, and hold near such centres
    only: whether the objective never rose tells whether that was enough.
    """

    def _constants(self) -> tuple[float, float, float, float]:
        half = self.span / 2
        centres = torch.linspace(-half, half, self.centres, dtype=torch.float64)
        grid = torch.linspace(-2 * half, 2 * half, 401, dtype=torch.float64)

        def quantized(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            steps = torch.sigmoid(self.sharpness[0] * (x - (c[1:] + c[:-1]) / 2))
            return c[0] + (c.diff() * steps).sum()

        jacobian, second = torch.func.jacrev, torch.func.hessian
        of_x = torch.stack([jacobian(quantized)(x, centres) for x in grid])
        bent = torch.stack([second(quantized)(x, centres) for x in grid])
        of_c = torch.stack([jacobian(quantized, argnums=1)(x, centres) for x in grid])
        curved = torch.stack([second(quantized, argnums=1)(x, centres) for x in grid])
        return (
            float(of_x.abs().max()),
            float(bent.abs().max()),
            float(of_c.norm(dim=1).max()),
            float(torch.linalg.matrix_norm(curved, 2).max()),
        )


@dataclass
class Path:
    """What a run of Algorithm 1 went through."""

    objective: list[float] = field(default_factory=list)
    squared_gradients: list[float] = field(default_factory=list)
    span: float = 0.0
    soft_loss: float = 0.0
    hard_loss: float = 0.0
    """At the end, as `soft_loss`."""


def algorithm_1(problem: Problem, steps: int, centre_sign: float = 1.0) -> Path:
    """Run the theorem's steps; `centre_sign` -1 turns the penalty on the centres round."""
    x, c = problem.x, problem.c
    eta1, eta2 = problem.steps
    value, of_x, _ = problem.smooth(x, c, problem.loss(x))
    path = Path([value + problem.pull(x, c)])
    for _ in range(steps):
        new_x = prox_weights(x - eta1 * of_x, c, eta1 * problem.lam / 2)
        plain = problem.loss(new_x)
        _, at_new_x, of_c = problem.smooth(new_x, c, plain)
        moved = c - eta2 * of_c
        cells = nearest_cells(new_x, c)
        settled = exact_centres(moved, new_x, cells, eta2 * problem.lam / 2)
        new_c = (moved + centre_sign * (settled - moved)).sort(1).values
        value, of_x_next, of_c_next = problem.smooth(new_x, new_c, plain)
        pick_x = at_new_x - of_x + (x - new_x) / eta1
        pick_c = of_c_next - of_c + (c - new_c) / eta2
        path.squared_gradients.append(float((pick_x**2).sum() + (pick_c**2).sum()))
        path.objective.append(value + problem.pull(new_x, new_c))
        path.span = max(path.span, float(new_c[0, -1] - new_c[0, 0]))
        x, c, of_x = new_x, new_c, of_x_next
    path.soft_loss, path.hard_loss = problem.soft_loss(x, c), problem.hard_loss(x, c)
    return path
