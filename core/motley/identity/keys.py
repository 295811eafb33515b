"""Keys and signing requests, and the files they lie in. Keys are ECDSA on P-256, as gRPC needs."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from motley.errors import IdentityError

LONGEST_REQUEST = 4096
"""Bytes of a signing request at most; ours have about 250."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, not encrypted: the file's permissions guard it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def key_from_pem(pem: bytes, source: Path) -> ec.EllipticCurvePrivateKey:
    """Return the private key in PEM text; raise IdentityError naming `source` when there is none.

    Certificates may stand in the same text.
    """
    with contextlib.suppress(ValueError, UnsupportedAlgorithm):
        key = serialization.load_pem_private_key(_key_block(pem), password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key
    raise IdentityError(f"{source} holds no private key as this program writes it")


def _key_block(pem: bytes) -> bytes:
    end = b"-----END PRIVATE KEY-----"
    before, found, _ = pem.partition(end)
    return before + found + b"\n"


def public_key_sha256(key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 (hex) of a public key's DER."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def signing_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a signing request (PKCS #10, DER) for a key. It names nobody: the signer does."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of a signing request whose signature is right.

    Raises:
        IdentityError: not a signing request, another kind of key, or signed by another key.
    """
    if len(request) > LONGEST_REQUEST:
        raise IdentityError(
            f"a signing request of {len(request)} bytes; expected up to {LONGEST_REQUEST}"
        )
    try:
        parsed = x509.load_der_x509_csr(request)
        key = parsed.public_key()
        right = parsed.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        raise IdentityError("the signing request is not PKCS #10 in DER") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError("the signing request is for another kind of key; expected ECDSA P-256")
    if not right:
        raise IdentityError("the signing request was not signed with the key that it asks for")
    return key


def fingerprint(certificate: bytes) -> bytes:
    """Return the SHA-256 (32 bytes) of a certificate's DER."""
    return hashlib.sha256(certificate).digest()
