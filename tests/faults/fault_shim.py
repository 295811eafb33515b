"""Puts faults into a running process by wrapping its functions from outside.

A process reads its orders from a plan file (JSON), again whenever that changes; what it does is
appended to a log before it is done, so that a fault that kills the process is not repeated by the
next one. Orders: `{"schedule": ID, "clock": SECONDS, "trace": BOOL, "faults": [...]}`, each fault
`{"id", "role", "point", "moment", "nth", "action", "seconds"}`.
"""

from __future__ import annotations

import errno
import functools
import importlib
import inspect
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_points import Moment, Point, of_role


def disk_is_full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Shim:
    """The faults of one process."""

    def __init__(self, role: str, plan: Path, log: Path) -> None:
        self.role, self._plan, self._log = role, plan, log
        self._lock = threading.RLock()
        self._seen: tuple[int, int] = (0, 0)
        self._orders: dict[str, Any] = {"schedule": "", "faults": []}
        self._passed: Counter[tuple[str, str]] = Counter()
        self._full_until = 0.0
        self._refused_until: dict[str, float] = {}

    # --- orders ------------------------------------------------------------------------------

    def orders(self) -> dict[str, Any]:
        """Return the newest orders; counting starts anew with each schedule."""
        with self._lock:
            try:
                found = self._plan.stat()
            except OSError:
                return self._orders
            mark = (found.st_mtime_ns, found.st_ino)
            if mark != self._seen:
                self._seen = mark
                before, self._orders = self._orders, json.loads(self._plan.read_text())
                if before["schedule"] != self._orders["schedule"]:
                    self._passed.clear()
                    self._full_until = 0.0
                    self._refused_until.clear()
                done = self._done()
                faults = self._orders["faults"]
                self._orders["faults"] = [f for f in faults if f["id"] not in done]
            return self._orders

    def _done(self) -> set[int]:
        if not self._log.exists():
            return set()
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        mine = [line for line in lines if line["schedule"] == self._orders["schedule"]]
        return {line["id"] for line in mine if "id" in line}

    def _note(self, entry: dict[str, Any]) -> None:
        line = json.dumps({"schedule": self._orders["schedule"], "role": self.role, **entry})
        with self._log.open("a") as stream:
            stream.write(line + "\n")

    def at(self, point: Point, moment: Moment) -> None:
        """Do what is ordered for this moment of this step; usually nothing."""
        with self._lock:
            orders = self.orders()
            self._passed[point.name, moment] += 1
            count = self._passed[point.name, moment]
            if orders.get("trace"):
                self._note({"passed": point.name, "moment": moment})
            found = [
                fault
                for fault in orders["faults"]
                if (fault["role"], fault["point"]) == (self.role, point.name)
                and (fault["moment"], fault["nth"]) == (moment, count)
            ]
            for fault in found:
                orders["faults"].remove(fault)
                self._note({**fault, "at": time.time()})
            until = max(self._full_until, self._refused_until.get(point.name, 0.0))
            is_full = point.writes and moment == "before" and time.monotonic() < until
        for fault in found:
            self._do(fault, point)
        if is_full:
            raise _full(point)

    # --- actions -----------------------------------------------------------------------------

    def _do(self, fault: dict[str, Any], point: Point) -> None:
        action, seconds = fault["action"], float(fault["seconds"])
        if action == "kill":
            for child in children(os.getpid()):
                os.kill(child, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "stop":
            stop_for(os.getpid(), seconds)
        elif action == "delay":
            time.sleep(seconds)
        elif action == "enospc":
            self._full_until = time.monotonic() + seconds if seconds else 0.0
            raise _full(point)
        elif action == "refuse":
            self._refused_until[point.name] = time.monotonic() + seconds
            raise _full(point)

    # --- the clock ---------------------------------------------------------------------------

    def wall(self) -> float:
        """Return the wall clock with the jump that is ordered."""
        return time.time() + float(self.orders().get("clock", 0.0))


def _full(point: Point) -> Exception:
    if point.target:
        return disk_is_full()
    return sqlite3.OperationalError("database or disk is full")


def children(pid: int) -> list[int]:
    """Return the ids of a process's direct children."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(entry.parent.name))
    return found


def stop_for(pid: int, seconds: float) -> None:
    """Stop a process with SIGSTOP; a helper lets it go on after some time."""
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {pid}"], start_new_session=True)
    os.kill(pid, signal.SIGSTOP)


# --- wrapping ------------------------------------------------------------------------------------


class _HalfStream:
    """Writes the first half of the bytes, lets the fault happen, then goes on."""

    def __init__(self, stream: Any, fault: Callable[[], None]) -> None:
        self._stream, self._fault = stream, fault

    def write(self, data: Any) -> int:
        half = len(data) // 2
        written = self._stream.write(data[:half]) if half else 0
        self._fault()
        return int(written + self._stream.write(data[half:]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _half_frame(original: Any, fault: Callable[[], None], writer: Any, frame: Any) -> Any:
    stream = writer._stream
    writer._stream = _HalfStream(stream, fault)
    try:
        return original(writer, frame)
    finally:
        writer._stream = stream


def _half_write(
    original: Any, fault: Callable[[], None], disk: Any, target: Path, data: Any
) -> Any:
    target.with_name(target.name + ".tmp").write_bytes(data[: len(data) // 2])
    fault()
    return original(disk, target, data)


def _half_move(original: Any, fault: Callable[[], None], disk: Any, source: Path, to: Path) -> None:
    os.replace(source, to)
    fault()
    disk.sync(to.parent)


def _half_publish(original: Any, fault: Callable[[], None], disk: Any, one: Path, to: Path) -> None:
    disk.sync(one)
    fault()
    disk.move(one, to)


def _half_place(original: Any, fault: Callable[[], None], source: Path, target: Path) -> None:
    os.replace(source, target)
    fault()
    durable = importlib.import_module("motley.wire.durable")
    durable.sync_folder(target.parent)


_DURING = {
    "frame.write": _half_frame,
    "disk.write": _half_write,
    "disk.move": _half_move,
    "disk.publish": _half_publish,
    "put_in_place": _half_place,
}


def _wrapped(shim: Shim, point: Point, original: Any) -> Any:
    half = _DURING.get(point.name) if "during" in point.moments else None

    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def outer_async(*args: Any, **kwargs: Any) -> Any:
            shim.at(point, "before")
            result = await original(*args, **kwargs)
            shim.at(point, "after")
            return result

        return outer_async

    @functools.wraps(original)
    def outer(*args: Any, **kwargs: Any) -> Any:
        shim.at(point, "before")
        if half is None:
            result = original(*args, **kwargs)
        else:
            result = half(original, lambda: shim.at(point, "during"), *args, **kwargs)
        shim.at(point, "after")
        return result

    return outer


def wrap(shim: Shim, point: Point) -> None:
    """Wrap one function wherever it was imported to by now.

    Raises:
        AttributeError: the product has no such function any more: mend `fault_points.py`.
    """
    module_name, _, path = point.target.partition(":")
    module = importlib.import_module(module_name)
    *outer, name = path.split(".")
    holder = getattr(module, outer[0]) if outer else module
    original = getattr(holder, name)
    wrapped = _wrapped(shim, point, original)
    if outer:
        setattr(holder, name, wrapped)
        return
    for other in list(sys.modules.values()):
        for key, value in list(vars(other).items()) if hasattr(other, "__dict__") else []:
            if value is original:
                setattr(other, key, wrapped)


def wrap_transactions(shim: Shim, points: dict[str, Point]) -> None:
    """Put points around BEGIN and COMMIT, named by the engine's method that is running."""
    from sqlalchemy.engine.default import DefaultDialect

    begin, commit = DefaultDialect.do_begin, DefaultDialect.do_commit

    def do_begin(dialect: Any, connection: Any) -> None:
        point = points.get(f"begin {running_method()}")
        if point:
            shim.at(point, "before")
        begin(dialect, connection)

    def do_commit(dialect: Any, connection: Any) -> None:
        point = points.get(f"commit {running_method()}")
        if point:
            shim.at(point, "before")
        commit(dialect, connection)
        if point:
            shim.at(point, "after")

    DefaultDialect.do_begin = do_begin  # type: ignore[method-assign]
    DefaultDialect.do_commit = do_commit  # type: ignore[method-assign]


def running_method() -> str:
    """Return the name of the server's method that holds the transaction."""
    frame = inspect.currentframe()
    while frame is not None:
        if "/fedserver/" in frame.f_code.co_filename:
            name = frame.f_code.co_name.lstrip("_")
            if name == "apply":
                name += f" {type(frame.f_locals['job']).__name__}"
            if name != "transition":  # the engine's frame around a transaction of its callers
                return name
        frame = frame.f_back
    return ""


def install(role: str, plan: Path, log: Path) -> Shim:
    """Wrap everything that this kind of process has."""
    shim = Shim(role, plan, log)
    points = of_role(role)
    # Inner functions first: what wraps them looks them up anew.
    for point in points:
        if point.target:
            wrap(shim, point)
    if role == "server":
        wrap_transactions(shim, {point.name: point for point in points if not point.target})
    _jumping_clock(shim)
    return shim


class _JumpingTime:
    """The module `time` with another wall clock."""

    def __init__(self, shim: Shim) -> None:
        self.time = shim.wall

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def _jumping_clock(shim: Shim) -> None:
    """Give the product's own modules a wall clock that can jump.

    Only theirs: gRPC's Python half reads `time.time` to tell its native half a deadline, and a
    jump that only one half sees is nothing that a machine's clock can do.
    """
    jumping = _JumpingTime(shim)
    for name, module in list(sys.modules.items()):
        ours = name.partition(".")[0] in ("motley", "fedserver", "fedclient")
        if ours and getattr(module, "time", None) is time:
            vars(module)["time"] = jumping
