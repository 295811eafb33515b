"""The tables as version 1 of the program made them, before there were migrations."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

SCHEMA_VERSION = 1
"""Raised when the tables change; a data directory of another version is refused."""

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", String, nullable=False),
)

clients = Table(
    "clients",
    metadata,
    Column("name", String, primary_key=True),
    Column("session", String, nullable=False),
    Column("profile", JSON, nullable=False),
    Column("capabilities", JSON, nullable=False),
    Column("first_seen", Float, nullable=False),
    Column("last_seen", Float, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", String, primary_key=True),
    Column("sequence", Integer, nullable=False, unique=True),
    Column("name", String, nullable=False),
    Column("runfile", Text, nullable=False),
    Column("init", Text, nullable=False, default=""),  # payload file to start from
    # queued, preparing, waiting, running, paused, finished, stopped, failed
    Column("status", String, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("round", Integer, nullable=False, default=0),  # last closed training round
    Column("rounds", Integer, nullable=False),
    # Rounds up to this row do not count as retries: the operator resumed the run after them.
    Column("retry_from", Integer, nullable=False, default=0),
    Column("state", String, nullable=False, default=""),  # payload digest of the newest model
    Column("model", JSON),  # unit tables by variant, versions; from the preparation
    Column("submitted", Float, nullable=False),
    Column("started", Float),
    Column("ended", Float),
)

members = Table(
    "members",
    metadata,
    Column("run", ForeignKey("runs.id"), primary_key=True),
    Column("client", String, primary_key=True),
    Column("tier", String, nullable=False),
    Column("variant", String, nullable=False),
    Column("threads", Integer, nullable=False),
    Column("profile", JSON, nullable=False),
    # Personal state to start from: id of the last task of this client that was counted.
    Column("counted_version", String, nullable=False, default=""),
    Column("excluded", Text, nullable=False, default=""),  # why; "" while it takes part
)

rounds = Table(
    "rounds",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run", ForeignKey("runs.id"), nullable=False),
    Column("round", Integer, nullable=False),
    Column("kind", String, nullable=False),  # train, evaluate
    Column("attempt", Integer, nullable=False, default=0),
    # opening, open, closing, closed, abandoned
    Column("status", String, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("goal", Integer, nullable=False),
    Column("minimum", Integer, nullable=False),
    # Deadlines count the server's up-time: what is left is stored, not a point in time.
    Column("seconds_left", Float, nullable=False),
    Column("state_before", String, nullable=False),
    Column("state_after", String, nullable=False, default=""),
    Column("opened", Float),
    Column("closed", Float),
    Column("phases", JSON, nullable=False, default=dict),  # seconds by phase
    Column("metrics", JSON, nullable=False, default=dict),  # means over counted clients
    Index("rounds_by_run", "run", "round"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", String, primary_key=True),
    Column("run", ForeignKey("runs.id"), nullable=False),
    Column("round_id", ForeignKey("rounds.id")),  # none for finish tasks
    Column("client", String, nullable=False),
    Column("kind", String, nullable=False),  # train, evaluate, finish
    # planned, offered, taken, counted, surplus, late, failed, done
    Column("status", String, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("spec", JSON, nullable=False),  # the plan and what else the client is told
    Column("payload", String, nullable=False, default=""),  # digest of the broadcast
    Column("update", String, nullable=False, default=""),  # digest of the accepted update
    Column("update_bytes", Integer, nullable=False, default=0),
    Column("bytes_down", Integer, nullable=False, default=0),
    Column("bytes_up", Integer, nullable=False, default=0),
    Column("scalars", JSON, nullable=False, default=dict),  # measured at acceptance
    Column("metrics", JSON, nullable=False, default=dict),
    Column("seconds", Float, nullable=False, default=0.0),
    Column("restarted", Boolean, nullable=False, default=False),
    Column("ended", Float),
    Index("tasks_by_round", "round_id", "client"),
    Index("tasks_by_client", "client", "status"),
    Index("tasks_by_run", "run", "status"),
)
