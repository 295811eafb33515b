"""Every step of server and client that transfers or commits, as a place where a fault can be put.

The product has no hooks: `fault_shim.py` wraps the functions that are named here. A step inside
another one is a point of its own, so that "during" the outer step is "before" the inner one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["server", "client", "worker"]
Moment = Literal["before", "during", "after"]

ENDS: tuple[Moment, ...] = ("before", "after")
ALL: tuple[Moment, ...] = ("before", "during", "after")


@dataclass(frozen=True)
class Point:
    """One step."""

    role: Role
    name: str
    target: str
    """`module:Class.method` or `module:function`; "" for transactions, which have no one place."""
    moments: tuple[Moment, ...] = ENDS
    often: int = 6
    """About how often it is passed in one run by one process."""
    writes: bool = False
    """Whether it writes to the disk: a full disk can show here."""
    needs: str = ""
    """What has to happen first: "restart", "terminate" or "failure"; "" for nothing."""

    @property
    def key(self) -> str:
        """Name with its role."""
        return f"{self.role}:{self.name}"


def _transaction(role: Role, name: str, often: int, needs: str = "") -> list[Point]:
    return [
        Point(role, f"begin {name}", "", ("before",), often, needs=needs),
        Point(role, f"commit {name}", "", ENDS, often, writes=True, needs=needs),
    ]


FRAMES = "motley.wire.frames:FrameWriter"
DURABLE = "motley.wire.durable"
PAYLOAD = "motley.wire.payload"
JOBS = "fedserver.rounds.jobs"
STORE = "fedserver.storage.payloads:PayloadStore"
DISK = "fedclient.disk:Disk"
OUTBOX = "fedclient.outbox:Outbox"

SERVER: tuple[Point, ...] = (
    Point("server", "frame.write", f"{FRAMES}.write", ALL, 20, writes=True),
    Point("server", "frame.verify", f"{FRAMES}.verify", ENDS, 12, writes=True),
    Point("server", "frames.drain", "fedserver.service.intake:Intake._drain", ENDS, 12),
    Point("server", "put_in_place", f"{DURABLE}:put_in_place", ALL, 4, writes=True),
    Point("server", "sync_folder", f"{DURABLE}:sync_folder", ENDS, 12, writes=True),
    Point("server", "begin_incoming", f"{STORE}.begin_incoming", ENDS, 12, writes=True),
    Point("server", "drop_incoming", f"{STORE}.drop_incoming", ENDS, 12),
    Point("server", "forget_incoming", f"{STORE}.forget_incoming", ENDS, 2),
    Point("server", "keep", f"{STORE}.keep", ENDS, 12, writes=True),
    Point("server", "adopt", f"{STORE}.adopt", ENDS, 4),
    Point("server", "remove_doomed", f"{STORE}.remove_doomed", ENDS, 2),
    Point("server", "payload.segment", f"{PAYLOAD}:_write_segment", ENDS, 12, writes=True),
    Point("server", "payload.write", f"{PAYLOAD}:write_payload", ENDS, 4, writes=True),
    Point("server", "check_update", "fedserver.rounds.updates:check_update", ENDS, 12),
    Point("server", "job prepare", f"{JOBS}:PrepareJob.run", ENDS, 1),
    Point("server", "job open", f"{JOBS}:OpenJob.run", ENDS, 4),
    Point("server", "job fold", f"{JOBS}:FoldJob.run", ENDS, 4),
    *_transaction("server", "submit", 1),
    *_transaction("server", "tick", 12),
    *_transaction("server", "apply PrepareJob", 1),
    *_transaction("server", "apply OpenJob", 4),
    *_transaction("server", "apply FoldJob", 4),
    *_transaction("server", "next_tasks", 12),
    *_transaction("server", "accept_all", 12),
    *_transaction("server", "count_downloads", 12),
    *_transaction("server", "add_traffic_of_all", 1, "terminate"),
    *_transaction("server", "report_result", 6),
    *_transaction("server", "judge", 2),
    *_transaction("server", "open_database", 1, "restart"),
    *_transaction("server", "enrol", 1, "restart"),
    *_transaction("server", "recover", 1, "restart"),
    *_transaction("server", "save_time_left", 1, "terminate"),
    *_transaction("server", "report_failure", 1, "failure"),
)

CLIENT: tuple[Point, ...] = (
    Point("client", "frame.write", f"{FRAMES}.write", ALL, 12, writes=True),
    Point("client", "frame.verify", f"{FRAMES}.verify", ENDS, 4, writes=True),
    Point("client", "frame.finish", f"{FRAMES}.finish", ENDS, 4, writes=True),
    Point("client", "disk.write", f"{DISK}.write", ALL, 4, writes=True),
    Point("client", "disk.move", f"{DISK}.move", ALL, 4, writes=True),
    Point("client", "disk.sync", f"{DISK}.sync", ENDS, 8, writes=True),
    Point("client", "disk.remove", f"{DISK}.remove", ENDS, 8),
    Point("client", "disk.publish", f"{DISK}.publish", ALL, 4, writes=True),
    Point("client", "outbox.prepare", f"{OUTBOX}.prepare", ENDS, 4, writes=True),
    Point("client", "outbox.commit", f"{OUTBOX}.commit", ENDS, 4, writes=True),
    Point("client", "outbox.remove", f"{OUTBOX}.remove", ENDS, 4),
    Point("client", "download", "fedclient.transfer.download:_attempt", ENDS, 4),
    Point("client", "upload", "fedclient.transfer.upload:_Attempt.run", ENDS, 4),
    Point("client", "check_in", "fedclient.connection:Connection.check_in", ENDS, 6),
    Point("client", "report", "fedclient.connection:Connection.report", ENDS, 2),
)

WORKER: tuple[Point, ...] = (
    Point("worker", "execute", "motley.execution.executor:Executor.run", ENDS, 4),
    Point("worker", "payload.segment", f"{PAYLOAD}:_write_segment", ENDS, 12, writes=True),
    Point("worker", "payload.write", f"{PAYLOAD}:write_payload", ENDS, 4, writes=True),
    Point("worker", "put_in_place", f"{DURABLE}:put_in_place", ALL, 4, writes=True),
    Point("worker", "sync_folder", f"{DURABLE}:sync_folder", ENDS, 4, writes=True),
    Point("worker", "reply", "fedclient.worker:TrainingProcess._say", ENDS, 4),
    Point("worker", "personal.save", "fedclient.personal:PersonalFiles.save", ENDS, 4, writes=True),
    Point("worker", "personal.load", "fedclient.personal:PersonalFiles.load", ENDS, 4),
    Point("worker", "disk.move", f"{DISK}.move", ALL, 3, writes=True),
    Point("worker", "disk.remove", f"{DISK}.remove", ENDS, 3),
    Point("worker", "disk.sync", f"{DISK}.sync", ENDS, 3, writes=True),
)

POINTS: tuple[Point, ...] = (*SERVER, *CLIENT, *WORKER)

RENEWALS: tuple[Point, ...] = (
    Point("server", "renew", "fedserver.identity.registry:Registry.renew", ENDS, 1, writes=True),
    Point("client", "renew", "fedclient.identity.renewal:Renewal._renew", ENDS, 1),
    Point("client", "identity.put", "fedclient.identity.store:IdentityStore._put", ENDS, 1),
)
"""Steps of runs with certificates that run out within them."""

RARE: tuple[Point, ...] = (
    Point("server", "back_up", "fedserver.storage.database:_back_up", ENDS, 1, writes=True),
    Point("server", "migrate", "fedserver.storage.database:_migrate", ENDS, 1, writes=True),
)
"""Steps of no ordinary run: single disturbances go through them."""
PERSONAL_ONLY = frozenset(
    {
        "worker:personal.save",
        "worker:personal.load",
        "worker:disk.move",
        "worker:disk.remove",
        "worker:disk.sync",
    }
)
"""Passed only by methods that keep a personal state."""


def of_role(role: str) -> tuple[Point, ...]:
    """Return the points of one kind of process."""
    return tuple(point for point in (*POINTS, *RENEWALS, *RARE) if point.role == role)
