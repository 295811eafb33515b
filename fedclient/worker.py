"""The training process: `python -m fedclient.worker`, started by the daemon.

One for each client, so that training can be killed and limited without the daemon. It reads one
`Setup` and then `Job`s from its standard input, and ends when that is closed: no training
outlives its daemon. torch is imported after the memory limit stands, for workloads that need it.
"""

from __future__ import annotations

import errno
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pydantic import ValidationError

from fedclient.errors import StorageError
from fedclient.memory import is_out_of_memory, out_of_memory_text, peak_bytes, set_data_limit
from fedclient.personal import PersonalFiles
from fedclient.pipes import claim_standard_streams
from fedclient.privacy import PrivacyFiles
from fedclient.protocol import Done, Failed, Job, Message, Progress, Setup, read_request, told
from motley import plugins
from motley.allocator import give_back, reuse_freed_memory
from motley.errors import MotleyError, WithheldError, WorkloadError
from motley.failures import is_permanent
from motley.messages import task_from_proto
from motley.task import TaskSpec
from motley.wire.stubs import common_pb2
from motley.workload import DataSpec, Scalar

if TYPE_CHECKING:
    from motley.execution.executor import Executor, Outcome

PROGRESS_SECONDS = 0.5
"""Progress is told at most this often."""

IDLE_SECONDS = 20.0
"""Without a job after which free memory goes back to the kernel."""

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
"""The device's disk took no more: the next task may find room."""

_ExecutorKey = tuple[str, tuple[tuple[str, Scalar], ...]]


class TrainingProcess:
    """Runs jobs; keeps the workload and its data between jobs that name the same ones."""

    def __init__(self, setup: Setup, replies: BinaryIO) -> None:
        self._setup, self._replies = setup, replies
        self._key: _ExecutorKey | None = None
        self._executor: Executor | None = None
        self._told = 0.0

    def answer(self, job: Job) -> None:
        """Run a job and say what came of it; no exception leaves."""
        message = common_pb2.Task.FromString(job.task_bytes())
        try:
            reply: Message = self._done(self._run(job, task_from_proto(message, job.client)))
        except Exception as error:  # whatever user code raises is reported, not fatal
            traceback.print_exc()
            reply = failure(error, self._setup.memory_limit, may_restart=message.fresh_if_lost)
        self._say(reply)

    def _run(self, job: Job, task: TaskSpec) -> Outcome:
        executor = self._executor_for(task)
        if executor.needs_torch:
            _set_threads(task.threads or self._setup.threads)
        return executor.run(
            task,
            personal=PersonalFiles(Path(job.personal)),
            broadcast=Path(job.broadcast) if job.broadcast else None,
            update=Path(job.update),
            model=Path(job.model),
            progress=self._progress,
            privacy=PrivacyFiles(Path(job.privacy)) if job.privacy else None,
        )

    def _executor_for(self, task: TaskSpec) -> Executor:
        from motley.execution.executor import Executor

        key = (task.workload, tuple(sorted(task.workload_arguments.items())))
        if self._executor is None or key != self._key:
            self._executor = None  # lets go of the other data before these are read
            workload = plugins.create(task.workload, self._setup.workloads, task.workload_arguments)
            data = workload.load(DataSpec.parse(self._setup.data))
            self._executor, self._key = Executor(workload, data, self._setup.device), key
        return self._executor

    def _progress(self, fraction: float) -> None:
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS:
            self._told = now
            told = min(1.0, max(0.0, float(fraction)))  # 0 for a NaN of the algorithm's
            self._say(Progress(fraction=told, peak_memory_bytes=peak_bytes()))

    def _done(self, outcome: Outcome) -> Done:
        return Done(
            sha256=outcome.payload.sha256.hex() if outcome.payload else "",
            size=outcome.payload.size if outcome.payload else 0,
            samples=outcome.samples,
            metrics={**outcome.metrics, "peak_memory_bytes": float(peak_bytes())},
            seconds=outcome.seconds,
            restarted=outcome.restarted,
            withheld=outcome.withheld,
            variant=outcome.variant,
            workload_version=outcome.workload_version,
        )

    def _say(self, message: Message) -> None:
        rest = memoryview(message.line())
        while rest:
            rest = rest[self._replies.write(rest) :]


def _set_threads(threads: int) -> None:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise WorkloadError(
            f"training needs PyTorch, which cannot be imported here ({error}); "
            f"pip install 'motley-fl[client]'"
        ) from None
    torch.set_num_threads(threads)


def failure(error: Exception, memory_limit: int, *, may_restart: bool) -> Failed:
    """Return what the server is told of an exception.

    `may_restart`: the run lets this client go on with a fresh personal state.
    """
    peak = peak_bytes()
    hides_another = isinstance(error, WithheldError) and is_out_of_memory(error)
    if isinstance(error, MotleyError) and not hides_another:
        code, message = error.code, str(error)
    elif isinstance(error, OSError) and error.errno in DISK_ERRORS:
        code, message = StorageError.code, f"the device's storage failed: {error}"
    elif is_out_of_memory(error):
        code, message = "out_of_memory", out_of_memory_text(memory_limit, peak)
    elif isinstance(error, ValidationError):
        code, message = "plan", f"the run's settings are not understood here: {error}"
    else:
        code, message = "crash", traceback.format_exception_only(error)[-1].strip()
    permanent = is_permanent(code, may_restart=may_restart)
    return Failed(code=code, message=told(message), permanent=permanent, peak_memory_bytes=peak)


def _read_lines(requests: BinaryIO, lines: queue.SimpleQueue[bytes]) -> None:
    """Hand lines on; end the process at once when the daemon is gone, even amid training."""
    for line in requests:
        lines.put(line)
    os._exit(0)


def main() -> None:
    """Read the setup, then run jobs until the daemon closes the pipe."""
    requests, replies = claim_standard_streams()
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(requests, lines), daemon=True).start()
    setup = read_request.validate_json(lines.get())
    if not isinstance(setup, Setup):
        sys.exit("fedclient.worker is started by the fedclient daemon, not by hand")
    if setup.memory_limit:
        set_data_limit(setup.memory_limit)
    else:
        reuse_freed_memory()
    process = TrainingProcess(setup, replies)
    while True:
        try:
            line = lines.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            give_back()
            line = lines.get()
        request = read_request.validate_json(line)
        if isinstance(request, Job):
            process.answer(request)


if __name__ == "__main__":
    main()
