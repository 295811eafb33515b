"""A table's page: docs/results/TABLE.md, with curves, made from the result files alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import results
import search
from results import RESULTS, Result
from tables import Claim, Row, Table, Value


def write(table: Table) -> None:
    """Write a table's page, and its curves where there are any."""
    drawn = _curves(table)
    (RESULTS / f"{table.name}.md").write_text(text(table, drawn=drawn))


def text(table: Table, *, drawn: bool) -> str:
    """Return a table's page."""
    of_others = "; a row with a name behind it is that other table's"
    of_others = of_others if any(row.same_as for row in table.rows) else ""
    lines = [
        f"# {table.title}",
        "",
        f"{table.paper}. **{table.schedule.capitalize()} schedule.** {table.setup}",
        "",
        f"`make paper TABLE={table.name} DATA=FOLDER{_gpu(table)}` runs what is not run yet, and "
        f"writes this page; each row's run file is in `benchmarks/papers/{table.name}`, each "
        f"result in `docs/results/{table.name}`{of_others}.",
        "",
        *_rows(table),
        "",
        *_claims(table),
        *([f"![accuracy by round]({table.name}.png)", ""] if drawn else []),
        *([table.notes.strip(), ""] if table.notes else []),
        *_search(table),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _gpu(table: Table) -> str:
    return " DEVICE=cuda" if any(row.gpu for row in table.rows) else ""


def _found(table: Table, row: Row) -> list[Result]:
    """Return a row's results, which may be another table's."""
    owner, _, name = row.same_as.rpartition("/")
    return results.all_saved(owner or table.name, name or row.name)


def _rows(table: Table) -> list[str]:
    seeds = max((len(_found(table, row)) for row in table.rows), default=0)
    spread = (
        "mean over clients, %, ± standard deviation over seeds"
        if seeds > 1
        else ("mean over clients, %")
    )
    return [
        f"| | here: {spread} | lowest client | seeds | paper | MB up a client | minutes a run |",
        "|---|---|---|---|---|---|---|",
        *(_row(table, row) for row in table.rows),
    ]


def _row(table: Table, row: Row) -> str:
    found = _found(table, row)
    if not found:
        why = row.missing or ("needs a GPU" if row.gpu else "not yet")
        return f"| {row.title} | not run: {why} | | | {row.paper} | | |"
    lowest = min(min(one.accuracy.values()) for one in found)
    sent = statistics.fmean(one.bytes_up / len(one.accuracy) for one in found) / 1e6
    minutes = statistics.fmean(one.seconds for one in found) / 60
    title = f"{row.title} (`{row.same_as}`)" if row.same_as else row.title
    return (
        f"| {title} | {shown(found)} | {lowest:.1f} | {len(found)} | {row.paper} | "
        f"{sent:.2f} | {minutes:.0f} |"
    )


def shown(found: Sequence[Result]) -> str:
    """Return the figure of a row."""
    means = [one.mean for one in found]
    spread = f" ± {statistics.stdev(means):.2f}" if len(means) > 1 else ""
    return f"{statistics.fmean(means):.2f}{spread}"


def _claims(table: Table) -> list[str]:
    if not table.claims:
        return []
    lines = ["| the paper's order | here |", "|---|---|"]
    for claim in table.claims:
        lines += [
            f"| {_says(table, claim, than)} | {_holds(table, claim, than)} |" for than in claim.than
        ]
    return [*lines, ""]


def _says(table: Table, claim: Claim, than: str) -> str:
    better, lower = table.row(claim.better).title, table.row(than).title
    if claim.at_most is not None:
        return f"{better} within {claim.at_most:g} points of {lower}"
    if claim.by == "deviation":
        return f"{better} at least a standard deviation above {lower}"
    margin = f" by {claim.by:g} points" if claim.by else ""
    return f"{better} above {lower}{margin}"


def _holds(table: Table, claim: Claim, than: str) -> str:
    upper = [one.mean for one in _found(table, table.row(claim.better))]
    lower = [one.mean for one in _found(table, table.row(than))]
    if not upper or not lower:
        return "not known yet"
    difference = statistics.fmean(upper) - statistics.fmean(lower)
    if claim.at_most is not None:
        holds = difference >= -claim.at_most
    elif claim.by == "deviation":
        if len(lower) < 2:
            return f"{difference:+.2f}; one seed has no deviation"
        holds = difference >= statistics.stdev(lower)
    else:
        holds = difference > float(claim.by)
    return f"{'holds' if holds else '**does not hold**'}: {difference:+.2f}"


def _search(table: Table) -> list[str]:
    if table.search is None or not search.found(table.name):
        return []
    lines = [
        "## Settings",
        "",
        f"`make paper TABLE={table.name} DATA=FOLDER{_gpu(table)} SEARCH=1`: candidates are "
        f"scored on {100 * table.search.validate_share:.0f} % of the clients' training samples, "
        "which no client trains on. Methods of a stage have the same number of candidates. The "
        "run files have the best of the last stage in which a method is; validation accuracy in %:",
        "",
    ]
    for number in range(1, len(table.search.stages) + 1):
        lines += _stage(table, number)
    return lines


def _stage(table: Table, number: int) -> list[str]:
    """Return the table of one stage, with those methods whose candidates have all been run."""
    assert table.search is not None
    stage = table.search.stages[number - 1]
    besides = "".join(f", {_listed({name: value})}" for name, value in stage.settings.items())
    lines = [
        f"| stage {number}: {stage.clients} clients, {stage.rounds} rounds{besides} | candidates |",
        "|---|---|",
    ]
    for row, candidates in stage.candidates.items():
        tried = search.scored(table, number, row)
        if len(tried) < len(candidates):
            lines.append(f"| {table.row(row).title} | not run: not yet |")
            continue
        diverged = stage.diverged.get(row, ())
        top = max((one.accuracy for one in tried if one.settings not in diverged), default=None)
        cells = []
        for one in tried:
            ended = one.settings not in diverged
            mark = "**" if ended and one.accuracy == top else ""
            cells.append(
                f"{_listed(one.settings)}: {mark}{one.accuracy:.1f}{mark}"
                + ("" if ended else ", diverges with all clients")
            )
        lines.append(f"| {table.row(row).title} | {'; '.join(cells)} |")
    return [*lines, ""]


def _listed(settings: Mapping[str, Value]) -> str:
    return ", ".join(f"`{name}` {value}" for name, value in settings.items())


def _curves(table: Table) -> bool:
    """Draw accuracy by round, the mean over seeds, one line a row; return whether there is any."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), dpi=120)
    lines = 0
    for number, row in enumerate(table.rows):
        found = _found(table, row)
        if not found or len(found[0].curve) < 2:
            continue
        at = [point[0] for point in found[0].curve]
        means = [
            statistics.fmean(points)
            for points in zip(*([point[1] for point in one.curve] for one in found), strict=True)
        ]
        style = ("-", "--", ":")[number // 10]
        axes.plot(at, means, style, color=f"C{number % 10}", label=row.title)
        lines += 1
    if lines:
        axes.set(xlabel="round", ylabel="test accuracy, mean over clients, %", title=table.title)
        top = max(line.get_ydata().max() for line in axes.get_lines())
        axes.set_ylim(bottom=max(0.0, top - 35), top=min(100.0, top + 2))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="lower right")
        figure.tight_layout()
        figure.savefig(RESULTS / f"{table.name}.png")
    pyplot.close(figure)
    return bool(lines)
