"""Starts processes in milliseconds: by forking one that has imported everything already.

A training process takes over two seconds of processor time to import torch, a server one; a bench
that kills hundreds of them would spend most of its time there. `python forge.py SOCKET` waits, and
imports all once it is asked for the first time; each request (arguments, environment, folder, three
descriptors) becomes a fork with a session of its own, so that signals, groups and exit statuses are
those of any process. Where figures of a process count (memory), or how programs start, they are
started plainly instead.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FAULTS = HERE.parent / "faults"
STUB = HERE / "forge_stub.py"
MODULES = (
    "launch",
    "fedserver.cli",
    "fedserver.serve",
    "fedserver.secure",
    "fedserver.model_process",
    "fedclient.cli",
    "fedclient.daemon",
    "fedclient.channel",
    "fedclient.identity.renewal",
    "fedclient.worker",
    "fedclient.profile",
    "motley.execution.executor",
    "motley.training.alternating",
    "motley.training.sgd",
    "motley.training.distillation",
    "motley.models.cnn",
    "motley.models.mlp",
    "motley.workloads.digits",
    "motley.workloads.images",
    "motley.workloads.sensors",
    "motley.workloads.text",
    "motley.privacy.checks",
    "motley.privacy.release",
    "motley.training.integer",
    "motley.training.private",
    "motley.training.subnetwork",
    "sklearn.datasets",
    "sqlalchemy.dialects.sqlite",
    "fault_shim",
    "tiny_workload",
)
REQUEST_BYTES = 1 << 18
START_SECONDS = 200.0
SHARED = "TESTS_FORGE"
"""Names the socket of the forge that all workers of one pytest share, in their environment."""


class Forge:
    """The bench's side: the process that forks, by its socket."""

    def __init__(self, path: Path) -> None:
        """Use the one that listens at `path`."""
        self.socket = path

    def command(self, module: str) -> tuple[str, ...]:
        """Return a command that stands for `python -m MODULE`, for who starts processes itself."""
        return (sys.executable, "-I", "-S", str(STUB), str(self.socket), module)

    def start(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        folder: Path,
        output: Any,
        errors: Any = None,
        *,
        brief: bool = False,
    ) -> Forged:
        """Start a process whose output goes to a file, and its errors to another or the same.

        One that is brief ends without taking modules apart, which costs 0.4 s.
        """
        with open(os.devnull, "rb") as nothing:
            descriptors = [nothing.fileno(), output.fileno(), (errors or output).fileno()]
            return Forged(self.socket, arguments, environment, folder, descriptors, brief)


class OwnForge(Forge):
    """One that this process starts, and ends."""

    def __init__(self, folder: Path) -> None:
        """Start it; its socket and its log lie in `folder`."""
        super().__init__(folder / "forge.sock")
        path = [str(FAULTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self._log = (folder / "forge.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-u", str(HERE / "forge.py"), str(self.socket)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env=environment,
        )
        end = time.monotonic() + START_SECONDS
        while not self.socket.exists():
            assert self._process.poll() is None, "the forge did not start; see forge.log"
            assert time.monotonic() < end, f"the forge did not start within {START_SECONDS:.0f} s"
            time.sleep(0.02)

    def close(self) -> None:
        """End the forge; what it forked was ended before."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._log.close()


class Forged:
    """A process, with as much of `subprocess.Popen` as the bench uses."""

    def __init__(
        self,
        path: Path,
        arguments: list[str],
        environment: Mapping[str, str],
        folder: Path,
        descriptors: list[int],
        brief: bool,
    ) -> None:
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.connect(str(path))
        request = {
            "arguments": arguments,
            "environment": dict(environment),
            "folder": str(folder),
            "brief": brief,
        }
        socket.send_fds(self._line, [json.dumps(request).encode()], descriptors)
        answer = self._line.recv(1000)
        assert answer, f"the forge ended; see forge.log beside {path}"
        self.pid: int = json.loads(answer)["pid"]
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, None while the process runs."""
        return self._read(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end."""
        status = self._read(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("forged", timeout or 0.0)
        return status

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def _read(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._line.settimeout(timeout)
            with contextlib.suppress(BlockingIOError, TimeoutError):
                data = self._line.recv(1000)
                status = json.loads(data)["status"] if data else signal.SIGKILL
                self.returncode = os.waitstatus_to_exitcode(status)
                self._line.close()
        return self.returncode


# --- the process that forks ----------------------------------------------------------------------


class _Smithy:
    def __init__(self, path: str) -> None:
        self._children: dict[int, socket.socket] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(f"{path}.new")
        self._listener.listen(64)
        os.rename(f"{path}.new", path)  # what is there can be asked
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def is_needed(self) -> bool:
        """Wait for the first request; return False if standard input was closed before."""
        found, _, _ = select.select([sys.stdin.fileno(), self._listener], [], [])
        return self._listener in found

    def run(self) -> Callable[[], None]:
        """Fork until standard input is closed; in each fork, return what it has to do."""
        watch = selectors.DefaultSelector()
        watch.register(sys.stdin.fileno(), selectors.EVENT_READ)
        watch.register(self._wake_read, selectors.EVENT_READ)
        watch.register(self._listener, selectors.EVENT_READ)
        while True:
            for key, _ in watch.select():
                if key.fd == sys.stdin.fileno():
                    self._end_children()
                    return lambda: None
                if key.fd == self._wake_read:
                    os.read(self._wake_read, 4096)
                    self._bury()
                elif (work := self._fork()) is not None:
                    watch.close()
                    return work

    def _end_children(self) -> None:
        """Leave nothing behind when the bench was killed."""
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _bury(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            line = self._children.pop(pid)
            with contextlib.suppress(OSError):
                line.send(json.dumps({"status": status}).encode())
            line.close()

    def _fork(self) -> Callable[[], None] | None:
        line, _ = self._listener.accept()
        data, descriptors, _, _ = socket.recv_fds(line, REQUEST_BYTES, 3)
        if not data:  # whoever asked died before it said what it wanted
            line.close()
            return None
        request = json.loads(data)
        pid = os.fork()
        if pid:
            self._children[pid] = line
            with contextlib.suppress(OSError):  # it died since; what stands for it dies with it
                line.send(json.dumps({"pid": pid}).encode())
            for descriptor in descriptors:
                os.close(descriptor)
            return None
        self._become_child(line, descriptors)
        return lambda: _work(request)

    def _become_child(self, line: socket.socket, descriptors: list[int]) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(self._wake_read)
        os.close(self._wake_write)
        for other in (self._listener, line, *self._children.values()):
            other.close()


def _work(request: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if "stub" in request:
        _die_with(request["stub"])
    module, *_ = arguments = request["arguments"]
    short = module in ("fedclient.profile", "fedserver.model_process")
    _ends_briefly[:] = [short or request.get("brief", False)]
    if short:
        sys.argv = arguments
        sys.path.insert(0, os.getcwd())
        sys.exit(importlib.import_module(module).main())
    sys.argv = ["launch", *arguments]
    importlib.import_module("launch").main()


def _die_with(pid: int) -> None:
    """Kill this process when the one that stands for it is gone."""
    import threading

    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
        return

    def watch() -> None:
        select.select([handle], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


_status: list[Any] = []
"""The exit status of this process, once it is known."""
_ends_briefly = [False]


def _leave() -> None:
    """End a brief process as if it were taken apart: servers, daemons and workers really are."""
    if _ends_briefly[0] and _status and isinstance(_status[0], int):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(_status[0])


def _import_all() -> None:
    for name in MODULES:
        importlib.import_module(name)
    importlib.import_module("fedclient.profile").PROBE_SECONDS = 0.02
    registry = importlib.import_module("motley.algorithms.registry")
    for name in registry.names():  # a client tells which it can run, and imports all for that
        registry.find(name)
    gc.collect()
    gc.freeze()


def main() -> None:
    """Import everything, then fork."""
    # Before most of what is imported: what that registers then runs first.
    atexit.register(_leave)
    smithy = _Smithy(sys.argv[1])
    if not smithy.is_needed():
        return
    _import_all()
    try:
        smithy.run()()
    except SystemExit as end:
        _status.append(end.code or 0)
        raise
    _status.append(0)


if __name__ == "__main__":
    main()
