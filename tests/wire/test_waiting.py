"""Waiting for work that cannot be cut short, and for others that may stand still."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import pytest

from motley.waiting import settled, watching


def test_a_step_that_stands_still_is_ended_and_one_that_moves_is_not() -> None:
    async def body() -> None:
        never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with watching(0.5) as watch:
            for _ in range(5):  # longer than the limit together, each within it
                assert await watch.step(asyncio.sleep(0.15, "moved")) == "moved"
            await asyncio.sleep(0.6)  # between steps nothing is watched
            with pytest.raises(asyncio.TimeoutError):
                await watch.step(never)
        assert never.cancelled()

    asyncio.run(body())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 does not count cancellations")
def test_a_step_that_is_late_and_cancelled_is_cancelled() -> None:
    async def body() -> None:
        async def step() -> None:
            with watching(0.05) as watch:
                await watch.step(asyncio.Event().wait())

        task = asyncio.create_task(step())
        await asyncio.sleep(0)
        time.sleep(0.1)  # the loop stands still: the timer and the cancellation are due at once
        asyncio.get_running_loop().call_later(0, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(body())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 does not count cancellations")
def test_a_timeout_leaves_no_cancellation_behind_and_the_next_step_is_timed() -> None:
    async def body() -> None:
        with watching(0.05) as watch:
            for _ in range(2):
                with pytest.raises(asyncio.TimeoutError):
                    await watch.step(asyncio.Event().wait())
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(body())


def test_a_cancelled_step_is_no_timeout() -> None:
    async def body() -> None:
        async def step() -> None:
            with watching(60.0) as watch:
                await watch.step(asyncio.Event().wait())

        task = asyncio.create_task(step())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(body())


def test_file_work_is_waited_for_however_often_one_is_cancelled() -> None:
    go, done = threading.Event(), []

    def work() -> None:
        go.wait(10)
        done.append(True)

    async def body() -> None:
        async def caller() -> None:
            await settled(asyncio.get_running_loop().run_in_executor(None, work))

        task = asyncio.create_task(caller())
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done

    asyncio.run(body())
