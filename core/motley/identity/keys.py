"""Keys and signing requests, and the files they lie in. Keys are ECDSA on P-256, as gRPC needs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from motley.errors import IdentityError
from motley.wire.durable import replacing

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


def write_private(path: Path, content: bytes) -> None:
    """Write a file that its owner alone can read, whole or not at all, synced to the disk."""
    # mkstemp, which is below `replacing`, creates with 0600: no moment of wider permissions.
    with replacing(path) as stream:
        stream.write(content)


def read_private(path: Path) -> bytes:
    """Return the content of a file with a key.

    Raises:
        IdentityError: not there, or others than its owner can read or write it.
    """
    try:
        with path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            content = stream.read()
    except OSError as error:
        raise IdentityError(f"{path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise IdentityError(
            f"{path} holds a private key and others can use it (mode {mode:04o}); if nobody has "
            f"copied it: chmod 600 {path}"
        )
    return content


def make_private_folder(path: Path) -> None:
    """Make a folder that its owner alone can enter."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
