"""The daemon's side of the training process: starts it, talks to it, ends it, says why it died."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence

from pydantic import ValidationError
from structlog.stdlib import get_logger

from fedclient.errors import WorkerError
from fedclient.memory import kernel_oom_kills, out_of_memory_text, tells_of_memory
from fedclient.protocol import LINE_LIMIT, Done, Failed, Job, Progress, Setup, read_reply

log = get_logger()

WORKER_COMMAND = (sys.executable, "-m", "fedclient.worker")
GRACE_SECONDS = 0.5
"""Between asking the process to end and killing it: its files are safe at any moment."""


def child_environment(threads: int) -> dict[str, str]:
    """Return the environment of a process that will import torch.

    Passive waiting matters: with several clients on one machine, spinning OpenMP threads make
    each other ten times slower.
    """
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
    }


def _not_started(error: OSError) -> WorkerError:
    """Return the error that says why no training process could be started."""
    said = error.strerror or str(error)
    if error.errno == errno.ENOMEM:
        return WorkerError(
            "out_of_memory",
            f"this device has too little memory to start the training process ({said}); "
            f"close other programs",
        )
    return WorkerError(
        "worker_start",
        f"the training process could not be started: {said}; check that {sys.executable} can be "
        f"run, and this user's limits of processes and open files (ulimit -u, ulimit -n)",
    )


class WorkerRunner:
    """One training process: started with the first job, reused, ended after some idle time."""

    def __init__(
        self,
        setup: Callable[[], Setup],
        *,
        idle_seconds: float = 600.0,
        command: Sequence[str] = WORKER_COMMAND,
        oom_kills: Callable[[], int] = kernel_oom_kills,
    ) -> None:
        """`setup` is asked for the settings of each process that is started."""
        self._make_setup, self._idle_seconds, self._command = setup, idle_seconds, tuple(command)
        self._oom_kills = oom_kills
        self._process: asyncio.subprocess.Process | None = None
        self._setup: Setup | None = None
        self._log_task: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._last_lines: deque[str] = deque(maxlen=20)
        self._stopping: asyncio.Future[None] | None = None
        self._kills_before = 0
        self._peak = 0

    @property
    def pid(self) -> int | None:
        """Process id while the training process is there."""
        return self._process.pid if self._process else None

    async def run(self, job: Job, progress: Callable[[Progress], None]) -> Done:
        """Have a job done.

        When this is cancelled the process is killed: half a task is of no use.

        Raises:
            WorkerError: the task failed, or the process died; says why.
        """
        if self._idle:
            self._idle.cancel()
        try:
            await self._ensure_started()
            self._last_lines.clear()
            await self._send(job.line())
            return await self._outcome(progress)
        except BaseException as error:
            keep = isinstance(error, WorkerError) and error.failure_code != "out_of_memory"
            if not keep or self._process is None or self._process.returncode is not None:
                await self.stop()
            raise
        finally:
            self._idle = asyncio.get_running_loop().call_later(self._idle_seconds, self._end_idle)

    async def stop(self) -> None:
        """End the process, if there is one."""
        if self._idle:
            self._idle.cancel()
        process, self._process = self._process, None
        if process is not None:
            await self._end(process)
        if self._stopping is not None:
            # Who waits may be cancelled; the ending is not, or it would stay cancelled for ever.
            await asyncio.shield(self._stopping)
            self._stopping = None

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), GRACE_SECONDS)
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await self._close_pipes(process)
        log.info("worker_stopped", pid=process.pid)

    async def _close_pipes(self, process: asyncio.subprocess.Process) -> None:
        """Let the loop see the ends of the pipes; a process that it left behind may hold them."""
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
            await asyncio.wait_for(process.stdin.wait_closed(), GRACE_SECONDS)
        if self._log_task:
            await asyncio.wait([self._log_task], timeout=GRACE_SECONDS)
            self._log_task.cancel()

    def _end_idle(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            log.info("worker_idle", seconds=self._idle_seconds)
            self._stopping = asyncio.ensure_future(self._end(process))

    async def _ensure_started(self) -> None:
        if self._process and self._process.returncode is None:
            return
        await self.stop()  # one that died while idle, or is still ending
        self._setup = setup = self._make_setup()
        self._kills_before, self._peak = self._oom_kills(), 0
        self._process = await self._start(setup.threads)
        log.info("worker_started", pid=self._process.pid, threads=setup.threads)
        assert self._process.stderr is not None
        self._log_task = asyncio.create_task(self._relay(self._process.stderr))
        await self._send(setup.line())

    async def _start(self, threads: int) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=child_environment(threads),
                limit=LINE_LIMIT,
                start_new_session=True,  # Ctrl-C reaches the daemon alone, which then ends this one
            )
        except OSError as error:
            raise _not_started(error) from None

    async def _send(self, line: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # a dead process shows at the reading side
            self._process.stdin.write(line)
            await self._process.stdin.drain()

    async def _outcome(self, progress: Callable[[Progress], None]) -> Done:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            try:
                reply = read_reply.validate_json(line)
            except ValidationError:
                await self.stop()
                raise WorkerError(
                    "crash", f"the training process wrote {line[:80]!r} between its replies"
                ) from None
            if isinstance(reply, Done):
                return reply
            self._peak = max(self._peak, reply.peak_memory_bytes)
            if isinstance(reply, Failed):
                raise WorkerError(reply.code, reply.message, permanent=reply.permanent)
            progress(reply)
        raise await self._death()

    async def _death(self) -> WorkerError:
        """Return the error that says how the process ended."""
        assert self._process is not None
        assert self._setup is not None
        status = await self._process.wait()
        if self._log_task:
            await asyncio.wait([self._log_task], timeout=1.0)
        limit = self._setup.memory_limit
        by_kernel = status == -signal.SIGKILL and self._oom_kills() > self._kills_before
        if by_kernel or any(tells_of_memory(line) for line in self._last_lines):
            return WorkerError("out_of_memory", out_of_memory_text(limit, self._peak))
        ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        last = f"; its last words: {self._last_lines[-1]}" if self._last_lines else ""
        hint = f" (--memory-limit is {limit} bytes)" if limit else ""
        return WorkerError("worker_died", f"the training process ended by {ended}{hint}{last}")

    async def _relay(self, stream: asyncio.StreamReader) -> None:
        """Log what user code and torch print, line by line, however long a line is."""
        rest = b""
        while chunk := await stream.read(8192):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > 8192:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._note(line)
        if rest:
            self._note(rest)

    def _note(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self._last_lines.append(text)
            log.info("worker_output", line=text)
