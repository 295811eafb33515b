from __future__ import annotations

import numpy as np
import pytest

from motley.errors import DataError
from motley.workload import DataSpec
from motley.workloads.images import Mnist
from motley.workloads.selection import (
    Selection,
    held_out_share,
    own_share,
    pooled_shares,
    published_shares,
    writer_shares,
)

KNOWN = Mnist.options
LABELS = np.repeat(np.arange(10), 60)


def parse(query: str) -> Selection:
    return Selection.parse(DataSpec.parse(f"x?{query}" if query else "x"), KNOWN)


def test_no_options() -> None:
    assert parse("") == Selection()


def test_all_kinds_of_value() -> None:
    assert parse("clients=6&client=5&classes=4&train=40&test=0.5&seed=9") == Selection(
        clients=6, client=5, classes=4, train=40, test=0.5, seed=9
    )
    assert parse("clients=2&alpha=0.3") == Selection(clients=2, alpha=0.3)


@pytest.mark.parametrize(("query", "clients"), [("writers=3", 66), ("writers=3&clients=5", 5)])
def test_writers_set_the_number_of_clients(query: str, clients: int) -> None:
    assert parse(f"{query}&qmnist=/q").clients == clients


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("colour=red", "'colour' is not known for this workload; there are clients, client"),
        ("clients=0", "clients=0; expected a whole number, 1 or more"),
        ("clients=²", "expected a whole number"),
        ("clients=3&client=3", "client=3; expected 0 to 2, as there are clients=3"),
        ("clients=3&client=-1", "client=-1; expected a whole number, 0 or more"),
        ("client=1", "client needs clients"),
        ("classes=2", "classes needs clients"),
        ("alpha=2", "alpha needs clients"),
        ("clients=2&alpha=0", "alpha=0; expected a number above 0"),
        ("clients=2&alpha=x", "alpha=x; expected a number above 0"),
        ("clients=2&alpha=1&classes=2", "classes and alpha exclude each other"),
        ("writers=3&classes=2&qmnist=q", "classes and writers exclude each other"),
        ("writers=3", "only given together"),
        ("qmnist=q", "only given together"),
        ("train=0", "train=0; expected a number of samples, or a fraction"),
        ("train=1.5", "expected a number of samples, or a fraction"),
        ("test=nan", "expected a number of samples, or a fraction"),
        ("seed=a", "seed=a; expected a whole number"),
    ],
)
def test_bad_options_name_what_was_expected(query: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse(query)


def test_one_share_without_clients() -> None:
    (share,) = pooled_shares(LABELS, parse(""), 0.7)
    assert (len(share.train), len(share.test)) == (420, 180)
    (share,) = published_shares(LABELS, LABELS[::6], parse(""))
    assert (len(share.train), len(share.test)) == (600, 100)
    (share,) = published_shares(LABELS, LABELS[::6], parse("train=50&test=0.1"))
    assert np.bincount(LABELS[share.train]).tolist() == [5] * 10
    assert np.bincount(LABELS[::6][share.test]).tolist() == [1] * 10


@pytest.mark.parametrize("query", ["classes=4", "alpha=0.1", "alpha=0.1&train=30", "train=0.5"])
def test_no_sample_trains_one_client_and_tests_another(query: str) -> None:
    shares = pooled_shares(LABELS, parse(f"clients=6&{query}"), 0.7)
    joined = np.concatenate([side for share in shares for side in (share.train, share.test)])
    assert len(np.unique(joined)) == len(joined)
    together = held_out_share(shares, parse("clients=6"))
    assert len(together.test) == sum(len(share.test) for share in shares)


def test_own_share_needs_the_client() -> None:
    selection = parse("clients=3&client=2")
    shares = pooled_shares(LABELS, selection, 0.7)
    assert own_share(shares, selection) is shares[2]
    assert held_out_share(shares, selection) is shares[2]
    with pytest.raises(DataError, match="client is missing; expected 0 to 2"):
        own_share(shares, parse("clients=3"))


def test_writers_are_split_each_by_itself() -> None:
    writers = np.tile(np.arange(20), 30)
    shares = writer_shares(writers, LABELS, parse("writers=2&clients=8&qmnist=q"))
    for share in shares:
        for side, each in ((share.train, 27), (share.test, 3)):
            _, counts = np.unique(writers[side], return_counts=True)
            assert counts.tolist() == [each, each]
        assert share.test_part == "train"
        assert not set(share.train) & set(share.test)
    limited = writer_shares(writers, LABELS, parse("writers=2&clients=8&qmnist=q&train=10&test=2"))
    assert {(len(share.train), len(share.test)) for share in limited} == {(10, 2)}
