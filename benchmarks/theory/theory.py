"""The statements of QuPeD's theory, measured: charts and docs/results/theory.md.

    python benchmarks/theory/theory.py

Small problems in float64, a few minutes on one core. Everything is seeded: the same library
versions on the same kind of processor give the same figures.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from federated import Group, Rates, algorithm_2, clients
from logistic import EvenProblem, Problem, algorithm_1
from logistic import Path as Steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
PAGE = """\
# QuPeD's theory, measured

`python benchmarks/theory/theory.py` draws these charts (arXiv 2107.13892, sections 3 and 4). The
problems are small, in double precision and in full batch, because there the constants of the
theorems are known: logistic regression with 10 weights for Algorithm 1, softmax regression with 18
weights for eight clients of Algorithm 2. They show what the theory says, not what a network does.

## Theorem 1: gradients fall as 1 / T

![running mean of the squared gradient](theory/theorem-1.png)

Algorithm 1 with the theorem's own step sizes, the soft quantizer and the exact centre step. Slopes
of the last decade: {slopes}; the theorem says -1. The sum of squared gradients stays below
9 L_max (F⁰ - F^T): {bounds} of it.

## Remark 2: a smoother quantizer converges faster and loses more when it is made hard

![sharpness](theory/remark-2.png)

{remark2}

Both halves of the remark show. L_max grows with P², so that after as many steps the mean gradient
is the larger the sharper the quantizer; and what is lost when the soft quantizer is replaced
by the hard one at the end falls with P.

## Remark 3: more centres, smoother, faster

![centres](theory/remark-3.png)

{remark3}

P is the same for every number of centres (with P tied to the gaps the remark would be reversed).
The step sizes follow from the quantizer's constants at evenly spread centres, found on a grid:
the bounds that hold anywhere count each gap as wide as all of them, and grow with m. The objective
never rose by more than {rise:.0e} in these runs. From eight centres on the quantizer is nearly the
identity, and nothing changes.

## Theorem 2: 1 / √T, and a floor that data apart and rare synchronisation raise

![federated gradient](theory/theorem-2.png)

Eight clients, four centres, η₃ = 8 / √T, T from 64 to 2,048. Clients with the same samples:
slope {same:.2f} in T, the same for gaps 1, 5 and 20 but for rounding, as κ̄ = 0 says. Clients
whose samples and rules are their own: a floor, which grows with the gap ({floors} at the largest
T for gaps 1, 5 and 20).

## Remark 4: whose model should have few bits

![few bits](theory/remark-4.png)

Eight clients, four whose samples follow a common rule and four with rules of their own; four have
{few} centres and four have {many}.

{remark4}

The remark says that few bits belong to the clients that stand for all. That choice converges faster
at first, by a few per cent; later the curves cross, and end within two per cent of each other. In
so small a problem the floor comes from the data, which is the same for both.
"""


def main() -> None:
    torch.set_num_threads(1)
    folder = RESULTS / "theory"
    folder.mkdir(parents=True, exist_ok=True)
    parts = (theorem_1, remark_2, remark_3, theorem_2, remark_4)
    figures: dict[str, object] = {}
    for part in parts:
        figures |= part(folder)
        print(part.__name__, flush=True)
    (folder / "theory.json").write_text(json.dumps(figures, indent=1) + "\n")
    (RESULTS / "theory.md").write_text(PAGE.format(**figures))


def theorem_1(folder: Path) -> dict[str, object]:
    """|G|² by iteration against the bound, for two penalties."""
    slopes, bounds = [], []

    def draw(axes: Axes) -> None:
        for lam in (0.02, 0.1):
            problem = Problem(lam)
            path = algorithm_1(problem, 6000)
            count = list(range(1, 6001))
            means = _running(path.squared_gradients)
            bound = 9 * problem.largest * (path.objective[0] - path.objective[-1])
            (line,) = axes.loglog(count, means, label=f"measured, λ = {lam}")
            axes.loglog(
                count, [bound / t for t in count], "--", color=line.get_color(), label="bound"
            )
            slopes.append(f"{_slope(count[600:], means[600:]):.2f} at λ = {lam}")
            bounds.append(f"{100 * sum(path.squared_gradients) / bound:.0f} %")
        axes.set(xlabel="T", ylabel="mean of |G|² up to T")
        axes.legend()

    _chart(folder / "theorem-1.png", draw)
    return {"slopes": ", ".join(slopes), "bounds": " and ".join(bounds)}


def remark_2(folder: Path) -> dict[str, object]:
    """Sharpness against convergence and against what hard quantization costs."""
    sharpness, steps = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0), 3000
    found = [(p, *_ran(Problem(0.02, sharpness=p, span=3.0), steps)) for p in sharpness]

    def draw(axes: Axes) -> None:
        axes.loglog(sharpness, [_mean(path) for _, _, path in found], "o-", label="mean of |G|²")
        axes.set(xlabel="P", ylabel=f"mean of |G|² over {steps:,} steps")
        other = axes.twinx()
        losses = [path.hard_loss - path.soft_loss for _, _, path in found]
        other.semilogx(sharpness, losses, "s--", color="C1")
        other.set_ylabel("loss added by hard quantization (dashed)")

    _chart(folder / "remark-2.png", draw)
    lines = ["| P | L_max | mean of \\|G\\|² | f(Q̃(x)) | f(Q(x)) | difference |", "|---" * 6 + "|"]
    for p, problem, path in found:
        lost = path.hard_loss - path.soft_loss
        lines.append(
            f"| {p:g} | {problem.largest:.0f} | {_mean(path):.4f} | {path.soft_loss:.3f} | "
            f"{path.hard_loss:.3f} | {lost:+.3f} |"
        )
    return {"remark2": "\n".join(lines)}


def remark_3(folder: Path) -> dict[str, object]:
    """The number of centres against convergence."""
    counts, steps = (2, 3, 4, 8, 16, 32), 2000
    found = [(m, *_ran(EvenProblem(0.02, centres=m, span=2.6), steps)) for m in counts]

    def draw(axes: Axes) -> None:
        axes.loglog(counts, [_mean(path) for _, _, path in found], "o-")
        axes.set(xlabel="centres m", ylabel=f"mean of |G|² over {steps:,} steps")
        axes.set_xticks(counts, [str(m) for m in counts])

    _chart(folder / "remark-3.png", draw)
    lines = ["| m | L_max | mean of \\|G\\|² | F at the end |", "|---" * 4 + "|"]
    lines += [
        f"| {m} | {problem.largest:.1f} | {_mean(path):.5f} | {path.objective[-1]:.4f} |"
        for m, problem, path in found
    ]
    rises = [max(b - a for a, b in pairwise(p.objective)) for _, _, p in found]
    return {"remark3": "\n".join(lines), "rise": max(0.0, *rises)}


def theorem_2(folder: Path) -> dict[str, object]:
    """T and the synchronisation gap, for clients that are the same and that are apart."""
    lengths, gaps = (64, 128, 256, 512, 1024, 2048), (1, 5, 20)
    found: dict[tuple[str, int], list[float]] = {}
    for name, apart in (("the same data", 0.0), ("data apart", 1.0)):
        for gap in gaps:
            found[name, gap] = [_federated(apart, steps, gap) for steps in lengths]

    def draw(axes: Axes) -> None:
        for (name, gap), means in found.items():
            style = "-" if name == "data apart" else ":"
            axes.loglog(lengths, means, f"o{style}", ms=3, label=f"{name}, τ = {gap}")
        axes.set(xlabel="T", ylabel="mean of |G|² over clients and steps")
        axes.legend(fontsize=8)

    _chart(folder / "theorem-2.png", draw)
    floors = ", ".join(f"{found['data apart', gap][-1]:.3f}" for gap in gaps)
    return {"same": _slope(lengths, found["the same data", 1]), "floors": floors}


def remark_4(folder: Path) -> dict[str, object]:
    """Few centres for the clients that stand for all, or for those that do not."""
    few, many, steps = 2, 16, 600
    apart = [0.0] * 4 + [1.0] * 4
    data = clients(8, apart=apart)
    paths = {}
    for title, centres in (
        ("few bits to the clients that stand for all", (few, many)),
        ("few bits to the others", (many, few)),
    ):
        groups = [
            Group.of(part, centres=m, sharpness=8.0)
            for part, m in zip((data[:4], data[4:]), centres, strict=True)
        ]
        paths[title] = algorithm_2(groups, steps=steps, gap=5, rates=Rates(shared=8 / steps**0.5))

    def draw(axes: Axes) -> None:
        for title, path in paths.items():
            axes.loglog(range(1, steps + 1), _running(path), label=title)
        axes.set(xlabel="T", ylabel="mean of |G|² over clients and steps")
        axes.legend()

    _chart(folder / "remark-4.png", draw)
    rows = ["| mean of \\|G\\|² up to T | 10 | 100 | 600 |", "|---" * 4 + "|"]
    for title, path in paths.items():
        means = _running(path)
        rows.append(f"| {title} | {means[9]:.4f} | {means[99]:.4f} | {means[599]:.4f} |")
    return {"remark4": "\n".join(rows), "few": few, "many": many}


def _federated(apart: float, steps: int, gap: int) -> float:
    group = Group.of(clients(8, apart=[apart] * 8), centres=4)
    rates = Rates(shared=8 / steps**0.5)
    return statistics.fmean(algorithm_2([group], steps=steps, gap=gap, rates=rates))


def _ran(problem: Problem, steps: int) -> tuple[Problem, Steps]:
    path = algorithm_1(problem, steps)
    return problem, path


def _mean(path: Steps) -> float:
    return statistics.fmean(path.squared_gradients)


def _running(values: Sequence[float]) -> list[float]:
    return [total / (index + 1) for index, total in enumerate(accumulate(values))]


def _slope(at: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of a least-squares line through the logarithms."""
    x = torch.tensor(at, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).log()
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def _chart(path: Path, draw: Callable[[Axes], None]) -> None:
    import matplotlib  # the tests of the rest need no half second for it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=110)
    draw(axes)
    axes.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
