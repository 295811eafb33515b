"""Reading a set once for many clients, and only while a simulation asks for it."""

from __future__ import annotations

import pytest

from motley.data.shared import shared, sharing
from motley.workload import DataSpec
from motley.workloads import digits
from motley.workloads.digits import Digits

calls: list[str] = []


@shared
def read(name: str) -> list[str]:
    calls.append(name)
    return [name]


def test_results_are_kept_within_a_block_alone() -> None:
    calls.clear()
    with sharing():
        first = read("a")
        with sharing():
            assert read("a") is first
        assert read("a") is first
        assert read("b") == ["b"]
    assert calls == ["a", "b"]
    assert read("a") is not first
    assert calls == ["a", "b", "a"]


def test_digits_are_shared_out_once_for_all_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    plain = digits.pooled_shares
    monkeypatch.setattr(digits, "pooled_shares", lambda *a: (asked.append(1), plain(*a))[1])
    specs = [DataSpec.parse(f"digits?clients=5&client={n}&classes=2") for n in range(5)]
    with sharing():
        together = [Digits().load(spec) for spec in specs]
    assert len(asked) == 1
    alone = [Digits().load(spec) for spec in specs]
    assert len(asked) == 6
    for one, other in zip(alone, together, strict=True):
        assert (one.train.inputs == other.train.inputs).all()
        assert (one.test.targets == other.test.targets).all()
