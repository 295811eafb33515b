"""What one client may ask for; strikes, times aside, quotas, over restarts."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path

import pytest
from bench import Bench, ManualClock, moved, runfile
from sqlalchemy import select

from fedserver.errors import (
    CrowdedError,
    LimitsFileError,
    ProtocolError,
    QuotaError,
    RateError,
    SetAsideError,
)
from fedserver.rounds.standing import DAY, Standing
from fedserver.rounds.tasks import Receipt
from fedserver.rounds.view import list_clients
from fedserver.service.limits import (
    LONGEST_SET_ASIDE,
    MOST_CALLERS,
    Caller,
    Guard,
    Limits,
    read_limits,
)
from fedserver.service.quota import Quota
from fedserver.storage.database import DatabaseThread
from fedserver.storage.schema import tasks as table
from motley.wire import FrameError

ME = Caller("c0", "session-c0")


class Yard:
    """A guard with a clock that the test moves; remembers who was put aside."""

    def __init__(self, *, names_are_proven: bool = False, **limits: object) -> None:
        self.clock, self.aside = ManualClock(), []
        self.guard = Guard(
            Limits(**limits), self.clock, names_are_proven=names_are_proven, put_aside=self._aside
        )

    async def _aside(self, caller: Caller, seconds: float, reason: str) -> None:
        self.aside.append((caller, seconds, reason))

    async def call(self, caller: Caller = ME, error: Exception | None = None) -> None:
        async with self.guard.call(caller):
            if error is not None:
                raise error

    async def strike(self, count: int, caller: Caller = ME, error: Exception | None = None) -> None:
        for _ in range(count):
            with pytest.raises(type(error or ProtocolError())):
                await self.call(caller, error or ProtocolError("a frame before its opening"))


def test_calls_come_in_bursts_but_not_faster_than_the_rate() -> None:
    async def main() -> None:
        yard = Yard(calls_per_second=20, calls_burst=100)
        for _ in range(100):
            await yard.call()
        with pytest.raises(RateError, match=r"try again in 0\.05 s") as caught:
            await yard.call()
        assert caught.value.retry_after == pytest.approx(0.05)
        await yard.call(Caller("c0", "another session"))
        yard.clock.now += 0.05
        await yard.call()
        with pytest.raises(RateError):
            await yard.call()

    asyncio.run(main())


def test_open_transfers_are_counted_and_freed() -> None:
    yard = Yard(transfers_per_client=2)
    with yard.guard.transfer(ME), yard.guard.transfer(ME):
        third = yard.guard.transfer(ME)
        with pytest.raises(CrowdedError, match="2 open transfers; expected up to 2"):
            third.__enter__()
        with yard.guard.transfer(Caller("c1")):
            pass
    with yard.guard.transfer(ME):
        pass


def test_ten_strikes_put_a_client_aside_for_longer_each_time() -> None:
    async def main() -> None:
        yard = Yard()
        for seconds in (600, 1200, 2400):
            await yard.strike(9)
            await yard.call()
            await yard.strike(1)
            with pytest.raises(SetAsideError, match=f"{seconds} s: it broke the protocol 10"):
                await yard.call()
            await yard.call(Caller("c0", "somebody who says the same name"))
            yard.clock.now += seconds
            await yard.call()
        assert [seconds for _, seconds, _ in yard.aside] == [600, 1200, 2400]
        assert "[protocol] a frame before its opening" in yard.aside[0][2]
        for _ in range(12):
            await yard.strike(10)
            yard.clock.now += LONGEST_SET_ASIDE
        assert yard.aside[-1][1] == LONGEST_SET_ASIDE

    asyncio.run(main())


def test_strikes_are_forgotten_and_damage_by_the_link_is_forgiven_once() -> None:
    async def main() -> None:
        yard = Yard()
        await yard.strike(9)
        yard.clock.now += 601
        await yard.strike(9)
        await yard.strike(1, error=FrameError("damaged on its way"))
        await yard.call()
        await yard.strike(1, error=FrameError("damaged on its way"))
        with pytest.raises(SetAsideError):
            await yard.call()
        await yard.strike(30, Caller("c1"), QuotaError("used up", 1.0))
        await yard.call(Caller("c1"))

    asyncio.run(main())


def test_where_names_are_proven_the_session_does_not_matter() -> None:
    yard = Yard(names_are_proven=True)
    assert yard.guard.caller("c0", "one") == yard.guard.caller("c0", "two")
    assert Yard().guard.caller("c0", "one") != Yard().guard.caller("c0", "two")


def test_made_up_names_do_not_fill_the_memory() -> None:
    async def main() -> None:
        yard = Yard()
        await yard.strike(10)
        for number in range(MOST_CALLERS + 1000):
            await yard.call(Caller(f"x{number}"))
        assert len(yard.guard._accounts) <= MOST_CALLERS
        with pytest.raises(SetAsideError):
            await yard.call()

    asyncio.run(main())


def test_a_time_aside_ends_open_tasks_is_shown_and_survives_a_restart(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.arrive("c0", "c1")
    run_id = bench.submit(runfile(rounds=1))
    standing = Standing(bench.engine)
    standing.put_aside("c0", "not its session", 600.0, "somebody else")
    assert bench.task("c0").task_id, "who only says the name does no harm"
    standing.put_aside("c0", "session-c0", 600.0, "it broke the protocol")
    before = bench.broadcast(bench.task("c1"))
    assert bench.send("c1", moved(before, 0.1)) is Receipt.ACCEPTED
    bench.settle()
    record = bench.record(run_id)
    assert record["round"] == 1, "the round did not wait"
    assert "put aside: it broke" in record["history"][0]["clients"]["c0"]["reason"]
    bench.restart()
    (found,) = Standing(bench.engine).put_asides(LONGEST_SET_ASIDE)
    assert (found.client, found.session, found.seconds) == ("c0", "session-c0", 600.0)
    shown = {record["name"]: record for record in list_clients(bench.engine)}
    assert (shown["c0"]["set_aside"], shown["c0"]["set_aside_seconds"]) == (found.reason, 600.0)
    assert (shown["c1"]["set_aside"], shown["c1"]["set_aside_seconds"]) == ("", 0.0)
    bench.clock.now += 601
    assert Standing(bench.engine).put_asides(LONGEST_SET_ASIDE) == []
    assert {r["set_aside"] for r in list_clients(bench.engine)} == {""}


def test_a_clock_that_was_set_back_makes_no_time_aside_longer_than_a_day(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.clock.now = 10 * DAY
    bench.arrive("c0")
    Standing(bench.engine).put_aside("c0", "", 600.0, "why")
    bench.clock.now = 0.0
    bench.restart()
    (found,) = Standing(bench.engine).put_asides(LONGEST_SET_ASIDE)
    assert found.seconds == LONGEST_SET_ASIDE


def test_bytes_of_a_day_are_counted_over_restarts_and_begin_anew_at_midnight(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        bench, database = Bench(tmp_path), DatabaseThread()
        bench.clock.now = 100 * DAY + 3600

        def quota() -> Quota:
            return Quota(1000, Standing(bench.engine), database, bench.clock)

        first = quota()
        await first.open("c0")
        await first.spend("c0", 600)
        await first.save_all()
        second = quota()
        await second.open("c0")
        with pytest.raises(QuotaError, match=r"1000 bytes of today; .* 1970-04-12 00:00 UTC") as no:
            await second.spend("c0", 400)
        assert no.value.retry_after == 23 * 3600
        with pytest.raises(QuotaError):
            await second.open("c0")
        await second.open("c1")
        bench.clock.now += 23 * 3600
        await second.open("c0")
        await second.save_all()
        day = int(bench.clock.now // DAY)
        assert Standing(bench.engine).traffic("c0", day - 1) == 1000
        assert Standing(bench.engine).traffic("c0", day) == 0
        database.close()
        midnight = datetime.datetime.fromtimestamp(101 * DAY, datetime.timezone.utc)
        assert midnight.isoformat().startswith("1970-04-12T00:00")

    asyncio.run(main())


def test_a_repeated_update_is_answered_as_the_first_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.arrive("c0", "c1", "c2")
    text = runfile(rounds=1, clients=3, extra_clients="count = 1\nover_select = 3.0")
    bench.submit(text)
    before = bench.broadcast(bench.task("c0"))
    tasks = {name: bench.task(name) for name in ("c0", "c1", "c2")}
    for name, by in (("c0", 0.1), ("c1", 0.2)):
        expected = Receipt.ACCEPTED if name == "c0" else Receipt.SURPLUS
        assert bench.send(name, moved(before, by), task=tasks[name]) is expected
    bench.settle()
    for name, by in (("c0", 0.1), ("c1", 0.2)):
        expected = Receipt.ACCEPTED if name == "c0" else Receipt.SURPLUS
        assert bench.send(name, moved(before, by), task=tasks[name]) is expected
    late = bench.send("c2", moved(before, 0.3), task=tasks["c2"])
    assert late is Receipt.SURPLUS
    training = select(table).where(table.c.kind == "train")
    with bench.engine.database.connect() as tx:
        digests = {row.client: row.update for row in tx.execute(training)}
    ids = {name: task.task_id for name, task in tasks.items()}
    assert bench.desk.was_received(ids["c0"], digests["c0"])
    assert bench.desk.was_received(ids["c1"], digests["c1"])
    assert not bench.desk.was_received(ids["c2"], "0" * 64), "it never came whole"


def test_an_update_of_an_abandoned_round_keeps_its_receipt(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.arrive("c0", "c1")
    bench.submit(runfile(rounds=1, extra_clients="minimum = 2"))
    before = bench.broadcast(bench.task("c0"))
    task = bench.task("c0")
    assert bench.send("c0", moved(before, 0.1), task=task) is Receipt.ACCEPTED
    bench.clock.now += 4000
    bench.settle()
    assert bench.send("c0", moved(before, 0.1), task=task) is Receipt.ACCEPTED
    assert bench.send("c0", moved(before, 0.2), task=task) is Receipt.LATE


def test_a_limits_file_is_checked_with_the_field_named(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text("transfers = 4\nbytes_per_day = 1_000_000\n")
    assert read_limits(path, None).transfers == 4
    assert read_limits(path, 8).transfers == 8
    assert read_limits(None, None) == Limits()
    for text, message in (
        ("transfer = 4", "did you mean 'transfers'"),
        ("strikes = 0", "strikes: .*greater than or equal to 1"),
        ("transfers = 300", "a frame of 1 MiB each"),
        ("transfers =", "is not TOML"),
    ):
        path.write_text(text)
        with pytest.raises(LimitsFileError, match=message):
            read_limits(path, None)
    path.write_bytes("strikes = 4  # für alle".encode("latin-1"))
    with pytest.raises(LimitsFileError, match=r"is not TOML: .*utf-8"):
        read_limits(path, None)
    path.write_bytes(b"\xef\xbb\xbfstrikes = 4\r\n")  # as Windows' editors write it
    assert read_limits(path, None).strikes == 4
    with pytest.raises(LimitsFileError, match="cannot be read"):
        read_limits(tmp_path / "none.toml", None)
