"""Fault schedules: the same number gives the same schedule.

The first ones go systematically through every fault point, every moment and every action that
matters there (`systematic`), the others are drawn at random. A schedule's number decides its kind
of run too: FedAvg or QuPeD by turns, every third with over-selection and real deadlines.
"""

from __future__ import annotations

import functools
import random
from dataclasses import asdict, dataclass, replace
from typing import Any

from fault_points import PERSONAL_ONLY, POINTS, RENEWALS, Moment, Point
from fleet import NAMES

SPAN = 10_000
"""A schedule's seed is the bench's seed times this, plus its number."""
LIFETIME = 15.0
"""Seconds that a certificate lives where certificates expire; the last third is for renewing."""
HELD_BACK, RUN_OUT = 3.0, 13.0
"""Seconds without renewals that all certificates outlive, and that some do not."""
KEEPS: dict[int, int | None] = {1: None, 4: 3}
"""Every fifth schedule keeps payloads as by default, every fifth those of three rounds alone."""


@dataclass(frozen=True)
class Step:
    """A fault at a step inside a process."""

    process: str
    role: str
    point: str
    moment: str
    nth: int
    action: str
    """kill (the process with its children), stop, delay, enospc, refuse (this step alone)."""
    seconds: float = 0.0

    def __str__(self) -> str:
        lasting = f" {self.seconds:g}s" if self.seconds else ""
        where = f"{self.process}/{self.role}" if self.role == "worker" else self.process
        return f"{self.action}{lasting} {self.moment} {where}:{self.point}#{self.nth}"


@dataclass(frozen=True)
class Outside:
    """A fault at a time, whatever the process is doing then."""

    process: str
    after: float
    """Seconds since the run was submitted."""
    action: str
    """kill, stop, terminate, clock."""
    seconds: float = 0.0

    def __str__(self) -> str:
        lasting = f" {self.seconds:g}s" if self.seconds else ""
        return f"{self.action}{lasting} {self.process}@{self.after:.1f}s"


@dataclass(frozen=True)
class Network:
    """A fault of one client's network."""

    process: str
    after: float
    """Seconds since the run was submitted, when it is ordered."""
    action: str
    """reset, fin, stall, refuse, delay, throttle, corrupt."""
    direction: str = "up"
    size: int = 0
    """Bytes that still pass; for throttle, bytes a second."""
    seconds: float = 0.0

    def __str__(self) -> str:
        lasting = f" {self.seconds:g}s" if self.seconds else ""
        return f"{self.action}{lasting} net({self.process}) {self.direction}+{self.size}"


Fault = Step | Outside | Network


@dataclass(frozen=True)
class Schedule:
    """One run and its faults."""

    seed: int
    algorithm: str
    over_select: bool
    faults: tuple[Fault, ...]
    certificates: bool = False
    """Whether everything goes over mutual TLS."""
    expiring: bool = False
    """Whether certificates run out within the run, and are renewed in time or not."""
    keep: int | None = 0
    """Closed rounds whose payloads stay: 0 for all, None for the default."""

    @property
    def name(self) -> str:
        """Name of the run and of the plans."""
        return f"s{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        faults = [{"kind": type(f).__name__, **asdict(f)} for f in self.faults]
        return {**asdict(self), "faults": faults}


def schedule(seed: int) -> Schedule:
    """Return the schedule of a seed."""
    number = seed % SPAN
    rng = random.Random(seed)
    certificates, expiring = number // 2 % 2 == 1, number % 8 in (2, 7)
    algorithm = ("fedavg", "quped")[number % 2]
    chunks = _chunks(algorithm)
    turn = number // 2
    if turn < len(chunks):
        faults = [f for step in chunks[turn] for f in _with_needs(step, rng)]
    else:
        faults = [_random_fault(rng, algorithm) for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.15:
            faults.append(_clock(rng, certificates))
    if expiring:  # a clock that jumps would end short-lived certificates for good
        faults = [f for f in faults if not (isinstance(f, Outside) and f.action == "clock")]
        faults += _renewal(number // 4, rng)
    return Schedule(
        seed,
        algorithm,
        number % 3 == 2,
        tuple(faults),
        certificates,
        expiring,
        KEEPS.get(number % 5, 0),
    )


def _renewal(turn: int, rng: random.Random) -> list[Fault]:
    """Return what disturbs the renewal of certificates: a kill at each step of it, or that the
    server refuses it, for a while or until the first certificates run out."""
    found: list[list[Fault]] = []
    for point in RENEWALS:
        process = "server" if point.role == "server" else rng.choice(NAMES)
        found += [
            [Step(process, point.role, point.name, moment, 1, "kill")] for moment in point.moments
        ]
    refused = Step("server", "server", "renew", "before", 1, "refuse", HELD_BACK)
    # Someone trains for so long that the run does not end before certificates do.
    slow = Step(rng.choice(NAMES), "worker", "execute", "before", 2, "delay", RUN_OUT)
    found += [[refused], [replace(refused, seconds=RUN_OUT), slow]]
    return found[turn % len(found)]


def systematic_count() -> int:
    """Return how many schedules it takes to go through everything once."""
    return 2 * max(len(_chunks("fedavg")), len(_chunks("quped")))


def systematic() -> list[tuple[Point, Moment, str]]:
    """Return every point and moment with a kill, and with a full disk where it writes."""
    found: list[tuple[Point, Moment, str]] = []
    for point in POINTS:
        found += [(point, moment, "kill") for moment in point.moments]
        if point.writes:
            inside: Moment = "during" if point.name == "frame.write" else "before"
            found.append((point, inside, "enospc"))
    return found


@functools.cache
def _chunks(algorithm: str) -> list[list[tuple[Point, Moment, str]]]:
    """Return the systematic faults of one algorithm's schedules, two server and two client ones."""
    shared = [item for item in systematic() if item[0].key not in PERSONAL_ONLY]
    mine = shared[0::2] if algorithm == "fedavg" else shared[1::2]
    if algorithm == "quped":
        mine = [*mine, *(item for item in systematic() if item[0].key in PERSONAL_ONLY)]
    server = [item for item in mine if item[0].role == "server"]
    others = [item for item in mine if item[0].role != "server"]
    # Neighbours in the table are the same step: spread them over schedules.
    count = -(-max(len(server), len(others)) // 2)
    return [[*server[i::count], *others[i::count]] for i in range(count)]


def _with_needs(item: tuple[Point, Moment, str], rng: random.Random) -> list[Fault]:
    """Return a systematic fault, with what has to happen before it can."""
    point, moment, action = item
    faults: list[Fault] = []
    if point.needs == "restart":
        faults.append(Outside("server", rng.uniform(0.2, 1.5), "kill"))
    if point.needs == "terminate":
        faults.append(Outside("server", rng.uniform(0.2, 1.5), "terminate"))
    if point.needs == "failure":
        name = rng.choice(NAMES)
        faults.append(Step(name, "worker", "execute", "before", rng.randint(1, 3), "kill"))
    nth = 1 if point.needs else rng.randint(1, max(1, point.often * 2 // 3))
    process = "server" if point.role == "server" else rng.choice(NAMES)
    return [*faults, Step(process, point.role, point.name, moment, nth, action)]


def _random_fault(rng: random.Random, algorithm: str) -> Fault:
    kind = rng.random()
    if kind < 0.5:
        return _random_step(rng, algorithm)
    return _random_network(rng) if kind < 0.8 else _random_outside(rng)


def _random_step(rng: random.Random, algorithm: str) -> Step:
    role = rng.choice(("server", "server", "client", "client", "worker"))
    points = [p for p in POINTS if p.role == role and not p.needs]
    if algorithm != "quped":
        points = [p for p in points if p.key not in PERSONAL_ONLY]
    point = rng.choice(points)
    moment = rng.choice(point.moments)
    actions = ["kill", "kill", "stop", "delay"]
    if point.writes and moment != "after":
        actions += ["enospc", "enospc"]
    action = rng.choice(actions)
    seconds = 0.0
    if action in ("stop", "delay"):
        seconds = round(rng.uniform(0.2, 2.0), 1)
    elif action == "enospc":
        seconds = rng.choice((0.0, 1.0, 2.0))
    process = "server" if role == "server" else rng.choice(NAMES)
    nth = rng.randint(1, point.often)
    return Step(process, role, point.name, moment, nth, action, seconds)


def _random_network(rng: random.Random) -> Network:
    action = rng.choice(("reset", "fin", "stall", "refuse", "delay", "throttle", "corrupt"))
    direction = rng.choice(("up", "down"))
    after = rng.uniform(0, 2)
    size = rng.randint(1, 60_000) if action in ("reset", "fin", "stall") else 0
    seconds = round(rng.uniform(0.5, 3.0), 1) if action in ("stall", "refuse") else 0.0
    if action == "delay":
        seconds = round(rng.uniform(0.02, 0.2), 2)
    if action == "throttle":
        size = rng.randint(8_000, 60_000)
    return Network(rng.choice(NAMES), after, action, direction, size, seconds)


def _random_outside(rng: random.Random) -> Outside:
    process = rng.choice(("server", *NAMES))
    action = rng.choice(("kill", "kill", "stop", "terminate"))
    seconds = round(rng.uniform(0.3, 3.0), 1) if action == "stop" else 0.0
    return Outside(process, rng.uniform(0, 3), action, seconds)


def _clock(rng: random.Random, certificates: bool) -> Outside:
    jump = rng.choice((-86_400.0, -3_600.0, 3_600.0, 86_400.0))
    process = rng.choice(("server", *NAMES))
    if certificates:  # before its certificate began a device does not start, and says so
        jump = abs(jump)
    return Outside(process, rng.uniform(0, 2), "clock", jump)


# --- what runs -----------------------------------------------------------------------------------

RUN = """
[run]
name = "{name}"
algorithm = "{algorithm}"
rounds = {rounds}
seed = 5
on_lost_state = "exclude"
[workload]
name = "tiny"
[clients]
expected = 6
{clients}
[round]
deadline_seconds = {deadline}
retries = 100
[settings]
{settings}
[wire]
{wire}
{keep}
[evaluate]
every = 4
deadline_seconds = 8
{tiers}
"""
ROUNDS = 8
_FEDAVG = "local_steps = 3\nbatch_size = 10\nlearning_rate = 0.1"
_QUPED = f"{_FEDAVG}\ncentre_rate = 0.001"
_TIERS = """
[[tiers]]
name = "phone"
variant = "small"
bits = 2
[[tiers]]
name = "pc"
variant = "large"
"""


def runfile(
    algorithm: str,
    *,
    over_select: bool,
    name: str,
    rounds: int = ROUNDS,
    keep: int | None = 0,
) -> str:
    """Return a run file: six clients, all counted, or four of six under a short deadline."""
    clients, deadline = "minimum = 6", 3600.0
    if over_select:
        clients, deadline = "minimum = 2\ncount = 4\nover_select = 1.5", 3.0
    personal = algorithm == "quped"
    return RUN.format(
        name=name,
        algorithm=algorithm,
        rounds=rounds,
        keep="" if keep is None else f"[keep]\nrounds = {keep}",
        clients=clients,
        deadline=deadline,
        settings=_QUPED if personal else _FEDAVG,
        wire="" if personal else "up_bits = 8\ndown_bits = 8",
        tiers=_TIERS if personal else "",
    )
