"""What a device that joined holds: `identity/` in its state directory.

authority.pem   the authority's certificate: who signs for the server
client.pem      this device's key and certificate, replaced as a whole at each renewal
server.json     the server's address
joining.key     the key of an unfinished join: asked again with it, no use of the token is lost
renewing.key    the key of an unfinished renewal: asked again with it, no second one is signed
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fedclient.errors import CertificateError
from motley.errors import IdentityError
from motley.identity.certificates import (
    Certificate,
    certificate_to_pem,
    load_certificate,
    read_certificate,
)
from motley.identity.keys import key_from_pem, key_to_pem, new_key
from motley.identity.names import CLIENT
from motley.identity.private_files import make_private_folder, read_private, write_private
from motley.wire.durable import replacing

CLOCK_TOLERANCE = 60.0
"""Seconds by which a device's clock may be behind the beginning of its certificate."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A device's certificate with all that a channel needs. Texts are PEM."""

    key: bytes
    chain: bytes
    authority: bytes
    server: str
    """`HOST:PORT` of the client port, as the server named it."""
    certificate: Certificate

    def check(self, now: float) -> None:
        """Raise CertificateError when the certificate is of no use at this moment."""
        found = self.certificate
        if now < found.not_before - CLOCK_TOLERANCE:
            raise CertificateError(
                f"the clock of this device says {_moment(now)}, and its certificate was made at "
                f"{_moment(found.not_before)}: the clock is wrong; set it, then start again"
            )
        if now >= found.not_after:
            raise CertificateError(
                f"the certificate of this device ran out on {_moment(found.not_after)}, by its "
                f"clock; ask the operator for `fedserver tokens create --client {found.name}`, "
                f"then `fedclient join` with that token and the same --name and --state"
            )


class IdentityStore:
    """The folder `identity/` of a state directory."""

    def __init__(self, state: Path) -> None:
        self._state, self._folder = state, state / "identity"

    @property
    def joined(self) -> bool:
        """Whether this device has a certificate, good or not."""
        return (self._folder / "client.pem").exists()

    def load(self, name: str) -> Identity:
        """Return what this device holds.

        Raises:
            CertificateError: not joined, or joined by another name.
            IdentityError: a file is damaged, or a key can be read by others.
        """
        path = self._folder / "client.pem"
        if not self.joined:
            raise CertificateError(
                f"{self._state} holds no certificate; join with `fedclient join TOKEN "
                f"--name {name}`"
            )
        content = read_private(path)
        key = key_from_pem(content, path)
        found = read_certificate(content)
        if load_certificate(content).public_key() != key.public_key():
            raise IdentityError(f"{path}: the key and the certificate do not belong together")
        if (found.role, found.name) != (CLIENT, name):
            raise CertificateError(
                f"the certificate in {path} is for client {found.name!r}, not for {name!r}; start "
                f"with --name {found.name}, or choose another --state"
            )
        try:
            authority = (self._folder / "authority.pem").read_bytes()
            server = str(json.loads((self._folder / "server.json").read_bytes())["server"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IdentityError(
                f"{self._folder} is not whole ({error}); join again with a new token"
            ) from None
        return Identity(
            key=key_to_pem(key),
            chain=certificate_to_pem(content),
            authority=authority,
            server=server,
            certificate=found,
        )

    def joining_key(self) -> ec.EllipticCurvePrivateKey:
        """Return the key to join with: a new one, or that of a join that was cut short."""
        make_private_folder(self._folder)
        path = self._folder / "joining.key"
        if path.exists():
            return key_from_pem(read_private(path), path)
        key = new_key()
        write_private(path, key_to_pem(key))
        return key

    def save(
        self, key: ec.EllipticCurvePrivateKey, certificate: bytes, authority: bytes, server: str
    ) -> None:
        """Keep what joining gave; certificates in DER. The certificate comes last: it counts."""
        for name, content in (
            ("authority.pem", certificate_to_pem(authority)),
            ("server.json", json.dumps({"server": server}).encode()),
        ):
            with replacing(self._folder / name) as stream:
                stream.write(content)
        self._put(key, certificate)
        for name in ("joining.key", "renewing.key"):
            (self._folder / name).unlink(missing_ok=True)

    def renewing_key(self, before: Identity) -> ec.EllipticCurvePrivateKey:
        """Return the key to renew with: a new one, or that of a renewal that was cut short.

        It is on the disk before anything is asked for: a disk that refuses costs no certificate.
        """
        path = self._folder / "renewing.key"
        # One that cannot be used, or that others could read, is nobody's yet: a new one will do.
        with contextlib.suppress(IdentityError):
            key = key_from_pem(read_private(path), path)
            if key_to_pem(key) != before.key:
                return key
        key = new_key()
        write_private(path, key_to_pem(key))
        return key

    def renew(
        self, before: Identity, key: ec.EllipticCurvePrivateKey, certificate: bytes, now: float
    ) -> Identity:
        """Put a new key and certificate (DER) in place of the old ones, and return them.

        Raises:
            CertificateError: the certificate is not for this key and this client, or of less use
                than the old one at the moment `now`. The old one stays.
        """
        found = check_issued(certificate, key, before.certificate.name)
        _check_times(found, before.certificate, now)
        self._put(key, certificate)
        (self._folder / "renewing.key").unlink(missing_ok=True)
        pem = certificate_to_pem(certificate)
        return replace(before, key=key_to_pem(key), chain=pem, certificate=found)

    def _put(self, key: ec.EllipticCurvePrivateKey, certificate: bytes) -> None:
        # One file for both: no moment at which they do not belong together.
        pem = certificate_to_pem(certificate)
        write_private(self._folder / "client.pem", key_to_pem(key) + pem)


def check_issued(certificate: bytes, key: ec.EllipticCurvePrivateKey, name: str) -> Certificate:
    """Return what an issued certificate (DER) says; raise CertificateError unless it is ours."""
    found = read_certificate(certificate)
    same_key = load_certificate(certificate).public_key() == key.public_key()
    if not same_key or (found.role, found.name) != (CLIENT, name):
        raise CertificateError(
            f"the server signed a certificate for {found.role} {found.name!r}, and this is client "
            f"{name!r}; is it a server of the same version?"
        )
    return found


def _check_times(found: Certificate, held: Certificate, now: float) -> None:
    """Raise CertificateError unless a renewed certificate is fresh and outlasts the one held."""
    fresh = found.not_before - CLOCK_TOLERANCE <= now < found.renew_at
    if not fresh or found.not_after <= held.not_after:
        raise CertificateError(
            f"the server signed a certificate from {_moment(found.not_before)} until "
            f"{_moment(found.not_after)}, at {_moment(now)} by the clock of this device, which "
            f"keeps the one it has, until {_moment(held.not_after)}; set the server's clock, or "
            f"this device's if that is the one that is wrong"
        )


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
