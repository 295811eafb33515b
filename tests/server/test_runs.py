"""Runs from submission to end: queue, members, tiers, cohorts, where they begin and go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench import Bench, runfile
from sqlalchemy import select, update
from test_engine import finish_round, started

from fedserver.errors import PreparationError, RunStateError, UnknownRunError
from fedserver.model_process import prepare
from fedserver.rounds.jobs import PrepareJob
from fedserver.storage.schema import runs
from motley.errors import RunFileError, WorkloadError
from motley.models.units import variant_table
from motley.seeding import numpy_generator
from motley.task import TaskKind
from motley.wire import PayloadReader, encode_dense, write_payload
from motley.workloads.digits import Digits


def test_runs_queue_and_only_one_is_active(bench: Bench) -> None:
    first, names = started(bench, 2, rounds=1)
    second = bench.submit(runfile(rounds=1))
    assert bench.record(second)["status"] == "queued"
    finish_round(bench, names)
    assert bench.record(first)["status"] == "finished"
    assert bench.record(second)["status"] == "running"
    # The finish task of the first run goes before the second run's training.
    assert bench.task("c0").run_id == first


def test_extend_goes_on_after_the_end(bench: Bench) -> None:
    run_id, names = started(bench, 2, rounds=1)
    finish_round(bench, names)
    assert bench.record(run_id)["status"] == "finished"
    bench.runs.extend(run_id, 1)
    bench.settle()
    assert bench.task("c0").round == 2
    finish_round(bench, names)
    assert bench.record(run_id)["status"] == "finished"
    assert bench.task("c0").kind is TaskKind.FINISH


def test_stop_and_resume(bench: Bench) -> None:
    run_id, names = started(bench)
    bench.runs.stop(run_id)
    bench.settle()
    assert bench.next_task("c0") is None
    with pytest.raises(RunStateError, match="stopped"):
        bench.runs.stop(run_id)
    bench.runs.resume(run_id)
    bench.settle()
    finish_round(bench, names)
    assert bench.record(run_id)["round"] == 1


def test_init_from_another_run(bench: Bench) -> None:
    first, names = started(bench, 2, rounds=1)
    finish_round(bench, names)
    text = runfile(rounds=1).replace('name = "test"', 'name = "next"\ninit = "run:test"')
    run_id = bench.runs.submit(text, "test")
    job = bench.engine.tick()
    assert job is not None
    result = job.run(bench.payloads)
    assert result["sha256"] == bench.record(first)["state"]
    assert run_id
    with pytest.raises(UnknownRunError, match="nothing"):
        bench.runs.submit(text.replace("run:test", "run:nothing"), "test")
    with pytest.raises(RunFileError, match="not a file"):
        bench.runs.submit(text.replace("run:test", "/nowhere.motley"), "test")
    with pytest.raises(RunFileError, match="relative path"):
        bench.runs.submit(text.replace("run:test", "nowhere.motley"), "test")


def test_init_from_a_pretrained_model(bench: Bench, tmp_path: Path) -> None:
    """What a run ended with, as other programs have it, starts another run with the same bytes."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    first, names = started(bench, 2, rounds=1)
    finish_round(bench, names)
    digest = bench.record(first)["state"]
    table = variant_table(Digits().variants()["cnn1"]).tensor_table
    with PayloadReader(bench.payloads.path(digest), table) as reader:
        tensors = {name: torch.from_numpy(reader[name].decode()) for name in reader.names}
    path = tmp_path / "a model.safetensors"
    save_file(tensors, tmp_path / "blob")  # told by what it holds: caches name files by digest
    path.symlink_to(tmp_path / "blob")
    text = runfile(rounds=1).replace('name = "test"', f'name = "next"\ninit = "{path}"')
    bench.runs.submit(text, "test")
    job = bench.engine.tick()
    assert isinstance(job, PrepareJob)
    assert job.run(bench.payloads, prepare)["sha256"] == digest
    write_payload(tmp_path / "blob", [(n, encode_dense(t.numpy())) for n, t in tensors.items()])
    with pytest.raises(PreparationError, match=r"blob does not fit .*'cnn1'.*fedserver fetch"):
        job.run(bench.payloads, prepare)  # a packed file, which has names and no table
    save_file({**tensors, "fc9.bias": torch.zeros(2)}, tmp_path / "blob")
    with pytest.raises(WorkloadError, match=r"blob.*unknown fc9\.bias"):
        job.run(bench.payloads, prepare)


def test_a_workload_that_the_server_has_not_is_refused_at_once(bench: Bench) -> None:
    text = runfile().replace('name = "digits"', 'name = "digitz"')
    assert text != runfile()
    said = r"workload\.name: the server has no workload 'digitz'; did you mean 'digits'"
    with pytest.raises(RunFileError, match=said):
        bench.runs.submit(text, "test")
    bench.settle()
    assert bench.next_task("c0") is None
    with bench.engine.database.connect() as tx:
        assert tx.execute(select(runs)).all() == []


def test_waiting_says_who_is_refused_and_why(bench: Bench) -> None:
    bench.arrive("c0")
    bench.arrive("c1", labels={"room": "b"})
    run_id = bench.submit(runfile(clients=1, extra_clients='labels = { room = "a" }'))
    record = bench.record(run_id)
    assert record["status"] == "waiting"
    assert "c1: the run wants label room=a" in record["reason"]
    assert bench.engine.notices(["c1"])[0] == [
        "run test cannot take this client: the run wants label room=a"
    ]


TIERS = """
[[tiers]]
name = "phone"
when = { memory_gib_below = 2 }
variant = "cnn1"
bits = 1
[[tiers]]
name = "pc"
variant = "cnn2"
"""


def test_profiles_choose_tiers_and_owners_may_name_one(bench: Bench) -> None:
    bench.arrive("small", memory=2**30)
    bench.arrive("large", memory=2**34)
    bench.arrive("named", memory=2**34, tier="phone")
    bench.arrive("unknown", memory=2**34, tier="toaster")
    run_id = bench.submit(runfile(clients=4, sections=TIERS).replace("fedavg", "quped"))
    found = {c["name"]: (c["tier"], c["variant"]) for c in bench.record(run_id)["clients"]}
    assert found == {
        "small": ("phone", "cnn1"),
        "large": ("pc", "cnn2"),
        "named": ("phone", "cnn1"),
        "unknown": ("pc", "cnn2"),
    }
    assert bench.task("small").plan.bits == {"conv2": 1, "fc1": 1, "fc2": 1}
    assert bench.task("large").plan.bits == {}


def test_misspelt_tiers_and_runs_are_answered_with_the_name_that_was_meant(bench: Bench) -> None:
    bench.arrive("c0", tier="phnoe")
    bench.submit(runfile(clients=2, sections=TIERS).replace("fedavg", "quped"))
    assert bench.engine.notices(["c0"])[0] == [
        "run test has no tier 'phnoe', only phone, pc; did you mean 'phone'?"
    ]
    with pytest.raises(UnknownRunError, match=r"'tset'; the newest are test; did you mean 'test'"):
        bench.record("tset")


def test_the_beginning_of_an_id_means_one_run_or_none(bench: Bench) -> None:
    submitted = [bench.runs.submit(runfile(), "test") for _ in range(3)]
    with bench.engine.database.begin() as tx:
        for old, new in zip(submitted, ("ab111111", "ab222222", "cd333333"), strict=True):
            tx.execute(update(runs).where(runs.c.id == old).values(id=new, name=f"run-{new[0:3]}"))
    assert bench.record("ab2")["id"] == "ab222222"
    assert bench.record("c")["id"] == "cd333333"
    several = "'ab' is the beginning of 2 ids: ab222222 .run-ab2., ab111111 .run-ab1.; give more"
    with pytest.raises(UnknownRunError, match=several):
        bench.runs.stop("ab")
    for wildcard in ("%", "_", "c_3", "cd%"):
        with pytest.raises(UnknownRunError, match="no run has the id or name"):
            bench.runs.stop(wildcard)
    assert {bench.record(name)["status"] for name in ("ab1", "ab2", "cd")} == {"queued"}


def test_client_sampling_follows_the_seed_alone(bench: Bench) -> None:
    run_id, names = started(bench, 4, rounds=3, extra_clients="count = 2")
    cohorts = []
    for _ in range(3):
        chosen = [name for name in names if bench.next_task(name)]
        cohorts.append(chosen)
        finish_round(bench, chosen)
    assert all(len(cohort) == 2 for cohort in cohorts)
    for number, cohort in enumerate(cohorts, start=1):
        rng = numpy_generator(7, "select", "train", number, 0)
        assert cohort == [names[i] for i in sorted(rng.choice(4, size=2, replace=False))]
    record = bench.record(run_id)
    assert record["finish_waiting"] == 4, "also those that were never sampled"
