"""A federation of real processes behind bad networks, that is restarted as a service would be."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fault_shim import children, stop_for
from tcp_proxy import Link, Proxy

HERE = Path(__file__).resolve().parent
INTEGRATION = HERE.parent / "integration"
sys.path.insert(0, str(INTEGRATION))

from federation import Federation  # noqa: E402

from fedclient.errors import EXIT_CERTIFICATE  # noqa: E402
from fedclient.identity.join import join  # noqa: E402
from fedclient.identity.store import IdentityStore  # noqa: E402
from fedserver.client import Operator  # noqa: E402
from motley.errors import MotleyError  # noqa: E402
from motley.identity.tokens import parse_token  # noqa: E402
from motley.wire.stubs import control_pb2  # noqa: E402

NAMES = tuple(f"c{index}" for index in range(6))
TIERS = {name: "phone" if index % 2 else "pc" for index, name in enumerate(NAMES)}
WORKLOAD = "tiny=tiny_workload:Tiny"
CALL_SECONDS = 10.0
CRASHES = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}
"""Exit statuses that no fault of the bench causes."""


def data_of(name: str) -> str:
    """Return the data spec of a client."""
    return f"tiny?client={NAMES.index(name)}"


class Fleet(Federation):
    """A server and its clients, each client behind a link of its own."""

    def __init__(
        self,
        root: Path,
        names: tuple[str, ...] = NAMES,
        *,
        forked: bool = True,
        certificates: list[str] | None = None,
    ) -> None:
        """Make a fleet of which nothing runs yet.

        Args:
            root: a folder for everything.
            names: of the clients.
            forked: start processes by forking (forge.py), else plainly.
            certificates: options of `fedserver init`; None: plain text.
        """
        super().__init__(root, certificates, forked=forked)
        self.serve_options: tuple[str, ...] = ()
        """More options of `fedserver serve`."""
        self.serve_environment: dict[str, str] = {}
        self.names = names
        self.proxy = Proxy()
        self.restarts: dict[str, int] = {}
        self.crashed: list[str] = []
        """What died by itself, and not of a fault."""
        self.rejoined = 0
        """How often a device joined anew because its certificate ran out."""
        self._last_start: dict[str, float] = {}
        self._offsets: dict[str, int] = {}
        self._faults = root / "faults"
        self._faults.mkdir()
        python_path = [str(HERE), str(INTEGRATION), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(python_path),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    # --- processes ---------------------------------------------------------------------------

    def _start(self, name: str, arguments: list[str], **extra: str) -> None:
        module, *options = arguments
        if "--server" in options:
            options[options.index("--server") + 1] = self.link(name).address
        elif module == "fedclient.cli":  # over TLS a client knows the address from joining
            options += ["--server", self.link(name).address]
        environment = {
            **self.environment,
            "FAULTS_PLAN": str(self._faults / f"{name}.json"),
            "FAULTS_LOG": str(self._faults / f"{name}.log"),
            **(self.serve_environment if name == "server" else {}),
            **extra,
        }
        self._last_start[name] = time.monotonic()
        # `-m launch` and not its path: the folder of the tests comes with PYTHONPATH.
        before = [] if self._forge else ["launch"]
        super()._start(name, [*before, module, *options], **environment)

    def link(self, name: str) -> Link:
        """Return the network of a client."""
        return self.proxy.open(name)

    def start_server(self) -> None:
        """Start the server and wait until it listens; it may die of a fault meanwhile."""
        self.serve("--workload", WORKLOAD, *self.serve_options)
        host, _, port = self.address.rpartition(":")
        self.proxy.target = (host, int(port))

    def start_client(self, name: str) -> None:
        """Start a client; with certificates it joins first, if it has not yet."""
        if self.certificates is not None and not (self.root / name / "identity").exists():
            assert self._joined(name), self.tails()
        self.client(name, data_of(name), "--tier", TIERS[name], "--workload", WORKLOAD)

    def start(self) -> None:
        """Start everything."""
        self.start_server()
        for name in self.names:
            self.start_client(name)

    def keep_alive(self) -> None:
        """Start again what died; each at most twice a second."""
        for name, process in list(self.processes.items()):
            if process.poll() is None:
                continue
            if time.monotonic() - self._last_start[name] < 0.5:
                continue
            if process.returncode in CRASHES:
                self.crashed.append(f"{name} died of signal {-process.returncode}")
            if process.returncode == EXIT_CERTIFICATE:
                self._last_start[name] = time.monotonic()
                if not self._joined(name):
                    continue
                self.rejoined += 1
            del self.processes[name]
            self.restarts[name] = self.restarts.get(name, 0) + 1
            if name == "server":
                with suppress(AssertionError):  # it died again before it listened
                    self.start_server()
            else:
                self.start_client(name)

    def _joined(self, name: str) -> bool:
        """Let a device join, or join anew; False when the server is away.

        By the product's own functions, but without commands: on a busy machine short-lived
        certificates would run out while those start.
        """
        request = control_pb2.CreateTokenRequest(uses=1, seconds=600.0, name=name)
        reply = self.ask(lambda stub: stub.CreateToken(request, timeout=CALL_SECONDS))
        if reply is None:
            return False
        try:
            join(parse_token(reply.token), name, IdentityStore(self.root / name))
        except MotleyError:
            return False
        return True

    def power_cut(self, name: str) -> None:
        """Kill a process and its training process at once."""
        process = self.processes[name]
        for pid in [*children(process.pid), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def ask_to_leave(self, name: str) -> None:
        """Send SIGTERM; the process is started again when it is gone."""
        self.processes[name].terminate()

    def stop_for(self, name: str, seconds: float) -> None:
        """Stop a process for some time, as a suspended laptop does."""
        with suppress(ProcessLookupError):
            stop_for(self.processes[name].pid, seconds)

    def close(self) -> None:
        """End everything."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
        super().close()
        self.proxy.close()

    # --- faults ------------------------------------------------------------------------------

    def order(self, name: str, schedule: str, faults: list[dict[str, Any]], **more: Any) -> None:
        """Hand a process (and its training process) its faults."""
        plan = self._faults / f"{name}.json"
        temporary = plan.with_suffix(".new")
        temporary.write_text(json.dumps({"schedule": schedule, "faults": faults, **more}))
        temporary.replace(plan)

    def done(self, schedule: str) -> list[dict[str, Any]]:
        """Return what the processes noted under a schedule."""
        found = []
        for path in sorted(self._faults.glob("*.log")):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found += [
                {**line, "process": path.stem} for line in lines if line["schedule"] == schedule
            ]
        return found

    # --- the operator ------------------------------------------------------------------------

    def ask(self, call: Callable[[Any], Any]) -> Any:
        """Ask the server over its control socket; None when it does not answer now."""
        try:
            with Operator(self.data) as operator:
                return call(operator._stub)
        except Exception as error:
            if isinstance(error, AssertionError):
                raise
            return None

    def record(self, run: str) -> dict[str, Any] | None:
        """Return a run's record, None when the server is away."""
        request = control_pb2.RunRequest(run=run)
        reply = self.ask(lambda stub: stub.Show(request, timeout=CALL_SECONDS))
        return json.loads(reply.json) if reply else None

    def submit_surely(self, text: str, name: str, seconds: float = 60.0) -> str:
        """Submit a run however often the server dies over it; return its id."""
        end = time.monotonic() + seconds
        listing = control_pb2.ListRunsRequest()
        request = control_pb2.SubmitRequest(runfile=text, source="chaos")
        while time.monotonic() < end:
            reply = self.ask(lambda stub: stub.ListRuns(listing, timeout=CALL_SECONDS))
            if reply is not None:
                known = [json.loads(record.json) for record in reply.records]
                mine = [run["id"] for run in known if run["name"] == name]
                if mine:
                    return str(mine[0])
                done = self.ask(lambda stub: stub.Submit(request, timeout=CALL_SECONDS))
                if done is not None:
                    return str(done.run_id)
            self.keep_alive()
            time.sleep(0.05)
        raise AssertionError(f"run {name} could not be submitted; {self.tails()}")

    def resume(self, run: str) -> None:
        """Resume a paused run."""
        request = control_pb2.RunRequest(run=run)
        self.ask(lambda stub: stub.Resume(request, timeout=CALL_SECONDS))

    def replay(self, run: str) -> list[dict[str, Any]]:
        """Return what `fedserver replay` says of each round."""
        request = control_pb2.RunRequest(run=run)
        found: list[dict[str, Any]] | None = self.ask(
            lambda stub: [json.loads(r.json) for r in stub.Replay(request, timeout=60.0)]
        )
        assert found is not None, "the server did not answer the replay"
        return found

    # --- logs --------------------------------------------------------------------------------

    def mark(self) -> None:
        """Remember how long the logs are; `new_text` begins there."""
        for name in ("server", *self.names):
            path = self.root / f"{name}.log"
            self._offsets[name] = path.stat().st_size if path.exists() else 0

    def new_text(self, name: str) -> str:
        """Return what a process wrote since `mark`."""
        path = self.root / f"{name}.log"
        if not path.exists():
            return ""
        with path.open("rb") as stream:
            stream.seek(self._offsets.get(name, 0))
            return stream.read().decode(errors="replace")

    def new_events(self, name: str, event: str) -> list[dict[str, Any]]:
        """Return the log events of a kind since `mark`."""
        found = []
        for line in self.new_text(name).splitlines():
            with suppress(ValueError):
                entry = json.loads(line) if line.startswith("{") else {}
                if entry.get("event") == event:
                    found.append(entry)
        return found


@contextmanager
def fleet(
    root: Path,
    names: tuple[str, ...] = NAMES,
    *,
    forked: bool = True,
    certificates: list[str] | None = None,
) -> Iterator[Fleet]:
    """Give a fleet that is ended whatever happens; see `Fleet`."""
    root.mkdir(parents=True, exist_ok=True)
    found = Fleet(root, names, forked=forked, certificates=certificates)
    try:
        yield found
    finally:
        found.close()


__all__ = ["NAMES", "TIERS", "WORKLOAD", "Fleet", "data_of", "fleet"]
