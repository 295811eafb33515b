"""Text as numbers: characters under a window, and hashed words.

Token 0 is padding. Vocabularies have a fixed size and are known without any data, so that devices
agree on them without telling each other what their texts hold.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
"""Line feed and printable ASCII; every other character counts as one more symbol."""
SYMBOLS = len(ALPHABET) + 1

_NUMBER = {character: number for number, character in enumerate(ALPHABET)}
_ABSENT = -1
_FACTOR, _PRIME = 1_000_003, 2**31 - 1
_WORD = re.compile(r"\w+|[^\w\s]")


def windows(texts: Sequence[str], context: int) -> tuple[Tokens, Tokens]:
    """Return each character of some texts, and the characters before it.

    Returns:
        (before [N, context], symbols [N]), numbers of `ALPHABET`; -1 stands before a text's start.
    """
    before = [np.empty((0, context), np.int64)]
    symbols = [np.empty(0, np.int64)]
    for text in texts:
        numbers = np.array([_NUMBER.get(c, SYMBOLS - 1) for c in text], np.int64)
        padded = np.concatenate([np.full(context, _ABSENT), numbers])
        before.append(np.lib.stride_tricks.sliding_window_view(padded, context)[: len(numbers)])
        symbols.append(numbers)
    return np.concatenate(before), np.concatenate(symbols)


def context_size(context: int, ngrams: int, buckets: int) -> int:
    """Return the number of tokens that `context_tokens` uses."""
    return 1 + context * SYMBOLS + (buckets if ngrams > 1 else 0)


def context_tokens(before: Tokens, ngrams: int, buckets: int) -> Tokens:
    """Return tokens of what stands before a character, in a bag that knows the order.

    One token for each place in the window, by its character, and one for each of the last 2, 3,
    ... `ngrams` characters together, hashed into `buckets`.

    Args:
        before: numbers from `windows`, [N, context].
        ngrams: longest n-gram; 1: none.
        buckets: tokens for n-grams.

    Returns:
        Tokens [N, context + ngrams - 1]; 0 where the text had not begun.
    """
    context = before.shape[1]
    places = np.where(before == _ABSENT, 0, 1 + np.arange(context) * SYMBOLS + before)
    columns = [places]
    for length in range(2, ngrams + 1):
        last = before[:, context - length :]
        hashed = np.full(len(before), length, np.int64)
        for column in last.T:
            hashed = (hashed * _FACTOR + column) % _PRIME
        tokens = 1 + context * SYMBOLS + hashed % buckets
        columns.append(np.where(last[:, 0] == _ABSENT, 0, tokens)[:, None])
    return np.concatenate(columns, axis=1)


def word_tokens(texts: Sequence[str], length: int, ngrams: int, vocabulary: int) -> Tokens:
    """Return the hashed words of texts: lower case, punctuation marks by themselves.

    Args:
        texts: N texts.
        length: words of each that count, from the first.
        ngrams: longest run of words that gets a token of its own; 1: words alone.
        vocabulary: number of tokens, padding included; words with equal hashes share one.

    Returns:
        Tokens [N, length * ngrams], padded with 0.
    """
    tokens = np.zeros((len(texts), ngrams * length), np.int64)
    for row, text in zip(tokens, texts, strict=True):
        words = [match[0] for match in islice(_WORD.finditer(text.lower()), length)]
        for size in range(1, ngrams + 1):
            runs = [" ".join(words[at : at + size]) for at in range(len(words) - size + 1)]
            hashed = [1 + zlib.crc32(run.encode()) % (vocabulary - 1) for run in runs]
            row[(size - 1) * length :][: len(hashed)] = hashed
    return tokens
