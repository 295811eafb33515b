"""Certificates, join tokens, daily traffic, and payloads that housekeeping removed."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Boolean, Column, Float, Integer, String, Text, false, inspect, text

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add tables, columns and indexes; alembic's own table takes the place of `meta`."""
    _identity()
    _traffic()
    _client_columns()
    op.add_column("rounds", Column("pruned", Boolean, nullable=False, server_default=false()))
    op.create_index("rounds_by_pruned", "rounds", ["pruned"])
    op.create_index("tasks_by_payload", "tasks", ["payload"])
    op.create_index("tasks_by_update", "tasks", ["update"])
    if inspect(op.get_bind()).has_table("meta"):
        op.drop_table("meta")


def _identity() -> None:
    op.create_table(
        "join_tokens",
        Column("id", String, primary_key=True),
        Column("secret_sha256", String, nullable=False),
        Column("created", Float, nullable=False),
        Column("expires", Float, nullable=False),
        Column("uses", Integer, nullable=False),
        Column("uses_left", Integer, nullable=False),
        Column("client", String, nullable=False),
        Column("revoked", Boolean, nullable=False),
    )
    op.create_table(
        "certificates",
        Column("serial", String, primary_key=True),
        Column("role", String, nullable=False),
        Column("name", String, nullable=False),
        Column("key_sha256", String, nullable=False),
        Column("token", String, nullable=False),
        Column("not_before", Float, nullable=False),
        Column("not_after", Float, nullable=False),
        Column("revoked", Text, nullable=False),
    )
    op.create_index("certificates_by_name", "certificates", ["role", "name"])


def _traffic() -> None:
    op.create_table(
        "traffic",
        Column("client", String, primary_key=True),
        Column("day", Integer, primary_key=True),
        Column("bytes", Integer, nullable=False),
    )


def _client_columns() -> None:
    # Rows that are there need a value: these columns have one in the database too.
    op.add_column("clients", Column("revoked", Text, nullable=False, server_default=text("''")))
    op.add_column("clients", Column("set_aside_until", Float, nullable=False, server_default="0"))
    op.add_column("clients", Column("set_aside", Text, nullable=False, server_default=text("''")))
