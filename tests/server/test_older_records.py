"""Records and models of servers that are older, or that go on while they are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedserver.display import print_promises
from fedserver.global_model import fetched, workload_of
from motley.errors import ExportError
from motley.models.units import fresh_tensors, variant_table
from motley.wire import encode_dense, write_payload
from motley.workloads.digits import Digits

RECORD = {
    "id": "r1", "name": "test", "algorithm": "fedavg", "workload": "digits", "arguments": {},
    "global_variant": "mlp", "round": 3,
}  # fmt: skip
PROMISE = {
    "epsilon": 8.0, "delta": 1e-5, "unit": "record", "neighbouring": "add or remove",
    "mode": "release", "clip": 0.5, "steps": 4, "sampling_rate": 1.0, "noise_multiplier": 2.0,
    "planned_epsilon": 7.9, "sigma": 1.0, "c_eff": 3.5,
}  # fmt: skip


class GoesOn:
    """A server that closes a round between two questions: its newest model is another."""

    def fetch(self, run: str, number: int, target: Path) -> int:
        assert (run, number) == ("r1", 3), "not the round that the record is of"
        variant = Digits().variants()["mlp"]
        tensors, table = fresh_tensors(variant, 1), variant_table(variant).tensor_table
        return write_payload(target, [(n, encode_dense(v)) for n, v in tensors.items()], table).size


@pytest.mark.parametrize("number", [0, 3])
def test_the_round_that_is_described_is_the_one_that_is_fetched(number: int) -> None:
    operator: Any = GoesOn()
    assert fetched(operator, RECORD, number, Digits()).about.rounds == 3


def test_fields_that_an_older_server_lacks_are_done_without(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_promises({"privacy": {"all": PROMISE}})
    assert "c_eff 3.5" in capsys.readouterr().out
    print_promises({"privacy": {"all": {**PROMISE, "theorem_sigma": 2.5}}})
    assert "c = 8: 2.5; c_eff 3.5" in capsys.readouterr().out
    print_promises({})
    older = {"name": "test", "workload": "digits", "algorithm": "fedavg"}
    with pytest.raises(ExportError, match="no global model"):
        workload_of(older, {})
