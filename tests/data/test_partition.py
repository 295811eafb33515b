from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motley.data.dirichlet import dirichlet, dirichlet_capped, dirichlet_equal
from motley.data.draws import Indices
from motley.data.partition import by_class, by_group, cyclic, iid, like, sample, split
from motley.errors import DataError

SEEDS = st.integers(0, 2**63 - 1)


def assert_parts(parts: list[Indices], clients: int, samples: int) -> None:
    """Disjoint, sorted, none empty."""
    assert len(parts) == clients
    assert min(map(len, parts)) >= 1
    joined = np.concatenate(parts)
    assert len(np.unique(joined)) == len(joined)
    assert joined.min() >= 0
    assert joined.max() < samples
    for part in parts:
        assert part.dtype == np.int64
        npt.assert_array_equal(part, np.sort(part))


def assert_same(first: list[Indices], second: list[Indices]) -> None:
    for one, other in zip(first, second, strict=True):
        npt.assert_array_equal(one, other)


@pytest.mark.parametrize("seed", range(5))
def test_qupeds_split_of_cifar10(seed: int) -> None:
    """50 clients of 4 classes: 20 shards a class, none left over, every sample used once."""
    rng = np.random.default_rng(seed)
    train, test = (rng.permutation(np.repeat(np.arange(10), n)) for n in (5000, 1000))
    parts = by_class(train, 50, 4, seed)
    assert_parts(parts, 50, 50_000)
    tests = like(parts, train, test, seed)
    assert_parts(tests, 50, 10_000)
    holders = np.zeros(10, int)
    for part, other in zip(parts, tests, strict=True):
        classes, counts = np.unique(train[part], return_counts=True)
        assert len(classes) == 4
        assert counts.tolist() == [250] * 4
        same, test_counts = np.unique(test[other], return_counts=True)
        npt.assert_array_equal(classes, same)
        assert test_counts.tolist() == [50] * 4
        holders[classes] += 1
    assert holders.tolist() == [20] * 10
    assert sum(map(len, parts)) == 50_000
    assert sum(map(len, tests)) == 10_000


@given(st.integers(1, 12), st.integers(1, 8), st.data(), SEEDS)
@settings(max_examples=60, deadline=None)
def test_by_class(clients: int, classes: int, data: st.DataObject, seed: int) -> None:
    per_client = data.draw(st.integers(1, classes))
    labels = np.repeat(np.arange(classes) * 3 - 1, clients + 2)
    parts = by_class(labels, clients, per_client, seed)
    assert_parts(parts, clients, len(labels))
    assert_same(parts, by_class(labels, clients, per_client, seed))
    held = [set(labels[part].tolist()) for part in parts]
    assert [len(names) for names in held] == [per_client] * clients
    shards = [sum(name in names for names in held) for name in np.unique(labels)]
    assert max(shards) - min(shards) <= 1
    if clients * per_client >= classes:
        assert sum(map(len, parts)) == len(labels)


def test_by_class_differs_by_seed() -> None:
    labels = np.repeat(np.arange(10), 50)
    first, second = by_class(labels, 6, 4, 0), by_class(labels, 6, 4, 1)
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("clients", "per_client", "message"),
    [
        (2, 0, "0 classes per client; expected 1 to 3"),
        (2, 4, "4 classes per client; expected 1 to 3"),
        (0, 1, "0 clients"),
        (13, 1, "13 clients"),
        (7, 3, "class 0 has 4 samples for 7 clients"),
    ],
)
def test_by_class_refuses(clients: int, per_client: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        by_class(np.repeat(np.arange(3), 4), clients, per_client, 0)


@given(st.integers(1, 12), st.floats(0.01, 100), st.integers(1, 5), SEEDS)
@settings(max_examples=60, deadline=None)
def test_dirichlet(clients: int, alpha: float, minimum: int, seed: int) -> None:
    labels = np.repeat(np.arange(4), 20)
    parts = dirichlet(labels, clients, alpha, seed, minimum)
    assert_parts(parts, clients, 80)
    assert sum(map(len, parts)) == 80
    assert min(map(len, parts)) >= minimum
    assert_same(parts, dirichlet(labels, clients, alpha, seed, minimum))


DIRICHLETS = [dirichlet, dirichlet_equal, dirichlet_capped]


@pytest.mark.parametrize("way", DIRICHLETS)
def test_alpha_sets_the_skew(way: Callable[..., list[Indices]]) -> None:
    labels = np.repeat(np.arange(10), 500)

    def largest_share(alpha: float) -> float:
        parts = way(labels, 10, alpha, 0)
        return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))

    assert largest_share(1000) < 0.15
    assert largest_share(0.1) > 0.4


@pytest.mark.parametrize("way", DIRICHLETS)
@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf")])
def test_dirichlet_refuses_alpha(way: Callable[..., list[Indices]], alpha: float) -> None:
    with pytest.raises(DataError, match="alpha is"):
        way(np.zeros(10, int), 2, alpha, 0)
    with pytest.raises(DataError, match="11 clients"):
        way(np.zeros(10, int), 11, 1.0, 0)


@given(st.integers(1, 12), st.floats(0.01, 100), SEEDS)
@settings(max_examples=60, deadline=None)
def test_dirichlet_equal(clients: int, alpha: float, seed: int) -> None:
    labels = np.repeat(np.arange(4), [30, 20, 7, 26])
    parts = dirichlet_equal(labels, clients, alpha, seed)
    assert_parts(parts, clients, 83)
    assert {len(part) for part in parts} == {83 // clients}
    assert_same(parts, dirichlet_equal(labels, clients, alpha, seed))


def test_dirichlet_equal_draws_mixtures_and_not_classes() -> None:
    """With plenty of samples each client's mixture is p itself: E[p²] tells Dir(0.5) over four."""
    labels = np.repeat(np.arange(4), 20_000)
    parts = dirichlet_equal(labels, 400, 0.5, 0)[:400]
    mixtures = np.stack([np.bincount(labels[part], minlength=4) / len(part) for part in parts])
    # E[p_k²] = a (a + 1) / (A (A + 1)) with a = 0.5 and A = 4 a.
    assert (mixtures**2).mean() == pytest.approx(0.5 * 1.5 / (2 * 3), rel=0.1)


@given(st.integers(1, 8), st.floats(0.1, 100), SEEDS)
@settings(max_examples=60, deadline=None)
def test_dirichlet_capped(clients: int, alpha: float, seed: int) -> None:
    labels = np.repeat(np.arange(6), 60)
    parts = dirichlet_capped(labels, clients, alpha, seed, minimum=3)
    assert_parts(parts, clients, 360)
    assert sum(map(len, parts)) == 360
    fill = 360 / clients
    assert min(map(len, parts)) >= max(3, 0.1 * fill)
    for part in parts:
        # What a client has when its last class is dealt out is below its fill.
        last = np.max(labels[part])
        assert (labels[part] < last).sum() < fill
    assert_same(parts, dirichlet_capped(labels, clients, alpha, seed, minimum=3))


def test_dirichlet_capped_gives_up_with_a_reason() -> None:
    with pytest.raises(DataError, match=r"1000 draws of 40 clients with alpha=0.001 gave none"):
        dirichlet_capped(np.zeros(40, int), 40, 0.001, 0)


def test_fedp3s_splits_of_cifar10() -> None:
    """100 clients of 600 of the pooled 60,000, five classes in equal amounts or Dir(0.5)."""
    labels = np.tile(np.arange(10), 6000)
    for client, part in enumerate(cyclic(labels, 100, 5, 0)):
        expected = np.isin(np.arange(10), (client + np.arange(5)) % 10) * 120
        assert np.bincount(labels[part], minlength=10).tolist() == expected.tolist()
    assert {len(part) for part in dirichlet_equal(labels, 100, 0.5, 0)} == {600}
    hundred = np.repeat(np.arange(100), 600)
    for client, part in enumerate(cyclic(hundred, 100, 15, 0)):
        expected = np.isin(np.arange(100), (client + np.arange(15)) % 100) * 40
        assert np.bincount(hundred[part], minlength=100).tolist() == expected.tolist()


@given(st.integers(1, 12), st.integers(1, 6), st.data(), SEEDS)
@settings(max_examples=60, deadline=None)
def test_cyclic(clients: int, classes: int, data: st.DataObject, seed: int) -> None:
    per_client = data.draw(st.integers(1, classes))
    sizes = data.draw(st.lists(st.integers(12, 30), min_size=classes, max_size=classes))
    labels = np.repeat(np.arange(classes) * 2, sizes)
    parts = cyclic(labels, clients, per_client, seed)
    assert_parts(parts, clients, len(labels))
    amounts = set()
    for client, part in enumerate(parts):
        names, counts = np.unique(labels[part], return_counts=True)
        assert set(names // 2) == {(client + j) % classes for j in range(per_client)}
        amounts |= set(counts.tolist())
    assert len(amounts) == 1
    # No larger equal amount would do for every class.
    held = [sum(name in labels[part] for part in parts) for name in np.unique(labels)]
    more = amounts.pop() + 1
    assert any(more * n > size for n, size in zip(held, sizes, strict=True))
    assert_same(parts, cyclic(labels, clients, per_client, seed))


def test_cyclic_refuses() -> None:
    with pytest.raises(DataError, match="class 1 has 1 samples for 2 clients"):
        cyclic(np.array([0, 0, 1]), 2, 2, 0)
    with pytest.raises(DataError, match="3 classes per client; expected 1 to 2"):
        cyclic(np.array([0, 0, 1]), 2, 3, 0)


@given(st.integers(1, 12), st.integers(12, 60), SEEDS)
@settings(max_examples=40, deadline=None)
def test_iid(clients: int, samples: int, seed: int) -> None:
    parts = iid(np.zeros(samples, int), clients, seed)
    assert_parts(parts, clients, samples)
    sizes = [len(part) for part in parts]
    assert sum(sizes) == samples
    assert max(sizes) - min(sizes) <= 1
    assert_same(parts, iid(np.zeros(samples, int), clients, seed))


def test_iid_gives_all_the_same_mixture() -> None:
    labels = np.repeat(np.arange(5), 2000)
    counts = np.stack([np.bincount(labels[part]) for part in iid(labels, 10, 3)])
    # Chi-square over 5 x 10 cells of 200: mean about 36, and 100 is far out.
    assert ((counts - 200) ** 2 / 200).sum() < 100
    assert len({tuple(row) for row in counts.tolist()}) > 1


def test_dirichlet_refuses_an_impossible_minimum() -> None:
    dirichlet(np.zeros(10, int), 5, 0.1, 0, minimum=2)
    with pytest.raises(DataError, match="5 clients of at least 3 samples out of 10"):
        dirichlet(np.zeros(10, int), 5, 0.1, 0, minimum=3)


@given(st.integers(1, 10), st.floats(0.05, 10), SEEDS)
@settings(max_examples=40, deadline=None)
def test_like_keeps_the_proportions(clients: int, alpha: float, seed: int) -> None:
    train, test = np.repeat(np.arange(5), 100), np.repeat(np.arange(5), 40)
    parts = dirichlet(train, clients, alpha, seed)
    tests = like(parts, train, test, seed)
    assert_parts(tests, clients, len(test))
    assert sum(map(len, tests)) == len(test)
    for part, other in zip(parts, tests, strict=True):
        expected = np.bincount(train[part], minlength=5) * 0.4
        found = np.bincount(test[other], minlength=5)
        # Rounding at both ends of each share, and one sample given to an empty client by others.
        assert np.abs(found - expected).max() <= 1 + clients


def test_like_leaves_unused_classes_out() -> None:
    train = np.array([0, 0, 1, 1, 2, 2])
    parts = [np.array([0, 1]), np.array([2])]
    tests = like(parts, train, np.array([2, 1, 0, 7, 1]), 0)
    npt.assert_array_equal(tests[0], [2])
    npt.assert_array_equal(tests[1], [1, 4])
    with pytest.raises(DataError, match="2 clients of at least 1 samples out of 0"):
        like(parts, train, np.array([7, 7, 7]), 0)


@given(st.integers(1, 6), st.integers(1, 3), SEEDS)
@settings(max_examples=40, deadline=None)
def test_by_group(clients: int, per_client: int, seed: int) -> None:
    groups = np.repeat(np.arange(20) * 7, np.arange(1, 21))
    parts = by_group(groups, clients, per_client, seed)
    assert_parts(parts, clients, len(groups))
    held = [np.unique(groups[part]) for part in parts]
    assert [len(names) for names in held] == [per_client] * clients
    wanted = clients * per_client
    # The groups with the most samples, each of them whole.
    npt.assert_array_equal(np.sort(np.concatenate(held)), np.arange(20 - wanted, 20) * 7)
    assert sum(map(len, parts)) == np.arange(21 - wanted, 21).sum()
    assert_same(parts, by_group(groups, clients, per_client, seed))


@pytest.mark.parametrize(("clients", "per_client"), [(0, 1), (1, 0), (3, 2)])
def test_by_group_refuses(clients: int, per_client: int) -> None:
    with pytest.raises(DataError, match="at most 5 groups"):
        by_group(np.arange(5), clients, per_client, 0)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data(), SEEDS)
@settings(max_examples=80, deadline=None)
def test_split_is_stratified(values: list[int], data: st.DataObject, seed: int) -> None:
    labels = np.array(values)
    indices = np.flatnonzero(np.arange(len(labels)) % 3 != 1)
    if len(indices) < 2:
        return
    count = data.draw(st.integers(1, len(indices) - 1))
    train, test = split(indices, labels, count, seed)
    assert len(train) == count
    npt.assert_array_equal(np.sort(np.concatenate([train, test])), indices)
    expected = np.bincount(labels[indices], minlength=5) * count / len(indices)
    assert np.abs(np.bincount(labels[train], minlength=5) - expected).max() < 1
    assert_same([train, test], list(split(indices, labels, count, seed)))


def test_split_by_fraction() -> None:
    labels = np.repeat([0, 1], [30, 70])
    train, test = split(np.arange(100), labels, 0.9, 0)
    assert np.bincount(labels[train]).tolist() == [27, 63]
    assert len(test) == 10
    # However small the part: one sample on either side.
    assert [len(side) for side in split(np.arange(2), labels, 0.99, 0)] == [1, 1]


@pytest.mark.parametrize("train", [0, 10, 11, 0.0, 1.0])
def test_split_refuses_an_empty_side(train: float) -> None:
    with pytest.raises(DataError, match="expected 1 to 9"):
        split(np.arange(10), np.zeros(10, int), train, 0)


def test_sample_refuses_more_than_there_are() -> None:
    assert len(sample(np.arange(3), np.zeros(3, int), 3, 0)) == 3
    with pytest.raises(DataError, match="4 of 3 samples"):
        sample(np.arange(3), np.zeros(3, int), 4, 0)


def test_parts_stay_the_same_from_release_to_release() -> None:
    """Devices of different age share one set: a changed draw would make their parts overlap."""
    labels = np.repeat(np.arange(4), 3)
    assert [part.tolist() for part in by_class(labels, 3, 2, 7)] == BY_CLASS
    assert [part.tolist() for part in by_group(labels, 2, 2, 7)] == BY_GROUP
    assert sample(np.arange(12), labels, 5, 7).tolist() == SAMPLE
    assert [part.tolist() for part in cyclic(labels, 3, 2, 7)] == CYCLIC
    assert [part.tolist() for part in iid(labels, 5, 7)] == IID


BY_CLASS = [[4, 5, 10, 11], [3, 9], [0, 1, 2, 6, 7, 8]]
BY_GROUP = [[6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 5]]
SAMPLE = [1, 2, 3, 8, 9]
CYCLIC = [[0, 3], [4, 6], [8, 11]]
IID = [[7, 9, 10], [0, 2, 5], [3, 11], [1, 8], [4, 6]]
