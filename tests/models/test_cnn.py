from __future__ import annotations

import pytest
import torch

from motley.errors import WorkloadError
from motley.models.cnn import CNN, cnn1, cnn1_64, cnn1_1024, cnn2, cnn2_64, pooled_side
from motley.models.mlp import mlp

FORMS = {"cnn1": cnn1, "cnn2": cnn2, "cnn1-64": cnn1_64, "cnn2-64": cnn2_64, "cnn1-1024": cnn1_1024}


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("form", "channels", "side", "expected"),
    [
        ("cnn1", 3, 32, 62_006),
        ("cnn1", 1, 28, 44_426),
        ("cnn1-64", 3, 32, 797_962),
        # By hand: cnn1 without fc1's 400*120 weights, with 16*32*25+32 and 800*120.
        ("cnn2", 3, 32, 62_006 - 48_000 + 12_832 + 96_000),
        ("cnn2", 1, 28, 44_426 - 256 * 120 + 12_832 + 512 * 120),
        ("cnn2-64", 3, 32, 797_962 - 1600 * 384 + 64 * 32 * 25 + 32 + 800 * 384),
        # 8x8: (25+1)*6, (150+1)*16, (64+1)*120, (120+1)*84, (84+1)*10
        ("cnn1", 1, 8, 156 + 2_416 + 7_800 + 10_164 + 850),
    ],
)
def test_parameter_counts(form: str, channels: int, side: int, expected: int) -> None:
    module = FORMS[form](channels=channels, classes=10, side=side)
    assert parameters(module) == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (1, 28), (3, 32), (3, 4), (2, 15), (2, 16)])
def test_logits_of_each_form_and_side(form: str, channels: int, side: int) -> None:
    module = FORMS[form](channels=channels, classes=7, side=side)
    assert module(torch.zeros(3, channels, side, side)).shape == (3, 7)


def test_sides_behind_the_pools() -> None:
    assert {side: pooled_side(side) for side in (4, 8, 15, 16, 28, 32)} == {
        4: 1,
        8: 2,
        15: 3,
        16: 1,
        28: 4,
        32: 5,
    }


def test_too_small_images_are_refused() -> None:
    with pytest.raises(WorkloadError, match=r"3x3 are too small.*at least 4x4"):
        cnn1(channels=1, classes=10, side=3)


@pytest.mark.parametrize("form", FORMS)
def test_clients_can_be_batched(form: str) -> None:
    """A simulation runs many clients' parameters through one module."""
    clients = [FORMS[form](channels=1, classes=10, side=8) for _ in range(2)]
    names = [name for name, _ in clients[0].named_parameters()]
    stacked = {
        name: torch.stack([client.get_parameter(name).detach() for client in clients])
        for name in names
    }
    x = torch.randn(2, 3, 1, 8, 8)
    together = torch.func.vmap(
        lambda parameters, x: torch.func.functional_call(clients[0], parameters, (x,))
    )(stacked, x)
    apart = torch.stack([client(images) for client, images in zip(clients, x, strict=True)])
    torch.testing.assert_close(together, apart.detach(), rtol=1e-4, atol=1e-5)


def test_layers_are_named_in_order() -> None:
    module: CNN = cnn2(channels=1, classes=10, side=28)
    layers = [name for name, child in module.named_children() if list(child.parameters())]
    assert layers == ["conv1", "conv2", "conv3", "fc1", "fc2", "fc3"]


def test_mlp() -> None:
    module = mlp(inputs=64, hidden=(64, 32), classes=10)
    assert parameters(module) == 65 * 64 + 65 * 32 + 33 * 10
    assert module(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    assert list(module.state_dict())[::2] == ["fc1.weight", "fc2.weight", "fc3.weight"]
    assert mlp(inputs=4, hidden=(), classes=2)(torch.zeros(1, 4)).shape == (1, 2)
    with pytest.raises(WorkloadError, match="at least 1"):
        mlp(inputs=4, hidden=(0,), classes=2)
