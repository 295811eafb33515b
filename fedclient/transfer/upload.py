"""An update from its file to the server, resumed at the last acknowledged offset."""

from __future__ import annotations

import asyncio
import contextlib
import time
from asyncio import FIRST_COMPLETED
from collections import deque
from dataclasses import dataclass
from typing import Any

import grpc
from structlog.stdlib import get_logger

from fedclient.errors import StorageError, TransferError
from fedclient.outbox import Update
from fedclient.transfer.peer import Peer, is_for_now, pause, raise_if_final
from fedclient.transfer.speed import LinkRecord
from motley.wire import Frame, FrameError, file_sha256, iter_frames
from motley.wire.stubs import common_pb2, federation_pb2

log = get_logger()

GOOD_WINDOW = 2
"""Frames under way on a link that was not cut for a while."""
UNREADABLE_ATTEMPTS = 5
"""Attempts in a row that this device's disk may end before the update is given up."""


class _BrokenStreamError(Exception):
    """The stream ended without a receipt."""


class _UnreadableError(Exception):
    """The update's file does not give its bytes."""


@dataclass
class _Progress:
    """When anything last moved; the attempt is broken off when nothing does."""

    moved: float

    def note(self) -> None:
        self.moved = time.monotonic()


async def upload(peer: Peer, update: Update, link: LinkRecord) -> federation_pb2.Receipt:
    """Send an update until the server gives a receipt for it. Breaks are retried for ever.

    Raises:
        TransferError: the server will never take it (unknown task, wrong bytes, ...), or this
            device's disk does not give it.
    """
    backoff, task_id, acknowledged = peer.backoff(), update.meta.task_id, 0
    unreadable = 0
    while True:
        attempt = _Attempt(peer, update, link)
        try:
            return await attempt.run()
        except grpc.aio.AioRpcError as error:
            raise_if_final(error, f"the server does not take the update of task {task_id}")
            if error.code() is grpc.StatusCode.DATA_LOSS:
                await asyncio.to_thread(_check_file, update)
            reason, wait = error.details() or error.code().name, pause(error, backoff)
            if not is_for_now(error):
                link.cut("upload")
        except (TimeoutError, asyncio.TimeoutError):
            reason = f"nothing moved for {peer.patience.idle_seconds:g} s"
            wait = backoff.next()
            link.cut("upload", stood_still=True)
        except _BrokenStreamError as error:
            reason, wait = str(error), backoff.next()
            link.cut("upload")
        except _UnreadableError as error:
            unreadable += 1
            if unreadable >= UNREADABLE_ATTEMPTS:
                raise TransferError(
                    f"the update of task {task_id} cannot be read ({error}); check the disk that "
                    f"holds {update.payload.parent}",
                    StorageError.code,
                ) from None
            reason, wait = str(error), backoff.next()
        if attempt.acknowledged > acknowledged:
            acknowledged, unreadable = attempt.acknowledged, 0
            backoff.reset()
        log.info(
            "upload_interrupted",
            task=task_id,
            reason=reason,
            acknowledged=acknowledged,
            retry_in=round(wait, 2),
        )
        await peer.sleep(wait)


class _Attempt:
    """One stream: open, go on at the acknowledged offset, frames, receipt."""

    def __init__(self, peer: Peer, update: Update, link: LinkRecord) -> None:
        self._peer, self._update, self._link = peer, update, link
        self._progress = _Progress(time.monotonic())
        self._under_way: deque[int] = deque()
        """Ends of the frames that were written and not acknowledged."""
        self._moved = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self.acknowledged = 0

    async def run(self) -> federation_pb2.Receipt:
        call = self._peer.stub.Upload()
        try:
            with self._peer.watching() as watch:
                await watch.step(call.write(self._opening()))
            reply = await self._turn(call)
            if reply.WhichOneof("kind") == "receipt":
                return reply.receipt
            offset = self._checked(reply.acknowledged)
            started = time.monotonic()
            log.info("upload_started", task=self._task_id, offset=offset, size=self._size)
            self._sender = asyncio.create_task(self._send(call, offset))
            receipt = await self._receipt(call)
            self._link.uploaded(self._size - offset, time.monotonic() - started)
            return receipt
        except asyncio.InvalidStateError as error:  # written into a stream that had ended
            raise await _status(call, error) from None
        finally:
            call.cancel()
            if self._sender is not None:
                self._sender.cancel()
                await asyncio.gather(self._sender, return_exceptions=True)

    @property
    def _task_id(self) -> str:
        return self._update.meta.task_id

    @property
    def _size(self) -> int:
        return self._update.meta.size

    def _opening(self) -> federation_pb2.UploadMessage:
        meta = self._update.meta
        return federation_pb2.UploadMessage(
            open=federation_pb2.UploadOpen(
                name=self._peer.name,
                session=self._peer.session,
                task_id=meta.task_id,
                payload=common_pb2.PayloadRef(sha256=bytes.fromhex(meta.sha256), size=meta.size),
                samples=meta.samples,
                metrics=dict(meta.metrics),
                train_seconds=meta.train_seconds,
                restarted=meta.restarted,
            )
        )

    async def _turn(self, call: Any) -> federation_pb2.UploadReply:
        """Wait while the server lets others go first; return what it says then."""
        told = False
        while True:
            reply = await self._read(call)
            if reply.WhichOneof("kind") != "queued":
                return reply
            if not told:
                log.info("upload_queued", task=self._task_id, before=reply.queued)
            told = True

    async def _receipt(self, call: Any) -> federation_pb2.Receipt:
        while True:
            reply = await self._read(call)
            if reply.WhichOneof("kind") == "receipt":
                return reply.receipt
            self._written(self._checked(reply.acknowledged))

    def _written(self, acknowledged: int) -> None:
        """Note that the server has written up to there."""
        while self._under_way and self._under_way[0] <= acknowledged:
            self._under_way.popleft()
        self._moved.set()

    async def _read(self, call: Any) -> federation_pb2.UploadReply:
        """Return the next reply; time runs out only while the sender does not move either."""
        read = asyncio.ensure_future(call.read())
        # Whoever cancels us does not ask how it ended, and a broken stream is no stack trace.
        read.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        try:
            while not read.done():
                left = self._progress.moved + self._peer.patience.idle_seconds - time.monotonic()
                if left <= 0:
                    raise asyncio.TimeoutError
                await asyncio.wait(self._at_work(read), timeout=left, return_when=FIRST_COMPLETED)
        finally:
            if not read.done():
                read.cancel()
        self._progress.note()
        reply = read.result()
        if reply is grpc.aio.EOF:
            raise await _status(call, _BrokenStreamError("the stream ended without a receipt"))
        return reply  # type: ignore[no-any-return]

    def _at_work(self, read: asyncio.Future[Any]) -> set[asyncio.Future[Any]]:
        """Return what to wait for; raise when the sender has no bytes: no reply will come then."""
        if self._sender is None:
            return {read}
        if not self._sender.done():
            return {read, self._sender}
        failure = self._sender.exception()
        if isinstance(failure, _UnreadableError):
            raise failure
        return {read}  # whatever else ended it, the reading side will know why

    async def _send(self, call: Any, offset: int) -> None:
        """Write all frames, each when those before it are acknowledged.

        A broken stream shows at the reading side, which knows the status.

        Raises:
            _UnreadableError: this device's disk does not give the bytes.
        """
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while offset < self._size:
                frame = self._frame(offset, self._link.frame("upload"))
                await self._room()
                offset += len(frame.data)
                self._under_way.append(offset)
                await call.write(frame)
                self._progress.note()
            await call.done_writing()

    def _frame(self, offset: int, size: int) -> Frame:
        try:
            frame = next(iter_frames(self._update.payload, offset, size), None)
        except (OSError, FrameError) as error:
            raise _UnreadableError(str(error)) from None
        if frame is None:
            raise _UnreadableError("cut short")
        return frame

    async def _room(self) -> None:
        """Wait until another frame may be under way: two on a good link, else one."""
        while len(self._under_way) >= (GOOD_WINDOW if self._link.is_good("upload") else 1):
            self._moved.clear()
            await self._moved.wait()

    def _checked(self, acknowledged: int) -> int:
        if acknowledged > self._size:
            raise TransferError(
                f"the server acknowledged {acknowledged} bytes of {self._task_id}, which has "
                f"{self._size}"
            )
        if self._under_way:
            self._link.passed("upload", max(0, acknowledged - self.acknowledged))
        self.acknowledged = max(self.acknowledged, acknowledged)
        return acknowledged


def _check_file(update: Update) -> None:
    """Raise TransferError when the bytes on the disk are not what was trained."""
    try:
        digest = file_sha256(update.payload).hex()
    except OSError:
        return  # it cannot be told; whether the disk gives the frames, the next attempt shows
    if digest != update.meta.sha256:
        raise TransferError(
            f"the update of task {update.meta.task_id} was damaged on this device's disk; "
            f"check the disk that holds {update.payload.parent}",
            StorageError.code,
        )


async def _status(call: Any, otherwise: Exception) -> Exception:
    """Return the error that a finished call stands for."""
    code = await call.code()
    if code is grpc.StatusCode.OK:
        return _BrokenStreamError(str(otherwise))
    return grpc.aio.AioRpcError(
        code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )
