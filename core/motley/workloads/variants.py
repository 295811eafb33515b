"""The model variants that the image workloads share.

The builders import torch when they are called, so that a workload's names can be read without.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from motley.workload import Variant

if TYPE_CHECKING:
    from torch import nn

RESNET_SHORTCUTS = ("stage2.0.shortcut.0.weight", "stage3.0.shortcut.0.weight")
"""1x1 convolutions, which low bit-widths never apply to (FedMPQ's choice)."""
RESNET18_UNITS = {"bn1": "conv1"} | {
    f"stage{stage}.{block}": f"stage{stage}.{block}" for stage in range(1, 5) for block in range(2)
}
"""The stem, eight blocks and the last layer: FedP3 chooses among blocks."""
FEDP3_HIDDEN = (1024, 1024, 1024)


def image_variants(
    *, channels: int, classes: int, side: int, hidden: Sequence[int]
) -> dict[str, Variant]:
    """Return the CNNs in all widths, two MLPs and the ResNets for square images.

    Args:
        channels: of an image.
        classes: number of logits.
        side: height and width of an image.
        hidden: hidden sizes of `mlp`.
    """
    shape = {"channels": channels, "classes": classes, "side": side}
    inputs = channels * side * side
    return {
        "cnn1": Variant(partial(_cnn, "cnn1", **shape)),
        "cnn2": Variant(partial(_cnn, "cnn2", **shape)),
        "mlp": Variant(partial(_mlp, inputs=inputs, classes=classes, hidden=tuple(hidden))),
        "cnn1-64": Variant(partial(_cnn, "cnn1-64", **shape)),
        "cnn2-64": Variant(partial(_cnn, "cnn2-64", **shape)),
        "cnn1-1024": Variant(partial(_cnn, "cnn1-1024", **shape)),
        "mlp-1024": Variant(partial(_mlp, inputs=inputs, classes=classes, hidden=FEDP3_HIDDEN)),
        **{
            f"resnet{depth}": Variant(
                partial(_resnet, depth, channels=channels, classes=classes),
                full_precision=RESNET_SHORTCUTS,
            )
            for depth in (20, 32, 44)
        },
        **{
            name: Variant(
                partial(_resnet18, channels=channels, classes=classes, normalised=normalised),
                full_precision=(*RESNET_SHORTCUTS, "stage4.0.shortcut.0.weight"),
                units=RESNET18_UNITS,
            )
            for name, normalised in (("resnet18", "batch"), ("resnet18-gn", "groups"))
        },
    }


def _cnn(name: str, *, channels: int, classes: int, side: int) -> nn.Module:
    from motley.models import cnn

    builders = {
        "cnn1": cnn.cnn1,
        "cnn2": cnn.cnn2,
        "cnn1-64": cnn.cnn1_64,
        "cnn2-64": cnn.cnn2_64,
        "cnn1-1024": cnn.cnn1_1024,
    }
    return builders[name](channels=channels, classes=classes, side=side)


def _resnet(depth: int, *, channels: int, classes: int) -> nn.Module:
    from motley.models.resnet import resnet

    return resnet(depth, channels=channels, classes=classes)


def _resnet18(*, channels: int, classes: int, normalised: str) -> nn.Module:
    from motley.models.resnet import GROUPS, resnet18

    groups = GROUPS if normalised == "groups" else 0
    return resnet18(channels=channels, classes=classes, groups=groups)


def _mlp(*, inputs: int, classes: int, hidden: tuple[int, ...]) -> nn.Module:
    from motley.models.mlp import mlp

    return mlp(inputs=inputs, classes=classes, hidden=hidden)
