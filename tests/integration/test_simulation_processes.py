"""A simulation with a batch of 1 against real processes over gRPC: the same model, bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from federation import Federation, federation

from fedserver.simulate.simulation import simulate
from motley.algorithms import registry

pytestmark = pytest.mark.processes

NAMES = ("a", "b", "c")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One algorithm's run: three clients, each of its own tier where the method has tiers."""

    settings: str = ""
    sections: str = ""
    tiers: tuple[str, ...] = ()
    """What the tier of each client says; none: one tier for all."""

    def text(self, algorithm: str) -> str:
        """Return the run file, for devices and for a simulation."""
        tiers = "".join(
            f'[[tiers]]\nname = "tier-{name}"\n{tier}\n'
            for name, tier in zip(NAMES, self.tiers, strict=False)
        )
        counts = ", ".join(f"tier-{name} = 1" for name in NAMES) if self.tiers else ""
        return (
            f'[run]\nname = "same"\nalgorithm = "{algorithm}"\nrounds = 3\nseed = 5\n'
            '[workload]\nname = "digits"\n'
            "[clients]\nexpected = 3\ncount = 2\n"
            f"[settings]\nlocal_steps = 4\nbatch_size = 10\n{self.settings}\n"
            f"[evaluate]\nevery = 3\n{self.sections}\n{tiers}"
            f'[simulate]\nnames = {list(NAMES)}\ntiers = {{ {counts} }}\ndata = "{DATA}"\n'
        )


DATA = "digits?clients={clients}&client={client}&classes=4&train=40"
PERSONAL = ('variant = "cnn1"\nbits = 1', 'variant = "cnn1"\nbits = 2', 'variant = "cnn2"')
BINARY = ('variant = "cnn1"\nbits = 1', 'variant = "cnn2"\nbits = 1', 'variant = "mlp"')
COARSE = "[wire]\nup_bits = 8\ndown_bits = 6\n"
CASES = {
    "binaryrelax": Case(tiers=BINARY),
    "fedavg": Case(settings="momentum = 0.5", sections="[wire]\nup_bits = 4\ndown_bits = 8"),
    "fedmpq": Case(tiers=("bits = 2", "bits = 4", "bits = 8")),
    "fedp3": Case(
        settings='keep = 0.6\nlocal_pruning = "uniform"\nupload_keep = 0.5\nhead = "personal"',
        sections='subject = "both"\n' + COARSE,
    ),
    "fedpaq": Case(sections="[wire]\nup_bits = 3\n"),
    "fml": Case(
        settings="momentum = 0.5",
        tiers=('variant = "cnn1"', 'variant = "cnn2"', 'variant = "mlp"'),
        sections=COARSE,
    ),
    "local": Case(tiers=PERSONAL),
    "perfedavg": Case(sections=COARSE),
    "pfedme": Case(settings="server_rate = 1.5", sections=COARSE),
    "proxquant": Case(settings='scale = "magnitude"', tiers=BINARY),
    "quped": Case(tiers=PERSONAL, sections="[wire]\nup_bits = 8\n"),
    "qupel": Case(tiers=("bits = 1", "bits = 2", "up_bits = 4"), sections=COARSE),
    "uveqfed": Case(sections="[wire]\nup_bits = 3\n"),
}


def test_every_algorithm_has_a_case() -> None:
    missing = set(registry.names()) - set(CASES)
    assert not missing, f"no simulation is compared with gRPC for {sorted(missing)}: add a Case"


def outcome(record: dict[str, Any]) -> dict[str, Any]:
    """Return what has to be the same: models, who counted, and what the clients measured."""
    rounds = [
        (e["round"], e["kind"], e["status"], e["state_after"], participants(e), e["metrics"])
        for e in record["history"]
    ]
    finish = {c["name"]: measured(c["metrics"].get("finish", {})) for c in record["clients"]}
    return {"rounds": [(*r[:5], measured(r[5])) for r in rounds], "finish": finish}


def participants(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (c["status"], c["update"], c["bits"], c["bytes_up"], measured(c["metrics"]))
        for name, c in entry["clients"].items()
    }


def measured(metrics: dict[str, float]) -> dict[str, float]:
    """Return metrics without those of a process."""
    return {name: value for name, value in metrics.items() if name != "peak_memory_bytes"}


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Give a server and its clients, which the runs of all algorithms go through in turn."""
    with federation(tmp_path_factory.mktemp("devices")) as bench:
        bench.serve()
        for number, name in enumerate(NAMES):
            data = DATA.replace("{clients}", "3").replace("{client}", str(number))
            bench.client(name, data, "--tier", f"tier-{name}")
        yield bench


@pytest.mark.parametrize("algorithm", CASES)
def test_simulation_and_grpc_end_in_the_same_model(
    devices: Federation, tmp_path: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CASES[algorithm].text(algorithm)
    record = devices.finished(devices.submit(text))
    # No method may need it: it costs each training process 35 MB and a second.
    monkeypatch.setitem(sys.modules, "torch.fx.experimental.symbolic_shapes", None)
    simulated = simulate(text, directory=tmp_path / "simulated")
    assert simulated.status == "finished", simulated.reason
    expected = outcome(record)
    assert len(expected["rounds"]) == 4
    assert outcome(dict(simulated.record)) == expected
