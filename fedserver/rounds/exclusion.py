"""Clients that left a run for good: shut out by the operator, or at the end of their budget."""

from __future__ import annotations

from sqlalchemy import Case, Connection, case, literal, or_, select, update
from structlog.stdlib import get_logger

from fedserver.rounds.closing import OPEN_TASKS
from fedserver.storage.schema import clients, members, runs, tasks
from motley.errors import PrivacyBudgetError

log = get_logger()

_MARK = "revoked: "
"""How the reason of such an exclusion begins; others are not touched when a client may return."""
_SPENT = f"{PrivacyBudgetError.code}: "
"""How the reason begins of who trains no more, and takes the finished model all the same."""
_BEFORE = "; before that "
"""What stands between the reason of such an exclusion and the one that held before it."""
MAY_RECEIVE = or_(members.c.excluded == "", members.c.excluded.startswith(_SPENT, autoescape=True))
"""Members who get a run's finished model: to receive it spends no privacy."""


def shut_out(tx: Connection, client: str, reason: str, now: float) -> None:
    """Take a client out of every run that goes on, or may; its open tasks fail.

    Args:
        tx: the transaction in which the client is revoked.
        client: its name.
        reason: why, for the record.
        now: wall clock.
    """
    waiting = tasks.c.client == client, tasks.c.status.in_(OPEN_TASKS)
    concerned = select(runs.c.id).where(runs.c.status != "finished")
    unfinished = select(tasks.c.run).where(*waiting)
    out = tx.execute(
        update(members)
        .where(members.c.client == client, MAY_RECEIVE)
        .where(members.c.run.in_(concerned) | members.c.run.in_(unfinished))
        .values(excluded=_marked(reason))
    )
    failed = tx.execute(
        update(tasks).where(*waiting).values(status="failed", reason=f"{_MARK}{reason}", ended=now)
    )
    log.warning("client_shut_out", client=client, runs=out.rowcount, tasks=failed.rowcount)


def take_back(tx: Connection, client: str) -> None:
    """Let a client back into the runs that it was shut out of: a device joined in its name.

    Where the name's budget was spent before, it stays spent: the new device's ledger is empty, but
    the data may be the same, and the run promised one epsilon.
    """
    own = members.c.client == client, members.c.excluded.startswith(_MARK)
    for run, excluded in tx.execute(select(members.c.run, members.c.excluded).where(*own)).all():
        _, _, before = excluded.rpartition(_BEFORE + _SPENT)
        reason = _SPENT + before if before != excluded else ""
        tx.execute(
            update(members)
            .where(members.c.run == run, members.c.client == client)
            .values(excluded=reason)
        )


def revoked_names(tx: Connection) -> set[str]:
    """Return the clients that are shut out."""
    return set(tx.scalars(select(clients.c.name).where(clients.c.revoked != "")))


def keep_out(tx: Connection, run_id: str) -> None:
    """Exclude the members of a run that goes on who are revoked; older reasons are not lost."""
    revoked = select(clients.c.name, clients.c.revoked).where(clients.c.revoked != "")
    for name, reason in tx.execute(revoked).all():
        tx.execute(
            update(members)
            .where(members.c.run == run_id, members.c.client == name, MAY_RECEIVE)
            .values(excluded=_marked(reason))
        )


def forgive(tx: Connection, run_id: str) -> None:
    """Forget why members of a run are excluded, but for those who are revoked."""
    revoked = select(clients.c.name).where(clients.c.revoked != "")
    tx.execute(
        update(members)
        .where(members.c.run == run_id, members.c.client.not_in(revoked))
        .values(excluded="")
    )


def _marked(reason: str) -> Case[str]:
    """Return the new reason of a revoked member, followed by the one that it has."""
    why = f"{_MARK}{reason}"
    return case((members.c.excluded == "", why), else_=literal(why + _BEFORE) + members.c.excluded)
