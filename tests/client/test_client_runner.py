"""The training process: what is said when it cannot be started or fails, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import os
import sys

import pytest

from fedclient.errors import WorkerError
from fedclient.protocol import MOST_WORDS, Job, Setup, read_reply
from fedclient.runner import WorkerRunner
from fedclient.worker import failure
from motley.errors import DataError

JOB = Job(client="phone-1", task="", update="", model="", personal="")


def failure_of(runner: WorkerRunner) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        asyncio.run(runner.run(JOB, lambda progress: None))
    assert runner.pid is None
    return caught.value


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOMEM, "out_of_memory", "too little memory to start the training process"),
        (errno.EAGAIN, "worker_start", "limits of processes"),
    ],
)
def test_a_start_that_the_system_refuses_is_not_blamed_on_the_disk(
    monkeypatch, number, code, words
):
    async def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    error = failure_of(WorkerRunner(lambda: Setup(data="x")))
    assert error.failure_code == code
    assert words in str(error)
    assert "storage" not in str(error)
    assert not error.permanent


def test_a_command_that_is_not_there_is_said():
    error = failure_of(WorkerRunner(lambda: Setup(data="x"), command=["/nonexistent/python"]))
    assert error.failure_code == "worker_start"
    assert "No such file" in str(error)


def test_words_of_any_file_name_and_length_can_be_told():
    name = os.fsdecode(b"caf\xe9.png")
    failed = failure(DataError(f"{name}: no picture {'x' * 10_000}"), 0, may_restart=False)
    told = read_reply.validate_json(failed.line())
    assert told.message.startswith("caf\\udce9.png: no picture xxx")
    assert len(told.message) == MOST_WORDS


STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    if '"job"' in input():
        print('{"kind": "done"}', flush=True)
"""


def test_a_task_taken_back_while_an_idle_process_ends_does_not_cancel_the_next_one():
    async def body() -> None:
        command = (sys.executable, "-c", STUBBORN)
        runner = WorkerRunner(lambda: Setup(data="x"), idle_seconds=0.1, command=command)
        await runner.run(JOB, lambda progress: None)
        while runner.pid is not None:
            await asyncio.sleep(0.01)
        taken_back = asyncio.create_task(runner.run(JOB, lambda progress: None))
        await asyncio.sleep(0.05)
        taken_back.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taken_back
        await runner.run(JOB, lambda progress: None)
        await runner.stop()

    asyncio.run(body())
