"""What keeps thousands of idle clients cheap: questions answered together, records kept once."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from bench import Bench, runfile
from test_service import running

from fedserver.rounds.presence import (
    FORGET_ABOVE,
    FORGET_SECONDS,
    Arrival,
    Capabilities,
    Presence,
    Profile,
)
from fedserver.rounds.standing import Standing
from fedserver.rounds.view import list_clients
from fedserver.service.gathered import MOST_AT_ONCE, Gathered
from fedserver.storage.database import DatabaseThread
from fedserver.stored import StoredRuns
from motley.wire.stubs import federation_pb2 as pb


def test_what_comes_while_the_database_is_busy_is_answered_together() -> None:
    asked: list[list[int]] = []
    free = threading.Event()

    def squares(numbers: Sequence[int]) -> list[int]:
        asked.append(list(numbers))
        free.wait(10)
        return [number * number for number in numbers]

    async def body() -> None:
        database = DatabaseThread()
        ask = Gathered[int, int](database, squares)
        first = asyncio.create_task(ask(7))
        while not asked:
            await asyncio.sleep(0.001)
        count = MOST_AT_ONCE + 5
        others = [asyncio.create_task(ask(number)) for number in range(count)]
        await asyncio.sleep(0)
        others[3].cancel()
        free.set()
        assert await first == 49
        found = await asyncio.gather(*others, return_exceptions=True)
        assert isinstance(found.pop(3), asyncio.CancelledError)
        assert found == [n * n for n in range(count) if n != 3]
        database.close()

    asyncio.run(body())
    assert asked == [[7], list(range(MOST_AT_ONCE)), list(range(MOST_AT_ONCE, MOST_AT_ONCE + 5))]


def test_an_error_reaches_all_who_asked_and_nobody_after_them() -> None:
    def answer(questions: Sequence[int]) -> list[int]:
        if 1 in questions:
            raise OSError("disk full")
        return list(questions)

    async def body() -> None:
        database = DatabaseThread()
        ask = Gathered[int, int](database, answer)
        found = await asyncio.gather(ask(0), ask(1), ask(2), return_exceptions=True)
        assert [str(one) for one in found] == ["disk full"] * 3
        assert await ask(3) == 3
        database.close()

    asyncio.run(body())


def arrival(name: str, seen: float) -> Arrival:
    capabilities = Capabilities(
        protocol=1,
        wire=1,
        algorithms={"fedavg": 1},
        workloads={"digits": 1},
        encodings=("dense", "uniform"),
    )
    return Arrival(
        name=name, session=name, seen=seen, capabilities=capabilities, profile=Profile(cores=2)
    )


def test_what_clients_say_of_themselves_is_kept_once() -> None:
    presence = Presence()
    assert presence.arrive(arrival("a", 1.0))
    assert presence.arrive(arrival("b", 1.0))
    a, b = presence.get("a"), presence.get("b")
    assert a is not None
    assert b is not None
    assert a.capabilities is b.capabilities
    assert not presence.arrive(arrival("a", 2.0))
    again = presence.get("a")
    assert again is not None
    assert (again.seen, again.profile is a.profile) == (2.0, True)
    changed = replace(arrival("a", 3.0), profile=replace(a.profile, cores=4))
    assert presence.arrive(changed)
    assert presence.get("a") == changed


def test_who_was_away_for_a_day_is_forgotten() -> None:
    presence = Presence()
    for number in range(FORGET_ABOVE + 1):
        presence.arrive(arrival(f"c{number}", 0.0))
    presence.arrive(arrival("late", FORGET_SECONDS + 1))
    assert presence.get("c0") is None
    assert presence.get("late") is not None


def test_tasks_are_given_to_many_at_once_each_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    names = [f"c{number}" for number in range(4)]
    bench.arrive(*names)
    bench.submit(runfile(clients=4))
    found = bench.desk.next_tasks(["c3", "nobody", "c1"])
    assert [task.client if task else None for task in found] == ["c3", None, "c1"]
    record = bench.record("test")["current"]["clients"]
    assert record == {"c0": "offered", "c1": "taken", "c2": "offered", "c3": "taken"}


@pytest.mark.parametrize(("strangers", "more"), [(20, ""), (23, "; and 3 more")])
def test_a_run_that_waits_names_some_of_those_it_cannot_take(
    tmp_path: Path, strangers: int, more: str
) -> None:
    bench = Bench(tmp_path)
    bench.arrive(*(f"s{number:02}" for number in range(strangers)))
    run = bench.submit(runfile(clients=2, extra_clients='labels = { site = "north" }'))
    reason = bench.record(run)["reason"]
    assert reason.startswith("0 of 2 clients are here; s00: the run wants label site=north; s01")
    assert reason.endswith("; s19: the run wants label site=north" + more)
    assert bench.engine.notices(["s22", "unknown"])[1] == []


def test_how_long_a_client_is_silent_counts_from_its_last_word(bench: Bench) -> None:
    bench.arrive("c0")
    for _ in range(100):  # a long connection that says nothing new, and writes nothing
        bench.clock.now += 40
        bench.arrive("c0")
    bench.clock.now += 100
    assert list_clients(bench.engine)[0]["last_seen_seconds"] == 100
    Standing(bench.engine).note_seen(bench.presence.seen())
    bench.restart()
    assert list_clients(bench.engine)[0]["last_seen_seconds"] == 100


@pytest.mark.parametrize("says_goodbye", [True, False])
def test_a_last_word_is_on_record_after_the_end(tmp_path: Path, says_goodbye: bool) -> None:
    async def body() -> None:
        async with running(tmp_path / "data") as rig:
            await rig.operator("submit", runfile(clients=1), "test")
            await rig.task()
            # As if it had come first a day ago.
            with sqlite3.connect(tmp_path / "data" / "motley.sqlite") as other:
                other.execute("UPDATE clients SET last_seen = last_seen - 86400")
            if says_goodbye:
                goodbye = pb.CheckInRequest(name="c0", session="session-c0", leaving=True)
                await rig.stub.CheckIn(goodbye)
                assert (await rig.operator("clients"))[0]["last_seen_seconds"] < 60

    asyncio.run(body())
    assert StoredRuns(tmp_path / "data").clients()[0]["last_seen_seconds"] < 60
