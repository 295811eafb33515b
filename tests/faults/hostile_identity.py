"""Attacks on identity at live ports: wrong certificates, worthless tokens, names of others."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fleet import Fleet
from hostile_inputs import CLOSED, Input, Supply, exactly, mutated
from hostile_sender import SERVICE, Sender

from fedclient.identity.join import join
from fedclient.identity.store import Identity, IdentityStore
from fedserver.client import Operator
from fedserver.identity.authority import DAY, Authority, Settings
from fedserver.identity.operators import OperatorBundle, Operators
from motley.identity.certificates import certificate_to_pem, read_certificate
from motley.identity.keys import key_to_pem, new_key, signing_request
from motley.identity.names import CHANNEL_OPTIONS
from motley.identity.tokens import JoinToken, parse_token
from motley.wire.stubs import control_pb2, federation_pb2, join_pb2

JOIN, CONTROL = "/motley.v1.Join/", "/motley.v1.Control/"
SHUT = exactly("UNAVAILABLE")
"""The handshake fails: there is nobody to whom a status could be said."""
DENIED = exactly("PERMISSION_DENIED")
INVALID = exactly("INVALID_ARGUMENT")
CALL_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Loot:
    """What an attacker gathered: where the ports are, and what opens none of them."""

    client: str
    join: str
    control: str
    authority: bytes
    """The authority's certificate (PEM), which is no secret."""
    member: Identity
    """The attacker's own: a client that is let in under its own name."""
    identities: Mapping[str, Identity]
    """By what is wrong with each."""
    tokens: Mapping[str, JoinToken]
    """By what is wrong with each; "good" for one that counts."""


class _LongAgo:
    """A clock that stands a year back."""

    def wall(self) -> float:
        return time.time() - 365 * DAY

    def monotonic(self) -> float:
        return time.monotonic()


def gather(world: Fleet, root: Path) -> Loot:
    """Let the attacker join, and collect what is worthless by now."""
    authority = Authority(world.data)
    with Operator(world.data) as operator:

        def token(uses: int = 10, seconds: float = 3600.0, client: str = "") -> JoinToken:
            return parse_token(operator.create_token(uses, seconds, client)[0])

        def joined(name: str, by: JoinToken | None = None) -> Identity:
            return join(by or token(), name, IdentityStore(root / name), sleep=lambda _: None)

        tokens = {
            "good": token(10_000),
            "run out": token(seconds=0.05),
            "used up": token(uses=1),
            "revoked": token(),
            "another's": token(client="c0"),
        }
        joined("once", tokens["used up"])
        operator.revoke_token(tokens["revoked"].id.hex())
        member, lost = joined("mallory"), joined("lost")
        operator.revoke_client("lost", "stolen")
    return Loot(
        client=world.address,
        join=world.join_address,
        control=world.control_address,
        authority=authority.pem,
        member=member,
        identities={"revoked": lost, **_forged(world, root, authority)},
        tokens=tokens,
    )


def _forged(world: Fleet, root: Path, authority: Authority) -> dict[str, Identity]:
    """Return certificates that nobody is to be let in by."""
    # A copy: an authority whose clock is wrong would renew the server's own certificate by it.
    shutil.copytree(world.data / "identity", root / "past" / "identity")
    past = Authority(root / "past", _LongAgo())
    (root / "foreign").mkdir()
    foreign = Authority.create(root / "foreign", Settings(host="127.0.0.1"))
    operators, bundle = Operators(world.data), root / "operator.json"
    operators.create(authority, "eve", "", bundle)
    operators.revoke("eve")
    eve = OperatorBundle.read(bundle)
    pem = (world.data / "identity" / "server.pem").read_bytes()
    key, mark, chain = pem.partition(b"-----BEGIN CERTIFICATE-----")
    operator = _signed(authority, "operator", "alice", authority)
    return {
        "foreign": _signed(foreign, "client", "c0", authority),
        "foreign operator": _signed(foreign, "operator", "alice", authority),
        "expired": _signed(past, "client", "c0", authority),
        "expired operator": _signed(past, "operator", "alice", authority),
        "server": replace(operator, key=key, chain=mark + chain),
        "operator": operator,
        "struck off": replace(operator, key=eve.key.encode(), chain=eve.certificate.encode()),
    }


def _signed(signer: Authority, role: str, name: str, trusted: Authority) -> Identity:
    key = new_key()
    der = signer.sign(role, name, key.public_key())
    pem = certificate_to_pem(der)
    return Identity(
        key=key_to_pem(key),
        chain=pem,
        authority=trusted.pem,
        server="",
        certificate=read_certificate(der),
    )


def credentials_of(identity: Identity) -> grpc.ChannelCredentials:
    """Return what a channel needs to show an identity."""
    return grpc.ssl_channel_credentials(identity.authority, identity.key, identity.chain)


def _call(address: str, loot: Loot, who: Identity | None, method: str, data: bytes) -> str:
    """Make one call over a connection of its own; return the status."""
    pair = (who.key, who.chain) if who else (None, None)
    credentials = grpc.ssl_channel_credentials(loot.authority, *pair)
    # Connections that are shared within this process would carry another's certificate.
    options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
    with grpc.secure_channel(address, credentials, options) as channel:
        return _ended(channel, method, data)


def _ended(channel: grpc.Channel, method: str, data: bytes) -> str:
    try:
        for _ in channel.unary_stream(method)(data, timeout=CALL_SECONDS):
            pass
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


# --- the attacks ---------------------------------------------------------------------------------


def identity_attacks(loot: Loot) -> list[Supply]:
    """Return what makes attacks on identity, port by port."""
    ports = (_at_the_client_port, _at_the_control_port, _at_the_join_port)
    return [partial(make, loot) for make in ports]


def _at_the_client_port(loot: Loot, rng: random.Random) -> list[Input]:
    def plain(s: Sender) -> str:
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(loot.client, options) as channel:
            return _ended(channel, SERVICE + "CheckIn", s.check_in())

    def shown(kind: str, name: str, right: frozenset[str]) -> Input:
        who = loot.identities.get(kind)
        return Input(
            f"{kind} certificate at the client port",
            lambda s: _call(loot.client, loot, who, SERVICE + "CheckIn", s.check_in(name=name)),
            right,
        )

    victim = rng.choice(("c0", "c1"))
    return [
        Input("plain text at the client port", plain, SHUT),
        shown("no", "c0", SHUT),
        shown("foreign", "c0", SHUT),
        shown("expired", "c0", SHUT),
        shown("server", "c0", SHUT),
        shown("operator", "alice", DENIED),
        shown("revoked", "lost", DENIED),
        Input("another's check-in", lambda s: s.unary("CheckIn", s.check_in(name=victim)), DENIED),
        *_as_another(rng, victim),
        Input("random bytes to the TLS port", lambda s: s.raw(rng.randbytes(300)), CLOSED),
    ]


def _as_another(rng: random.Random, victim: str) -> list[Input]:
    """Messages in another's name, with its tasks, over the attacker's own connection."""
    failure = federation_pb2.Failure(code="crash", message="x", permanent=True)

    def as_victim(s: Sender) -> Sender:
        return s.posing_as(victim)

    return [
        Input(
            "another's download",
            lambda s: s.download(as_victim(s).download_request(s.victim_task, s.digest)),
            DENIED,
        ),
        Input(
            "another's upload",
            lambda s: s.upload([as_victim(s).opening(s.victim_task, sha256=bytes(32), size=9)]),
            DENIED,
        ),
        Input(
            "another's report",
            lambda s: s.unary("Report", as_victim(s).report(s.victim_task, failure=failure)),
            DENIED,
        ),
    ]


def _at_the_control_port(loot: Loot, rng: random.Random) -> list[Input]:
    request = control_pb2.RevokeClientRequest(name="c0").SerializeToString()
    method = CONTROL + rng.choice(("RevokeClient", "ListRuns", "Stop", "Watch", "CreateToken"))

    def shown(kind: str, who: Identity | None, right: frozenset[str]) -> Input:
        return Input(
            f"{kind} certificate at the control port",
            lambda s: _call(loot.control, loot, who, method, request),
            right,
        )

    wrong = loot.identities
    return [
        shown("no", None, SHUT),
        shown("foreign operator", wrong["foreign operator"], SHUT),
        shown("expired operator", wrong["expired operator"], SHUT),
        shown("server", wrong["server"], SHUT),
        shown("client", loot.member, DENIED),
        shown("revoked client", wrong["revoked"], DENIED),
        shown("struck off operator", wrong["struck off"], DENIED),
        Input(
            "control method at the client port",
            lambda s: _call(loot.client, loot, loot.member, CONTROL + "ListRuns", b""),
            exactly("UNIMPLEMENTED"),
        ),
    ]


def _at_the_join_port(loot: Loot, rng: random.Random) -> list[Input]:
    name = f"stranger-{rng.randrange(10**9)}"
    good = loot.tokens["good"]

    def enrolment(token: JoinToken, *, named: str = name, request: bytes = b"") -> bytes:
        message = join_pb2.EnrolRequest(
            token_id=token.id,
            secret=token.secret,
            name=named,
            signing_request=request or signing_request(new_key()),
        )
        return bytes(message.SerializeToString())

    def shown(kind: str, data: bytes, right: frozenset[str], method: str = "Enrol") -> Input:
        return Input(kind, lambda s: _call(loot.join, loot, None, JOIN + method, data), right)

    spoiled = JoinToken(
        authority=good.authority,
        id=good.id,
        secret=_flipped(good.secret, rng),
        server=good.server,
    )
    worthless = enrolment(loot.tokens["run out"])
    return [
        *(
            shown(f"token that is {kind}", enrolment(loot.tokens[kind]), DENIED)
            for kind in ("run out", "used up", "revoked", "another's")
        ),
        shown(
            "used token again, other key", enrolment(loot.tokens["used up"], named="once"), DENIED
        ),
        shown("token with a flipped bit", enrolment(spoiled), DENIED),
        shown(
            "mutated enrolment",
            mutated(worthless, rng),
            DENIED | INVALID | exactly("RESOURCE_EXHAUSTED"),
        ),
        shown("name of another device", enrolment(good, named="c0"), exactly("ALREADY_EXISTS")),
        shown("name that is a path", enrolment(good, named="../../authority"), INVALID),
        shown("signing request of noise", enrolment(good, request=rng.randbytes(250)), INVALID),
        shown("signing request for RSA", enrolment(good, request=_RSA), INVALID),
        shown("signing request for P-384", enrolment(good, request=_P384), INVALID),
        shown("signing request, spoiled", enrolment(good, request=_unsigned(rng)), INVALID),
        shown("20 kB at the join port", bytes(20_000), exactly("RESOURCE_EXHAUSTED")),
        shown("no such method at the join port", b"", exactly("UNIMPLEMENTED"), "Everything"),
    ]


def _flipped(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _unsigned(rng: random.Random) -> bytes:
    """Return a signing request whose signature is not its key's: the last bytes hold it."""
    request = signing_request(new_key())
    return request[:-20] + _flipped(request[-20:], rng)


def _request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


_RSA = _request(rsa.generate_private_key(65537, 2048))
_P384 = _request(ec.generate_private_key(ec.SECP384R1()))
