"""What must hold after a run, however it was disturbed."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fleet import NAMES

from motley.wire import PayloadReader

if TYPE_CHECKING:
    from chaos import Bench
    from fleet import Fleet
    from reference import Expected
    from schedules import Schedule

SETTLE_SECONDS = 20.0
DEFAULT_KEEP = 10


@dataclass
class Verdict:
    """Everything that is wrong with a run, and some figures of it."""

    problems: list[str] = field(default_factory=list)
    state: str = ""
    attempts: int = 0
    """Rounds that were tried again."""
    acknowledged: int = 0
    pruned: int = 0
    """Closed rounds whose payloads housekeeping removed."""
    uncounted: int = 0
    """Updates of an abandoned round, surplus and late ones."""


def judge(bench: Bench, plan: Schedule, run_id: str) -> Verdict:
    """Hold a finished run against everything that is known of it."""
    world = bench.world
    verdict = Verdict()
    for name in world.names:
        world.order(name, f"{plan.name}-over", [])
        world.link(name).heal()
    world.order("server", f"{plan.name}-over", [])
    record = _record(world, run_id)
    rounds = [e for e in record["history"] if e["kind"] == "train"]
    closed = [e for e in rounds if e["status"] == "closed"]
    verdict.state = record["state"]
    verdict.attempts = len(rounds) - len(closed)
    _check_rounds(verdict, record, closed)
    _check_replay(verdict, world, run_id, closed, plan.keep)
    participants = [_counted(entry) for entry in closed]
    expected = bench.reference(plan.algorithm).run(participants)
    _check_reference(verdict, expected, closed)
    calm = verdict.state if plan.over_select else bench.calm.get(plan.algorithm, verdict.state)
    if verdict.state != calm:
        verdict.problems.append("another final model than the calm run's")
    _settled(verdict, world)  # the last receipts may be on their way
    _check_receipts(verdict, world, record, rounds)
    _check_disks(verdict, world, record, closed, expected)
    _check_logs(verdict, world, plan)
    return verdict


def _record(world: Fleet, run_id: str) -> dict[str, Any]:
    end = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < end:
        world.keep_alive()
        record = world.record(run_id)
        if record is not None:
            return record
        time.sleep(0.1)
    raise AssertionError(f"the server does not answer any more; {world.tails()}")


def _counted(entry: dict[str, Any]) -> list[str]:
    return sorted(n for n, c in entry["clients"].items() if c["status"] == "counted")


def _check_rounds(verdict: Verdict, record: dict[str, Any], closed: list[dict[str, Any]]) -> None:
    numbers = [entry["round"] for entry in closed]
    if numbers != list(range(1, record["rounds"] + 1)):
        verdict.problems.append(f"the closed rounds are {numbers}")
    chain = [entry["state_before"] for entry in closed[1:]]
    if chain != [entry["state_after"] for entry in closed[:-1]]:
        verdict.problems.append("a round did not begin at the state before it")
    lost = {c["name"]: c["restarts"] for c in record["clients"] if c["restarts"]}
    lost |= {c["name"]: c["reason"] for c in record["clients"] if c["reason"]}
    if lost:
        verdict.problems.append(f"clients were out or started afresh: {lost}")


def _check_replay(
    verdict: Verdict, world: Fleet, run_id: str, closed: list[dict[str, Any]], keep: int | None
) -> None:
    """Every round agrees, but those whose payloads are not kept."""
    replayed = world.replay(run_id)
    kept = len(closed) if keep == 0 else DEFAULT_KEEP if keep is None else keep
    gone = [r["round"] for r in replayed if r["pruned"]]
    verdict.pruned = len(gone)
    if any(number > len(closed) - kept for number in gone):
        verdict.problems.append(f"payloads of rounds {gone} were removed, {kept} are to be kept")
    bad = [r for r in replayed if not r["agrees"] and not r["pruned"]]
    if bad or len(replayed) != len(closed):
        verdict.problems.append(f"replay: {len(replayed)} of {len(closed)} rounds, bad: {bad}")


def _check_reference(verdict: Verdict, expected: Expected, closed: list[dict[str, Any]]) -> None:
    for entry, state, updates in zip(closed, expected.states, expected.updates, strict=True):
        found = {n: entry["clients"][n]["update"] for n in updates}
        wrong = sorted(n for n in updates if found[n] != updates[n])
        if wrong:
            verdict.problems.append(f"round {entry['round']}: updates of {wrong} are not theirs")
        if entry["state_after"] != state:
            verdict.problems.append(f"round {entry['round']}: another state than the reference")
            return


def _check_receipts(
    verdict: Verdict, world: Fleet, record: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    """Every acknowledged update counted once, or its round is on record as abandoned; every one
    that counted was acknowledged."""
    statuses = {
        _task(record, entry, name): (entry["status"], participant["status"])
        for entry in rounds
        for name, participant in entry["clients"].items()
    }
    first: Counter[str] = Counter()
    for name in world.names:
        for event in world.new_events(name, "update_sent"):
            if event["task"] not in statuses:
                continue  # of the run before
            verdict.acknowledged += event["status"] == "accepted"
            if event["status"] == "accepted":
                first[event["task"]] += not event["duplicate"]
                round_status, status = statuses[event["task"]]
                if status != "counted" and round_status != "abandoned":
                    verdict.problems.append(
                        f"{event['task']} was acknowledged, and is {status} on record"
                    )
            elif statuses[event["task"]][1] == "counted":
                verdict.problems.append(f"{event['task']} counted, and was called {event}")
    counted = {task for task, (_, status) in statuses.items() if status == "counted"}
    if unheard := sorted(counted - set(first)):
        verdict.problems.append(f"counted, and their clients never heard of it: {unheard}")
    twice = [task for task, count in first.items() if count > 1]
    if twice:
        verdict.problems.append(f"acknowledged twice as new: {twice}")
    verdict.uncounted = sum(status in ("surplus", "late") for _, status in statuses.values())


def _task(record: dict[str, Any], entry: dict[str, Any], name: str) -> str:
    return f"{record['id']}-{entry['round']:05d}-{entry['attempt']}-train-{name}"


def _settled(verdict: Verdict, world: Fleet) -> None:
    """Wait until every client is back and idle, with nothing left to send."""
    end = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < end:
        world.keep_alive()
        left = [
            f"{name}/{folder}"
            for name in world.names
            for folder in ("outbox", "downloads")
            if any((world.root / name / folder).iterdir())
        ]
        left += [f"server/incoming/{path.name}" for path in (world.data / "incoming").iterdir()]
        if not left:
            return
        time.sleep(0.1)
    verdict.problems.append(f"still on the disks: {left}")


def _check_disks(
    verdict: Verdict,
    world: Fleet,
    record: dict[str, Any],
    closed: list[dict[str, Any]],
    expected: Expected,
) -> None:
    """The personal state on each device is the one of its last counted update, bit for bit."""
    last = {name: _task(record, entry, name) for entry in closed for name in _counted(entry)}
    for name in NAMES:
        folder = world.root / name / "runs" / record["id"]
        counted = sorted(p.name for p in folder.glob("counted-*"))
        wanted = [f"counted-{last[name]}.payload"] if name in expected.personal else []
        if counted != wanted:
            verdict.problems.append(f"{name} keeps {counted}, the record says {wanted}")
        elif wanted and not _same(folder / counted[0], expected.personal[name]):
            verdict.problems.append(f"{name}'s personal state is not the reference's")
    models = [n for n in NAMES if not list((world.root / n / "models").glob(f"*{record['id']}.m*"))]
    if models:
        verdict.problems.append(f"no finished model on {models}")


def _same(path: Path, tensors: dict[str, Any]) -> bool:
    with PayloadReader(path) as reader:
        if set(reader.names) != set(tensors):
            return False
        return all(np.array_equal(reader[name].decode(), tensors[name]) for name in tensors)


def _check_logs(verdict: Verdict, world: Fleet, plan: Schedule) -> None:
    """No stack traces but those of a full disk."""
    if any(f.action == "enospc" for f in plan.faults):
        return
    for name in ("server", *world.names):
        text = world.new_text(name)
        at = text.find("Traceback")
        if at >= 0:
            verdict.problems.append(f"{name} logged a stack trace: ...{text[at : at + 1500]}")
