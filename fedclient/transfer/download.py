"""A broadcast from the server to a file, resumed at its length after any break."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from grpc import StatusCode
from structlog.stdlib import get_logger

from fedclient.errors import TransferError
from fedclient.transfer.peer import Peer, is_for_now, pause, raise_if_final
from fedclient.transfer.speed import LinkRecord
from motley.errors import PayloadError
from motley.waiting import settled
from motley.wire import FrameError, FrameWriter, file_sha256
from motley.wire.stubs import common_pb2, federation_pb2

log = get_logger()

DAMAGED_ATTEMPTS = 5
"""Damaged frames or payloads in a row, with no progress between, that give up the task."""


async def download(
    peer: Peer, ref: common_pb2.PayloadRef, task_id: str, target: Path, link: LinkRecord
) -> Path:
    """Fetch a payload to `target` (named by its digest) and return that.

    What is there already is not fetched again: neither the whole payload nor the beginning in
    `TARGET.part`; a beginning that the server cannot go on from is dropped. Breaks and pauses are
    retried for ever. Nothing is synced, since it can be fetched again: what lies here from before
    is hashed.

    Raises:
        TransferError: the server does not have it for us, or what it sends stays damaged.
        OSError: the disk refused.
    """
    if await asyncio.to_thread(_is_held, target, ref):
        log.debug("download_held", task=task_id, payload=target.name)
        return target
    backoff, damaged, seen, furthest = peer.backoff(), 0, -1, -1
    while True:
        try:
            with FrameWriter(target, ref.size) as writer:
                if writer.received > seen:
                    backoff.reset()  # the link moves: progress is never punished
                seen = writer.received
                if seen > furthest:  # a payload that was whole and wrong may come again so far
                    damaged, furthest = 0, seen
                await _attempt(peer, ref, task_id, writer, link)
                return await asyncio.to_thread(_finish, writer, ref.sha256)
        except grpc.aio.AioRpcError as error:
            raise_if_final(error, f"the server does not give the payload of task {task_id}")
            reason, wait = error.details() or error.code().name, pause(error, backoff)
            if not is_for_now(error):
                link.cut("download")
        except (TimeoutError, asyncio.TimeoutError):
            reason = f"nothing came for {peer.patience.idle_seconds:g} s"
            wait = backoff.next()
            link.cut("download", stood_still=True)
        except PayloadError as error:
            reason, damaged, wait = str(error), damaged + 1, backoff.next()
            if damaged >= DAMAGED_ATTEMPTS:
                raise TransferError(
                    f"the payload of task {task_id} came damaged {damaged} times: {error}"
                ) from None
        log.info("download_interrupted", task=task_id, reason=reason, retry_in=round(wait, 2))
        await peer.sleep(wait)


def _is_held(target: Path, ref: common_pb2.PayloadRef) -> bool:
    try:
        return target.stat().st_size == ref.size and file_sha256(target) == ref.sha256
    except OSError:  # not there, or on a bad place of the disk: it is fetched
        return False


def _finish(writer: FrameWriter, sha256: bytes) -> Path:
    return writer.finish(sha256, sync=False)


async def _attempt(
    peer: Peer,
    ref: common_pb2.PayloadRef,
    task_id: str,
    writer: FrameWriter,
    link: LinkRecord,
) -> None:
    """Receive frames until the end; raises on a break. Nothing is asked for when all is there."""
    offset = writer.received
    if offset == ref.size:
        return
    log.info("download_started", task=task_id, offset=offset, size=ref.size)
    request = federation_pb2.DownloadRequest(
        name=peer.name,
        session=peer.session,
        task_id=task_id,
        sha256=ref.sha256,
        offset=offset,
        frame_bytes=link.frame("download"),
    )
    call = peer.stub.Download(request)
    started: float | None = None
    first = 0
    try:
        async for count in _frames(peer, call, writer):
            link.passed("download", count)
            if started is None:
                started, first = time.monotonic(), count
    except grpc.aio.AioRpcError as error:
        if error.code() is not StatusCode.OUT_OF_RANGE or not offset:
            raise
        writer.discard()
        raise FrameError(f"what lay here was dropped: {error.details()}") from None
    else:
        if started is not None:
            link.downloaded(writer.received - offset - first, time.monotonic() - started)
    finally:
        call.cancel()


async def _frames(peer: Peer, call: Any, writer: FrameWriter) -> AsyncIterator[int]:
    """Write what comes; yield each frame's size when the next one has come.

    Checked, written and hashed beside the event loop, while the next one comes.
    """
    loop, coming = asyncio.get_running_loop(), writer.received
    storing: asyncio.Future[int] | None = None
    try:
        with peer.watching() as watch:
            while coming < writer.size:
                frame = await watch.step(call.read())
                if frame is grpc.aio.EOF:
                    raise FrameError(f"the stream ended at {coming} of {writer.size} bytes")
                if not frame.data:
                    continue  # a sign of life: the server lets others go first
                if storing is not None:
                    await settled(storing)
                storing = loop.run_in_executor(None, writer.write, frame)
                coming += len(frame.data)
                yield len(frame.data)
    except BaseException:
        if storing is not None:
            await asyncio.wait({storing})  # the writer is closed next
            storing.exception()
        raise
    if storing is not None:
        await settled(storing)
