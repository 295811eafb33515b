"""Random numbers that nobody else can know: ChaCha20 under a key made on the device.

What a guarantee rests on must not be predictable from what is sent: coordinates without a signal
show the bare noise, and the state of a plain generator can be computed from its outputs.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

KEY_BYTES = 32
_BLOCK_BYTES = 1 << 36
"""Of a stream under one key, a quarter of what ChaCha20's counter of 32 bits allows."""

FloatArray = npt.NDArray[np.float64]


def derive_key(secret: bytes, *labels: str | int | bytes) -> bytes:
    """Return a key of 32 bytes: HMAC-SHA256 under `secret` over the labels, each with its length.

    >>> derive_key(b"s" * 32, "ab", "c") == derive_key(b"s" * 32, "a", "bc")
    False
    """
    code = hmac.new(secret, b"motley-privacy-1", hashlib.sha256)
    for label in labels:
        content = label if isinstance(label, bytes) else str(label).encode()
        code.update(len(content).to_bytes(8, "little") + content)
    return code.digest()


def _keystream(key: bytes) -> CipherContext:
    # Here: every training process reads its ledger, and few draw noise.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    return Cipher(algorithms.ChaCha20(key, b"\0" * 16), mode=None).encryptor()


class SecretStream:
    """A stream of random numbers that a key determines; each call goes on where the last ended."""

    def __init__(self, key: bytes, purpose: str) -> None:
        """Start at the beginning; streams of one key and different purposes are independent.

        Args:
            key: 32 bytes, secret, never used for anything else.
            purpose: what the numbers are for.
        """
        self._key, self._purpose, self._block, self._left = key, purpose, 0, _BLOCK_BYTES
        self._encryptor = _keystream(derive_key(key, purpose))

    def uniform(self, count: int) -> FloatArray:
        """Return [count] float64, uniform between 0 and 1, both excluded, in steps of 2^-53."""
        if 8 * count > self._left:
            self._block, self._left = self._block + 1, _BLOCK_BYTES
            self._encryptor = _keystream(derive_key(self._key, self._purpose, self._block))
        self._left -= 8 * count
        words = np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype="<u8")
        steps: FloatArray = (words >> np.uint64(11)).astype(np.float64)
        return (steps + 0.5) * 2.0**-53

    def gaussian(self, count: int) -> FloatArray:
        """Return [count] float64 of N(0, 1) (Box and Muller; beyond 8.6 there is nothing)."""
        half = (count + 1) // 2
        radius = np.sqrt(-2.0 * np.log(self.uniform(half)))
        angle = 2.0 * math.pi * self.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
