"""Who is let in on which port, and how calls of one who is shut out end."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from bench import runfile
from identity_cases import (
    Rig,
    plain_stub,
    refused,
    running,
    scenario,
    tls_channel,
    until,
)

from fedclient.channel import RenewableChannel, open_secure_channel
from fedclient.identity.renewal import Renewal
from fedclient.identity.store import Identity, IdentityStore
from fedclient.transfer.peer import Patience, Peer
from fedserver.client import ControlError, Operator
from fedserver.identity.authority import Authority, Settings
from fedserver.identity.operators import OperatorBundle, Operators
from fedserver.identity.registry import MOST_CERTIFICATES
from motley.errors import IdentityError
from motley.identity.keys import key_to_pem, new_key, signing_request
from motley.wire.stubs import (
    common_pb2,
    control_pb2,
    control_pb2_grpc,
    federation_pb2,
    federation_pb2_grpc,
)

pb = federation_pb2
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
DENIED = grpc.StatusCode.PERMISSION_DENIED


async def is_working(rig: Rig, stub: Any, name: str) -> bool:
    """Whether a client is let in: it asks after a task, which is answered at once."""
    return bool((await rig.check_in(stub, name, working_on="nothing")).working_on_is_closed)


def test_a_client_is_who_its_certificate_says(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        stub = rig.stub(await rig.joined("c0"))
        await rig.joined("c1")
        assert await is_working(rig, stub, "c0")
        with refused(DENIED, "is for client 'c0', and the message says 'c1'"):
            await rig.check_in(stub, "c1", working_on="nothing")
        with refused(DENIED, "[forbidden]"):
            await stub.Report(pb.ReportRequest(name="c1", task_id="t"), timeout=10)
        with refused(DENIED, "[forbidden]"):
            async for _ in stub.Download(pb.DownloadRequest(name="c1", task_id="t"), timeout=10):
                pass
        with refused(DENIED, "[forbidden]"):
            opening = pb.UploadMessage(open=pb.UploadOpen(name="c1", task_id="t"))
            async for _ in stub.Upload(iter([opening]), timeout=10):
                pass

    scenario(body, tmp_path)


def test_strangers_are_not_let_in(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        channel, stub = plain_stub(rig.client)
        rig.open.append(channel)
        with refused(UNAVAILABLE):
            await rig.check_in(stub, "c0", timeout=10)
        authority = Authority(rig.data)
        nothing = tls_channel(rig.client, authority.pem)
        foreign = Authority.create(tmp_path / "foreign", Settings(host="h"))
        stranger = rig.signed("client", "c0", foreign)
        server = server_identity(rig)
        for channel in (
            nothing,
            tls_channel(rig.client, authority.pem, stranger),
            tls_channel(rig.client, authority.pem, server),
        ):
            rig.open.append(channel)
            stub = federation_pb2_grpc.FederationStub(channel)
            with refused(UNAVAILABLE):
                await rig.check_in(stub, "c0", timeout=10)
        good = rig.stub(await rig.joined("c0"))
        assert await is_working(rig, good, "c0")

    scenario(body, tmp_path)


def server_identity(rig: Rig) -> Identity:
    """Return the server's own certificate and key, as if it were a client's."""
    content = (rig.data / "identity" / "server.pem").read_bytes()
    key, _, chain = content.partition(b"-----BEGIN CERTIFICATE-----")
    client = rig.signed("client", "x")
    return Identity(
        key=key,
        chain=b"-----BEGIN CERTIFICATE-----" + chain,
        authority=client.authority,
        server=rig.client,
        certificate=client.certificate,
    )


def test_a_client_cannot_pose_as_the_server(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        client = await rig.joined("c0")
        fake = grpc.aio.server()
        federation_pb2_grpc.add_FederationServicer_to_server(
            federation_pb2_grpc.FederationServicer(), fake
        )
        pair = (client.key, client.chain)
        port = fake.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        await fake.start()
        with refused(UNAVAILABLE):
            await rig.check_in(rig.stub(client, f"127.0.0.1:{port}"), "c0", timeout=10)
        await fake.stop(0)

    scenario(body, tmp_path)


def test_roles_keep_to_their_ports(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        authority = Authority(rig.data)
        client, operator = await rig.joined("c0"), rig.signed("operator", "alice")
        with refused(DENIED, "this port is for the role 'client'"):
            await rig.check_in(rig.stub(operator), "alice", working_on="x")
        with refused(DENIED, "[forbidden]"):
            request = pb.RenewRequest(signing_request=signing_request(new_key()))
            await rig.stub(operator).Renew(request, timeout=10)
        channel = tls_channel(rig.control, authority.pem, client)
        rig.open.append(channel)
        stub = control_pb2_grpc.ControlStub(channel)
        with refused(DENIED, "this port is for the role 'operator'"):
            await stub.ListRuns(control_pb2.ListRunsRequest(), timeout=10)
        with refused(DENIED, "this port is for the role 'operator'"):
            async for _ in stub.Watch(control_pb2.RunRequest(run="x"), timeout=10):
                pass
        with refused(grpc.StatusCode.UNIMPLEMENTED):
            reply = federation_pb2_grpc.FederationStub(channel)
            await rig.check_in(reply, "c0", working_on="x")
        # Signed by the authority, and not on the operators' list: struck off, or never on it.
        channel = tls_channel(rig.control, authority.pem, operator)
        rig.open.append(channel)
        with refused(DENIED, "was revoked"):
            request = control_pb2.ListRunsRequest()
            await control_pb2_grpc.ControlStub(channel).ListRuns(request, timeout=10)

    scenario(body, tmp_path)


def test_every_control_method_asks_for_an_operator(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        channel = tls_channel(rig.control, Authority(rig.data).pem, await rig.joined("c0"))
        rig.open.append(channel)
        methods = control_pb2.DESCRIPTOR.services_by_name["Control"].methods
        assert len(methods) > 12
        stub = control_pb2_grpc.ControlStub(channel)
        for method in methods:
            request = getattr(control_pb2, method.input_type.name)()
            call = getattr(stub, method.name)(request, timeout=10)
            with refused(DENIED, "[forbidden]"):
                if isinstance(call, grpc.aio.UnaryStreamCall):
                    await call.read()
                    await call.code()
                    raise AssertionError(method.name)
                await call

    scenario(body, tmp_path)


def test_an_operators_file_works_until_it_is_struck_off(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        bundle = tmp_path / "alice.json"
        operators = Operators(rig.data)
        operators.create(Authority(rig.data), "alice", rig.control, bundle)

        def runs() -> Any:
            with Operator.over_network(bundle, "") as operator:
                return operator.runs()

        assert await asyncio.to_thread(runs) == []
        with pytest.raises(IdentityError, match="operators revoke alice"):
            operators.create(Authority(rig.data), "alice", "", tmp_path / "b.json")
        operators.revoke("alice")
        with pytest.raises(ControlError, match="was revoked"):
            await asyncio.to_thread(runs)
        with pytest.raises(IdentityError, match="no operator called 'alice'"):
            operators.revoke("alice")
        bundle.chmod(0o644)
        with pytest.raises(IdentityError, match="chmod 600"):
            await asyncio.to_thread(runs)

    scenario(body, tmp_path)


def test_an_operators_file_that_is_none_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="is no operator's file"):
        OperatorBundle.read(path)


# --- shutting out --------------------------------------------------------------------------------


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


def test_shutting_out_ends_an_open_download(tmp_path: Path, monkeypatch: Any) -> None:
    # A handler that waits for a peer that does not read, as on a slow link with a large model.
    monkeypatch.setattr("fedserver.service.downloads.iter_frames", many_frames)

    async def body(rig: Rig) -> None:
        identity = await rig.joined("c0")
        task, stub = await offered(rig, identity), rig.stub(identity)
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


def many_frames(path: Path, offset: int, size: int) -> Any:
    from motley.wire import Frame

    data = b"x" * 65536
    for index in range(100_000):
        yield Frame(index * len(data), data, 0)


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


# --- renewing ------------------------------------------------------------------------------------


def renewal(rig: Rig, identity: Identity, channel: RenewableChannel, **more: Any) -> Renewal:
    peer = Peer(
        stub=federation_pb2_grpc.FederationStub(channel),
        name="c0",
        session="session-c0",
        patience=Patience(call_seconds=5),
    )
    return Renewal(peer, IdentityStore(rig.root / "c0"), channel, identity, rig.client, **more)


def test_a_renewed_certificate_is_used_and_calls_under_way_go_on(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        identity = await rig.joined("c0")
        channel = RenewableChannel(open_secure_channel(rig.client, identity))
        stub = federation_pb2_grpc.FederationStub(channel)
        held = asyncio.create_task(rig.check_in(stub, "c0", timeout=60))
        while not (await rig.operator("clients"))[0]["here"]:
            await asyncio.sleep(0.02)
        keeper = renewal(rig, identity, channel)
        await keeper._renew()
        assert keeper.identity.certificate.serial != identity.certificate.serial
        stored = IdentityStore(rig.root / "c0").load("c0")
        assert stored.certificate == keeper.identity.certificate
        assert channel.open_lines == 2, "the held check-in stays on its connection"
        assert await is_working(rig, stub, "c0")
        await rig.operator("submit", runfile(clients=1, rounds=1), "test")
        reply = await held
        assert reply.task.task_id, "it is answered where it was asked"
        await until(lambda: channel.open_lines == 1)
        assert await is_working(rig, rig.stub(identity), "c0"), "the old one counts until it ends"
        await channel.close()

    scenario(body, tmp_path)


def test_nobody_gets_more_certificates_than_a_device_needs(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        stub = rig.stub(await rig.joined("c0"))
        for _ in range(MOST_CERTIFICATES - 1):
            request = pb.RenewRequest(signing_request=signing_request(new_key()))
            await stub.Renew(request, timeout=10)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "more than a device can need"):
            await stub.Renew(request, timeout=10)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "PKCS #10"):
            await stub.Renew(pb.RenewRequest(signing_request=b"x"), timeout=10)

    scenario(body, tmp_path)


def test_short_lived_certificates_follow_one_another(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        identity = await rig.joined("c0")
        channel = RenewableChannel(open_secure_channel(rig.client, identity))
        keeper = renewal(rig, identity, channel)
        stub = federation_pb2_grpc.FederationStub(channel)
        keeping = asyncio.create_task(keeper.run())
        serials = {identity.certificate.serial}
        while len(serials) < 4 or time.time() < identity.certificate.not_after + 1:
            assert not keeping.done(), keeping.exception()
            assert await is_working(rig, stub, "c0")
            serials.add(keeper.identity.certificate.serial)
            await asyncio.sleep(0.1)
        # One that ran out is worth nothing, on a new connection or on an old one.
        with refused(UNAVAILABLE):
            await rig.check_in(rig.stub(identity), "c0", working_on="x")
        keeping.cancel()
        await channel.close()

    scenario(body, tmp_path, client_lifetime=4.0, server_lifetime=4.0)


def test_a_connection_outlives_its_certificate_by_no_call(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        identity = await rig.joined("c0")
        stub = rig.stub(identity)
        assert await is_working(rig, stub, "c0")
        await until(lambda: time.time() > identity.certificate.not_after)
        with refused(UNAVAILABLE, "[expired]"):
            await rig.check_in(stub, "c0", working_on="x")

    scenario(body, tmp_path, client_lifetime=2.0)


def test_a_renewal_that_the_server_answers_wrongly_changes_nothing(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        from fedclient.errors import CertificateError

        identity = await rig.joined("c0")
        store = IdentityStore(rig.root / "c0")
        other = rig.signed("client", "c1")
        with pytest.raises(CertificateError, match="signed a certificate for client 'c1'"):
            store.renew(identity, new_key(), other.chain)
        assert store.load("c0") == identity
        assert key_to_pem(new_key()) != identity.key

    scenario(body, tmp_path)


def test_the_server_changes_its_certificate_without_a_restart(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        import ssl

        host, _, port = rig.client.rpartition(":")
        shown = set()

        def look() -> None:
            shown.add(ssl.get_server_certificate((host, int(port)), timeout=5))

        identity = await rig.joined("c0")
        end = time.monotonic() + 30
        while len(shown) < 3 and time.monotonic() < end:
            await asyncio.to_thread(look)
            assert await is_working(rig, rig.stub(identity), "c0")
            await asyncio.sleep(0.2)
        assert len(shown) == 3

    scenario(body, tmp_path, server_lifetime=2.0)


def test_a_server_moves_to_another_address(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as rig:
            identity = await rig.joined("c0")
        async with running(tmp_path) as rig:  # other ports, the same data directory
            assert rig.client != identity.server
            assert await is_working(rig, rig.stub(identity), "c0")

    asyncio.run(main())
