"""How calls of one who is shut out end, and that nothing opens again."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from bench import runfile
from identity_cases import DENIED, Rig, is_working, pb, refused, scenario

from fedclient.identity.store import Identity, IdentityStore
from fedserver.client import ControlError
from motley.identity.keys import new_key, signing_request
from motley.wire.stubs import common_pb2


async def shut_out(rig: Rig, call: asyncio.Task[Any]) -> None:
    """Revoke c0 and expect its open call to end with the reason, soon."""
    begun = time.monotonic()
    await rig.operator("revoke_client", "c0", "stolen")
    with refused(DENIED, "[revoked] client 'c0' was shut out: stolen"):
        await asyncio.wait_for(call, 10)
    assert time.monotonic() - begun < 5


async def refused_from_now_on(rig: Rig, identity: Identity, stub: Any) -> None:
    for other in (stub, rig.stub(identity)):
        with refused(DENIED, "tokens create --client c0"):
            await rig.check_in(other, "c0", working_on="x")
        with refused(DENIED, "[revoked]"):
            request = pb.RenewRequest(signing_request=signing_request(new_key()))
            await other.Renew(request, timeout=10)
    record = (await rig.operator("clients"))[0]
    assert (record["here"], record["revoked"]) == (False, "stolen")
    assert record["certificate_expires"] is None


def test_shutting_out_ends_a_held_check_in(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        identity = await rig.joined("c0")
        stub = rig.stub(identity)
        held = asyncio.create_task(rig.check_in(stub, "c0", timeout=60))
        while not (await rig.operator("clients"))[0]["here"]:
            await asyncio.sleep(0.02)
        await shut_out(rig, held)
        await refused_from_now_on(rig, identity, stub)

    scenario(body, tmp_path)
    again = Rig

    async def after_a_restart(rig: again) -> None:
        identity = IdentityStore(rig.root / "c0").load("c0")
        with refused(DENIED, "stolen"):
            await rig.check_in(rig.stub(identity), "c0", working_on="x")

    scenario(after_a_restart, tmp_path)


async def offered(rig: Rig, identity: Identity, clients: int = 1) -> common_pb2.Task:
    await rig.operator("submit", runfile(clients=clients, rounds=1), "test")
    return await rig.task(rig.stub(identity), "c0")


def test_shutting_out_ends_an_open_download(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        identity = await rig.joined("c0")
        task, stub = await offered(rig, identity), rig.stub(identity)
        # More than the connection takes in: the handler waits for a peer that does not read.
        os.truncate(next(rig.root.rglob(task.payload.sha256.hex())), 64 << 20)
        call = stub.Download(
            pb.DownloadRequest(
                name="c0",
                session="session-c0",
                task_id=task.task_id,
                sha256=task.payload.sha256,
            ),
            timeout=60,
        )
        await call.read()

        async def rest() -> None:
            await revoked.wait()
            while await call.read() is not grpc.aio.EOF:
                pass
            assert await call.code() is grpc.StatusCode.OK

        revoked = asyncio.Event()
        reading = asyncio.create_task(rest())
        begun = time.monotonic()
        await rig.operator("revoke_client", "c0", "stolen")
        assert time.monotonic() - begun < 5
        revoked.set()
        with refused(DENIED, "[revoked] client 'c0' was shut out: stolen"):
            await asyncio.wait_for(reading, 20)
        await refused_from_now_on(rig, identity, stub)
        # The run lost its only client in the same transaction: nothing waits for it.
        record = await rig.operator("show", "test")
        assert record["clients"][0]["reason"] == "revoked: stolen"

    scenario(body, tmp_path)


def test_shutting_out_ends_an_open_upload(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        identity = await rig.joined("c0")
        task, stub = await offered(rig, identity), rig.stub(identity)
        data = b"x" * 5000

        async def messages() -> AsyncIterator[pb.UploadMessage]:
            digest = hashlib.sha256(data).digest()
            ref = common_pb2.PayloadRef(sha256=digest, size=len(data))
            yield pb.UploadMessage(
                open=pb.UploadOpen(
                    name="c0", session="session-c0", task_id=task.task_id, payload=ref, samples=1
                )
            )
            await asyncio.sleep(600)

        acknowledged = asyncio.Event()

        async def upload() -> None:
            async for _ in stub.Upload(messages(), timeout=60):
                acknowledged.set()

        call = asyncio.create_task(upload())
        await asyncio.wait_for(acknowledged.wait(), 20)
        await shut_out(rig, call)
        await refused_from_now_on(rig, identity, stub)

    scenario(body, tmp_path)


def test_a_client_that_never_came_can_be_shut_out_and_an_unknown_one_not(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        identity = await rig.joined("c0")
        await rig.operator("revoke_client", "c0", "stolen")
        await refused_from_now_on(rig, identity, rig.stub(identity))
        with pytest.raises(ControlError, match="no client is called 'c7'"):
            await rig.operator("revoke_client", "c7", "")
        new = await rig.joined("c0", await rig.token(client="c0"), folder="new")
        assert await is_working(rig, rig.stub(new), "c0")
        with refused(DENIED, "stolen"):
            await rig.check_in(rig.stub(identity), "c0", working_on="x")

    scenario(body, tmp_path)
