from __future__ import annotations

import numpy as np
import pytest

from motley.errors import DataError
from motley.workload import DataSpec
from motley.workloads.images import Cifar10, Mnist
from motley.workloads.options import Range, amount_of
from motley.workloads.selection import SPLITS, Selection
from motley.workloads.shares import (
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
    assert parse("clients=2&split=iid&pool=0.7&train=3-9") == Selection(
        clients=2, split="iid", pool=0.7, train=Range(3, 9)
    )


@pytest.mark.parametrize(
    ("query", "way"),
    [
        ("clients=2", "shards"),
        ("clients=2&classes=3", "shards"),
        ("clients=2&alpha=1", "dirichlet"),
        ("qmnist=q&writers=3", "writers"),
        ("qmnist=q&split=writers", "writers"),
        ("clients=2&split=shards", "shards"),
        ("clients=2&split=cyclic&classes=5", "cyclic"),
        ("clients=2&split=dirichlet-equal&alpha=0.5", "dirichlet-equal"),
        ("clients=2&split=dirichlet-capped&alpha=0.5", "dirichlet-capped"),
    ],
)
def test_options_imply_a_split(query: str, way: str) -> None:
    assert parse(query).way == way


def test_splits_by_writers_are_for_sets_that_have_them() -> None:
    with pytest.raises(DataError, match=r"split=writers; expected one of shards, .*-capped$"):
        Selection.parse(DataSpec.parse("x?split=writers"), Cifar10.options)


def test_amounts() -> None:
    assert [amount_of(7, 3, 0.5), amount_of(0.5, 9, 0.5), amount_of(0.01, 9, 0.5)] == [7, 4, 1]
    drawn = [amount_of(Range(20, 30), 100, place / 1100) for place in range(1100)]
    assert np.bincount(drawn)[20:].tolist() == [100] * 11
    assert amount_of(Range(20, 30), 25, 0.99) == 25
    with pytest.raises(DataError, match="19 samples, and 20-30 of them"):
        amount_of(Range(20, 30), 19, 0.0)


@pytest.mark.parametrize(
    ("query", "clients"), [("writers=3", 66), ("split=writers", 66), ("writers=3&clients=5", 5)]
)
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
        ("train=0", "train=0; expected a number of samples, a fraction"),
        ("train=1.5", "expected a number of samples, a fraction"),
        ("test=nan", "expected a number of samples, a fraction"),
        ("seed=a", "seed=a; expected a whole number"),
        ("clients=2&split=even", "split=even; expected one of shards, cyclic, iid, dirichlet"),
        ("split=iid", "split needs clients"),
        ("clients=2&split=cyclic", "split=cyclic needs classes"),
        ("clients=2&split=dirichlet-equal", "split=dirichlet-equal needs alpha"),
        ("clients=2&split=iid&alpha=1", "alpha does not go with split=iid; it is for dirichlet, "),
        ("clients=2&split=cyclic&writers=3&qmnist=q", "writers does not go with split=cyclic"),
        ("split=writers", "only given together"),
        ("split=writers&qmnist=q&pool=0.5", "pool does not go with writers"),
        ("pool=1", "pool=1; expected a fraction above 0 and below 1"),
        ("train=9-3", "train=9-3; expected a number of samples, a fraction"),
        ("train=0-3", "or a range as 20-30"),
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


QUERIES = {
    "shards": "classes=4",
    "cyclic": "split=cyclic&classes=4",
    "iid": "split=iid",
    **{name: f"split={name}&alpha=0.5" for name in SPLITS if name.startswith("dirichlet")},
}


@pytest.mark.parametrize(
    "query", [*QUERIES.values(), "alpha=0.1&train=30", "train=0.5", "split=iid&train=30-80"]
)
def test_no_sample_trains_one_client_and_tests_another(query: str) -> None:
    shares = pooled_shares(LABELS, parse(f"clients=6&{query}"), 0.7)
    joined = np.concatenate([side for share in shares for side in (share.train, share.test)])
    assert len(np.unique(joined)) == len(joined)
    together = held_out_share(shares, parse("clients=6"))
    assert len(together.test) == sum(len(share.test) for share in shares)


def test_every_split_is_tested_here() -> None:
    assert {*QUERIES, "writers"} == set(SPLITS)


@pytest.mark.parametrize("query", QUERIES.values())
@pytest.mark.parametrize("pool", ["", "&pool=0.7"])
def test_published_sets_are_shared_out_in_every_way(query: str, pool: str) -> None:
    """No sample twice, train and test apart, no client without either; and again the same."""
    train, test = LABELS, LABELS[::3]
    shares = published_shares(train, test, parse(f"clients=6&{query}{pool}"))
    again = published_shares(train, test, parse(f"clients=6&{query}{pool}"))
    used = [
        (source, index)
        for share in shares
        for source, side in ((share.train_of, share.train), (share.test_of, share.test))
        for index in side.tolist()
    ]
    assert len(set(used)) == len(used)
    for share, same in zip(shares, again, strict=True):
        assert min(len(share.train), len(share.test)) >= 1
        np.testing.assert_array_equal(share.train, same.train)
        np.testing.assert_array_equal(share.test, same.test)
        if pool:
            assert (share.train_of, share.test_of) == ("joined", "joined")
            whole = len(share.train) + len(share.test)
            assert abs(len(share.train) - 0.7 * whole) <= 0.5
    other = published_shares(train, test, parse(f"clients=6&{query}{pool}&seed=1"))
    assert any(not np.array_equal(a.train, b.train) for a, b in zip(shares, other, strict=True))


def test_ranges_give_clients_different_amounts() -> None:
    shares = published_shares(LABELS, LABELS, parse("clients=5&train=40-80&test=20-40"))
    sizes = [(len(share.train), len(share.test)) for share in shares]
    assert all(40 <= train <= 80 and 20 <= test <= 40 for train, test in sizes)
    assert len(set(sizes)) > 1
    # One draw for both, so that those who train on much are tested on much.
    assert sorted(sizes) == sorted(sizes, key=lambda size: size[1])


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
        assert share.test_of == "train"
        assert not set(share.train) & set(share.test)
    limited = writer_shares(writers, LABELS, parse("writers=2&clients=8&qmnist=q&train=10&test=2"))
    assert {(len(share.train), len(share.test)) for share in limited} == {(10, 2)}
