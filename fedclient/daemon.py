"""The loop of a client: check in, do what the server asks, come back; for months if need be."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from structlog.stdlib import get_logger

from fedclient.backoff import Backoff
from fedclient.channel import RenewableChannel, open_channel
from fedclient.connection import Connection
from fedclient.desk import Assignment, Desk, Phase, send
from fedclient.device import Device, training_threads
from fedclient.gate import Gate
from fedclient.options import ClientOptions
from fedclient.outbox import Outbox
from fedclient.protocol import Setup
from fedclient.runner import WorkerRunner
from fedclient.state import StateDirectory
from fedclient.transfer.peer import Patience, Peer, bounded, pause
from fedclient.transfer.speed import LinkRecord
from fedclient.transfer.stub import ClientStub
from motley.allocator import give_back, reuse_freed_memory
from motley.wire.stubs import common_pb2, federation_pb2
from motley.workload import DataSpec

if TYPE_CHECKING:
    from fedclient.identity.renewal import Renewal

log = get_logger()


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often the daemon speaks up."""

    heartbeat_seconds: float = 25.0
    """Between two signs of life while a task is in hand."""
    least_seconds: float = 0.05
    """Between two check-ins, whatever the server says."""


@dataclass
class Daemon:
    """The loop over one desk."""

    desk: Desk
    pace: Pace = field(default_factory=Pace)
    gate: Gate = field(default_factory=lambda: Gate(()))

    def __post_init__(self) -> None:
        self._failures: Backoff = self.desk.peer.backoff()
        self._notices: tuple[str, ...] = ()
        self._came = False

    async def run(self) -> None:
        """Go on until cancelled.

        Raises:
            RefusedError: the server will not have this client.
        """
        await self.gate.opened(self._leave)
        for update in self.desk.outbox.recover():
            log.info("update_kept", task=update.meta.task_id, size=update.meta.size)
            await self._check_in(update.meta.task_id)
            await send(self.desk, update)
        while True:
            reply = await self._next()
            if reply.WhichOneof("outcome") == "task":
                await self._work(reply.task)
            else:
                give_back()  # nothing to do: what transfers left is not needed soon
                wait = bounded(reply.retry_after_seconds)
                await self.desk.peer.sleep(max(wait, self.pace.least_seconds))

    async def _next(self) -> federation_pb2.CheckInReply:
        """Check in while the owner's conditions hold; else be away until they do.

        They are watched during the check-in, which the server may hold for long. A task that was
        taken is finished whatever becomes of them: half of one is of no use to anybody.
        """
        while True:
            await self.gate.opened(self._leave)
            asking = asyncio.create_task(self._check_in())
            watching = asyncio.create_task(self.gate.shut())
            try:
                await asyncio.wait({asking, watching}, return_when=asyncio.FIRST_COMPLETED)
                if asking.done():
                    return asking.result()
                watching.result()
            finally:
                for job in (asking, watching):
                    job.cancel()
                await asyncio.gather(asking, watching, return_exceptions=True)

    async def _leave(self) -> None:
        """Be away at once, so that no round counts on this device."""
        if self._came:
            self._came = False
            await self.desk.connection.goodbye()

    async def _check_in(self, working_on: str = "") -> federation_pb2.CheckInReply:
        """Check in as often as it takes; a server that is away is waited for."""
        backoff = self.desk.peer.backoff()
        self._came = True
        while True:
            try:
                reply = await self.desk.connection.check_in(working_on)
            except grpc.aio.AioRpcError as error:
                wait = pause(error, backoff)
                log.warning(
                    "server_unreachable",
                    server=self.desk.options.server,
                    reason=error.details() or error.code().name,
                    retry_in=round(wait, 2),
                )
                await self.desk.peer.sleep(wait)
            else:
                if backoff.failures:
                    log.info("server_reached", server=self.desk.options.server)
                self._heed(reply)
                return reply

    def _heed(self, reply: federation_pb2.CheckInReply) -> None:
        """Tell the owner what the server has to say, once until it changes."""
        notices = tuple(reply.notices)
        for notice in notices:
            if notice not in self._notices:
                log.warning("server_notice", text=notice)
        self._notices = notices

    async def _work(self, task: common_pb2.Task) -> None:
        """Do a task with signs of life beside it; pause after one that failed."""
        assignment = Assignment(self.desk, task)
        work = asyncio.create_task(assignment.do())
        beat = asyncio.create_task(self._heartbeat(assignment))
        try:
            await asyncio.wait({work, beat}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await beat  # raises when the server refuses us
                log.info("task_superseded", run=task.run_name, task=task.task_id)
                return
            if work.result():
                self._failures.reset()
            else:
                await self.desk.peer.sleep(self._failures.next())
        finally:
            for job in (work, beat):
                job.cancel()
            await asyncio.gather(work, beat, return_exceptions=True)

    async def _heartbeat(self, assignment: Assignment) -> None:
        """Show that we work; return when the task in hand is closed."""
        task, wait = assignment.task, self.pace.heartbeat_seconds
        while True:
            await self.desk.peer.sleep(wait)
            wait = self.pace.heartbeat_seconds
            with contextlib.suppress(grpc.aio.AioRpcError):
                reply = await self.desk.connection.check_in(task.task_id)
                if reply.working_on_is_closed and assignment.phase is Phase.WORKING:
                    return


async def serve(options: ClientOptions, *, pace: Pace | None = None) -> None:
    """Run a daemon until SIGTERM or SIGINT, then leave cleanly.

    Raises:
        RefusedError: the server will not have this client.
        CertificateError: this device has no certificate that counts.
        StateDirectoryError: the state directory cannot be used.
        ProfileError: the device could not be measured.
    """
    reuse_freed_memory(one_heap=True)
    me = asyncio.current_task()
    assert me is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, me.cancel)
    state = StateDirectory(options.state)
    state.open(options.name)
    try:
        _set_privacy_budget(options, state)
        await _serve(options, state, pace or Pace())
    except asyncio.CancelledError:
        log.info("client_left", client=options.name)
    finally:
        state.close()


def _set_privacy_budget(options: ClientOptions, state: StateDirectory) -> None:
    """Keep the owner's budget from here on, where one was given."""
    if options.privacy_budget:
        from fedclient.privacy import PrivacyFiles, parse_budget

        budget = parse_budget(options.privacy_budget)
        PrivacyFiles(state.privacy_directory, state.disk).set_budget(budget)
        log.info("privacy_budget_set", budget=options.privacy_budget)


async def _serve(options: ClientOptions, state: StateDirectory, pace: Pace) -> None:
    if options.insecure:
        await _work(options, state, pace, open_channel(options.server))
        return
    channel, renewal = _certified(options, state)
    # From the first moment on: measuring a small device can take longer than what is left.
    await _until_one_fails([_work(options, state, pace, channel), renewal.run()])


async def _work(
    options: ClientOptions,
    state: StateDirectory,
    pace: Pace,
    channel: grpc.aio.Channel | RenewableChannel,
) -> None:
    device = Device(options, state.root / "profile.json", disk=state.disk)
    gate = Gate(options.only_when)
    try:
        await gate.check()
        await device.load()
        desk = make_desk(options, state, device, channel)
        told = {"client": options.name, "server": options.server, "state": str(state.root)}
        log.info("client_started", **told)
        warn_of_missing_data(options.data)
        try:
            await Daemon(desk, pace, gate).run()
        finally:
            await asyncio.gather(desk.runner.stop(), desk.connection.goodbye())
    finally:
        await channel.close()


def warn_of_missing_data(text: str) -> None:
    """Say so when `--data` looks like a path and nothing is there: tasks will fail until it is.

    No error: a disk may be mounted later, and other words are the workload's.
    """
    location = DataSpec.parse(text).location
    if ("/" in location or "." in location) and not Path(location).exists():
        log.warning(
            "data_missing",
            path=str(Path(location).absolute()),
            hint="tasks fail until it is there; check --data",
        )


def _certified(options: ClientOptions, state: StateDirectory) -> tuple[RenewableChannel, Renewal]:
    """Return a channel with this device's certificate, and what keeps that fresh.

    Raises:
        CertificateError: there is none that counts.
    """
    from fedclient.channel import open_secure_channel
    from fedclient.identity.renewal import Renewal
    from fedclient.identity.store import IdentityStore

    store = IdentityStore(state.root)
    identity = store.load(options.name)
    identity.check(time.time())
    channel = RenewableChannel(open_secure_channel(options.server, identity))
    peer = Peer(stub=ClientStub(channel), name=options.name, session=state.session)
    return channel, Renewal(peer, store, channel, identity, options.server)


async def _until_one_fails(jobs: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run endless jobs beside each other; raise what ends the first of them."""
    running = [asyncio.ensure_future(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for job in done:
            job.result()
    finally:
        for job in running:
            job.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def make_desk(
    options: ClientOptions,
    state: StateDirectory,
    device: Device,
    channel: grpc.aio.Channel | RenewableChannel,
    *,
    rng: random.Random | None = None,
    patience: Patience | None = None,
) -> Desk:
    """Put together what a daemon works with."""
    peer = Peer(
        stub=ClientStub(channel),
        name=options.name,
        session=state.session,
        rng=rng or random.Random(),
        patience=patience or Patience(),
    )
    link = LinkRecord(state.root / "link.json", state.disk)

    def setup() -> Setup:
        return Setup(
            workloads=dict(options.workloads),
            data=options.data,
            device=options.device,
            threads=training_threads(options.threads),
            memory_limit=options.memory_limit,
        )

    return Desk(
        options=options,
        state=state,
        outbox=Outbox(state.root / "outbox", state.disk),
        peer=peer,
        connection=Connection(peer, device, link),
        runner=WorkerRunner(setup, idle_seconds=options.idle_seconds),
        link=link,
    )
