"""Payloads and outbox entries that client tests work with."""

from __future__ import annotations

import hashlib

import numpy as np

from fedclient.outbox import Outbox, Update, UpdateMeta


def random_bytes(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def put_update(outbox: Outbox, content: bytes, task_id: str = "task-1") -> Update:
    """Commit an update to an outbox as a finished training would."""
    outbox.prepare(task_id).write_bytes(content)
    return outbox.commit(
        UpdateMeta(
            task_id=task_id,
            run_id="run-1",
            run_name="demo",
            round=1,
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
            samples=10,
            train_seconds=1.0,
        )
    )
