"""Hostile inputs against a live server, with healthy clients beside them.

python tests/faults/hostile.py --inputs 10000 --seed 0             over mutual TLS
python tests/faults/hostile.py --inputs 10000 --seed 0 --plain     in plain text

The server must live, its memory must not grow, each input must be refused with a status that says
why (never UNKNOWN or INTERNAL), nothing may be logged with a stack trace, and two healthy clients
must finish their rounds. Over TLS attacks on identity are among the inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "core"), str(HERE.parents[1]), str(HERE)]
os.environ.setdefault("OMP_NUM_THREADS", "1")

from fleet import Fleet, fleet  # noqa: E402
from hostile_identity import Loot, credentials_of, gather, identity_attacks  # noqa: E402
from hostile_inputs import Input, endless  # noqa: E402
from hostile_sender import Sender  # noqa: E402

from motley.wire.stubs import federation_pb2  # noqa: E402

OUT = HERE / "out"
THREADS = 4
GROWTH = 1.10
WARM_UP = 1000
"""Inputs after which memory is to grow no more; half of them in a short attack."""
CALM_ROUNDS = 10
RUN = """
[run]
name = "{name}"
algorithm = "fedavg"
rounds = {rounds}
seed = 5
[workload]
name = "tiny"
[clients]
expected = 3
count = 2
over_select = 1.5
minimum = 2
[round]
deadline_seconds = 60
retries = 1000
[settings]
local_steps = 3
batch_size = 10
learning_rate = 0.1
"""


WIDE = """
calls_per_second = 1e6
calls_burst = 1_000_000
strikes = 1_000_000
transfers_per_client = 1000
pending_uploads = 1000
"""
"""Limits so wide that inputs reach the code behind them; narrow ones have tests of their own."""


@dataclass
class Outcome:
    """What the attack came to."""

    inputs: int
    seconds: float
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    """Bytes of the server's resident memory: after each thousand of inputs, and at the end."""
    calm_seconds: float = 0.0
    attacked_seconds: float = 0.0
    rounds_beside: int = 0
    traces: list[str] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Memory at the end over that after the first thousand inputs."""
        return self.resident[-1] / self.resident[0]

    def problems(self) -> list[str]:
        """Return everything that must not be."""
        found = [f"{len(self.wrong)} wrong statuses: {self.wrong[:10]}"] if self.wrong else []
        if self.growth > GROWTH:
            found.append(f"memory grew by {100 * (self.growth - 1):.1f} %")
        if self.traces:
            found.append(f"{len(self.traces)} stack traces; the first: {self.traces[0]}")
        return found


class Attack:
    """Some threads that send what an endless supply holds."""

    def __init__(self, world: Fleet, seed: int, count: int, loot: Loot | None) -> None:
        self._world, self._count = world, count
        more = identity_attacks(loot) if loot else []
        self._supply: Iterator[Input] = endless(seed, *more)
        self._lock = threading.Lock()
        self._sent = 0
        self.outcome = Outcome(count, 0.0)
        self._senders = [sender_of(world, loot) for _ in range(THREADS)]

    def run(self) -> None:
        """Send everything, in threads."""
        started = time.monotonic()
        threads = [threading.Thread(target=self._work, args=(s,)) for s in self._senders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.outcome.seconds = time.monotonic() - started
        self.outcome.resident.append(resident(self._world))

    def _work(self, sender: Sender) -> None:
        while True:
            with self._lock:
                if self._sent >= self._count:
                    return
                self._sent += 1
                number, item = self._sent, next(self._supply)
            if number % 25 == 1:
                find_tasks(sender, self._world)
            status = item.send(sender)
            with self._lock:
                self.outcome.statuses[item.kind, status] += 1
                if status not in item.allowed:
                    self.outcome.wrong.append(f"{item.kind}: {status}")
                if number % min(WARM_UP, self._count // 2) == 0:
                    self.outcome.resident.append(resident(self._world))


def sender_of(world: Fleet, loot: Loot | None) -> Sender:
    """Return a connection of the attacker's."""
    return Sender(world.address, credentials_of(loot.member) if loot else None)


def resident(world: Fleet) -> int:
    """Return the server's resident memory in bytes; fail when it is gone."""
    process = world.processes["server"]
    status = process.poll()
    assert status is None, f"the server died ({status}): {world.log('server')[-2000:]}"
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def find_tasks(sender: Sender, world: Fleet) -> None:
    """Learn the attacker's open task, and a victim's, as a member of the run can."""
    call = sender.channel.unary_unary(
        "/motley.v1.Federation/CheckIn",
        response_deserializer=federation_pb2.CheckInReply.FromString,
    )
    try:
        reply = call(sender.check_in(working_on=""), timeout=0.3)
    except Exception:
        return  # no task now
    if reply.WhichOneof("outcome") == "task":
        sender.task_id = reply.task.task_id
        sender.digest = reply.task.payload.sha256
        sender.victim_task = reply.task.task_id.replace("mallory", "c0")


def attack(root: Path, *, inputs: int, seed: int, rounds: int, over_tls: bool = True) -> Outcome:
    """Run a federation of two healthy clients and an attacker; return what came of it."""
    certificates: list[str] | None = [] if over_tls else None
    with fleet(root, ("c0", "c1"), forked=False, certificates=certificates) as world:
        limits = root / "limits.toml"
        limits.write_text(WIDE)
        world.serve_options = ("--limits", str(limits))
        if over_tls:
            world.serve_options += ("--control-listen", "127.0.0.1:0")
            world.serve_environment = {"FAULTS_OPEN_DOOR": "1"}
        world.start()
        loot = gather(world, root) if over_tls else None
        hold = sender_of(world, loot)
        calm = _timed_run(world, hold, "calm", CALM_ROUNDS)
        warm = _timed_run(world, hold, "calm2", CALM_ROUNDS)
        attack = Attack(world, seed, inputs, loot)
        text = RUN.format(name="attacked", rounds=rounds)
        run_id = world.submit_surely(text, "attacked")
        _be_there(world, hold, run_id)
        begun = _round(world, run_id), time.monotonic()
        attack.run()
        outcome = attack.outcome
        outcome.rounds_beside = _round(world, run_id) - begun[0]
        outcome.attacked_seconds = (time.monotonic() - begun[1]) / max(1, outcome.rounds_beside)
        outcome.calm_seconds = min(calm, warm) / CALM_ROUNDS
        outcome.traces = _traces(world.log("server"))
        assert world.processes["server"].poll() is None, "the server died"
        record = world.record(run_id)
        assert record is not None
        assert record["status"] in ("running", "finished"), record["reason"]
        return outcome


def _round(world: Fleet, run_id: str) -> int:
    record = world.record(run_id)
    assert record is not None, "the server does not answer its operator"
    return int(record["round"])


def _be_there(world: Fleet, hold: Sender, run_id: str) -> None:
    """Check the attacker in until the run is frozen with it."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert hold.unary("CheckIn", hold.check_in()) == "OK"
        record = world.record(run_id)
        if record and record["clients"]:
            return
        time.sleep(0.1)
    raise AssertionError("the run does not start")


def _timed_run(world: Fleet, hold: Sender, name: str, rounds: int) -> float:
    """Run without attack; return its seconds."""
    run_id = world.submit_surely(RUN.format(name=name, rounds=rounds), name)
    _be_there(world, hold, run_id)
    started = time.monotonic()
    while (record := world.record(run_id)) is None or record["status"] != "finished":
        assert time.monotonic() - started < 120, world.tails()
        time.sleep(0.05)
    return time.monotonic() - started


def _traces(log: str) -> list[str]:
    parts = log.split("Traceback (most recent call last)")
    return [part[:1500] for part in parts[1:]]


def print_table(outcome: Outcome) -> None:
    """Print what was answered, by kind."""
    for kind in sorted({kind for kind, _ in outcome.statuses}):
        found = {s: n for (k, s), n in outcome.statuses.items() if k == kind}
        answers = ", ".join(f"{status} {n}" for status, n in sorted(found.items()))
        print(f"{kind:34} {answers}")


def figures(outcome: Outcome) -> dict[str, Any]:
    """Return what the attack came to, for a record."""
    return {
        "inputs": outcome.inputs,
        "seconds": round(outcome.seconds, 1),
        "resident_mb": [round(r / 1e6, 1) for r in outcome.resident],
        "growth_percent": round(100 * (outcome.growth - 1), 2),
        "rounds_beside": outcome.rounds_beside,
        "seconds_a_round_calm": round(outcome.calm_seconds, 3),
        "seconds_a_round_attacked": round(outcome.attacked_seconds, 3),
        "stack_traces": len(outcome.traces),
        "problems": outcome.problems(),
    }


def main() -> int:
    """Run the attack; exit status 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="plain text, no certificates")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(124))  # ends its processes too
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        outcome = attack(
            options.keep or Path(folder),
            inputs=options.inputs,
            seed=options.seed,
            rounds=100_000,
            over_tls=not options.plain,
        )
    print_table(outcome)
    print(json.dumps(figures(outcome), indent=1))
    OUT.mkdir(exist_ok=True)
    statuses = [[*key, count] for key, count in sorted(outcome.statuses.items())]
    document = {**figures(outcome), "statuses": statuses}
    name = "hostile-plain.json" if options.plain else "hostile.json"
    (OUT / name).write_text(json.dumps(document, indent=1))
    return 1 if outcome.problems() else 0


if __name__ == "__main__":
    sys.exit(main())
