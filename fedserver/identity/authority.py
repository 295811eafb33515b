"""The certificate authority of one server: a folder `identity/` in its data directory.

authority.pem     its certificate, which devices pin; valid for 20 years
authority.key     its private key; who has it can make clients and servers of this federation
server.pem        the server's own key and certificate; replaced as a whole before it runs out
settings.json     lifetimes of what it signs, and the address that devices are told
operators.json    the operators' certificates that count (operators.py)
"""

from __future__ import annotations

import datetime
import math
import socket
import threading
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from structlog.stdlib import get_logger

from fedserver.rounds.clock import Clock, SystemClock
from motley.errors import IdentityError
from motley.identity.certificates import (
    Certificate,
    certificate_to_der,
    load_certificate,
    read_certificate,
)
from motley.identity.keys import key_from_pem, key_to_pem, new_key
from motley.identity.names import SERVER_NAME, identity_uri
from motley.identity.private_files import make_private_folder, read_private, write_private
from motley.wire.durable import replacing

log = get_logger()

AUTHORITY_SECONDS = 20 * 365 * 86400.0
DAY = 86400.0
MOST_SKEW = 3600.0
"""Certificates begin this long ago, so that clocks may differ; short-lived ones less."""


class Settings(BaseModel):
    """What was chosen at `fedserver init`. Lifetimes in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    """Host name or address that devices are told."""
    port: int = Field(default=0, ge=0, le=65534)
    """Client port that devices are told, and the join port is the next one; 0: the ports that the
    server listens on."""
    client_lifetime: float = Field(default=90 * DAY, ge=1)
    operator_lifetime: float = Field(default=365 * DAY, ge=1)
    server_lifetime: float = Field(default=90 * DAY, ge=1)

    def address(self, port: int) -> str:
        """Return `HOST:PORT`, the host in brackets when it is an IPv6 address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{port}"


def outward_address() -> str:
    """Return the address by which others most likely reach this machine; sends nothing."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Connecting a datagram socket only asks the routing table (TEST-NET-1 is nobody).
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


class Authority:
    """Signs certificates, and keeps the server's own one fresh. Safe to use from any thread."""

    def __init__(self, data: Path, clock: Clock | None = None) -> None:
        """Load the authority of a data directory; raise IdentityError when it is not whole."""
        self._folder = data / "identity"
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        try:
            self.pem = (self._folder / "authority.pem").read_bytes()
            text = (self._folder / "settings.json").read_bytes()
            self.settings = Settings.model_validate_json(text)
        except (OSError, ValidationError) as error:
            raise IdentityError(
                f"the authority in {self._folder} is not whole: {error}; put the folder back from "
                f"a backup, or move it away and begin with `fedserver init`"
            ) from None
        key = self._folder / "authority.key"
        self._key = key_from_pem(read_private(key), key)
        self._certificate = load_certificate(self.pem)
        self.der = certificate_to_der(self.pem)
        if self._certificate.public_key() != self._key.public_key():
            raise IdentityError(f"{key} does not belong to authority.pem beside it")
        self.renew_server_if_due()

    @staticmethod
    def exists(data: Path) -> bool:
        """Return whether a data directory has an authority."""
        return (data / "identity" / "authority.pem").exists()

    @classmethod
    def create(cls, data: Path, settings: Settings, clock: Clock | None = None) -> Authority:
        """Make an authority; raise IdentityError when there is one already."""
        folder = data / "identity"
        if cls.exists(data):
            raise IdentityError(
                f"{folder} holds an authority already, and every device trusts that one; more "
                f"devices join with `fedserver tokens create`"
            )
        make_private_folder(folder)
        for leftover in ("server.pem", "operators.json"):  # of an authority that was taken away
            (folder / leftover).unlink(missing_ok=True)
        key = new_key()
        write_private(folder / "authority.key", key_to_pem(key))
        write_private(folder / "settings.json", settings.model_dump_json(indent=1).encode())
        moment = (clock or SystemClock()).wall()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Motley authority")])
        builder = _builder(name, name, key.public_key(), *_terms(moment, AUTHORITY_SECONDS))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_usage(signs_certificates=True), True)
        certificate = builder.sign(key, hashes.SHA256())
        with replacing(folder / "authority.pem") as stream:  # last: it is what `exists` asks for
            stream.write(_pem(certificate))
        return cls(data, clock)

    # --- signing -----------------------------------------------------------------------------

    def sign(self, role: str, name: str, key: ec.EllipticCurvePublicKey) -> bytes:
        """Return a certificate (DER) by which `name` may connect in `role`, and nothing else."""
        settings = self.settings
        lifetime = settings.client_lifetime if role == "client" else settings.operator_lifetime
        return self._sign_for(role, name, key, _terms(self._clock.wall(), lifetime))

    def sign_again(self, known: Certificate, key: ec.EllipticCurvePublicKey) -> bytes:
        """Return a certificate (DER) that was signed before, for the same key.

        It says the same, serial number and times too: no second one that could be revoked.
        """
        terms = int(known.serial, 16), known.not_before, known.not_after
        return self._sign_for(known.role, known.name, key, terms)

    def _sign_for(
        self, role: str, name: str, key: ec.EllipticCurvePublicKey, terms: _Terms
    ) -> bytes:
        uri = x509.UniformResourceIdentifier(identity_uri(role, name))
        use = ExtendedKeyUsageOID.CLIENT_AUTH
        return certificate_to_der(_pem(self._sign(uri, use, name, key, terms)))

    def _sign(
        self,
        name: x509.GeneralName,
        use: x509.ObjectIdentifier,
        common_name: str,
        key: ec.EllipticCurvePublicKey,
        terms: _Terms,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = _builder(subject, self._certificate.subject, key, *terms)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(_usage(signs_certificates=False), True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([use]), False)
        builder = builder.add_extension(x509.SubjectAlternativeName([name]), False)
        return builder.sign(self._key, hashes.SHA256())

    # --- the server's own certificate --------------------------------------------------------

    def renew_server_if_due(self) -> float:
        """Sign a new server certificate when a third of the old one's life is left.

        Returns:
            Seconds until it is worth asking again.
        """
        path = self._folder / "server.pem"
        with self._lock:
            if not path.exists() or self._clock.wall() >= self._server_renewal(path):
                key = new_key()
                use = ExtendedKeyUsageOID.SERVER_AUTH
                lifetime = self.settings.server_lifetime
                names = x509.DNSName(SERVER_NAME)
                terms = _terms(self._clock.wall(), lifetime)
                signed = self._sign(names, use, SERVER_NAME, key.public_key(), terms)
                write_private(path, key_to_pem(key) + _pem(signed) + self.pem)
                log.info("server_certificate_signed", days=round(lifetime / DAY, 4))
            content = read_private(path)
            self._server = (key_to_pem(key_from_pem(content, path)), _certificates(content))
            return max(0.0, read_certificate(content).renew_at - self._clock.wall())

    def _server_renewal(self, path: Path) -> float:
        """Return when the server's certificate is to be renewed; 0 when it begins in the future,
        as after the clock was put right."""
        found = read_certificate(read_private(path))
        return found.renew_at if found.not_before <= self._clock.wall() else 0.0

    @property
    def server_pair(self) -> tuple[bytes, bytes]:
        """The server's newest key and certificates, as PEM."""
        with self._lock:
            return self._server


_Terms: TypeAlias = tuple[int, float, float]
"""A serial number, and from when until when."""


def _terms(now: float, lifetime: float) -> _Terms:
    skew = min(MOST_SKEW, lifetime / 10)
    return x509.random_serial_number(), math.floor(now - skew), math.ceil(now + lifetime)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    serial: int,
    not_before: float,
    not_after: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(_moment(not_before))
        .not_valid_after(_moment(not_after))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
    )


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).replace(tzinfo=None)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _certificates(content: bytes) -> bytes:
    """Return the certificates of a file that begins with a key."""
    return content[content.index(b"-----BEGIN CERTIFICATE-----") :]
