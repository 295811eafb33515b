"""Secret noise: the right law, a key decides, streams do not repeat each other."""

from __future__ import annotations

import math

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from motley.privacy.noise import SecretStream, derive_key

KEY = bytes(range(32))


def test_uniform_numbers_are_the_keystream() -> None:
    key = derive_key(KEY, "batches")
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    first, second = (int.from_bytes(cipher.update(bytes(8)), "little") for _ in range(2))
    expected = [((word >> 11) + 0.5) / 2**53 for word in (first, second)]
    stream = SecretStream(KEY, "batches")
    assert [*stream.uniform(1), *stream.uniform(1)] == expected


def test_a_long_stream_goes_on_under_another_key(monkeypatch) -> None:
    """Long before the cipher's counter begins anew and repeats the numbers."""
    monkeypatch.setattr("motley.privacy.noise._BLOCK_BYTES", 64)
    stream = SecretStream(KEY, "noise")
    numbers = np.concatenate([stream.uniform(5) for _ in range(40)])
    assert len(set(numbers)) == 200
    np.testing.assert_array_equal(numbers[:5], SecretStream(KEY, "noise").uniform(5))


def test_gaussian_numbers_have_the_law_of_a_gaussian() -> None:
    """Kolmogorov and Smirnov at 10^-6, moments, and tails where one error in the tail shows."""
    count = 200_001  # odd: one number of a pair is left out
    x = np.sort(SecretStream(KEY, "noise").gaussian(count))
    assert len(x) == count
    cdf = np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in x])
    places = np.arange(count + 1) / count
    gap = max(float((places[1:] - cdf).max()), float((cdf - places[:-1]).max()))
    assert gap < math.sqrt(math.log(2e6) / 2 / count)
    assert abs(x.mean()) < 5 / math.sqrt(count)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / count)
    for far in (3.0, 4.0):
        expected = count * math.erfc(far / math.sqrt(2))
        assert abs(int((np.abs(x) > far).sum()) - expected) < 5 * math.sqrt(expected)


def test_a_key_decides_and_every_label_counts() -> None:
    def numbers(key: bytes, purpose: str) -> list[float]:
        return SecretStream(key, purpose).gaussian(8).tolist()

    assert numbers(KEY, "noise") == numbers(KEY, "noise")
    assert not set(numbers(KEY, "noise")) & set(numbers(KEY, "batches"))
    keys = [
        derive_key(KEY, "run", 1, 0, b"model"),
        derive_key(KEY, "run", 2, 0, b"model"),
        derive_key(KEY, "run", 1, 1, b"model"),
        derive_key(KEY, "run", 1, 0, b"other"),
        derive_key(KEY, "ru", "n1", 0, b"model"),
        derive_key(bytes(32), "run", 1, 0, b"model"),
    ]
    assert len(set(keys)) == len(keys)
