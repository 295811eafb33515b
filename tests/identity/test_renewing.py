"""Certificates that follow one another, on both sides, without a restart."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from bench import ManualClock, runfile
from identity_cases import UNAVAILABLE, Rig, is_working, pb, refused, scenario, until

from fedclient.channel import RenewableChannel, open_secure_channel
from fedclient.errors import CertificateError
from fedclient.identity.renewal import Renewal
from fedclient.identity.store import Identity, IdentityStore
from fedclient.transfer.peer import Patience, Peer
from fedserver.identity.authority import Authority, Settings
from fedserver.identity.registry import MOST_CERTIFICATES
from fedserver.identity.tls import NewestCertificate
from motley.identity.keys import key_to_pem, new_key, signing_request
from motley.wire.stubs import federation_pb2_grpc


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
        await asyncio.sleep(1)  # times in certificates are whole seconds, and it is to end later
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
        await stub.Renew(request, timeout=10)  # the same again is no other certificate
        request = pb.RenewRequest(signing_request=signing_request(new_key()))
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "more than a device can need"):
            await stub.Renew(request, timeout=10)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "PKCS #10"):
            await stub.Renew(pb.RenewRequest(signing_request=b"x"), timeout=10)

    scenario(body, tmp_path)


def test_grpc_is_given_a_certificate_again_only_when_it_is_another(tmp_path: Path) -> None:
    clock = ManualClock()
    authority = Authority.create(tmp_path, Settings(host="h"), clock)
    newest = NewestCertificate(authority)
    assert [newest.if_changed() for _ in range(3)] == [None] * 3
    clock.now += authority.settings.server_lifetime
    authority.renew_server_if_due()
    assert newest.if_changed() is not None
    assert newest.if_changed() is None


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
        identity = await rig.joined("c0")
        store = IdentityStore(rig.root / "c0")
        other = rig.signed("client", "c1")
        with pytest.raises(CertificateError, match="signed a certificate for client 'c1'"):
            store.renew(identity, new_key(), other.chain, time.time())
        assert store.load("c0") == identity
        assert key_to_pem(new_key()) != identity.key

    scenario(body, tmp_path)


def test_the_server_changes_its_certificate_without_a_restart(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
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
