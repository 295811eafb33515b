"""Chaos equals calm: random faults on a federation of six, and the same model to the last bit.

python tests/faults/chaos.py --schedules 100 --seed 0
python tests/faults/chaos.py --only 17            one schedule again, by the seed it printed

Server and clients live on from schedule to schedule; what dies is started again. After each
schedule the run's record is held against `fedserver replay`, against an independent reference
(`reference.py`), against the calm run of its kind, and against what the clients' logs and disks
say (`verdicts.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "core"), str(HERE.parents[1]), str(HERE)]
os.environ.setdefault("OMP_NUM_THREADS", "1")

from coverage_table import coverage, missing, print_coverage  # noqa: E402
from fleet import NAMES, Fleet, fleet  # noqa: E402
from reference import Reference  # noqa: E402
from schedules import (  # noqa: E402
    LIFETIME,
    SPAN,
    Fault,
    Network,
    Outside,
    Schedule,
    Step,
    runfile,
    schedule,
    systematic_count,
)
from verdicts import Verdict, judge  # noqa: E402

PATIENCE = 150.0
"""Seconds for one schedule on a busy machine."""
OUT = HERE / "out"


@dataclass
class Report:
    """What came of one schedule."""

    schedule: Schedule
    seconds: float
    fired: list[dict[str, Any]]
    restarts: dict[str, int]
    renewed: int = 0
    """Certificates that clients renewed."""
    rejoined: int = 0
    """Devices that joined anew after theirs ran out."""
    verdict: Verdict = field(default_factory=Verdict)

    def line(self) -> str:
        """Return one line for people."""
        s, v = self.schedule, self.verdict
        kind = f"{s.algorithm}{'+over' if s.over_select else ''}{_ENDINGS[_group(s)]}"
        dead = sum(self.restarts.values())
        said = "ok  " if not v.problems else "FAIL"
        faults = "; ".join(map(str, s.faults))
        renewals = f" renewed={self.renewed} rejoined={self.rejoined}" if s.expiring else ""
        return (
            f"{said} seed={s.seed:<6} {kind:15} {self.seconds:5.1f}s fired={len(self.fired)}/"
            f"{len(s.faults)} restarts={dead} attempts={v.attempts} uncounted={v.uncounted}"
            f"{renewals}  [{faults}]" + "".join(f"\n       - {problem}" for problem in v.problems)
        )


class Bench:
    """One fleet, its references and its calm models."""

    def __init__(self, world: Fleet, folder: Path) -> None:
        self.world = world
        self._folder = folder
        self._references: dict[str, Reference] = {}
        self.calm: dict[str, str] = {}

    def reference(self, algorithm: str) -> Reference:
        """Return the reference of an algorithm's runs (over-selection changes none of it)."""
        if algorithm not in self._references:
            text = runfile(algorithm, over_select=False, name="reference")
            self._references[algorithm] = Reference(text, self._folder / algorithm)
        return self._references[algorithm]

    def run(self, plan: Schedule) -> Report:
        """Run one schedule and judge it."""
        world = self.world
        started = time.monotonic()
        world.restarts.clear()
        world.rejoined = 0
        world.crashed.clear()
        world.mark()
        for name in ("server", *NAMES):
            steps = [f for f in plan.faults if isinstance(f, Step) and f.process == name]
            world.order(name, plan.name, [_order(i, f) for i, f in enumerate(steps)])
        report = Report(plan, 0.0, [], {})
        try:
            run_id = self._disturbed(plan, report)
            report.verdict = judge(self, plan, run_id)
        except Exception as error:
            report.verdict.problems.append(f"{type(error).__name__}: {error}")
            if not isinstance(error, AssertionError):
                traceback.print_exc()
        finally:
            for name in ("server", *NAMES):
                world.order(name, f"{plan.name}-over", [])
                world.link(name).heal() if name != "server" else None
        report.seconds = time.monotonic() - started
        report.verdict.problems += world.crashed
        report.restarts, report.rejoined = dict(world.restarts), world.rejoined
        events = (world.new_events(name, "certificate_renewed") for name in NAMES)
        report.renewed = sum(map(len, events))
        report.fired += [line for line in world.done(plan.name) if "id" in line]
        return report

    def _disturbed(self, plan: Schedule, report: Report) -> str:
        """Submit the run, let the faults happen, and wait for its end; return its id."""
        world = self.world
        waiting = [f for f in plan.faults if not isinstance(f, Step)]
        text = runfile(plan.algorithm, over_select=plan.over_select, name=plan.name, keep=plan.keep)
        run_id = world.submit_surely(text, plan.name)
        begun, asked = time.monotonic(), 0.0
        while True:
            now = time.monotonic()
            for fault in [f for f in waiting if now - begun >= f.after]:
                waiting.remove(fault)
                self._happen(plan, fault, report)
            world.keep_alive()
            if now - asked > 0.25:
                asked = now
                record = world.record(run_id)
                if record is not None and self._is_over(plan, record, waiting):
                    return run_id
            assert now - begun < PATIENCE, f"not finished within {PATIENCE:.0f} s; {world.tails()}"
            time.sleep(0.02)

    def _is_over(self, plan: Schedule, record: dict[str, Any], waiting: list[Any]) -> bool:
        status = record["status"]
        if status in ("paused", "failed"):
            raise AssertionError(f"the run is {status}: {record['reason']}")
        return status == "finished" and not record["finish_waiting"]

    def _happen(self, plan: Schedule, fault: Fault, report: Report) -> None:
        world = self.world
        if isinstance(fault, Outside):
            _outside(world, plan, fault)
        elif isinstance(fault, Network):
            _network(world, fault, anywhere=plan.certificates)
        report.fired.append(
            {
                "process": fault.process,
                "point": type(fault).__name__.lower(),
                "action": fault.action,
                "moment": "any",
                "role": "any",
            }
        )


def _order(index: int, step: Step) -> dict[str, Any]:
    return {
        "id": index,
        "role": step.role,
        "point": step.point,
        "moment": step.moment,
        "nth": step.nth,
        "action": step.action,
        "seconds": step.seconds,
    }


def _outside(world: Fleet, plan: Schedule, fault: Outside) -> None:
    name = fault.process
    if name not in world.processes:
        return
    if fault.action == "kill":
        world.power_cut(name)
    elif fault.action == "stop":
        world.stop_for(name, fault.seconds)
    elif fault.action == "terminate":
        world.ask_to_leave(name)
    else:
        steps = [f for f in plan.faults if isinstance(f, Step) and f.process == name]
        orders = [_order(i, f) for i, f in enumerate(steps)]
        world.order(name, plan.name, orders, clock=fault.seconds)


def _network(world: Fleet, fault: Network, *, anywhere: bool) -> None:
    link = world.link(fault.process)
    direction = "up" if fault.direction == "up" else "down"
    if fault.action in ("reset", "fin"):
        link.cut(direction, fault.size, reset=fault.action == "reset")
    elif fault.action == "stall":
        link.stall(fault.seconds, direction, fault.size)
    elif fault.action == "refuse":
        link.refuse(fault.seconds)
    elif fault.action == "delay":
        link.slow(delay=fault.seconds)
    elif fault.action == "throttle":
        link.slow(rate=fault.size)
    else:
        link.corrupt(direction, anywhere=anywhere)


def calm(bench: Bench, algorithm: str, number: int) -> Report:
    """Run without faults, and keep its model as what the disturbed runs must end in."""
    certificates = bench.world.certificates
    plan = Schedule(
        900_000_000 + number, algorithm, False, (), certificates is not None, bool(certificates)
    )
    report = bench.run(plan)
    assert not report.verdict.problems, f"the calm run failed: {report.verdict.problems}"
    bench.calm[algorithm] = report.verdict.state
    return report


def run_all(plans: list[Schedule], root: Path) -> list[Report]:
    """Run those in plain text on one fleet, those over TLS on another, and those with certificates
    that run out on a third; print a line each."""
    reports: list[Report] = []
    calm_models: dict[str, str] = {}
    for group in _ENDINGS:
        mine = [plan for plan in plans if _group(plan) == group]
        if mine:
            reports += _run_on_one(mine, root / group, calm_models)
    return reports


def run_whole(seeds: list[int], root: Path) -> list[Report]:
    """Run the schedules; those whose fault never came, because over-selection spared the client
    that step, run once more with all clients counted."""
    plans = [schedule(seed) for seed in seeds]
    reports = run_all(plans, root / "first")
    if len(seeds) < systematic_count():
        return reports
    never = missing(coverage([f for r in reports for f in r.fired]))
    again = [replace(plan, over_select=False) for plan in plans if _aims_at(plan, never)]
    return reports + (run_all(again, root / "again") if again else [])


def _aims_at(plan: Schedule, never: list[str]) -> bool:
    steps = [fault for fault in plan.faults if isinstance(fault, Step)]
    return any(f"{s.role}:{s.point} {s.moment} {s.action}" in never for s in steps)


_ENDINGS = {"plain": "", "tls": "+tls", "expiring": "+tls+exp"}


def _group(plan: Schedule) -> str:
    if plan.expiring:
        return "expiring"
    return "tls" if plan.certificates else "plain"


def _run_on_one(plans: list[Schedule], root: Path, calm_models: dict[str, str]) -> list[Report]:
    """Run schedules on one fleet, which first shows what undisturbed runs end in."""
    reports = []
    certificates: list[str] | None = [] if plans[0].certificates else None
    if plans[0].expiring:
        lifetime = f"{LIFETIME:.0f}s"
        certificates = ["--client-lifetime", lifetime, "--server-lifetime", lifetime]
    with fleet(root / "fleet", certificates=certificates) as world:
        world.start()
        bench = Bench(world, root / "reference")
        for number, algorithm in enumerate(sorted({plan.algorithm for plan in plans})):
            report = calm(bench, algorithm, number)
            state = report.verdict.state
            assert calm_models.setdefault(algorithm, state) == state, "calm runs differ"
            print(f"calm {root.name} {algorithm}: {report.seconds:.1f} s, {state[:16]}", flush=True)
        for plan in plans:
            report = bench.run(plan)
            reports.append(report)
            print(report.line(), flush=True)
    return reports


@contextmanager
def in_memory() -> Iterator[Path]:
    """Give a folder, in memory where that exists.

    Processes die here, not the machine, and syncing to a disk would cost the most time.
    """
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="faults-", dir=memory) as folder:
        yield Path(folder)


def summary(reports: list[Report], seconds: float) -> dict[str, Any]:
    """Return the figures of a whole bench."""
    bad = [r.schedule.seed for r in reports if r.verdict.problems]
    actions = Counter(f["action"] for r in reports for f in r.fired)
    return {
        "schedules": len(reports),
        "passed": len(reports) - len(bad),
        "failed_seeds": bad,
        "over_selected": sum(r.schedule.over_select for r in reports),
        "over_tls": sum(r.schedule.certificates for r in reports),
        "with_certificates_that_run_out": sum(r.schedule.expiring for r in reports),
        "certificates_renewed": sum(r.renewed for r in reports),
        "devices_that_joined_anew": sum(r.rejoined for r in reports),
        "rounds_pruned": sum(r.verdict.pruned for r in reports),
        "minutes": round(seconds / 60, 2),
        "faults_fired": sum(len(r.fired) for r in reports),
        "actions": dict(sorted(actions.items())),
        "restarts": sum(sum(r.restarts.values()) for r in reports),
        "rounds_tried_again": sum(r.verdict.attempts for r in reports),
        "updates_acknowledged": sum(r.verdict.acknowledged for r in reports),
        "updates_not_counted": sum(r.verdict.uncounted for r in reports),
    }


def main() -> int:
    """Run the bench; exit status 1 when a schedule failed or a point was never exercised."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--schedules", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first schedule")
    parser.add_argument("--only", type=int, nargs="*", help="these seeds alone")
    parser.add_argument("--keep", type=Path, help="folder for logs and data, kept afterwards")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(124))  # ends its processes too
    numbers = range(options.first, options.first + options.schedules)
    seeds = options.only or [options.seed * SPAN + n for n in numbers]
    print(
        f"{len(seeds)} fault schedules, about {len(seeds) * 9 / 60:.0f} to "
        f"{len(seeds) * 15 / 60:.0f} minutes on two cores; the first {systematic_count()} go "
        f"through every fault point",
        flush=True,
    )
    started = time.monotonic()
    with in_memory() as temporary:
        reports = run_whole(seeds, options.keep or temporary)
    figures = summary(reports, time.monotonic() - started)
    table = coverage([f for r in reports for f in r.fired])
    print_coverage(table)
    print(json.dumps(figures, indent=1))
    OUT.mkdir(exist_ok=True)
    document = {
        "summary": figures,
        "coverage": table,
        "schedules": [
            {
                **r.schedule.to_json(),
                "seconds": r.seconds,
                "fired": r.fired,
                "problems": r.verdict.problems,
            }
            for r in reports
        ],
    }
    (OUT / "chaos.json").write_text(json.dumps(document, indent=1))
    never = missing(table) if len(seeds) >= systematic_count() else []
    if never:
        print("never exercised:", ", ".join(never))
    return 1 if figures["failed_seeds"] or never else 0


if __name__ == "__main__":
    sys.exit(main())
