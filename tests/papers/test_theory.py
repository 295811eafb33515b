"""The charts of QuPeD's theory: the objective is equation (2), the page is what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "theory"))

import theory  # noqa: E402
from federated import CLASSES, FEATURES, SHARE, Group, Rates, algorithm_2, clients  # noqa: E402

from motley.quantize.quantizer import soft_quantize  # noqa: E402


def test_the_objective_is_labels_and_distillation_of_both_models() -> None:
    group = Group.of(clients(2, apart=(0.0, 1.0)), centres=3)
    w = torch.randn(2, FEATURES * CLASSES, dtype=torch.float64)
    found = group.objective(group.x, group.c, w)
    for k in range(2):
        inputs, targets = group.inputs[k], group.targets[k]
        teacher = torch.softmax(inputs @ w[k].view(FEATURES, CLASSES), 1)
        quantized = soft_quantize(group.x, group.c, group.sharpness)[k]
        expected = 0.0
        for values in (group.x[k], quantized):
            logits = inputs @ values.view(FEATURES, CLASSES)
            label = functional.cross_entropy(logits, targets)
            # torch's kl_div(log s(x), s(w)) is KL(s(w) || s(x)): the teacher comes first.
            distilled = functional.kl_div(logits.log_softmax(1), teacher, reduction="batchmean")
            expected += float((1 - SHARE) * label + SHARE * distilled)
        assert float(found[k]) == pytest.approx(expected, rel=1e-12)


def test_clients_with_the_same_data_do_not_feel_the_gap() -> None:
    paths = []
    for gap in (1, 20):
        group = Group.of(clients(4, apart=[0.0] * 4), centres=4)
        paths.append(algorithm_2([group], steps=40, gap=gap, rates=Rates(shared=0.5)))
    assert paths[0] == pytest.approx(paths[1], rel=1e-9)
    assert paths[0][-1] < paths[0][0] / 2


def test_clients_apart_feel_the_gap() -> None:
    means = []
    for gap in (1, 20):
        group = Group.of(clients(4, apart=[1.0] * 4), centres=4)
        path = algorithm_2([group], steps=80, gap=gap, rates=Rates(shared=0.5))
        means.append(sum(path) / len(path))
    assert means[1] > 1.2 * means[0]


def test_the_page_is_what_was_measured() -> None:
    figures = json.loads((theory.RESULTS / "theory" / "theory.json").read_text())
    assert (theory.RESULTS / "theory.md").read_text() == theory.PAGE.format(**figures)
