"""A thousand hostile inputs against a live server with certificates; `make faults` sends more."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import attack

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


def test_hostile_inputs_are_refused_by_name_and_healthy_clients_go_on(tmp_path: Path) -> None:
    outcome = attack(tmp_path, inputs=1000, seed=3, rounds=100_000)
    assert outcome.problems() == []
    assert sum(outcome.statuses.values()) == 1000
    kinds = {kind for kind, _ in outcome.statuses}
    assert len([kind for kind in kinds if "certificate" in kind]) >= 10, "of every wrong kind"
    assert len([kind for kind in kinds if "token" in kind]) >= 6
    assert outcome.rounds_beside >= 2
