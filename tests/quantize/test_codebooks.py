"""All layers in one buffer are each layer by itself, for each client by itself."""

from __future__ import annotations

import numpy.testing as npt
import pytest
import torch

from motley.quantize.cells import nearest_cells
from motley.quantize.codebooks import Codebooks, lay_out
from motley.quantize.penalty import exact_centres, excess, linear_pull, prox_weights
from motley.quantize.quantizer import hard_quantize, soft_gradients, soft_quantize
from motley.quantize.rules import CentreRules, Rates

LAYERS = lay_out([("a", 30, 2), ("b", 50, 4), ("c", 20, 1)])
CLIENTS, WEIGHTS, CENTRES = 3, 100, 7
RATES = Rates(weights=0.1, centres=0.05, penalty=0.4)


def draw(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(CLIENTS, WEIGHTS, generator=generator, dtype=torch.float64)


def fresh(rules: CentreRules = CentreRules()) -> tuple[Codebooks, torch.Tensor]:
    weights = draw(0)
    return Codebooks.fresh(LAYERS, weights, rules), weights + 0.3 * draw(1)


def test_layout() -> None:
    assert [(x.name, x.weights, x.centres, x.count) for x in LAYERS] == [
        ("a", slice(0, 30), slice(0, 2), 2),
        ("b", slice(30, 80), slice(2, 6), 4),
        ("c", slice(80, 100), slice(6, 7), 1),
    ]


@pytest.mark.parametrize("step", ["linear", "exact"])
def test_a_step_is_each_layers_own(step: str) -> None:
    rules = CentreRules(step=step)  # type: ignore[arg-type]
    books, weights = fresh(rules)
    before, moved, out, gradient = books.centres.clone(), weights.clone(), draw(2), draw(3)
    books.settle(moved, out, 0.05)
    books.move(books.gradient(gradient), moved, RATES, rules)
    for number, layer in enumerate(LAYERS):
        w, c = weights[:, layer.weights], before[:, layer.centres]
        own = prox_weights(w, c, 0.05)
        npt.assert_array_equal(moved[:, layer.weights], own)
        npt.assert_array_equal(out[:, layer.weights], hard_quantize(own, c))
        cells = nearest_cells(own, c)
        new = c - 0.05 * cells.sums(gradient[:, layer.weights]).clamp(-10, 10)
        if step == "linear":
            new += linear_pull(excess(own, c), 0.01, books.bounds[:, number : number + 1])
        else:
            new = exact_centres(new, own, cells, 0.01)
        npt.assert_allclose(books.centres[:, layer.centres], new.sort(1).values, atol=1e-14)
    assert books.updates == CENTRES
    assert 0 < int(books.moved.min()) <= int(books.moved.max()) <= books.updates


def test_soft_is_each_layers_own() -> None:
    books, weights = fresh(CentreRules(mode="soft"))
    out, gradient = torch.empty_like(weights), draw(3)
    books.soft_quantize(weights, out)
    of_weights, of_centres = books.soft_gradient(gradient, weights)
    for number, layer in enumerate(LAYERS):
        own = (
            weights[:, layer.weights],
            books.centres[:, layer.centres],
            books.sharpness[:, number : number + 1],
        )
        npt.assert_array_equal(out[:, layer.weights], soft_quantize(*own))
        expected = soft_gradients(gradient[:, layer.weights], *own)
        npt.assert_array_equal(of_weights[:, layer.weights], expected[0])
        npt.assert_array_equal(of_centres[:, layer.centres], expected[1])


def test_clients_do_not_mix() -> None:
    together, weights = fresh()
    alone = [Codebooks.fresh(LAYERS, draw(0)[k : k + 1], CentreRules()) for k in range(CLIENTS)]
    rows = [weights[k : k + 1].clone() for k in range(CLIENTS)]
    out, gradient = torch.empty_like(weights), draw(3)
    together.settle(weights, out, 0.05)
    together.move(together.gradient(gradient), weights, RATES, CentreRules())
    for k, (books, row) in enumerate(zip(alone, rows, strict=True)):
        books.settle(row, torch.empty_like(row), 0.05)
        books.move(books.gradient(gradient[k : k + 1]), row, RATES, CentreRules())
        npt.assert_allclose(together.centres[k : k + 1], books.centres, atol=1e-14)
        npt.assert_array_equal(weights[k : k + 1], row)


def test_without_penalty_weights_keep_their_bits() -> None:
    books, weights = fresh()
    before = weights.clone()
    books.settle(weights, torch.empty_like(weights), 0.0)
    npt.assert_array_equal(weights, before)


def test_the_penalty_on_centres_can_be_switched_off() -> None:
    rules = CentreRules(penalised=False)
    books, weights = fresh(rules)
    before = books.centres.clone()
    books.settle(weights, torch.empty_like(weights), 0.05)
    books.move(torch.zeros_like(before), weights, RATES, rules)
    npt.assert_array_equal(books.centres, before)
    assert int(books.moved.sum()) == 0


def test_clamp_keeps_weights_within_one_and_in_their_cells() -> None:
    books, weights = fresh()
    weights *= 3
    out = torch.empty_like(weights)
    books.settle(weights, out, 0.05)
    books.clamp(weights, out)
    assert float(weights.abs().max()) == 1.0
    for layer in LAYERS:
        own = hard_quantize(weights[:, layer.weights], books.centres[:, layer.centres])
        npt.assert_array_equal(out[:, layer.weights], own)


def test_frozen_cells_follow_their_centres_unsorted() -> None:
    books, weights = fresh()
    books.quantize(weights, weights)
    codes = books.codes()
    books.freeze()
    shift = torch.linspace(-9, 9, CENTRES, dtype=torch.float64).flip(0).expand(CLIENTS, -1)
    books.move(shift, weights, Rates(weights=0, centres=1, penalty=5), CentreRules())
    books.fill(weights)
    for layer, own in zip(LAYERS, codes, strict=True):
        centres = books.centres[:, layer.centres]
        npt.assert_array_equal(weights[:, layer.weights], centres.gather(1, own.long()))
    thawed = Codebooks(LAYERS, books.centres, books.sharpness, books.bounds)
    thawed.freeze(codes)
    npt.assert_array_equal(thawed.fill(torch.empty_like(weights)), weights)
