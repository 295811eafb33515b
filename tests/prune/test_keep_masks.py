"""Which values are kept, against sorting in plain Python."""

from __future__ import annotations

import numpy as np
import numpy.testing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from motley.errors import PlanError
from motley.models.units import TensorInfo
from motley.plan import Plan
from motley.prune.local import LOCAL_RULES, StepMasks
from motley.prune.masks import (
    PRUNING_RULES,
    UPLOAD_RULES,
    UploadMasks,
    by_magnitude,
    is_prunable,
    is_pruned,
)
from motley.sparsity import Sparsity


@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=60),
    st.floats(0.01, 1),
)
def test_magnitudes_are_kept_as_sorting_says_and_ties_by_place(
    numbers: list[int], keep: float
) -> None:
    values = np.array(numbers, np.float32)
    ordered = sorted(range(len(numbers)), key=lambda place: (-abs(numbers[place]), place))
    expected = sorted(ordered[: int(keep * len(numbers))])
    npt.assert_array_equal(np.flatnonzero(by_magnitude(values, keep).bits()), expected)


def test_a_mask_is_per_tensor_and_in_c_order() -> None:
    values = np.array([[1, -5, 2], [5, 0, -3]], np.float32)
    assert by_magnitude(values, 0.5).bits().tolist() == [False, True, False, True, False, True]


@pytest.mark.parametrize("rule", [*PRUNING_RULES])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 1.0])
def test_every_rule_keeps_about_its_share(rule: str, keep: float) -> None:
    shape = (40, 30, 5, 5)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    mask = PRUNING_RULES[rule](values, keep, 9)
    assert mask.size == values.size
    if rule == "ordered":
        bits = mask.bits().reshape(shape)
        rows, columns = bits.any(axis=(1, 2, 3)).sum(), bits.any(axis=(0, 2, 3)).sum()
        assert bits[:rows, :columns].all()
        assert bits.sum() == rows * columns * 25
        assert keep <= bits.mean() < keep + 0.06
    else:
        assert mask.kept == int(keep * values.size)


def test_what_can_be_pruned() -> None:
    def row(name: str, *shape: int, parameter: bool = True, dtype: str = "float32") -> TensorInfo:
        return TensorInfo(name, shape, dtype, name.split(".")[0], False, parameter)

    assert is_prunable(row("a.weight", 3, 4))
    assert not is_prunable(row("a.bias", 3))
    assert not is_prunable(row("a.running", 3, 4, parameter=False))
    assert not is_prunable(row("a.count", 3, 4, dtype="int64"))
    plan = Plan(variant="", upload=("b", "c"), sparsity=Sparsity(final="c", down_keep=0.5))
    assert is_pruned(row("a.weight", 3, 4), plan)
    assert not is_pruned(row("b.weight", 3, 4), plan)
    assert not is_pruned(row("a.bias", 3), plan)


def test_upload_masks_differ_by_client_round_and_tensor_and_are_the_same_for_both_sides() -> None:
    row = TensorInfo("a.weight", (30, 20), "float32", "a", True)
    other = TensorInfo("b.weight", (30, 20), "float32", "b", True)
    plan = Plan(variant="", sparsity=Sparsity(final="z", up_keep=0.5))

    def bits(client: str, number: int, tensor: TensorInfo) -> bytes:
        masks = UploadMasks.of(plan, 7, number, client)
        assert masks is not None
        mask = masks(tensor)
        assert mask is not None
        return mask.bits().tobytes()

    assert bits("a", 1, row) == bits("a", 1, row)
    drawn = {bits("a", 1, row), bits("b", 1, row), bits("a", 2, row), bits("a", 1, other)}
    assert len(drawn) == 4
    assert UploadMasks.of(Plan(variant=""), 7, 1, "a") is None


def test_final_units_and_biases_go_up_whole() -> None:
    plan = Plan(variant="", sparsity=Sparsity(final="z", up_keep=0.5))
    masks = UploadMasks.of(plan, 7, 1, "a")
    assert masks is not None
    assert masks(TensorInfo("z.weight", (30, 20), "float32", "z", True)) is None
    assert masks(TensorInfo("a.bias", (30,), "float32", "a", False)) is None


def test_unknown_rules_and_shares_are_refused() -> None:
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(PlanError, match="expected 0 < share"):
            Sparsity(final="z", down_keep=share)
    masks = UploadMasks.of(
        Plan(variant="", sparsity=Sparsity(final="z", up_keep=0.5, up_rule="x")), 7, 1, "a"
    )
    assert masks is not None
    with pytest.raises(PlanError, match=f"'x'; there are {', '.join(UPLOAD_RULES)}"):
        masks(TensorInfo("a.weight", (30, 20), "float32", "a", True))


# --- masks of single steps -----------------------------------------------------------------------


def steps(rule: str, keep: float = 0.6) -> StepMasks:
    shapes = {"first": (8, 3, 5, 5), "a": (100, 80), "b": (10, 100)}
    return StepMasks(rule=rule, keep=keep, seed=3, client="c", shapes=shapes, first="first")


def test_fixed_masks_leave_nothing_out() -> None:
    assert steps("fixed")(0) == {}
    with pytest.raises(PlanError, match="rule for local pruning is called 'x'"):
        steps("x")(0)


def test_shares_are_even_between_q_and_one() -> None:
    drawn = np.array([steps("uniform").share(iteration) for iteration in range(2000)])
    assert drawn.min() >= 0.6
    assert drawn.max() <= 1
    assert abs(drawn.mean() - 0.8) < 5 * 0.4 / np.sqrt(12 * 2000)
    assert drawn.max() - drawn.min() > 0.39


@pytest.mark.parametrize("rule", [name for name in LOCAL_RULES if name != "fixed"])
def test_masks_of_a_step_have_its_share_and_come_again(rule: str) -> None:
    masks = steps(rule)
    for iteration in range(5):
        share = masks.share(iteration)
        found = masks(iteration)
        assert list(found) == ["first", "a", "b"]
        for name, bits in found.items():
            npt.assert_array_equal(bits, steps(rule)(iteration)[name])
            if rule == "uniform":
                deviation = np.sqrt(share * (1 - share) / bits.size)
                assert abs(bits.mean() - share) < 5 * deviation + 1e-6
        if rule == "ordered":
            rows, columns = int(np.ceil(share * 100)), int(np.ceil(share * 80))
            expected = np.zeros((100, 80), bool)
            expected[:rows, :columns] = True
            npt.assert_array_equal(found["a"], expected)
            # What reads the image keeps all of its channels.
            assert found["first"][: int(np.ceil(share * 8))].all()
            assert not found["first"][int(np.ceil(share * 8)) :].any()
    assert masks.share(0) != masks.share(1)
