"""Joining: who gets a certificate, who does not, and what is said before it is safe to say it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from identity_cases import LOCAL, Proxy, Rig, free_port, scenario, tls_channel
from typer.testing import CliRunner

from fedclient.cli import app
from fedclient.errors import (
    CertificateError,
    JoinError,
    OptionError,
    RefusedError,
    UnreachableError,
)
from fedclient.identity.join import join
from fedclient.identity.store import IdentityStore
from fedclient.state import was_started
from fedserver.client import ControlError
from fedserver.display import print_clients
from fedserver.identity.authority import Authority, Settings
from fedserver.identity.tls import one_sided
from motley.identity.keys import fingerprint, key_to_pem, new_key, signing_request
from motley.identity.tokens import JoinToken
from motley.wire.stubs import join_pb2, join_pb2_grpc


def test_a_device_joins_and_checks_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def body(rig: Rig) -> None:
        identity = await rig.joined("c0")
        assert identity.server == rig.client
        assert (identity.certificate.role, identity.certificate.name) == ("client", "c0")
        listed = await rig.operator("clients")
        assert [(c["name"], c["last_seen_seconds"]) for c in listed] == [("c0", None)]
        print_clients(listed)
        assert "never" in capsys.readouterr().out
        held = asyncio.create_task(rig.check_in(rig.stub(identity), "c0"))
        while not (await rig.operator("clients"))[0]["here"]:
            await asyncio.sleep(0.02)
        record = (await rig.operator("clients"))[0]
        assert record["certificate_expires"] == identity.certificate.not_after
        assert record["revoked"] == ""
        assert set(record) == set(listed[0])
        held.cancel()
        assert not list((rig.root / "c0" / "identity").glob("joining*"))

    scenario(body, tmp_path)


class Imposter(join_pb2_grpc.JoinServicer):
    """A join server of another authority; notes all that it is told."""

    def __init__(self, authority: Authority) -> None:
        self.authority, self.heard = authority, []

    async def Authority(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.heard.append(request)
        return join_pb2.AuthorityReply(authority=self.authority.der)

    async def Enrol(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.heard.append(request)
        return join_pb2.EnrolReply()


@pytest.mark.parametrize("pretends", [False, True])
def test_an_imposter_is_found_out_before_it_hears_the_secret(
    tmp_path: Path, pretends: bool
) -> None:
    """Also one that shows the true authority's certificate, for which it has no key."""

    async def body(rig: Rig) -> None:
        theirs = Authority.create(tmp_path / "theirs", Settings(host="h"))
        imposter = Imposter(theirs)
        if pretends:
            imposter.authority = Authority(rig.data)
        server = grpc.aio.server()
        join_pb2_grpc.add_JoinServicer_to_server(imposter, server)
        port = server.add_secure_port(LOCAL, one_sided(theirs))
        await server.start()
        token = await rig.token()
        expected = UnreachableError if pretends else JoinError
        with pytest.raises(expected) as caught:
            await rig.joined("c0", token, f"127.0.0.1:{port}")
        await server.stop(0)
        assert all(isinstance(m, join_pb2.AuthorityRequest) for m in imposter.heard)
        assert imposter.heard
        if not pretends:
            assert "Nothing secret was sent" in str(caught.value)
        assert (await rig.operator("tokens"))[0]["uses_left"] == 10
        await rig.joined("c0", token)

    scenario(body, tmp_path)


def test_tokens_that_do_not_count_are_refused_with_their_reason(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        once = await rig.token(uses=1)
        await rig.joined("c0", once)
        with pytest.raises(RefusedError, match="used 1 times"):
            await rig.joined("c1", once)
        short = await rig.token(seconds=0.05)
        await asyncio.sleep(0.06)
        with pytest.raises(RefusedError, match="run out"):
            await rig.joined("c1", short)
        revoked = await rig.token()
        await rig.operator("revoke_token", revoked.id.hex())
        with pytest.raises(RefusedError, match="was revoked"):
            await rig.joined("c1", revoked)
        with pytest.raises(RefusedError, match="for client 'c9' alone"):
            await rig.joined("c1", await rig.token(client="c9"))
        good = await rig.token()
        for wrong in (
            JoinToken(**{**vars(good), "secret": b"x" * 16}),
            JoinToken(**{**vars(good), "id": b"x" * 6}),
        ):
            with pytest.raises(RefusedError, match="knows no such join token"):
                await rig.joined("c1", wrong)
        states = sorted(t["state"] for t in await rig.operator("tokens"))
        assert states == ["expired", "revoked", "usable", "usable", "used up"]
        with pytest.raises(ControlError, match="no join token"):
            await rig.operator("revoke_token", "nothing")
        with pytest.raises(ControlError, match="expected 1 to"):
            await rig.operator("create_token", 0, 60.0, "")

    scenario(body, tmp_path)


def test_a_lost_answer_costs_nothing_and_the_same_key_is_asked_for_again(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        token = await rig.token(uses=1)
        store = IdentityStore(rig.root / "c0")
        key = store.joining_key()
        request = join_pb2.EnrolRequest(
            token_id=token.id,
            secret=token.secret,
            name="c0",
            signing_request=signing_request(key),
        )
        async with tls_channel(rig.join, Authority(rig.data).pem) as channel:
            await join_pb2_grpc.JoinStub(channel).Enrol(request, timeout=10)  # and lose it
        assert (await rig.operator("tokens"))[0]["uses_left"] == 0
        identity = await rig.joined("c0", token)
        assert identity.key == key_to_pem(key), "the key of the join that was cut short"
        held = asyncio.create_task(rig.check_in(rig.stub(identity), "c0"))
        while not (await rig.operator("clients"))[0]["here"]:
            await asyncio.sleep(0.02)
        held.cancel()
        with pytest.raises(RefusedError, match="used 1 times"):
            await rig.joined("c0", token, folder="elsewhere")

    scenario(body, tmp_path)


def test_a_name_that_is_taken_needs_a_token_for_that_name(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        first = await rig.joined("c0")
        with pytest.raises(RefusedError, match="tokens create --client c0"):
            await rig.joined("c0", folder="second")
        held = asyncio.create_task(rig.check_in(rig.stub(first), "c0", session="one"))
        while not (await rig.operator("clients"))[0]["here"]:
            await asyncio.sleep(0.02)
        second = await rig.joined("c0", await rig.token(client="c0"), folder="second")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await held
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "took its place" in caught.value.details()
        with pytest.raises(grpc.aio.AioRpcError, match="in its place"):
            await rig.check_in(rig.stub(first), "c0", session="one")
        working = await rig.check_in(rig.stub(second), "c0", session="two", working_on="nothing")
        assert working.working_on_is_closed, "the new device is let in, with a session of its own"

    scenario(body, tmp_path)


@pytest.mark.parametrize("name", ["", "../c0", "a b", "x" * 65, "c0\n"])
def test_names_and_requests_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    async def body(rig: Rig) -> None:
        token = await rig.token()
        async with tls_channel(rig.join, Authority(rig.data).pem) as channel:
            stub = join_pb2_grpc.JoinStub(channel)
            for odd, request in ((name, signing_request(new_key())), ("c0", b"nonsense")):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Enrol(
                        join_pb2.EnrolRequest(
                            token_id=token.id,
                            secret=token.secret,
                            name=odd,
                            signing_request=request,
                        ),
                        timeout=10,
                    )
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await rig.operator("tokens"))[0]["uses_left"] == 10

    scenario(body, tmp_path)


def test_joining_works_by_other_addresses_and_through_a_proxy(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        port = rig.join.rpartition(":")[2]
        await rig.joined("c0", server=f"localhost:{port}")
        async with Proxy(rig.join) as outside, Proxy(rig.client) as inside:
            identity = await rig.joined("c1", server=f"localhost:{outside.port}")
            stub = rig.stub(identity, f"localhost:{inside.port}")
            reply = await rig.check_in(stub, "c1", working_on="nothing")
            assert reply.working_on_is_closed
            assert outside.bytes > 1000
            assert inside.bytes > 1000

    scenario(body, tmp_path)


def test_a_proxy_of_the_web_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)

    async def body(rig: Rig) -> None:
        stub = rig.stub(await rig.joined("c0"))
        assert (await rig.check_in(stub, "c0", working_on="nothing")).working_on_is_closed

    scenario(body, tmp_path)


def test_a_join_that_failed_leaves_the_folder_to_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "state"

    async def body(rig: Rig) -> None:
        await rig.joined("c0")
        text = str(await rig.token())

        def command(name: str) -> Any:
            return CliRunner().invoke(app, ["join", text, "--name", name, "--state", str(folder)])

        refused = await asyncio.to_thread(command, "c0")
        assert "give this one another --name" in str(refused.exception)
        assert not was_started(folder)
        assert (await asyncio.to_thread(command, "c1")).exit_code == 0
        assert was_started(folder)
        again = await asyncio.to_thread(command, "c2")
        assert "belongs to client 'c1'" in str(again.exception)

    scenario(body, tmp_path)


def test_one_who_asks_too_often_is_told_to_wait(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        async with tls_channel(rig.join, Authority(rig.data).pem) as channel:
            stub = join_pb2_grpc.JoinStub(channel)
            statuses = set()
            for _ in range(200):
                try:
                    await stub.Authority(join_pb2.AuthorityRequest(), timeout=10)
                except grpc.aio.AioRpcError as error:
                    statuses.add((error.code(), error.details()))
            assert {code for code, _ in statuses} == {grpc.StatusCode.RESOURCE_EXHAUSTED}

    scenario(body, tmp_path)


def test_nobody_there_and_no_tls_are_said(tmp_path: Path) -> None:
    token = JoinToken(authority=b"a" * 32, id=b"i" * 6, secret=b"s" * 16, server="h:1")
    store = IdentityStore(tmp_path)
    with pytest.raises(UnreachableError, match="nobody answers"):
        join(token, "c0", store, f"127.0.0.1:{free_port()}")
    with pytest.raises(OptionError, match=r"'server\.\.example:9401' is no address: expected HOST"):
        join(token, "c0", store, "server..example:9401")

    async def body() -> None:
        async def hello(reader: Any, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(hello, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UnreachableError, match="does not speak TLS"):
            await asyncio.to_thread(join, token, "c0", store, f"127.0.0.1:{port}")
        server.close()

    asyncio.run(body())
    assert not (tmp_path / "identity").exists(), "no key is made for a server that is not there"


def test_certificates_are_looked_at_before_they_are_shown(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        identity = await rig.joined("c0")
        found = identity.certificate
        identity.check(found.not_before)
        with pytest.raises(CertificateError, match=r"ran out on .*tokens create --client c0"):
            identity.check(found.not_after + 1)
        with pytest.raises(CertificateError, match="clock is wrong"):
            identity.check(found.not_before - 3600)
        with pytest.raises(CertificateError, match="is for client 'c0', not for 'c1'"):
            IdentityStore(rig.root / "c0").load("c1")
        with pytest.raises(CertificateError, match="fedclient join"):
            IdentityStore(rig.root / "nothing").load("c1")

    scenario(body, tmp_path)


def test_the_fingerprint_in_a_token_is_the_authoritys(tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        token = await rig.token()
        assert token.authority == fingerprint(Authority(rig.data).der)
        assert token.server == rig.join

    scenario(body, tmp_path)
