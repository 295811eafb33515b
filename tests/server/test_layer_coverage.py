"""FedP3 in the engine: who is chosen, what each is sent, what is said of layers nobody sends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bench import Bench, moved
from structlog.testing import capture_logs

from fedserver.rounds.presence import Profile
from motley.errors import UpdateError

RUN = """
[run]
name = "test"
algorithm = "fedp3"
rounds = 2
seed = 7
global_variant = "cnn1"
[workload]
name = "digits"
[clients]
expected = 4
{clients}
[settings]
local_steps = 2
{settings}
"""
NAMES = ("a", "b", "c", "d")
LAYERS = {"conv1", "conv2", "fc1", "fc2"}


def started(tmp_path: Path, settings: str, clients: str = "") -> tuple[Bench, str]:
    bench = Bench(tmp_path)
    bench.arrive(*NAMES)
    return bench, bench.submit(RUN.format(settings=settings, clients=clients))


def send_all(bench: Bench) -> set[str]:
    """Let every client that has a task send its layers, moved by 1; return the layers."""
    layers: set[str] = set()
    for name in NAMES:
        task = bench.next_task(name)
        if task is None:
            continue
        planned = task.plan.upload
        received = bench.broadcast(task)
        sent = {n: values for n, values in received.items() if n.split(".")[0] in planned}
        bench.send(name, moved(sent, 1.0), task=task)
        layers |= set(planned)
    bench.settle()
    return layers


def test_two_clients_of_four_cover_every_layer_of_opu2(tmp_path: Path) -> None:
    with capture_logs() as logs:
        bench, run = started(tmp_path, 'layers = "opu2"', "count = 2")
        assert send_all(bench) == {*LAYERS, "fc3"}
        send_all(bench)
    assert not [entry for entry in logs if entry["event"] == "layers_uncovered"]
    trained = [e for e in bench.record(run)["history"] if e["kind"] == "train"]
    assert [entry["reason"] for entry in trained] == ["", ""]


def test_layers_that_nobody_sends_stay_and_are_on_record(tmp_path: Path) -> None:
    with capture_logs() as logs:
        bench, run = started(tmp_path, 'layers = "lowerb"\nkeep = 1.0', "count = 2")
        before = bench.state(run)
        sent = send_all(bench)
    missing = sorted(LAYERS - sent)
    assert len(missing) == 2
    warned = [entry for entry in logs if entry["event"] == "layers_uncovered"]
    # Two of the first round, and one for the plans of the second.
    assert [entry["what"] for entry in warned] == ["planned", "counted", "planned"]
    assert sorted(warned[1]["layers"]) == missing
    entry = bench.record(run)["history"][0]
    assert entry["reason"].startswith("no counted update holds ")
    assert all(layer in entry["reason"] for layer in missing)
    after = bench.state(run)
    for name, values in after.items():
        if name.split(".")[0] in missing:
            np.testing.assert_array_equal(values, before[name])
        else:
            np.testing.assert_allclose(values, before[name] + 1, atol=1e-5)


def test_groups_come_from_names_and_stay_when_a_client_leaves(tmp_path: Path) -> None:
    bench, _ = started(tmp_path, 'layers = "lowerb"')
    plans = {name: bench.task(name).plan.upload[0] for name in NAMES}
    assert plans == {"a": "conv1", "b": "conv2", "c": "fc1", "d": "fc2"}
    bench.desk.report_failure("a", bench.task("a").task_id, "data", "gone", permanent=True)
    for name in ("b", "c", "d"):
        task = bench.task(name)
        received = bench.broadcast(task)
        sent = {n: v for n, v in received.items() if n.split(".")[0] in task.plan.upload}
        bench.send(name, sent, task=task)
    bench.settle()
    assert {n: bench.task(n).plan.upload[0] for n in ("b", "c", "d")} == {
        "b": "conv2",
        "c": "fc1",
        "d": "fc2",
    }


def test_a_whole_model_is_refused_where_layers_were_asked_for(tmp_path: Path) -> None:
    bench, _ = started(tmp_path, 'layers = "lowerb"')
    with pytest.raises(UpdateError, match=r"not asked for: conv2\.bias"):
        bench.send("a", bench.broadcast(bench.task("a")))


def test_tiers_make_groups(tmp_path: Path) -> None:
    text = RUN.format(settings='layers = "lowerb"\nplan = "tier"', clients="")
    text += '[[tiers]]\nname = "small"\nwhen = { memory_gib_below = 2 }\n'
    text += 'settings = { group = 0, keep = 0.5 }\n[[tiers]]\nname = "large"\n'
    text += "settings = { group = 2 }\n"
    bench = Bench(tmp_path)
    bench.arrive("a", "b")
    bench.arrive("c", "d", memory=2**33)
    bench.submit(text)
    plans = {name: bench.task(name).plan for name in NAMES}
    assert {n: plan.upload[0] for n, plan in plans.items()} == {
        "a": "conv1",
        "b": "conv1",
        "c": "fc1",
        "d": "fc1",
    }
    keeps = {name: plan.sparsity.down_keep for name, plan in plans.items() if plan.sparsity}
    assert keeps == {"a": 0.5, "b": 0.5, "c": 0.9, "d": 0.9}
    assert bench.task("a").payload_sha256 == bench.task("b").payload_sha256
    assert bench.task("a").payload_sha256 != bench.task("c").payload_sha256


def test_devices_choose_under_plan_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a device said of its memory and link when the run began decides."""
    original = Profile.__init__
    slow = {"upload_bytes_per_second": 40.0, "download_bytes_per_second": 80.0}

    def profile(self: Profile, **values: object) -> None:
        original(self, **{**values, **(slow if values["memory_bytes"] == 2**20 else {})})  # type: ignore[arg-type]

    monkeypatch.setattr(Profile, "__init__", profile)
    bench = Bench(tmp_path)
    bench.arrive("a", "b", "c")
    bench.arrive("d", memory=2**20)
    settings = 'layers = "opu3"\nplan = "auto"\nkeep = 1.0\nlocal_pruning = "uniform"'
    bench.submit(RUN.format(settings=settings, clients=""))
    assert [len(bench.task(name).plan.upload) for name in ("a", "b", "c")] == [4, 4, 4]
    plan = bench.task("d").plan
    # An hour's quarter at 40 bytes a second: 9,000 values up, so fc1 is out; 18,000 down.
    assert "fc1" not in plan.upload
    assert plan.sparsity is not None
    assert 0.1 <= plan.sparsity.down_keep < 1
    assert bench.task("a").plan.sparsity.down_keep == 1  # type: ignore[union-attr]
