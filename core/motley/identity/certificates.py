"""Reading certificates: whose, from when, until when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from motley.errors import IdentityError
from motley.identity.names import owner_of

RENEW_BELOW = 1 / 3
"""A certificate is renewed when this part of its life is left."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a certificate says. Times are seconds since 1970."""

    role: str
    """`client` or `operator`; "" for the authority's and a server's."""
    name: str
    serial: str
    """Hexadecimal."""
    not_before: float
    not_after: float

    @property
    def renew_at(self) -> float:
        """When it is time for a new one."""
        return self.not_after - (self.not_after - self.not_before) * RENEW_BELOW


def load_certificate(content: bytes) -> x509.Certificate:
    """Return the certificate in PEM (the first one) or DER; raise IdentityError on other bytes."""
    try:
        begin = content.find(b"-----BEGIN CERTIFICATE-----")
        if begin >= 0:
            return x509.load_pem_x509_certificate(content[begin:])
        return x509.load_der_x509_certificate(content)
    except ValueError:
        raise IdentityError("these bytes are no certificate") from None


def read_certificate(content: bytes) -> Certificate:
    """Read a certificate in PEM (the first one) or DER; raise IdentityError on other bytes."""
    found = load_certificate(content)
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        uris = []
    role, name = owner_of(uris) or ("", "")
    return Certificate(
        role=role,
        name=name,
        serial=f"{found.serial_number:x}",
        not_before=_seconds(found, "not_valid_before"),
        not_after=_seconds(found, "not_valid_after"),
    )


def certificate_to_pem(content: bytes) -> bytes:
    """Return a certificate in DER, or the first one of a PEM text, as PEM."""
    return load_certificate(content).public_bytes(serialization.Encoding.PEM)


def certificate_to_der(pem: bytes) -> bytes:
    """Return the first certificate of a PEM text as DER."""
    return load_certificate(pem).public_bytes(serialization.Encoding.DER)


def _seconds(certificate: x509.Certificate, what: str) -> float:
    """Return a time of a certificate; cryptography before 42 gives it without a zone."""
    moment: datetime = getattr(certificate, f"{what}_utc", None) or getattr(certificate, what)
    return moment.replace(tzinfo=timezone.utc).timestamp()
