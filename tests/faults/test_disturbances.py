"""Single disturbances, one at a time: restart, suspension, clock, full disk, broken network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from federation import until
from fleet import Fleet, fleet
from small_disk import fill, small_disk

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

LONG = pytest.mark.skipif(
    not os.environ.get("FAULTS_LONG"), reason="takes minutes; `make faults` sets FAULTS_LONG=1"
)
PAIR = ("c0", "c1")
RUN = """
[run]
name = "{name}"
algorithm = "fedavg"
rounds = {rounds}
seed = 5
[workload]
name = "tiny"
[clients]
expected = 2
minimum = {minimum}
[round]
deadline_seconds = {deadline}
retries = 100
[settings]
local_steps = 3
batch_size = 10
learning_rate = 0.1
"""


def run(name: str, rounds: int = 6, *, deadline: float = 3600.0, minimum: int = 2) -> str:
    return RUN.format(name=name, rounds=rounds, deadline=deadline, minimum=minimum)


def submit(world: Fleet, name: str, **options: Any) -> str:
    return world.submit_surely(run(name, **options), name)


def closed(world: Fleet, run_id: str) -> int:
    record = world.record(run_id)
    return int(record["round"]) if record else 0


def finished(world: Fleet, run_id: str) -> dict[str, Any]:
    """Keep everything alive until the run is over; replay it; return its record."""

    def done() -> dict[str, Any] | None:
        world.keep_alive()
        record = world.record(run_id)
        if record and record["status"] == "paused":
            world.resume(run_id)
        over = record and record["status"] == "finished" and not record["finish_waiting"]
        return record if over else None

    record: dict[str, Any] = until(done, f"run {run_id} finishes")
    assert all(r["agrees"] or r["pruned"] for r in world.replay(run_id))
    return record


def moment(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["timestamp"].replace("Z", "+00:00")).timestamp()


def step(name: str, role: str, point: str, action: str, **more: Any) -> dict[str, Any]:
    common = {"id": 0, "role": role, "point": point, "moment": "before", "nth": 1}
    return {**common, "action": action, "seconds": 0.0, **more}


def test_a_server_that_restarts_with_a_round_open_closes_it(tmp_path: Path) -> None:
    with fleet(tmp_path, PAIR) as world:
        world.start()
        calm = finished(world, submit(world, "calm"))
        slow = [step("c1", "worker", "execute", "delay", nth=3, seconds=2.0)]
        world.order("c1", "restart", slow)
        world.mark()
        run_id = submit(world, "restarted")
        until(lambda: world.done("restart"), "a client works on an open round")
        world.power_cut("server")
        killed = time.time()
        record = finished(world, run_id)
        assert record["state"] == calm["state"]
        assert all(e["attempt"] == 0 for e in record["history"]), "no round was begun anew"
        seen = [moment(e) for e in world.new_events("server", "update_received")]
        ends = [moment(e) for e in world.new_events("server", "round_closed")]
        first = min(at for at in seen if at > killed) - killed
        ended = min(at for at in ends if at > killed) - killed
        print(f"\npause of a server restart: first update {first:.2f} s after the kill, ", end="")
        print(f"round closed after {ended:.2f} s")
        assert ended < 60


@LONG
@pytest.mark.parametrize("who", ["server", "c0"])
def test_a_process_that_was_suspended_for_a_moment_goes_on(tmp_path: Path, who: str) -> None:
    suspended(tmp_path, who, 3.0)


@LONG
@pytest.mark.parametrize(("who", "seconds"), [("server", 40.0), ("c0", 60.0)])
def test_a_suspension_beyond_the_keepalive_time_is_survived(
    tmp_path: Path, who: str, seconds: float
) -> None:
    suspended(tmp_path, who, seconds)


def suspended(root: Path, who: str, seconds: float) -> None:
    with fleet(root, PAIR) as world:
        world.start()
        calm = finished(world, submit(world, "calm"))
        run_id = submit(world, "stopped", rounds=6)
        until(lambda: closed(world, run_id) >= 2, "two rounds close")
        world.stop_for(who, seconds)
        assert finished(world, run_id)["state"] == calm["state"]
        assert world.restarts == {}, "nobody died of it"


def test_a_clock_that_jumps_moves_neither_deadlines_nor_presence(tmp_path: Path) -> None:
    with fleet(tmp_path, PAIR) as world:
        world.start()
        calm = finished(world, submit(world, "calm", rounds=12))
        world.mark()
        run_id = submit(world, "jumping", rounds=12)
        for number, jump in enumerate((86_400.0, -172_800.0, 30.0)):
            until(lambda least=3 * number + 1: closed(world, run_id) >= least, "rounds close")
            for name in ("server", *PAIR):
                world.order(name, "jumps", [], clock=jump)
        record = finished(world, run_id)
        assert record["state"] == calm["state"]
        rounds = [e for e in record["history"] if e["kind"] == "train"]
        assert [e["attempt"] for e in rounds] == [0] * 12
        assert not world.new_events("server", "round_waiting"), "both were here all the time"


def test_a_deadline_is_kept_while_the_clock_is_set_back(tmp_path: Path) -> None:
    with fleet(tmp_path, PAIR) as world:
        world.start()
        finished(world, submit(world, "calm", rounds=1))
        world.order("c1", "late", [step("c1", "worker", "execute", "delay", seconds=60.0)])
        world.mark()
        run_id = submit(world, "deadline", rounds=1, deadline=4.0, minimum=1)
        until(lambda: world.done("late"), "one client hangs")
        world.order("server", "back", [], clock=-86_400.0)
        started = time.monotonic()
        until(lambda: closed(world, run_id) == 1, "the round closes at its deadline")
        assert 2.0 < time.monotonic() - started < 30
        record = world.record(run_id)
        assert record is not None
        statuses = {n: c["status"] for n, c in record["history"][0]["clients"].items()}
        assert statuses == {"c0": "counted", "c1": "late"}


# --- full disks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["server", "c0"])
def test_a_full_disk_leaves_the_run_whole(tmp_path: Path, who: str) -> None:
    with small_disk(tmp_path / "fleet" / who, 12), fleet(tmp_path / "fleet", PAIR) as world:
        world.serve_options = ("--reserve", "0")  # the whole disk is smaller than the usual one
        world.start()
        calm = finished(world, submit(world, "calm", rounds=8))
        world.mark()
        run_id = submit(world, "full", rounds=8)
        until(lambda: closed(world, run_id) >= 2, "two rounds close")
        filler = fill(tmp_path / "fleet" / who)

        def noticed() -> bool:
            world.keep_alive()
            texts = [world.new_text(name).lower() for name in ("server", *PAIR)]
            return any("no space left" in t or "disk is full" in t for t in texts)

        until(noticed, "somebody meets the full disk")
        filler.unlink()
        record = finished(world, run_id)
        assert record["state"] == calm["state"]


# --- a real network ------------------------------------------------------------------------------


def ip(*words: str) -> bool:
    return subprocess.run(words, capture_output=True).returncode == 0


@contextmanager
def namespace() -> Iterator[str]:
    """Give a network namespace `mfault` with 10.77.9.2, linked to 10.77.9.1 here; or skip."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        pytest.skip("network namespaces need iproute2")
    if not ip("ip", "netns", "add", "mfault"):
        pytest.skip("this user may not add network namespaces")
    try:
        inside = ("ip", "netns", "exec", "mfault")
        made = (
            ip("ip", "link", "add", "mfault0", "type", "veth", "peer", "name", "mfault1")
            and ip("ip", "link", "set", "mfault1", "netns", "mfault")
            and ip("ip", "addr", "add", "10.77.9.1/24", "dev", "mfault0")
            and ip("ip", "link", "set", "mfault0", "up")
            and ip(*inside, "ip", "addr", "add", "10.77.9.2/24", "dev", "mfault1")
            and ip(*inside, "ip", "link", "set", "mfault1", "up")
        )
        if not made:
            pytest.skip("this kernel has no veth links")
        yield "mfault"
    finally:
        ip("ip", "link", "del", "mfault0")
        ip("ip", "netns", "del", "mfault")


def behind_the_link(world: Fleet, name: str) -> None:
    """Start a client inside the namespace."""
    from fleet import WORKLOAD, data_of

    words = ["ip", "netns", "exec", "mfault"]
    words += [sys.executable, "-m", "fedclient.cli", "start", "--name", name]
    words += ["--server", world.address, "--state", str(world.root / name), "--insecure"]
    words += ["--data", data_of(name), "--workload", WORKLOAD, "--threads", "1"]
    words += ["--log-format", "json"]
    log = (world.root / f"{name}.log").open("ab")
    world.processes[name] = subprocess.Popen(
        words, stdout=log, stderr=log, start_new_session=True, env=world.environment
    )


def disturb(link: str, kind: str) -> bool:
    """Make the link bad for good; False where the kernel cannot."""
    queues = {
        "netem": ("netem", "delay", "60ms", "20ms", "loss", "3%"),
        "tbf": ("tbf", "rate", "1mbit", "burst", "16kbit", "latency", "300ms"),
    }
    return ip("tc", "qdisc", "add", "dev", link, "root", *queues[kind])


@LONG
@pytest.mark.parametrize("kind", ["netem", "tbf", "down"])
def test_a_real_link_that_is_bad_changes_nothing(tmp_path: Path, kind: str) -> None:
    with namespace(), fleet(tmp_path, PAIR) as world:
        world.address = "10.77.9.1:0"
        if kind != "down" and not disturb("mfault0", kind):
            pytest.skip(f"this kernel has no queueing discipline {kind}")
        world.serve("--workload", "tiny=tiny_workload:Tiny", "--insecure-anywhere")
        world.proxy.target = ("10.77.9.1", int(world.address.rpartition(":")[2]))
        world.start_client("c0")
        behind_the_link(world, "c1")
        calm = finished(world, submit(world, "first"))
        run_id = submit(world, "second")
        if kind == "down":
            until(lambda: closed(world, run_id) >= 2, "two rounds close")
            assert ip("ip", "link", "set", "mfault0", "down")
            time.sleep(4)  # how long the link is away; nothing waits for it
            assert ip("ip", "link", "set", "mfault0", "up")
        assert finished(world, run_id)["state"] == calm["state"]
