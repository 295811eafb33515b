from __future__ import annotations

import pytest

from motley.data.rereading import Rereading


def test_what_is_asked_for_twice_is_kept() -> None:
    reading, calls = Rereading(), []

    def read() -> list[int]:
        calls.append(len(calls))
        return list(calls)

    assert [reading("a", read) for _ in range(4)] == [[0], [0, 1], [0, 1], [0, 1]]
    assert reading("b", read) == [0, 1, 2]
    assert reading("a", read) == [0, 1]


def test_an_error_is_not_kept() -> None:
    reading = Rereading()

    def fail() -> int:
        raise OSError("gone")

    for _ in range(3):
        with pytest.raises(OSError, match="gone"):
            reading("a", fail)
    assert reading("a", lambda: 7) == 7
