"""One local QuPeD step against the sum of its own forward and backward passes.

    python benchmarks/quped_step.py

A step in hard mode runs five forward and three backward passes; the rest of it (gradient steps,
prox, quantizing twice, centres) is what the ratio shows. The reference runs the same passes on the
same models and batch, losses included, and nothing else. Both take turns in one run, on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from report import Ratio, report

from motley.models.cnn import cnn1, cnn1_64
from motley.models.units import fresh_tensors, unit_table
from motley.plan import Plan
from motley.quantize.rules import CentreRules, Rates
from motley.training.alternating import AlternatingModel, iterate
from motley.training.distillation import Objective, Teacher
from motley.training.flat import FlatModel
from motley.training.personal import open_state, quantized_counts, quantized_state
from motley.training.steps import Batch
from motley.workload import Variant
from motley.workloads.digits import Digits

CLASSES = 10
RATES = Rates(weights=0.01, centres=1e-4, penalty=1e-4, weight_decay=1e-4, shared=0.01)
SHARE = 0.25
CASES = {
    "cnn1 28x28": (partial(cnn1, channels=1, classes=CLASSES, side=28), (1, 28, 28), 1.5),
    "cnn1 32x32": (partial(cnn1, channels=3, classes=CLASSES, side=32), (3, 32, 32), 1.25),
    "cnn1-64 32x32": (partial(cnn1_64, channels=3, classes=CLASSES, side=32), (3, 32, 32), 1.25),
}


class Case:
    """One architecture and bit-width with a batch of random images."""

    def __init__(
        self, build: Callable[[], torch.nn.Module], shape: tuple[int, ...], bits: int, batch: int
    ) -> None:
        variant = Variant(build)
        tensors = fresh_tensors(variant, 0)
        units = unit_table(build()).quantized_units
        counts = quantized_counts(variant, Plan(variant="", bits=dict.fromkeys(units, bits)))
        state = quantized_state(tensors, counts, CentreRules())
        self.personal: AlternatingModel = open_state(state, variant, CentreRules(), "cpu")
        self.teacher = Teacher(FlatModel.build(variant, tensors, "cpu"), SHARE)
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.rand(batch, *shape, generator=generator)
        self.targets = torch.randint(CLASSES, (batch,), generator=generator)
        self.workload = Digits()

    def step(self) -> None:
        batch = Batch(self.inputs, self.targets)
        iterate(self.personal, self.workload, batch, RATES, self.teacher)

    def passes(self) -> None:
        full, quantized, shared = self.personal.model, self.personal.quantized, self.teacher.model
        outputs, signal = self.teacher.look(self.inputs)
        objective = Objective(self.workload, self.targets, signal, SHARE)
        for model in (full, quantized):
            torch.autograd.grad(objective(model.module(self.inputs)), model.parameters)
        students = self.personal.students(self.inputs)
        torch.autograd.grad(outputs, shared.parameters, signal.teacher_gradient(students))


def interleaved(case: Case, repeats: int) -> tuple[list[float], list[float]]:
    """Return the seconds of steps and of passes; the first fifth only warms."""
    steps: list[float] = []
    passes: list[float] = []
    for repeat in range(repeats + repeats // 5):
        for run, seconds in ((case.passes, passes), (case.step, steps)):
            began = time.perf_counter()
            run()
            if repeat >= repeats // 5:
                seconds.append(time.perf_counter() - began)
    return steps, passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=300, help="cnn1-64 does a fifth of them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ratios = []
    for name, (build, shape, bound) in CASES.items():
        repeats = options.repeats // 5 if "64" in name else options.repeats
        for bits in (1, 2):
            steps, passes = interleaved(Case(build, shape, bits, options.batch), repeats)
            step, reference = statistics.median(steps), statistics.median(passes)
            detail = f"{step * 1e3:.2f} ms over {reference * 1e3:.2f} ms"
            label = f"{name}, {bits} bit{'s' if bits > 1 else ''}"
            ratios.append(Ratio(label, step / reference, bound, detail=detail))
    report(
        "quped_step",
        f"one local QuPeD step (hard mode, batch {options.batch}, one thread) over the sum of its "
        "five forward and three backward passes with losses; medians, interleaved",
        ratios,
    )


if __name__ == "__main__":
    main()
