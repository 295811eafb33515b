"""QuPeD's Theorem 1 (arXiv 2107.13892, section 3) on a problem whose constants are known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "theory"))

from logistic import Problem, algorithm_1

STEPS = 4000


@pytest.mark.parametrize("lam", [0.02, 0.1])
def test_theorem_1(lam: float) -> None:
    problem = Problem(lam)
    path = algorithm_1(problem, STEPS)
    objective = np.array(path.objective)
    assert path.span <= problem.span
    # F never rises, but for rounding.
    assert np.diff(objective).max() <= 1e-14
    assert objective[0] - objective[-1] > 0.01
    # The sum of squared gradients stays below its bound ...
    squared = np.array(path.squared_gradients)
    assert squared.sum() < 9 * problem.largest * (objective[0] - objective[-1])
    # ... so that their running mean falls as 1 / T.
    count = np.arange(1, STEPS + 1)
    late = count > STEPS // 10
    slope = np.polyfit(np.log(count[late]), np.log((squared.cumsum() / count)[late]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.15)


@pytest.mark.parametrize("centres", [3, 4, 8])
def test_theorem_1_with_more_centres(centres: int) -> None:
    problem = Problem(0.1, centres=centres)
    path = algorithm_1(problem, 750)
    objective = np.array(path.objective)
    assert path.span <= problem.span
    assert np.diff(objective).max() <= 1e-14
    bound = 9 * problem.largest * (objective[0] - objective[-1])
    assert sum(path.squared_gradients) < bound


def test_with_the_centre_penalty_turned_round_the_objective_rises() -> None:
    path = algorithm_1(Problem(0.1), 400, centre_sign=-1.0)  # from step 247 on
    assert np.diff(path.objective).max() > 1e-6
