"""What is on record of how clients behave: bytes of a day, and times aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, insert, select, update
from structlog.stdlib import get_logger

from fedserver.rounds.engine import Engine
from fedserver.storage.schema import clients, tasks, traffic

log = get_logger()

DAY = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A client that is not served for a while."""

    client: str
    session: str
    seconds: float
    """From now on."""
    reason: str


class Standing:
    """Reads and writes the record. Methods run on the database thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def traffic(self, client: str, day: int) -> int:
        """Return the bytes of a client on a day (days since 1970, UTC)."""
        query = select(traffic.c.bytes).where(traffic.c.client == client, traffic.c.day == day)
        with self._engine.database.connect() as tx:
            return tx.scalar(query) or 0

    def add_traffic(self, client: str, day: int, count: int) -> None:
        """Add to the bytes of a client's day."""
        with self._engine.database.begin() as tx:
            _add_traffic(tx, client, day, count)

    def add_traffic_of_all(self, rows: Sequence[tuple[str, int, int]]) -> None:
        """Add to the bytes of many days, each (client, day, count), in one transaction."""
        with self._engine.database.begin() as tx:
            for client, day, count in rows:
                _add_traffic(tx, client, day, count)

    def note_seen(self, seen: Mapping[str, float]) -> None:
        """Record when clients spoke last, in monotonic seconds by name.

        For when they leave and when the server stops: a check-in that says nothing new writes
        nothing.
        """
        if not seen:
            return
        clock = self._engine.clock
        since = clock.wall() - clock.monotonic()
        with self._engine.database.begin() as tx:
            tx.execute(
                update(clients)
                .where(clients.c.name == bindparam("client"))
                .values(last_seen=bindparam("wall")),
                [{"client": name, "wall": since + moment} for name, moment in seen.items()],
            )

    def put_aside(self, client: str, session: str, seconds: float, reason: str) -> None:
        """Record a time aside and end the client's open tasks, so that no round waits for it.

        `session` is "" where the name is proven. Otherwise only the device that the record knows
        by this name is meant: whoever else said the name does not harm it. Finish tasks stay,
        since nobody else can do them.
        """
        now, engine = self._engine.clock.wall(), self._engine
        mine = clients.c.name == client
        if session:
            mine &= clients.c.session == session
        with engine.database.begin() as tx:
            values = {"set_aside_until": now + seconds, "set_aside": reason, "last_seen": now}
            if tx.execute(update(clients).where(mine).values(**values)).rowcount == 0:
                return
            tx.execute(
                update(tasks)
                .where(
                    tasks.c.client == client,
                    tasks.c.kind != "finish",
                    tasks.c.status.in_(("planned", "offered", "taken")),
                )
                .values(status="failed", reason=f"{client} was put aside: {reason}", ended=now)
            )
        engine.changed()

    def put_asides(self, longest: float) -> list[SetAside]:
        """Return the clients that are still aside, none for longer than `longest` seconds.

        The bound is for a clock that was set back meanwhile.
        """
        now = self._engine.clock.wall()
        with self._engine.database.begin() as tx:
            tx.execute(
                update(clients)
                .where(clients.c.set_aside_until > now + longest)
                .values(set_aside_until=now + longest)
            )
            rows = tx.execute(select(clients).where(clients.c.set_aside_until > now)).all()
        return [
            SetAside(
                client=row.name,
                session=row.session,
                seconds=row.set_aside_until - now,
                reason=row.set_aside,
            )
            for row in rows
        ]

    def partial_uploads(self, client: str, task_ids: list[str]) -> list[str]:
        """Return which of these tasks are this client's."""
        with self._engine.database.connect() as tx:
            query = select(tasks.c.id).where(tasks.c.client == client, tasks.c.id.in_(task_ids))
            return list(tx.scalars(query))


def _add_traffic(tx: Connection, client: str, day: int, count: int) -> None:
    known = tx.execute(
        update(traffic)
        .where(traffic.c.client == client, traffic.c.day == day)
        .values(bytes=traffic.c.bytes + count)
    )
    if known.rowcount == 0:
        tx.execute(insert(traffic).values(client=client, day=day, bytes=count))
