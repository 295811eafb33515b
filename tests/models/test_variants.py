"""The built-in image variants: sizes against published counts, units that cover the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from motley.models.units import UnitTable, variant_table
from motley.workload import Variant
from motley.workloads.variants import image_variants

COLOUR = image_variants(channels=3, classes=10, side=32, hidden=(128, 64))
GREY = image_variants(channels=1, classes=10, side=28, hidden=(128, 64))
HUNDRED = image_variants(channels=3, classes=100, side=32, hidden=(128, 64))


def counted_in_figures(table: UnitTable) -> int:
    """FedP3's figures count weights, and the biases of convolutions alone."""
    return sum(r.size for r in table if len(r.shape) > 1 or r.unit.startswith("conv"))


def uploads(table: UnitTable) -> dict[str, int]:
    """What a client that owns one layer sends, by the figures' count: it and the last layer."""
    last = table.units[-1]
    return {
        unit: sum(
            row.size
            for row in (*table.tensors_of(unit), *table.tensors_of(last))
            if len(row.shape) > 1 or row.unit.startswith("conv")
        )
        for unit in table.units[:-1]
    }


@pytest.mark.parametrize(
    ("variant", "figure", "all_of_it"),
    [
        (COLOUR["cnn1-1024"], 2_804_544, 2_806_602),
        (HUNDRED["cnn1-1024"], 2_896_704, None),
        (GREY["cnn1-1024"], 2_801_344, None),
        (GREY["mlp-1024"], 2_910_208, None),
    ],
)
def test_fedp3s_models_have_the_counts_of_its_figures(
    variant: Variant, figure: int, all_of_it: int | None
) -> None:
    table = variant_table(variant)
    assert counted_in_figures(table) == figure
    if all_of_it is not None:
        assert table.parameters_count == all_of_it


def test_fedp3s_uploads_of_each_group() -> None:
    table = variant_table(COLOUR["cnn1-1024"])
    assert uploads(table) == {"conv1": 15_104, "conv2": 112_704, "fc1": 1_648_640, "fc2": 1_058_816}
    # With all biases, as they travel.
    whole = {u: sum(r.size for r in table.tensors_of(u)) for u in table.units}
    assert {u: n + whole["fc3"] for u, n in whole.items() if u != "fc3"} == {
        "conv1": 15_114,
        "conv2": 112_714,
        "fc1": 1_649_674,
        "fc2": 1_059_850,
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # He et al., table 6, in thousands: 270 and 460; the 1x1 shortcuts come on top.
        ("resnet20", 269_722 + 2_752),
        ("resnet32", 464_154 + 2_752),
        # Stem 1,856; stages 147,968 + 525,568 + 2,099,712 + 8,393,728; last layer 5,130.
        ("resnet18", 11_173_962),
        ("resnet18-gn", 11_173_962),
    ],
)
def test_parameters_of_resnets(name: str, expected: int) -> None:
    assert variant_table(COLOUR[name]).parameters_count == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet18-gn"])
def test_blocks_of_resnet18_are_units(name: str) -> None:
    table = variant_table(COLOUR[name])
    blocks = [f"stage{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert table.units == ("conv1", *blocks, "fc")
    assert [row.name for row in table.tensors_of("conv1")][:3] == [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
    ]
    assert table["stage3.0.shortcut.1.bias"].unit == "stage3.0"
    assert not any(row.quantized for row in table if "shortcut" in row.name)
    assert table.quantized_units == tuple(blocks)


def test_group_normalisation_keeps_samples_apart() -> None:
    torch.manual_seed(0)
    module = COLOUR["resnet18-gn"].build().train()
    assert not any(isinstance(child, nn.BatchNorm2d) for child in module.modules())
    assert not list(module.buffers())
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(module(x)[:1], module(x[:1]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variants", [COLOUR, GREY], ids=["colour", "grey"])
def test_units_cover_each_tensor_once_and_the_classifier_is_last(
    variants: dict[str, Variant],
) -> None:
    for name, variant in variants.items():
        table = variant_table(variant)
        listed = [row.name for unit in table.units for row in table.tensors_of(unit)]
        assert listed == list(table.names), name
        last = table.tensors_of(table.units[-1])
        assert [row.shape[0] for row in last] == [10, 10], name
        assert not any(row.quantized for row in last), name


@pytest.mark.parametrize("variants", [COLOUR, GREY], ids=["colour", "grey"])
def test_every_variant_gives_logits(variants: dict[str, Variant]) -> None:
    shape = (2, 3, 32, 32) if variants is COLOUR else (2, 1, 28, 28)
    for name, variant in variants.items():
        with torch.no_grad():
            assert variant.build().eval()(torch.zeros(shape)).shape == (2, 10), name
