"""Where every random number comes from: (the run's seed, round, client name, purpose).

Nothing in this system draws from a global generator; a purpose that needs randomness derives
a seed of its own here, so that no draw depends on arrival order, threads or earlier draws.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *labels: str | int) -> int:
    """Return a 63-bit seed for the purpose that `labels` name, e.g. `derive(s, "select", round)`.

    SHA-256 over the decimal seed and the labels, each with its type and length, so that
    ("a", "b") and ("ab",) differ, and 1 and "1" do too. The same on every platform.

    >>> derive(1, "train", 3, "phone-1") == derive(1, "train", 3, "phone-1")
    True
    >>> derive(1, "a", "b") == derive(1, "ab")
    False
    """
    digest = hashlib.sha256(b"motley-seed-1")
    for label in (seed, *labels):
        text = str(label).encode()
        digest.update(f"{'i' if isinstance(label, int) else 's'}{len(text)}:".encode())
        digest.update(text)
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def dither_seed(seed: int, round: int, client: str, tensor: str) -> int:
    """Return the seed of the dither of one tensor of an update, which both ends derive."""
    return derive(seed, "dither", round, client, tensor)


def numpy_generator(seed: int, *labels: str | int) -> np.random.Generator:
    """Return a numpy generator (Philox, the same stream on every platform) for a purpose."""
    return np.random.Generator(np.random.Philox(derive(seed, *labels)))
