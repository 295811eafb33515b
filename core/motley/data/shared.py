"""Reading a set once for many clients of one process.

A device reads its own samples once, and keeps nothing else. A simulation reads for a thousand
clients in turn: inside `sharing()` what functions marked with `shared` return is kept and handed
out again.

>>> @shared
... def read(path: str) -> list[str]:
...     return [path]
>>> with sharing():
...     read("a") is read("a")
True
>>> read("a") is read("a")
False
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

_kept: dict[Hashable, object] | None = None


def shared(function: Callable[P, T]) -> Callable[P, T]:
    """Keep what a function returns for arguments (hashable ones) while something is `sharing`.

    Callers get the same object again and must not change it.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if _kept is None:
            return function(*args, **kwargs)
        key = (function, args, tuple(sorted(kwargs.items())))
        if key not in _kept:
            _kept[key] = function(*args, **kwargs)
        return cast(T, _kept[key])

    return call


@contextmanager
def sharing() -> Iterator[None]:
    """Keep what `shared` functions return until the block ends; blocks may lie in each other."""
    global _kept
    before = _kept
    _kept = {} if before is None else before
    try:
        yield
    finally:
        _kept = before
