"""What is removed, what stays, and that an update on its way is never taken for waste."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench, moved, runfile
from test_durability import Rounds
from test_engine import finish_round, started

from fedserver.errors import RunStateError, UnknownTaskError
from fedserver.rounds import driver, housekeeping
from fedserver.rounds.replay import plan_replay
from fedserver.storage.payloads import PayloadStore

KEEP = "[keep]\nrounds = {}\n"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def tidy(bench: Bench) -> None:
    while housekeeping.judge(bench.engine, bench.payloads):
        pass
    bench.payloads.remove_doomed()
    idle = bench.payloads.idle_incoming()
    bench.payloads.forget_incoming(housekeeping.over(bench.engine, idle))


def replayed(bench: Bench, run_id: str) -> tuple[int, int]:
    """Return how many rounds agree and how many cannot be checked any more."""
    records = [entry.run(bench.payloads) for entry in plan_replay(bench.engine, run_id)]
    assert all(record["agrees"] or record["pruned"] for record in records)
    return sum(r["agrees"] for r in records), sum(r["pruned"] for r in records)


def rounds_of(bench: Bench, names: list[str], count: int) -> None:
    for index in range(count):
        finish_round(bench, names, by=0.01 * (index + 1))
        tidy(bench)


def test_the_last_rounds_stay_and_the_store_does_not_grow(bench: Bench) -> None:
    run_id, names = started(bench, 2, rounds=12, sections=KEEP.format(3))
    rounds_of(bench, names, 5)
    after_five = len(bench.payloads.stored())
    rounds_of(bench, names, 6)
    assert len(bench.payloads.stored()) == after_five
    assert replayed(bench, run_id) == (3, 8)
    pruned = [entry["pruned"] for entry in bench.record(run_id)["history"]]
    assert pruned == [True] * 8 + [False] * 3


def test_keep_0_keeps_everything(bench: Bench) -> None:
    run_id, names = started(bench, 2, rounds=12, sections=KEEP.format(0))
    rounds_of(bench, names, 4)
    assert replayed(bench, run_id) == (4, 0)


def test_updates_that_did_not_count_and_abandoned_rounds_go(bench: Bench) -> None:
    run_id, names = started(bench, 3, extra_clients="count = 2\nover_select = 1.5")
    tasks = {name: bench.task(name) for name in names}
    values = bench.broadcast(tasks["c0"])
    for by, name in enumerate(names):
        bench.send(name, moved(values, by + 1.0), task=tasks[name])
    bench.settle()
    updates = {n: c["update"] for n, c in bench.record(run_id)["history"][0]["clients"].items()}
    tidy(bench)
    assert [bench.payloads.path(updates[name]).exists() for name in names] == [True, True, False]
    bench.send("c0", moved(values, 7.0))
    bench.runs.stop(run_id)
    tidy(bench)
    abandoned = bench.record(run_id)["history"][-1]
    assert abandoned["pruned"]
    assert not bench.payloads.path(abandoned["clients"]["c0"]["update"]).exists()
    assert bench.payloads.path(bench.record(run_id)["state"]).exists()


def test_finish_tasks_and_queued_runs_keep_what_they_start_from(bench: Bench) -> None:
    run_id, names = started(bench, 2, rounds=1, sections=KEEP.format(1))
    finish_round(bench, names)
    state = bench.record(run_id)["state"]
    text = runfile(rounds=1).replace('name = "test"', 'name = "next"\ninit = "run:test"')
    bench.runs.submit(text, "test")
    assert bench.next_task("c0") is not None
    run, status, digests = bench.runs.remove(run_id)
    assert (run, status) == (run_id, "removed")
    bench.payloads.suspect(digests)
    tidy(bench)
    assert bench.payloads.stored() == {state}, "the queued run starts from it"
    assert bench.next_task("c0") is None


def test_only_runs_that_rest_are_removed(bench: Bench) -> None:
    run_id, names = started(bench, 2)
    with pytest.raises(RunStateError, match="is running; only runs that ended or paused"):
        bench.runs.remove(run_id)
    task = bench.task("c0")
    bench.runs.stop(run_id)
    _, _, digests = bench.runs.remove(run_id)
    bench.payloads.suspect(digests)
    tidy(bench)
    assert bench.payloads.stored() == set()
    with pytest.raises(UnknownTaskError):
        bench.desk.begin_upload("c0", task.task_id, "ab" * 32)
    assert bench.submit(runfile()) != run_id, "and the server goes on"
    assert bench.task("c0").run_name == "test"
    assert names == ["c0", "c1"]


def test_a_payload_that_is_gone_is_refused_clearly(bench: Bench) -> None:
    run_id, _ = started(bench, 2)
    task = bench.task("c0")
    bench.runs.stop(run_id)
    tidy(bench)
    digest = task.payload_sha256.hex()
    bench.payloads.path(digest).unlink()
    with pytest.raises(UnknownTaskError, match=r"is over.*no longer kept"):
        bench.desk.may_download("c0", task.task_id, digest)


def test_what_a_crash_left_over_goes_at_the_next_start(bench: Bench) -> None:
    run_id, names = started(bench, 2, rounds=6, sections=KEEP.format(1))
    rounds_of(bench, names, 2)
    needed = bench.payloads.stored()
    orphan = bench.payloads.path("ab" * 32)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"left over")
    open_task, closed = bench.task("c0").task_id, "r-00001-0-train-c9"
    for task_id in (open_task, closed):
        bench.payloads.incoming(task_id, "cd" * 32).with_suffix(".part").write_bytes(b"half")
    bench.restart()
    bench.payloads.suspect(bench.payloads.stored())
    tidy(bench)
    assert bench.payloads.stored() == needed
    assert bench.payloads.idle_incoming() == {open_task}
    assert replayed(bench, run_id) == (1, 1)


def test_rows_are_marked_before_files_go(bench: Bench) -> None:
    run_id, names = started(bench, 2, rounds=6, sections=KEEP.format(1))
    for _ in range(3):
        finish_round(bench, names)
    before = bench.payloads.stored()
    housekeeping.judge(bench.engine, bench.payloads)  # and killed here
    assert bench.payloads.stored() == before
    assert replayed(bench, run_id) == (1, 2)
    bench.restart()
    bench.payloads.suspect(bench.payloads.stored())
    tidy(bench)
    assert len(bench.payloads.stored()) < len(before)
    assert replayed(bench, run_id) == (1, 2)


@pytest.mark.parametrize("seed", range(300))
def test_an_upload_and_the_removal_of_equal_bytes_in_any_order(tmp_path: Path, seed: int) -> None:
    """Whatever the order of their steps, what the record names is there."""
    rng = random.Random(seed)
    payloads, on_record, digest = PayloadStore(tmp_path), set(), "ab" * 32
    for _ in range(rng.randint(0, 1)):  # equal bytes of an older round may lie there
        payloads.path(digest).parent.mkdir()
        payloads.path(digest).write_bytes(b"x")
    payloads.suspect([digest])

    def upload(number: int) -> Iterator[None]:
        whole = tmp_path / f"incoming/t{number}+{digest}.part"
        whole.write_bytes(b"x")
        yield
        with payloads.claimed(digest):
            yield
            payloads.keep(whole, digest)
            yield
            if rng.random() < 0.7:
                on_record.add(number)  # the commit, on the database thread
            yield
        payloads.suspect([digest])
        whole.unlink()

    def judging() -> Iterator[None]:
        for _ in range(4):
            # One call on the database thread: nothing is committed in between.
            found = payloads.take_suspects()
            payloads.doom(set() if on_record else found)
            yield

    def removing() -> Iterator[None]:
        for _ in range(4):
            payloads.remove_doomed()
            yield

    work = [upload(1), upload(2), judging(), removing()]
    while work:
        step = rng.choice(work)
        try:
            next(step)
        except StopIteration:
            work.remove(step)
        if on_record:
            assert payloads.path(digest).exists()
    payloads.doom(set() if on_record else payloads.take_suspects())
    payloads.remove_doomed()
    assert payloads.path(digest).exists() == bool(on_record)


def test_memory_is_given_back_once_payloads_went_and_no_round_is_open(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []
    real = driver.give_back
    monkeypatch.setattr(driver, "give_back", lambda: given.append(real() is None))
    monkeypatch.setattr(driver, "TIDY_SECONDS", 0.0)
    run_id, _ = started(bench, 2, sections="[wire]\ndown_bits = 4\n")
    broadcast = bench.payloads.path(bench.task("c0").payload_sha256.hex())

    def stray(digest: str) -> Path:
        whole = bench.root / "whole"
        whole.write_bytes(b"bytes")
        bench.payloads.suspect([digest])
        return bench.payloads.adopt(whole, digest)

    async def main() -> None:
        rounds = Rounds(bench)
        for digest in ("ab" * 32, "cd" * 32):  # the second goes when all about the first is over
            waste = stray(digest)
            await rounds.until(lambda path=waste: not path.exists())
        assert given == [], "clients of the open round would wait for it, and need it again"
        await rounds.database(bench.runs.stop, run_id)
        await rounds.until(lambda: bool(given))
        rounds.driver.close()
        rounds.database.close()

    assert broadcast.exists()
    asyncio.run(main())
    assert given == [True]
    assert not broadcast.exists()


def test_a_stray_file_among_the_payloads_is_left_alone(bench: Bench) -> None:
    run_id, _ = started(bench)
    before = bench.payloads.stored()
    stray = bench.root / "payloads" / ".DS_Store"
    stray.write_text("of a file manager")
    assert bench.payloads.stored() == before
    assert bench.record(run_id)["state"] in before
