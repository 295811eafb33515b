"""QuPeD's Theorem 1 (arXiv 2107.13892, section 3) on a problem whose constants are known.

f is a logistic regression on n random points a_i with labels b_i = ±1, taken in full batch:
f(x) = mean log(1 + exp(-b_i a_i·x)), so that |∇f| <= G = mean |a_i| and L = |A|² / 4n. The soft
quantizer has a fixed sharpness P; over the run its centres span at most S, and so do their gaps D
(checked at the end). Then, element by element,

    l_Q1 = P S / 4                      L_Q1 = P² S / (6√3)
    l_Q2 = G_Q2 = √(d m) (1 + P D / 4)  L_Q2 = √d · 2 (P / 4 + P² D / (12√3))
    G_Q1 = √d l_Q1                      (Frobenius norms, as in A.5)

and the theorem's steps are η₁ = 1 / 2(L + G L_Q1 + G_Q1 L l_Q1), η₂ = 1 / 2(G L_Q2 + G_Q2 L l_Q2).

F is not differentiable where R is not. The gradients of the theorem are the elements of the
subdifferential that the proximal steps pick: x⁺ minimises ⟨g, x⟩ + |x - x°|²/2η₁ + λR(x, c), so
(x° - x⁺)/η₁ - g is in λ∂R at x⁺, and G_x = ∇h(x⁺, c) - ∇h(x°, c) + (x° - x⁺)/η₁ is in ∂F, with
h(x, c) = f(x) + f(Q̃_c(x)). G_c is the same for the centres. From |G| <= 3/2η |step| and the descent
of a proximal step, |step|²/4η, follows Σ |G|² <= 9 L_max (F⁰ - F^T).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

import numpy as np
import pytest
import torch

from motley.quantize.cells import nearest_cells
from motley.quantize.centres import initial_centres
from motley.quantize.penalty import exact_centres, penalty, prox_weights
from motley.quantize.quantizer import soft_gradients, soft_quantize

WEIGHTS, CENTRES, POINTS = 10, 2, 60
STEPS = 6000
SHARPNESS = torch.full((1, 1), 3.0, dtype=torch.float64)
SPAN = 2.1
"""Bound on the centres' span that the constants assume."""


class Problem:
    """F_λ and its gradients."""

    def __init__(self, lam: float) -> None:
        generator = torch.Generator().manual_seed(4)
        self.lam = lam
        points = torch.randn(POINTS, WEIGHTS, generator=generator, dtype=torch.float64)
        truth = torch.randn(WEIGHTS, generator=generator, dtype=torch.float64)
        noise = torch.randn(POINTS, generator=generator, dtype=torch.float64)
        self.signed = points * (points @ truth + 3 * noise).sign().unsqueeze(1)
        self.x = 0.5 * torch.randn(1, WEIGHTS, generator=generator, dtype=torch.float64)
        self.c = initial_centres(self.x, CENTRES)
        self.steps = self._steps()

    def _steps(self) -> tuple[float, float]:
        p, d, m = float(SHARPNESS), WEIGHTS, CENTRES
        bound = float(self.signed.norm(dim=1).mean())
        smooth = float(torch.linalg.matrix_norm(self.signed, 2)) ** 2 / (4 * POINTS)
        l_q1, smooth_q1 = p * SPAN / 4, p**2 * SPAN / (6 * sqrt(3))
        l_q2 = sqrt(d * m) * (1 + p * SPAN / 4)
        smooth_q2 = sqrt(d) * 2 * (p / 4 + p**2 * SPAN / (12 * sqrt(3)))
        of_x = smooth + bound * smooth_q1 + sqrt(d) * l_q1 * smooth * l_q1
        of_c = bound * smooth_q2 + l_q2 * smooth * l_q2
        return 1 / (2 * of_x), 1 / (2 * of_c)

    def loss(self, x: torch.Tensor) -> float:
        return float(torch.nn.functional.softplus(-(self.signed @ x[0])).mean())

    def loss_gradient(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.sigmoid(-(self.signed @ x[0]))
        return -(weights @ self.signed).unsqueeze(0) / POINTS

    def objective(self, x: torch.Tensor, c: torch.Tensor) -> float:
        soft = self.loss(soft_quantize(x, c, SHARPNESS))
        return self.loss(x) + soft + self.lam * float(penalty(x, c))

    def gradients(self, x: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of f(x) + f(Q̃_c(x)) in x and in c."""
        outer = self.loss_gradient(soft_quantize(x, c, SHARPNESS))
        of_x, of_c = soft_gradients(outer, x, c, SHARPNESS)
        return self.loss_gradient(x) + of_x, of_c


@dataclass
class Path:
    """What a run of Algorithm 1 went through."""

    objective: list[float] = field(default_factory=list)
    squared_gradients: list[float] = field(default_factory=list)
    span: float = 0.0


def algorithm_1(problem: Problem, steps: int, centre_sign: float = 1.0) -> Path:
    """Run the theorem's steps; `centre_sign` -1 turns the penalty on the centres round."""
    x, c = problem.x, problem.c
    eta1, eta2 = problem.steps
    path = Path([problem.objective(x, c)])
    of_x, _ = problem.gradients(x, c)
    for _ in range(steps):
        new_x = prox_weights(x - eta1 * of_x, c, eta1 * problem.lam / 2)
        at_new_x, of_c = problem.gradients(new_x, c)
        moved = c - eta2 * of_c
        cells = nearest_cells(new_x, c)
        settled = exact_centres(moved, new_x, cells, eta2 * problem.lam / 2)
        new_c = (moved + centre_sign * (settled - moved)).sort(1).values
        of_x_next, of_c_next = problem.gradients(new_x, new_c)
        pick_x = at_new_x - of_x + (x - new_x) / eta1
        pick_c = of_c_next - of_c + (c - new_c) / eta2
        path.squared_gradients.append(float((pick_x**2).sum() + (pick_c**2).sum()))
        path.objective.append(problem.objective(new_x, new_c))
        path.span = max(path.span, float(new_c[0, -1] - new_c[0, 0]))
        x, c, of_x = new_x, new_c, of_x_next
    return path


@pytest.mark.parametrize("lam", [0.02, 0.1])
def test_theorem_1(lam: float) -> None:
    problem = Problem(lam)
    path = algorithm_1(problem, STEPS)
    objective = np.array(path.objective)
    assert path.span <= SPAN
    # F never rises, but for rounding.
    assert np.diff(objective).max() <= 1e-14
    assert objective[0] - objective[-1] > 0.01
    # The sum of squared gradients stays below its bound ...
    squared = np.array(path.squared_gradients)
    largest = 1 / min(problem.steps)
    assert squared.sum() < 9 * largest * (objective[0] - objective[-1])
    # ... so that their running mean falls as 1 / T.
    count = np.arange(1, STEPS + 1)
    late = count > STEPS // 10
    slope = np.polyfit(np.log(count[late]), np.log((squared.cumsum() / count)[late]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.15)


def test_with_the_centre_penalty_turned_round_the_objective_rises() -> None:
    path = algorithm_1(Problem(0.1), STEPS, centre_sign=-1.0)
    assert np.diff(path.objective).max() > 1e-6
