"""Alembic's entry: runs revisions on the connection that `storage/database.py` hands in.

The caller's transaction is the only one: either all revisions are on record, or none.
"""

from __future__ import annotations

from alembic import context

from fedserver.storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
