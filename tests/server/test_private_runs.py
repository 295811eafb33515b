"""Private runs on the server: refused faults, planned noise, what the record states."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import pytest
from bench import Bench, moved, runfile
from sqlalchemy import Connection, Update, select, update

from fedserver.display import print_run
from fedserver.errors import RunStateError
from fedserver.rounds.exclusion import keep_out, shut_out, take_back
from fedserver.storage.schema import clients, members
from motley.errors import RunFileError
from motley.privacy.rdp import epsilon_of
from motley.runfile import parse
from motley.task import TaskKind

RELEASE = """
privacy = "release"
weighting = "uniform"
epsilon = 8.0
delta = 1e-5
clip = 0.5
"""
LDP_SGD = """
privacy = "ldp-sgd"
weighting = "uniform"
epsilon = 8.0
delta = 1e-5
sampling_rate = 0.25
"""


def private(settings: str, sections: str = "", rounds: int = 4) -> str:
    """Return a run file whose [settings] go on with these lines."""
    text = runfile(rounds=rounds, sections=sections)
    return text.replace("learning_rate = 0.1\n", f"learning_rate = 0.1\n{settings}\n")


PLANNED = private(LDP_SGD, '[evaluate]\nevery = 1\nheld_out = "digits?clients=4&classes=4"')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (private(RELEASE.replace("epsilon = 8.0", "")), "needs epsilon"),
        (private(LDP_SGD.replace("sampling_rate = 0.25", "")), "needs sampling_rate"),
        (private(RELEASE.replace("uniform", "samples")), "sample counts, which are not sent"),
        (private(RELEASE + "sampling_rate = 0.1"), "sampling clients protects nobody"),
        (private("epsilon = 8.0"), "epsilon without privacy"),
        (private(RELEASE + "noise_multiplier = 0.5"), "and the run promises 8"),
        (private(RELEASE, "[evaluate]\nevery = 1"), "give evaluate.held_out"),
        (
            private(LDP_SGD).replace("batch_size = 10", "batches_per_pass = 3"),
            "instead of batches_per_pass",
        ),
        (
            private(RELEASE, '[[tiers]]\nname = "a"\nsettings = { privacy = "none" }'),
            "epsilon without privacy|delta, epsilon without privacy",
        ),
        (
            private(RELEASE).replace('algorithm = "fedavg"', 'algorithm = "quped"'),
            "privacy: no such field",
        ),
        (
            runfile(
                sections='[[tiers]]\nname = "a"\nsettings = { privacy = "release", epsilon = 1.0, '
                'delta = 1e-5, weighting = "uniform" }'
            ),
            "one for the whole run",
        ),
    ],
)
def test_what_would_break_a_promise_is_refused_at_submission(text: str, words: str) -> None:
    with pytest.raises(RunFileError, match=words):
        parse(text)


def test_tiers_may_promise_more_than_others() -> None:
    tiers = '[[tiers]]\nname = "a"\nsettings = { epsilon = 1.0 }\n[[tiers]]\nname = "b"'
    from motley.promises import promises

    found = promises(parse(private(RELEASE, tiers)))
    assert {name: g.epsilon for name, g in found.items()} == {"a": 1.0, "b": 8.0}


@pytest.fixture
def bench(tmp_path) -> Bench:
    pytest.importorskip("dp_accounting")
    bench = Bench(tmp_path)
    bench.arrive("a", "b")
    return bench


def test_noise_is_planned_once_and_evaluation_asks_no_client(bench: Bench) -> None:
    run = bench.submit(PLANNED)
    statement = bench.record(run)["privacy"]["all"]
    z = statement["noise_multiplier"]
    assert 0.98 * 8 < epsilon_of(z, 0.25, 8, 1e-5) <= 8
    expected = {
        "mode": "ldp-sgd", "epsilon": 8.0, "delta": 1e-5, "neighbouring": "add-or-remove-one",
        "unit": "record", "clip": 1.0, "sampling_rate": 0.25, "steps": 8,
        "sigma": pytest.approx(z / 10),
        "theorem_sigma": pytest.approx((8 * 8 * 11.512925) ** 0.5 / (40 * 8)),
        "c_eff": pytest.approx((z / 10) ** 2 * 40**2 * 64 / (8 * 11.512925)),
    }  # fmt: skip
    assert {name: statement[name] for name in expected} == expected
    assert {bench.task(c).plan.settings["noise_multiplier"] for c in "ab"} == {z}
    for client in "ab":
        bench.send(client, moved(bench.broadcast(bench.task(client)), 0.1), samples=0)
    bench.settle()
    train, evaluated = bench.record(run)["history"][:2]
    assert (train["kind"], evaluated["kind"]) == ("train", "evaluate")
    assert evaluated["clients"] == {}
    assert "held_out_accuracy" in evaluated["metrics"]
    bench.restart()
    bench.arrive("a", "b")
    bench.settle()
    assert bench.task("a").round == 2
    assert bench.task("a").plan.settings["noise_multiplier"] == z
    printed = io.StringIO()
    with redirect_stdout(printed):
        print_run(bench.record(run))
    assert "epsilon 8 at delta 1e-05 for one record, add-or-remove-one" in printed.getvalue()
    assert "(the theorem's with c = 8: 0.08483; c_eff" in printed.getvalue()


def test_an_evaluation_that_asks_no_client_waits_for_none(bench: Bench) -> None:
    """Who has done its work may leave; the run ends, and the next one has its turn."""
    text = private(RELEASE, '[evaluate]\nevery = 1\nheld_out = "digits?clients=4&classes=4"', 1)
    run = bench.submit(text)
    for client in "ab":
        bench.send(client, moved(bench.broadcast(bench.task(client)), 0.01), samples=0)
    for client in "ab":
        bench.presence.leave(client, f"session-{client}")
    following = bench.submit(runfile().replace('"test"', '"next"'))
    record = bench.record(run)
    assert (record["status"], record["reason"]) == ("finished", "")
    assert record["history"][-1]["kind"] == "evaluate"
    assert "held_out_accuracy" in record["history"][-1]["metrics"]
    assert bench.record(following)["status"] == "waiting"


def test_given_noise_is_taken_and_others_are_not_touched(bench: Bench) -> None:
    run = bench.submit(private(RELEASE + "noise_multiplier = 9.5"))
    assert bench.record(run)["privacy"]["all"]["noise_multiplier"] == 9.5
    assert bench.task("a").plan.settings["noise_multiplier"] == 9.5
    bench.runs.stop(run)
    plain = bench.submit(runfile())  # most tests of this folder prepare this one
    assert bench.record(plain)["privacy"] is None
    assert "noise_multiplier" not in bench.task("a").plan.settings


def test_more_rounds_than_planned_are_refused(bench: Bench) -> None:
    run = bench.submit(PLANNED)
    with pytest.raises(RunStateError, match="noise was planned for 4 rounds"):
        bench.runs.extend(run, 1)
    assert bench.record(run)["rounds"] == 4


def test_a_model_without_a_guarantee_fails_the_run_and_not_its_clients(bench: Bench) -> None:
    text = private(RELEASE).replace("seed = 7", 'seed = 7\nglobal_variant = "resnet20"')
    run = bench.runs.submit(text, "test")
    job = bench.engine.tick()
    with pytest.raises(Exception, match="BatchNorm2d") as caught:
        job.run(bench.payloads)  # type: ignore[union-attr]
    bench.engine.failed(job, caught.value)  # type: ignore[arg-type]
    record = bench.record(run)
    assert record["status"] == "failed"
    assert "group normalisation" in record["reason"]


def test_a_server_that_cannot_plan_says_so_at_once(bench: Bench, monkeypatch) -> None:
    monkeypatch.setattr("motley.privacy.calibration.is_available", lambda: False)
    with pytest.raises(RunFileError, match="this server cannot plan it"):
        bench.runs.submit(private(RELEASE), "test")
    bench.runs.submit(private(RELEASE + "noise_multiplier = 9.5"), "test")


def without_budget(bench: Bench, algorithm: str) -> str:
    """Submit a run of one round that `a` trains and `b`, out of budget, does not."""
    text = private(RELEASE + "noise_multiplier = 9.5", rounds=1)
    text = text.replace("expected = 2", "expected = 2\nminimum = 1").replace("fedavg", algorithm)
    if algorithm == "fedp3":
        text = text.replace('weighting = "uniform"\n', "").replace(
            "seed = 7", 'seed = 7\nglobal_variant = "cnn1"'
        )
    run = bench.submit(text)
    spent = bench.task("b")
    bench.desk.report_failure(
        "b", spent.task_id, "privacy_budget", "the budget is spent", permanent=True
    )
    task = bench.task("a")
    sent = {
        name: values
        for name, values in moved(bench.broadcast(task), 0.1).items()
        if not task.plan.upload or name.split(".")[0] in task.plan.upload
    }
    bench.send("a", sent, samples=0)
    return run


@pytest.mark.parametrize("algorithm", ["fedavg", "fedp3"])
def test_who_is_out_of_budget_gets_the_finished_model_all_the_same(
    bench: Bench, algorithm: str
) -> None:
    run = without_budget(bench, algorithm)
    bench.settle()
    state = bench.record(run)["state"]
    finish = bench.task("b")
    assert (finish.kind, finish.payload_sha256.hex()) == (TaskKind.FINISH, state)
    # Who trained with FedP3 has a model of its own; with FedAvg everybody takes the server's.
    own = bench.task("a").payload_sha256.hex()
    assert own == (state if algorithm == "fedavg" else "")
    for client in "ab":
        bench.desk.report_result(client, bench.task(client).task_id, {}, 0.0)
    found = {client["name"]: client for client in bench.record(run)["clients"]}
    assert found["b"]["finished"]
    assert found["b"]["reason"] == "privacy_budget: the budget is spent"


def test_who_is_out_of_budget_and_shut_out_gets_nothing(bench: Bench) -> None:
    run = without_budget(bench, "fedavg")
    with bench.engine.transition() as tx:
        shut_out(tx, "b", "stolen", bench.clock.wall())
    bench.settle()
    assert bench.task("a").kind is TaskKind.FINISH
    assert bench.next_task("b") is None
    assert bench.record(run)["clients"][1]["reason"] == (
        "revoked: stolen; before that privacy_budget: the budget is spent"
    )


@pytest.mark.parametrize("resumed", [False, True])
def test_a_spent_budget_outlives_being_shut_out_and_joining_again(
    bench: Bench, resumed: bool
) -> None:
    run = without_budget(bench, "fedavg")
    with bench.engine.transition() as tx:
        assert tx.execute(revoked("stolen")).rowcount == 1
        shut_out(tx, "b", "stolen", bench.clock.wall())
    if resumed:
        bench.runs.stop(run)
        bench.runs.resume(run)
    with bench.engine.transition() as tx:
        tx.execute(revoked(""))
        take_back(tx, "b")
        assert reason_of(bench, tx) == "privacy_budget: the budget is spent"


def test_being_kept_out_takes_the_place_of_no_permanent_reason(bench: Bench) -> None:
    run = without_budget(bench, "fedavg")
    with bench.engine.transition() as tx:
        assert tx.execute(revoked("stolen")).rowcount == 1
        tx.execute(
            update(members).where(members.c.client == "b").values(excluded="privacy: no ledger")
        )
        keep_out(tx, run)
        take_back(tx, "b")
        assert reason_of(bench, tx) == "privacy: no ledger"


def revoked(reason: str) -> Update:
    """Return the statement that revokes `b`, or takes that back."""
    return update(clients).where(clients.c.name == "b").values(revoked=reason)


def reason_of(bench: Bench, tx: Connection) -> str:
    """Return why `b` is excluded."""
    return str(tx.scalar(select(members.c.excluded).where(members.c.client == "b")))


def test_who_breaks_a_guarantee_gets_no_model(bench: Bench) -> None:
    bench.submit(
        private(RELEASE + "noise_multiplier = 9.5", rounds=1).replace(
            "expected = 2", "expected = 2\nminimum = 1"
        )
    )
    refused = bench.task("b")
    bench.desk.report_failure("b", refused.task_id, "privacy", "no ledger", permanent=True)
    bench.send("a", moved(bench.broadcast(bench.task("a")), 0.1), samples=0)
    bench.settle()
    assert bench.next_task("b") is None
