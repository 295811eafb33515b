"""A training process that cannot be started: what is said, by cause."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from fedclient.errors import WorkerError
from fedclient.protocol import Job, Setup
from fedclient.runner import WorkerRunner

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
