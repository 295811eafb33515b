"""Layer sets and clients that cover them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from motley.device import Hardware, Link
from motley.errors import PlanError
from motley.models.cnn import cnn1_1024
from motley.models.resnet import resnet
from motley.models.units import unit_table, variant_table
from motley.prune.auto import Demands, affordable_share
from motley.prune.layers import POLICIES, choosable_units, final_unit, group_of
from motley.prune.sampling import covering_sample
from motley.workloads.variants import image_variants

UNITS = ("conv1", "conv2", "fc1", "fc2")


def sets(policy: str, clients: int = 4, seed: int = 0) -> list[set[str]]:
    rng = np.random.default_rng(seed)
    return [
        set(POLICIES[policy](UNITS, group_of(index, clients, 4), index, rng))
        for index in range(clients)
    ]


def test_the_papers_policies_by_hand() -> None:
    assert sets("lowerb") == [{"conv1"}, {"conv2"}, {"fc1"}, {"fc2"}]
    assert sets("opu2") == [{"conv1", "conv2"}, {"conv2", "fc1"}, {"fc1", "fc2"}, {"fc2", "conv1"}]
    assert sets("opu3")[2] == {"fc1", "fc2", "conv1"}
    assert sets("all") == [set(UNITS)] * 4
    assert [len(chosen) for chosen in sets("mixed", 6)] == [1, 2, 3, 1, 2, 3]
    assert [len(chosen) for chosen in sets("mixed23", 6)] == [2, 3, 2, 3, 2, 3]


def test_a_hundred_clients_are_in_groups_of_25() -> None:
    """The released code says client_id // 25."""
    assert [group_of(index, 100, 4) for index in range(100)] == [i // 25 for i in range(100)]


@given(st.integers(1, 60), st.integers(1, 8))
def test_groups_differ_by_one_client_at_most(clients: int, groups: int) -> None:
    sizes = np.bincount([group_of(i, clients, groups) for i in range(clients)], minlength=groups)
    assert sizes.max() - sizes.min() <= 1
    assert sizes.size == groups


def test_two_random_layers_differ_from_round_to_round() -> None:
    drawn = [tuple(sorted(chosen)) for seed in range(200) for chosen in sets("random2", 1, seed)]
    assert all(len(chosen) == 2 for chosen in drawn)
    assert len(set(drawn)) == 6


def test_more_layers_than_there_are_are_all() -> None:
    rng = np.random.default_rng(0)
    for policy in ("opu2", "opu3", "random2"):
        assert POLICIES[policy](("a", "b"), 1, 0, rng) == ("a", "b")
    # EMNIST's model has three hidden layers: OPU3 is everything, OPU2 is not.
    three = ("fc1", "fc2", "fc3")
    assert POLICIES["opu3"](three, 1, 0, rng) == three
    assert POLICIES["opu2"](three, 2, 0, rng) == ("fc1", "fc3")


def test_choosable_units_and_the_last_one_cover_every_parameter() -> None:
    models = [cnn1_1024(channels=3, classes=10, side=32), resnet(20, channels=3, classes=10)]
    tables = [unit_table(model) for model in models]
    variants = image_variants(channels=3, classes=10, side=32, hidden=(8,))
    tables.append(variant_table(variants["resnet18"]))
    for table in tables:
        units = [*choosable_units(table), final_unit(table)]
        assert len(units) == len(set(units))
        covered = [row.name for unit in units for row in table.tensors_of(unit) if row.parameter]
        assert sorted(covered) == sorted(row.name for row in table if row.parameter)
    assert final_unit(tables[0]) == "fc3"
    assert choosable_units(tables[2])[:2] == ("conv1", "stage1.0")
    assert final_unit(tables[2]) == "fc"


def test_a_model_of_one_layer_has_nothing_to_choose() -> None:
    with pytest.raises(PlanError, match="no layers to choose"):
        choosable_units(unit_table(torch.nn.Sequential(torch.nn.Linear(2, 2))))
    with pytest.raises(PlanError, match="no parameters"):
        final_unit(unit_table(torch.nn.ReLU()))


@given(st.integers(0, 10_000), st.integers(4, 12))
def test_a_sample_covers_every_layer_where_it_can(seed: int, clients: int) -> None:
    chosen = covering_sample(sets("lowerb", clients), 4, np.random.default_rng(seed))
    assert len(chosen) == len(set(chosen)) == 4
    assert set().union(*(sets("lowerb", clients)[place] for place in chosen)) == set(UNITS)
    two = covering_sample(sets("opu2", clients), 2, np.random.default_rng(seed))
    assert set().union(*(sets("opu2", clients)[place] for place in two)) == set(UNITS)


def test_a_sample_is_spread_over_the_clients_of_a_group() -> None:
    hits = np.zeros(12)
    for seed in range(1200):
        for place in covering_sample(sets("lowerb", 12), 6, np.random.default_rng(seed)):
            hits[place] += 1
    # Six of twelve: 600 of 1200 each, deviation about 17.
    assert abs(hits - 600).max() < 90


# --- plan = "auto" -------------------------------------------------------------------------------

SIZES = {"conv1": 5_000, "conv2": 100_000, "fc1": 1_600_000, "fc2": 1_000_000}


def demands(deadline: float = 100.0) -> Demands:
    return Demands(sizes=SIZES, final=10_000, deadline=deadline, samples=100)


def test_a_device_of_which_nothing_is_known_gets_what_was_wished() -> None:
    share = affordable_share(demands(), ("fc1", "fc2"), Link(), Hardware())
    assert share.units == ("fc1", "fc2")
    assert share.keep == share.local_keep == 1.0


def test_a_slow_link_up_sends_fewer_layers() -> None:
    # 25 s at 200 kB/s are 1.25 million values: fc2 and the last layer fit, fc1 does not.
    share = affordable_share(demands(), ("fc1", "fc2"), Link(upload=200e3), Hardware())
    assert share.units == ("fc2",)
    share = affordable_share(demands(), ("fc1", "fc2"), Link(upload=1e3), Hardware())
    assert share.units == ("conv1",)


def test_a_slow_link_down_or_little_memory_prunes_more() -> None:
    # 25 s at 240 kB/s are 1.5 million values: 15,000 whole, 0.55 of the other 2.7 million.
    share = affordable_share(demands(), ("conv1",), Link(download=240e3), Hardware())
    assert share.keep == 0.55
    memory = 1_500_000 * 16 * 4
    assert affordable_share(demands(), ("conv1",), Link(), Hardware(memory=memory)).keep == 0.55
    assert affordable_share(demands(), ("conv1",), Link(download=1.0), Hardware()).keep == 0.1


def test_a_slow_processor_leaves_out_more_in_its_steps() -> None:
    # All values: 2,715,000 · 6 · 100 operations; half of the deadline gives 0.7 of them.
    work = 2_715_000 * 600
    share = affordable_share(
        demands(), ("conv1",), Link(), Hardware(gflops=0.701 * work / 50 / 1e9)
    )
    assert share.local_keep == 0.7
