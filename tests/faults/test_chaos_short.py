"""A few fixed fault schedules: chaos equals calm. `make faults` runs a hundred."""

from __future__ import annotations

import importlib
import operator

import pytest
from chaos import in_memory, run_all
from fault_points import POINTS, RENEWALS
from schedules import ROUNDS, Step, schedule, systematic_count

SEEDS = [15, 26, 55]
"""QuPeD and FedAvg with over-selection under systematic faults, and one drawn at random; over TLS,
with certificates that run out within the run."""


@pytest.mark.processes
@pytest.mark.timeout(600)
def test_disturbed_runs_end_in_the_models_of_calm_ones() -> None:
    with in_memory() as folder:
        reports = run_all([schedule(seed) for seed in SEEDS], folder)
    assert {r.schedule.seed: r.verdict.problems for r in reports} == {s: [] for s in SEEDS}
    # Every one that counted was acknowledged: all six in a round, or with over-selection four, of
    # which a deadline that comes first leaves two.
    for report in reports:
        least = 2 if report.schedule.over_select else 6
        assert report.verdict.acknowledged >= least * ROUNDS, report.line()
    assert sum(len(r.fired) for r in reports) >= 6, "faults did take place"


def test_schedules_go_through_every_point_and_follow_from_their_seed() -> None:
    plans = [schedule(number) for number in range(max(64, systematic_count()))]
    seen = {f"{f.role}:{f.point}" for plan in plans for f in plan.faults if isinstance(f, Step)}
    assert seen == {point.key for point in (*POINTS, *RENEWALS)}
    assert sum(plan.certificates for plan in plans) == len(plans) // 2
    assert sum(plan.expiring for plan in plans) == len(plans) // 4
    assert all(plan.certificates for plan in plans if plan.expiring)
    assert schedule(77) == schedule(77)
    assert sum(schedule(number).over_select for number in range(99)) == 33


def test_every_fault_point_names_a_function_of_the_product() -> None:
    for point in (*POINTS, *RENEWALS):
        if point.target:
            module, _, path = point.target.partition(":")
            assert callable(operator.attrgetter(path)(importlib.import_module(module))), point.key
