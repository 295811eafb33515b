"""How many connected idle clients a server holds: memory, processor, latency of a check-in.

    python benchmarks/idle.py [--counts 100 1000 5000 10000] [--tls]

A real `fedserver` on loopback. Idle clients live in a few processes (`idle_clients.py`), a TCP
connection each, and hold the long poll that daemons hold; they come evenly spread over 45 s. Beside
them probes check in with a task in hand, which is answered at once: their times are the latency of
a check-in. It is taken while the clients come, while nothing happens, while rounds of a few working
clients open and close, and while a round opens for everybody.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from idle_clients import check_in
from idle_workers import Prober, work
from report import Ratio, report

from fedserver.client import Operator
from fedserver.identity.authority import Authority
from motley.identity.certificates import certificate_to_pem
from motley.identity.keys import key_to_pem, new_key
from motley.identity.names import CHANNEL_OPTIONS, CLIENT

WORKERS, ROUNDS = 4, 5
PROBES = 4
RUN = """
[run]
name = "{name}"
algorithm = "fedavg"
rounds = {rounds}
global_variant = "mlp"
[workload]
name = "digits"
[clients]
expected = {expected}
labels = {{ {labels} }}
"""
MOST_BYTES = {False: 50e3, True: 110e3}
"""Memory of the server for each client, plain and with mutual TLS."""
PATIENCE = 600.0


class Server:
    """A server process and what it costs."""

    def __init__(self, root: Path, *, tls: bool) -> None:
        self.root, self.data, self.tls = root, root / "data", tls
        self.processes: list[subprocess.Popen[Any]] = []
        command = [sys.executable, "-m", "fedserver.cli"]
        security = ["--insecure"]
        if tls:
            subprocess.run(
                [*command, "init", "--data", str(self.data), "--address", "127.0.0.1"],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            security = ["--no-join"]
        ready = root / "ready"
        self.log = (root / "server.log").open("wb")
        options = ["--data", str(self.data), "--listen", "127.0.0.1:0", *security]
        options += ["--ready-file", str(ready), "--log-format", "json"]
        self.process = subprocess.Popen(
            [*command, "serve", *options], stderr=self.log, stdout=self.log
        )
        self.processes.append(self.process)
        while not (ready.exists() and ready.read_text()):
            if self.process.poll() is not None:
                raise RuntimeError((root / "server.log").read_text()[-2000:])
            time.sleep(0.05)
        self.address = ready.read_text().splitlines()[0]

    def check(self) -> None:
        """Raise with the end of its log when the server is gone."""
        if self.process.poll() is not None:
            text = (self.root / "server.log").read_text()[-2000:]
            raise RuntimeError(f"the server ended with {self.process.returncode}: {text}")

    def memory(self) -> float:
        """Return the bytes that this process alone and its share of others' take (PSS)."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        line = next(line for line in text.splitlines() if line.startswith("Pss:"))
        return float(line.split()[1]) * 1024

    def processor(self) -> float:
        """Return the processor seconds used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def bare(self) -> str:
        """Start a server that does nothing beside this one; return its address."""
        command = [sys.executable, str(Path(__file__).with_name("idle_workers.py"))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout is not None
        return f"127.0.0.1:{process.stdout.readline().strip()}"

    def operator(self) -> Operator:
        return Operator(self.data)

    def certificates(self, names: list[str]) -> Path:
        """Sign a certificate for each name; all share one key, which saves time alone."""
        folder = self.root / "certificates"
        folder.mkdir()
        authority, key = Authority(self.data), new_key()
        (folder / "ca.pem").write_bytes(authority.pem)
        (folder / "key.pem").write_bytes(key_to_pem(key))
        for name in names:
            signed = authority.sign(CLIENT, name, key.public_key())
            (folder / f"{name}.pem").write_bytes(certificate_to_pem(signed))
        return folder

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
        self.log.close()


class Crowd:
    """The processes that play the idle clients."""

    def __init__(self, server: Server, count: int, spread: float, folder: Path | None) -> None:
        self.count = count
        per, self._players = -(-count // 2), []
        for first in range(0, count, per):
            player = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("idle_clients.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            orders = {
                "address": server.address,
                "first": first,
                "count": min(per, count - first),
                "spread": spread,
                "certificates": str(folder or ""),
            }
            _say(player, json.dumps(orders))
            self._players.append(player)
        server.processes += self._players

    async def ask(self, command: str) -> dict[str, Any]:
        """Send a command to all; return what they report, together."""
        for player in self._players:
            _say(player, command)
        answers = [
            json.loads(await asyncio.to_thread(player.stdout.readline))  # type: ignore[union-attr]
            for player in self._players
        ]
        joined: dict[str, Any] = {"here": 0, "polls": 0, "late": [], "tasks": [], "errors": []}
        return {key: sum((answer[key] for answer in answers), joined[key]) for key in joined}


def _say(player: subprocess.Popen[str], line: str) -> None:
    assert player.stdin is not None
    player.stdin.write(line + "\n")
    player.stdin.flush()


@dataclass(frozen=True)
class Phase:
    """What was seen while something went on."""

    name: str
    latencies: list[float]
    """Seconds of the probes' check-ins."""
    bare: list[float]
    """Of one probe at a server beside it that does nothing: what the machine was up to."""
    seconds: float
    processor: float
    """Seconds that the server computed."""
    crowd: dict[str, Any]

    def percentile(self, percent: float, *, bare: bool = False) -> float:
        return float(np.percentile(self.bare if bare else self.latencies, percent))

    def text(self) -> str:
        late = self.crowd["late"]
        return (
            f"check-in p50 {1e3 * self.percentile(50):.1f} ms, max "
            f"{1e3 * max(self.latencies):.0f} ms of {len(self.latencies)}; bare server beside it "
            f"p99 {1e3 * self.percentile(99, bare=True):.0f} ms; server "
            f"{100 * self.processor / self.seconds:.0f} % of a core; "
            + (f"held polls up to {1e3 * max(late):.0f} ms late; " if late else "")
            + f"{self.crowd['polls'] / self.seconds:.0f} polls/s, "
            f"{len(self.crowd['errors'])} errors"
        )


class Bench:
    """One server with one crowd, phase by phase."""

    def __init__(
        self, server: Server, crowd: Crowd, probers: list[Prober], reference: Prober
    ) -> None:
        self.server, self.crowd = server, crowd
        self.probers, self.reference = probers, reference
        self.phases: list[Phase] = []

    @contextlib.asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        for prober in self.probers:
            prober.take()
        self.reference.take()
        began, computed = time.monotonic(), self.server.processor()
        yield
        self.server.check()
        for prober in [*self.probers, self.reference]:
            prober.check()
        latencies = [value for prober in self.probers for value in prober.take()]
        self.phases.append(
            Phase(
                name,
                latencies,
                self.reference.take(),
                time.monotonic() - began,
                self.server.processor() - computed,
                await self.crowd.ask("report"),
            )
        )
        print(f"  {name}: {self.phases[-1].text()}", file=sys.stderr)
        for error in self.phases[-1].crowd["errors"][:3]:
            print(f"    {error}", file=sys.stderr)

    def submit(self, name: str, rounds: int, expected: int, labels: str) -> str:
        text = RUN.format(name=name, rounds=rounds, expected=expected, labels=labels)
        with self.server.operator() as operator:
            return operator.submit(text, "idle.py")

    async def until(self, run: str, statuses: tuple[str, ...]) -> dict[str, Any]:
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE:
            found = {r["id"]: r for r in await asyncio.to_thread(self._runs)}[run]
            if found["status"] in statuses:
                return found
            await asyncio.sleep(0.2)
        raise RuntimeError(f"run {run} is {found['status']}: {found['reason']}")

    def _runs(self) -> list[dict[str, Any]]:
        with self.server.operator() as operator:
            return operator.runs()

    async def rounds(self, channels: list[grpc.aio.Channel]) -> None:
        """Let a few clients work through some rounds beside the crowd."""
        run = self.submit("beside", ROUNDS, WORKERS, 'role = "worker"')
        working = [
            asyncio.create_task(work(channel, f"worker-{number}"))
            for number, channel in enumerate(channels)
        ]
        await self.until(run, ("finished",))
        await asyncio.gather(*working)

    async def opening(self) -> float:
        """Open a round for everybody; return the seconds from its first to its last task."""
        run = self.submit("everybody", 1, self.crowd.count, 'site = "north"')
        came: list[float] = []
        began = time.monotonic()
        while len(came) < self.crowd.count:
            if time.monotonic() - began > PATIENCE:
                raise RuntimeError(f"{len(came)} of {self.crowd.count} clients got their task")
            await asyncio.sleep(0.5)
            came += (await self.crowd.ask("report"))["tasks"]
        with self.server.operator() as operator:
            operator.stop(run)
        print(
            f"  everybody has a task {max(came) - began:.2f} s after the run was submitted",
            file=sys.stderr,
        )
        return max(came) - min(came)


async def measure(count: int, options: argparse.Namespace) -> list[Ratio]:
    """Hold so many clients; return what it costs."""
    label = f"{count:,}" + (" tls" if options.tls else "")
    print(f"{label} clients", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), options.tls) as server:
        names = [f"idle-{n:05d}" for n in range(count)] + [f"probe-{n}" for n in range(PROBES)]
        names += [f"worker-{n}" for n in range(WORKERS)]
        certificates = server.certificates(names) if options.tls else None
        channels = {name: channel(server, name, certificates) for name in names[count:]}
        channels["bare"] = grpc.aio.insecure_channel(server.bare())
        probers = [Prober(channels[f"probe-{n}"], f"probe-{n}") for n in range(PROBES)]
        reference = Prober(channels["bare"], "probe")
        try:
            await asyncio.sleep(3)  # what the first calls load is not the clients' memory
            before = server.memory()
            bench = Bench(
                server, Crowd(server, count, options.spread, certificates), probers, reference
            )
            async with bench.phase("coming"):
                await bench.crowd.ask("come")
            async with bench.phase("idle"):
                await asyncio.sleep(options.seconds)
            each = (server.memory() - before) / count
            async with bench.phase("rounds"):
                await bench.rounds([channels[f"worker-{n}"] for n in range(WORKERS)])
            async with bench.phase("opening for all"):
                opened = await bench.opening()
        finally:
            await asyncio.gather(*(prober.close() for prober in [*probers, reference]))
            await asyncio.gather(*(one.close() for one in channels.values()))
    memory = Ratio(f"{label}: KB a client", each / 1e3, MOST_BYTES[options.tls] / 1e3)
    rows = [memory] + [
        Ratio(f"{label}: check-in p99, s, {p.name}", p.percentile(99), 1.0, detail=p.text())
        for p in bench.phases
    ]
    idle = bench.phases[1]
    rows.append(Ratio(f"{label}: processor, idle", idle.processor / idle.seconds))
    rows.append(Ratio(f"{label}: s from the first task to the last", opened))
    return rows


def channel(server: Server, name: str, certificates: Path | None) -> grpc.aio.Channel:
    """Return a connection of its own."""
    own = [("grpc.use_local_subchannel_pool", 1)]
    if certificates is None:
        return grpc.aio.insecure_channel(server.address, options=own)
    parts = [(certificates / part).read_bytes() for part in ("ca.pem", "key.pem", f"{name}.pem")]
    credentials = grpc.ssl_channel_credentials(*parts)
    return grpc.aio.secure_channel(server.address, credentials, [*own, *CHANNEL_OPTIONS])


@contextlib.contextmanager
def running(root: Path, tls: bool) -> Iterator[Server]:
    server = Server(root, tls=tls)
    try:
        yield server
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 5000, 10_000])
    parser.add_argument("--tls", action="store_true", help="mutual TLS instead of plain text")
    parser.add_argument("--spread", type=float, default=45.0, help="seconds in which they come")
    parser.add_argument("--seconds", type=float, default=45.0, help="of idleness, measured")
    options = parser.parse_args()
    rows: list[Ratio] = []
    for count in options.counts:
        rows += asyncio.run(measure(count, options))
    report(
        "idle_tls" if options.tls else "idle",
        f"connected idle clients on loopback, a TCP connection each, polls of 40 s that began "
        f"spread over {options.spread:g} s; memory is what the server's PSS grew by; a check-in "
        f"of {len(check_in('idle-00000'))} bytes",
        rows,
    )


if __name__ == "__main__":
    main()
