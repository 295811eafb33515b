"""What transfers of both directions stand on."""

from __future__ import annotations

from dataclasses import dataclass

from fedserver.rounds.engine import Engine
from fedserver.service.limits import Guard
from fedserver.service.quota import Quota
from fedserver.service.transfers import FileThreads, FrameMemory, Turns
from fedserver.storage.database import DatabaseThread
from fedserver.storage.payloads import PayloadStore


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The server's rooms, and the limits that uploads and downloads share."""

    engine: Engine
    database: DatabaseThread
    payloads: PayloadStore
    guard: Guard
    quota: Quota
    turns: Turns
    memory: FrameMemory
    files: FileThreads
