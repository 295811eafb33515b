"""The tables of the first version."""

from __future__ import annotations

from alembic import op
from sqlalchemy import JSON, Boolean, Column, Float, ForeignKey, Integer, String, Text

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create all tables."""
    _clients()
    _runs()
    _members()
    _rounds()
    _tasks()


def _clients() -> None:
    op.create_table(
        "clients",
        Column("name", String, primary_key=True),
        Column("session", String, nullable=False),
        Column("profile", JSON, nullable=False),
        Column("capabilities", JSON, nullable=False),
        Column("first_seen", Float, nullable=False),
        Column("last_seen", Float, nullable=False),
    )


def _runs() -> None:
    op.create_table(
        "runs",
        Column("id", String, primary_key=True),
        Column("sequence", Integer, nullable=False, unique=True),
        Column("name", String, nullable=False),
        Column("runfile", Text, nullable=False),
        Column("init", Text, nullable=False),
        Column("status", String, nullable=False),
        Column("reason", Text, nullable=False),
        Column("round", Integer, nullable=False),
        Column("rounds", Integer, nullable=False),
        Column("retry_from", Integer, nullable=False),
        Column("state", String, nullable=False),
        Column("model", JSON),
        Column("submitted", Float, nullable=False),
        Column("started", Float),
        Column("ended", Float),
    )


def _members() -> None:
    op.create_table(
        "members",
        Column("run", String, ForeignKey("runs.id"), primary_key=True),
        Column("client", String, primary_key=True),
        Column("tier", String, nullable=False),
        Column("variant", String, nullable=False),
        Column("threads", Integer, nullable=False),
        Column("profile", JSON, nullable=False),
        Column("counted_version", String, nullable=False),
        Column("excluded", Text, nullable=False),
    )


def _rounds() -> None:
    op.create_table(
        "rounds",
        Column("id", Integer, primary_key=True),
        Column("run", String, ForeignKey("runs.id"), nullable=False),
        Column("round", Integer, nullable=False),
        Column("kind", String, nullable=False),
        Column("attempt", Integer, nullable=False),
        Column("status", String, nullable=False),
        Column("reason", Text, nullable=False),
        Column("goal", Integer, nullable=False),
        Column("minimum", Integer, nullable=False),
        Column("seconds_left", Float, nullable=False),
        Column("state_before", String, nullable=False),
        Column("state_after", String, nullable=False),
        Column("opened", Float),
        Column("closed", Float),
        Column("phases", JSON, nullable=False),
        Column("metrics", JSON, nullable=False),
    )
    op.create_index("rounds_by_run", "rounds", ["run", "round"])


def _tasks() -> None:
    op.create_table(
        "tasks",
        Column("id", String, primary_key=True),
        Column("run", String, ForeignKey("runs.id"), nullable=False),
        Column("round_id", Integer, ForeignKey("rounds.id")),
        Column("client", String, nullable=False),
        Column("kind", String, nullable=False),
        Column("status", String, nullable=False),
        Column("reason", Text, nullable=False),
        Column("spec", JSON, nullable=False),
        Column("payload", String, nullable=False),
        Column("update", String, nullable=False),
        Column("update_bytes", Integer, nullable=False),
        Column("bytes_down", Integer, nullable=False),
        Column("bytes_up", Integer, nullable=False),
        Column("scalars", JSON, nullable=False),
        Column("metrics", JSON, nullable=False),
        Column("seconds", Float, nullable=False),
        Column("restarted", Boolean, nullable=False),
        Column("ended", Float),
    )
    op.create_index("tasks_by_round", "tasks", ["round_id", "client"])
    op.create_index("tasks_by_client", "tasks", ["client", "status"])
    op.create_index("tasks_by_run", "tasks", ["run", "status"])
