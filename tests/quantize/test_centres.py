"""Where centres start, the constants set from them, and the schedule."""

from __future__ import annotations

import numpy as np
import numpy.testing as npt
import pytest
import torch

from motley.quantize.centres import initial_centres, longest_step, sharpness, unused
from motley.quantize.schedule import Schedule


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_two_centres_are_the_means_of_both_signs() -> None:
    npt.assert_allclose(initial_centres(row(-3, -1, 0, 1, 5), 2), [[-2, 2]])
    npt.assert_allclose(initial_centres(row(1, 3), 2), [[0, 2]])


def test_more_centres_span_the_range() -> None:
    npt.assert_allclose(initial_centres(row(-3, 0, 0.1, 6), 4), [[-3, 0, 3, 6]], atol=1e-12)
    npt.assert_allclose(initial_centres(row(-3, 0, 0.1, 6), 3), [[-3, 1.5, 6]])


def test_one_centre_is_the_median() -> None:
    npt.assert_allclose(initial_centres(row(5, -3, 1), 1), [[1]])


def test_quantiles_fill_all_cells_alike() -> None:
    weights = torch.arange(100, dtype=torch.float64).unsqueeze(0) ** 3
    centres = initial_centres(weights, 4, "quantiles")
    npt.assert_allclose(centres, [[12.0**3, 37**3, 62**3, 87**3]])


def test_each_client_starts_from_its_own_weights() -> None:
    weights = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    for count in (1, 2, 3, 4):
        for start in ("range", "quantiles"):
            together = initial_centres(weights, count, start)  # type: ignore[arg-type]
            alone = [initial_centres(w.unsqueeze(0), count, start) for w in weights]  # type: ignore[arg-type]
            npt.assert_allclose(together, torch.cat(alone), rtol=1e-6)


def test_sharpness_counts_in_the_smallest_gap() -> None:
    npt.assert_allclose(sharpness(row(-1, 0, 0.5), 20), [[40]])
    npt.assert_allclose(sharpness(row(0, 0, 2), 20), [[10]])
    npt.assert_allclose(sharpness(row(3), 20), [[20]])
    npt.assert_allclose(sharpness(row(3, 3), 20), [[20]])


def test_longest_step() -> None:
    npt.assert_allclose(longest_step(row(-9, 9), row(-1, 3), 0.01), [[0.04]])
    npt.assert_allclose(longest_step(row(-9, 9), row(2), 0.01), [[0.18]])


def test_unused() -> None:
    assert unused(np.array([[0, 3], [3, 0]], np.uint8), 4) == 2
    assert unused(np.array([0, 1, 2], np.uint8), 3) == 0


def test_schedule_follows_the_run() -> None:
    schedule = Schedule(iterations_per_epoch=10, decay=0.5, freeze_at=25)
    assert [schedule.rate(1.0, t) for t in (0, 9, 10, 25)] == [1.0, 1.0, 0.5, 0.25]
    assert [schedule.penalty(2.0, t) for t in (0, 9, 10, 24, 25, 90)] == [2, 2, 4, 6, 0, 0]
    assert [schedule.penalty(2.0, t, frozen=False) for t in (24, 25, 30)] == [6, 6, 8]
    assert schedule.penalty(2.0, 0, frozen=True) == 0
    assert [schedule.frozen(t) for t in (24, 25)] == [False, True]
    assert not Schedule(iterations_per_epoch=1).frozen(10**9)


@pytest.mark.parametrize("freeze_at", [None, 25, 100])
def test_practical_penalty_pulls_a_weight_by_the_distance(freeze_at: int | None) -> None:
    schedule = Schedule(iterations_per_epoch=10, decay=0.9, freeze_at=freeze_at)
    first = schedule.practical_penalty(0.3, 0.2, 57)
    pull = sum(schedule.rate(0.2, t) * schedule.penalty(first, t) / 2 for t in range(57))
    assert pull == pytest.approx(0.3)


def test_practical_penalty_of_a_run_of_nothing_but_fine_tuning() -> None:
    assert Schedule(iterations_per_epoch=10, freeze_at=0).practical_penalty(0.3, 0.2, 50) == 0
