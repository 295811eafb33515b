"""What travels under FedP3, against the counts of the paper's figures (arXiv 2404.09816, B.3)."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedp3_cases import Lab

from fedserver.rounds.updates import check_update
from motley.algorithms.base import Member
from motley.errors import UpdateError
from motley.prune.layers import choosable_units, final_unit
from motley.prune.traffic import closed_form, traffic
from motley.wire import PayloadReader, encode_dense, write_payload

# Weights and all biases; the head comes down. Up, then down at keep .9, .7, .5.
COUNTS = {
    "conv1": (15_114, 2_527_664, 1_969_789, 1_411_914),
    "conv2": (112_714, 2_537_424, 1_999_069, 1_460_714),
    "fc1": (1_649_674, 2_691_024, 2_459_869, 2_228_714),
    "fc2": (1_059_850, 2_632_042, 2_282_922, 1_933_802),
}
KEEPS = (0.9, 0.7, 0.5)
HEAD = 10_250
# The figure's own: no biases of dense layers, and pruning counted as if biases were pruned too.
FIGURE_TOTAL = 2_804_544
FIGURE = {
    "conv1": (15_104, 2_525_600, 1_967_712, 1_409_824),
    "conv2": (112_704, 2_535_360, 1_996_992, 1_458_624),
    "fc2": (1_058_816, 2_629_971, 2_280_826, 1_931_680),
    "fc1": (1_648_640, 2_688_954, 2_457_773, 2_226_592),
}


def lab(root: Path, keep: float = 0.9, more: str = "", **kwargs: object) -> Lab:
    settings = f'layers = "lowerb"\nkeep = {keep}\n{more}'
    return Lab(root, settings, variant="cnn", **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", range(3))
def test_values_that_come_down_are_those_of_the_figure(tmp_path: Path, place: int) -> None:
    bench = lab(tmp_path, KEEPS[place])
    paths = bench.open()
    for member in bench.members:
        own = bench.plan(member).upload[0]
        assert bench.values(paths[member.name]) == COUNTS[own][1 + place]
        planned = traffic(bench.table, bench.plan(member))
        assert (planned.up, planned.down) == (COUNTS[own][0], COUNTS[own][1 + place])
    assert [bench.plan(m).upload[0] for m in bench.members] == ["conv1", "conv2", "fc1", "fc2"]


def test_a_personal_head_does_not_come_down_and_goes_up(tmp_path: Path) -> None:
    bench = lab(tmp_path, 0.9, 'head = "personal"')
    paths = bench.open()
    for member in bench.members:
        up, down, *_ = COUNTS[bench.plan(member).upload[0]]
        assert bench.values(paths[member.name]) == down - HEAD
        planned = traffic(bench.table, bench.plan(member))
        assert (planned.up, planned.down) == (up, down - HEAD)


def test_values_that_go_up_are_those_of_the_figure(tmp_path: Path) -> None:
    bench = lab(tmp_path)
    bench.open()
    for member in bench.members:
        update = bench.train(member)
        own = bench.plan(member).upload[0]
        assert bench.values(update) == COUNTS[own][0]
        with PayloadReader(update, bench.table.tensor_table) as reader:
            assert {bench.table[name].unit for name in reader.names} == {own, "fc3"}
        check_update(update, bench.ticket(member))


def test_the_closed_form_is_the_papers() -> None:
    for own, *down in FIGURE.values():
        for keep, expected in zip(KEEPS, down, strict=True):
            assert abs(closed_form(FIGURE_TOTAL, own, keep) - expected) <= 0.5


def test_the_figures_sizes_are_the_tables_without_dense_biases(tmp_path: Path) -> None:
    table = lab(tmp_path).table
    sizes = {
        unit: sum(
            row.size
            for row in table.tensors_of(unit)
            if len(row.shape) > 1 or row.unit.startswith("conv")
        )
        for unit in table.units
    }
    final = final_unit(table)
    assert sum(sizes.values()) == FIGURE_TOTAL
    for unit in choosable_units(table):
        assert sizes[unit] + sizes[final] == FIGURE[unit][0]


@pytest.mark.parametrize(("layers", "share"), [("lowerb", 1), ("opu2", 2), ("opu3", 3)])
def test_a_layer_outside_of_the_set_never_goes_up_and_is_refused(
    tmp_path: Path, layers: str, share: int
) -> None:
    bench = Lab(tmp_path, f'layers = "{layers}"')
    bench.open()
    for member in bench.members:
        update = bench.train(member)
        planned = set(bench.plan(member).upload)
        assert len(planned) == share + 1
        with PayloadReader(update, bench.table.tensor_table) as reader:
            found = {bench.table[name].unit for name in reader.names}
        assert found == planned
        smuggle(bench, member, update)
        with pytest.raises(UpdateError, match="not asked for"):
            check_update(update, bench.ticket(member))


def smuggle(bench: Lab, member: Member, update: Path) -> None:
    """Write an update of all layers."""
    sent, whole = bench.read(update), bench.tensors()
    encoded = [(name, encode_dense(sent.get(name, whole[name]))) for name in whole]
    write_payload(update, encoded, bench.table.tensor_table)


@pytest.mark.parametrize("rule", ["random", "ordered"])
def test_sparse_uploads_hold_the_planned_values(tmp_path: Path, rule: str) -> None:
    more = f'layers = "opu2"\nupload_keep = 0.3\nupload_pruning = "{rule}"'
    bench = Lab(tmp_path, more)
    bench.open()
    for member in bench.members:
        update = bench.train(member)
        assert bench.values(update) == traffic(bench.table, bench.plan(member)).up
        check_update(update, bench.ticket(member))
        # Whole tensors in their place, or another client's mask, are refused.
        whole = bench.read(bench.payloads.path(bench.state))
        sent = [n for n, t in whole.items() if bench.table[n].unit in bench.plan(member).upload]
        encoded = [(name, encode_dense(whole[name])) for name in sent]
        write_payload(update, encoded, bench.table.tensor_table)
        with pytest.raises(UpdateError, match="under a mask that does not travel"):
            check_update(update, bench.ticket(member))
