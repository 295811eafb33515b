"""Who is let in on which port."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from identity_cases import (
    DENIED,
    UNAVAILABLE,
    Rig,
    is_working,
    pb,
    plain_stub,
    refused,
    running,
    scenario,
    tls_channel,
)

from fedclient.identity.store import Identity
from fedserver.client import ControlError, Operator
from fedserver.identity.authority import Authority, Settings
from fedserver.identity.operators import OperatorBundle, Operators
from motley.errors import IdentityError
from motley.identity.keys import new_key, signing_request
from motley.wire.stubs import control_pb2, control_pb2_grpc, federation_pb2_grpc


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


def test_a_server_moves_to_another_address(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as rig:
            identity = await rig.joined("c0")
        async with running(tmp_path) as rig:  # other ports, the same data directory
            assert rig.client != identity.server
            assert await is_working(rig, rig.stub(identity), "c0")

    asyncio.run(main())
