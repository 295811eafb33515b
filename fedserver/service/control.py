"""The operator-facing service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from fedserver.rounds import lines, view
from fedserver.rounds.driver import Driver
from fedserver.rounds.engine import Engine
from fedserver.rounds.operations import RunDesk
from fedserver.rounds.replay import Replay, plan_replay, removed_since
from fedserver.service.identity import Admission, IdentityControl
from fedserver.service.status import RefusedError, abort, refusals
from fedserver.storage.database import DatabaseThread
from fedserver.storage.payloads import PayloadStore
from motley.wire import iter_frames
from motley.wire.stubs import common_pb2, control_pb2, control_pb2_grpc

if TYPE_CHECKING:
    from fedserver.service.status import Context

WATCH_INTERVAL = 0.2
"""Seconds between two records of a watched run at least."""


RECHECK_SECONDS = 5.0


class ControlService(IdentityControl, control_pb2_grpc.ControlServicer):
    """Submits, shows and steers runs; lets clients in and shuts them out."""

    def __init__(
        self,
        engine: Engine,
        driver: Driver,
        database: DatabaseThread,
        payloads: PayloadStore,
        admission: Admission | None = None,
    ) -> None:
        self._admission = admission
        self._engine, self._driver, self._runs = engine, driver, RunDesk(engine)
        self._database, self._payloads = database, payloads

    async def _unary(self, context: Context, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            with refusals(function.__name__, "operator"):
                return await self._database(function, *arguments)
        except RefusedError as refusal:
            await abort(context, refusal)

    async def Submit(  # noqa: N802
        self, request: control_pb2.SubmitRequest, context: Context
    ) -> control_pb2.RunReply:
        """Queue a run."""
        run_id = await self._unary(context, self._runs.submit, request.runfile, request.source)
        return control_pb2.RunReply(run_id=run_id, status="queued")

    async def ListRuns(  # noqa: N802
        self, request: control_pb2.ListRunsRequest, context: Context
    ) -> control_pb2.Records:
        """Return a summary of every run."""
        return _records(await self._unary(context, view.list_runs, self._engine))

    async def ListClients(  # noqa: N802
        self, request: control_pb2.ListClientsRequest, context: Context
    ) -> control_pb2.Records:
        """Return every client."""
        return _records(await self._unary(context, view.list_clients, self._engine))

    async def Show(  # noqa: N802
        self, request: control_pb2.RunRequest, context: Context
    ) -> control_pb2.Record:
        """Return one run whole."""
        record = await self._unary(context, view.run_record, self._engine, request.run)
        return control_pb2.Record(json=lines.to_json(record))

    async def Watch(  # noqa: N802
        self, request: control_pb2.RunRequest, context: Context
    ) -> AsyncIterator[control_pb2.Record]:
        """Stream a run's record at every change; `history` holds what is new since the last."""
        newest = 0
        try:
            with refusals("Watch", "operator"), self._driver.watching() as changed:
                while True:
                    changed.clear()
                    record = await self._database(
                        view.run_record, self._engine, request.run, after_round_id=newest
                    )
                    newest = max([newest, *(entry["id"] for entry in record["history"])])
                    yield control_pb2.Record(json=lines.to_json(record))
                    if view.has_ended(record):
                        return
                    await asyncio.sleep(WATCH_INTERVAL)
                    with contextlib.suppress(asyncio.TimeoutError):
                        # Clients that leave change the record without an event.
                        await asyncio.wait_for(changed.wait(), RECHECK_SECONDS)
        except RefusedError as refusal:
            await abort(context, refusal)

    async def Stop(  # noqa: N802
        self, request: control_pb2.RunRequest, context: Context
    ) -> control_pb2.RunReply:
        """Stop a run."""
        run_id, status = await self._unary(context, self._runs.stop, request.run)
        return control_pb2.RunReply(run_id=run_id, status=status)

    async def Resume(  # noqa: N802
        self, request: control_pb2.RunRequest, context: Context
    ) -> control_pb2.RunReply:
        """Put a paused or stopped run back into the queue."""
        run_id, status = await self._unary(context, self._runs.resume, request.run)
        return control_pb2.RunReply(run_id=run_id, status=status)

    async def Extend(  # noqa: N802
        self, request: control_pb2.ExtendRequest, context: Context
    ) -> control_pb2.RunReply:
        """Add rounds to a run."""
        run_id, status = await self._unary(context, self._runs.extend, request.run, request.rounds)
        return control_pb2.RunReply(run_id=run_id, status=status)

    async def Remove(  # noqa: N802
        self, request: control_pb2.RunRequest, context: Context
    ) -> control_pb2.RunReply:
        """Forget a run that has ended, and the payloads that nothing else needs."""
        run_id, status, digests = await self._unary(context, self._runs.remove, request.run)
        self._payloads.suspect(digests)
        self._driver.wake(())
        return control_pb2.RunReply(run_id=run_id, status=status)

    async def Fetch(  # noqa: N802
        self, request: control_pb2.FetchRequest, context: Context
    ) -> AsyncIterator[common_pb2.Frame]:
        """Stream a global model as a payload file."""
        try:
            with refusals("Fetch", "operator"):
                digest = await self._database(
                    view.model_digest, self._engine, request.run, request.round
                )
                frames = iter_frames(self._payloads.path(digest))
                while True:
                    frame = await asyncio.to_thread(next, frames, None)
                    if frame is None:
                        return
                    yield common_pb2.Frame(
                        offset=frame.offset, data=bytes(frame.data), crc32=frame.crc32
                    )
        except RefusedError as refusal:
            await abort(context, refusal)

    async def Replay(  # noqa: N802
        self, request: control_pb2.RunRequest, context: Context
    ) -> AsyncIterator[control_pb2.Record]:
        """Recompute every closed round's model from the record; one record a round."""
        try:
            with refusals("Replay", "operator"):
                plan: list[Replay] = await self._database(plan_replay, self._engine, request.run)
                for entry in plan:
                    record = await asyncio.to_thread(entry.run, self._payloads)
                    if record["problem"] and not record["pruned"]:
                        removed = await self._database(removed_since, self._engine, entry)
                        if removed:
                            record |= {"pruned": True, "problem": removed}
                    yield control_pb2.Record(json=lines.to_json(record))
        except RefusedError as refusal:
            await abort(context, refusal)


def _records(records: list[dict[str, Any]]) -> control_pb2.Records:
    return control_pb2.Records(
        records=[control_pb2.Record(json=lines.to_json(record)) for record in records]
    )
