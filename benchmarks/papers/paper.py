"""Repeats the papers' tables: a queue of rows that can be stopped and goes on where it stopped.

    python benchmarks/papers/paper.py [TABLE ...] [--data FOLDER] [--rows ROW ...] [--seeds N]
        [--minutes 1000000] [--row-minutes 30] [--search | --pages | --check | --list]

Without a name all tables are run. `fedmpq` and `fedp3` are scripts of their own, which are called
when named. FOLDER holds the sets in their published formats (`mnist`,
`qmnist`, `cifar-10-batches-bin`, `shakespeare`, ...); default: the variable MOTLEY_DATA_DIR.
Rows run in order of worth, first every row with its first seed, then further seeds; what has a
result is not run again. Ctrl-C, a kill or a power cut lose at most a round.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

import page
import results
import rows
import scripts
import search
import structlog
import tables
import torch
from rich.table import Table as Grid


def main() -> None:
    options = _options()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    torch.set_num_threads(1)
    named = [name for name in options.tables if name in scripts.SCRIPTS]
    others = [name for name in options.tables if name not in named]
    chosen = [tables.load(name) for name in others or ([] if named else tables.names())]
    if options.list:
        _list(chosen, named or (() if others else scripts.SCRIPTS))
    elif options.check:
        _check(chosen)
    elif options.pages:
        for table in chosen:
            page.write(table)
        _call(named, options)
    elif options.search:
        _search(chosen if options.tables else [t for t in chosen if t.search], options)
    else:
        _call(named, options)
        if chosen:
            _run(chosen, options)


def _run(chosen: list[tables.Table], options: argparse.Namespace) -> None:
    limits = rows.Limits(60 * options.row_minutes, 60 * options.minutes, time.monotonic())
    refused = 0
    for table, row, seed in rows.queue(chosen, options.rows, options.seeds):
        if results.saved(table.name, row, seed) is not None:
            continue
        rows.console.print(f"{table.name}/{row} seed {seed}")
        try:
            found = rows.run_row(table, row, seed, options.data, limits)
        except rows.TooLongError as error:
            rows.console.print(f"  refused: {error}")
            refused += 1
            continue
        rows.console.print(f"  {found.mean:.2f} % in {found.seconds:.0f} s")
        page.write(table)
    for table in chosen:
        page.write(table)
    raise SystemExit(f"{refused} rows were refused" if refused else None)


def _search(chosen: list[tables.Table], options: argparse.Namespace) -> None:
    for table in chosen:
        search.search(table, options.data, options.rows)
    for name in tables.names():  # other tables' rows may take the settings
        page.write(tables.load(name))


def _check(chosen: list[tables.Table]) -> None:
    """Run the short rows again; say which end otherwise than on record, and record them."""
    for table in chosen:
        now = rows.run_check(table)
        same = any(
            (one.processor, one.versions, one.run_file, one.digests)
            == (now.processor, now.versions, now.run_file, now.digests)
            for one in results.checks(table.name)
        )
        rows.console.print(f"{table.name}: {'as on record' if same else 'recorded anew'}")
        if not same:
            results.save_check(table.name, now)


def _call(named: list[str], options: argparse.Namespace) -> None:
    for name in named:
        scripts.run(name, options.data, options.minutes, pages=options.pages)


def _list(chosen: list[tables.Table], named: Iterable[str]) -> None:
    grid = Grid("table", "row", "schedule", "seeds done", "state")
    for table in chosen:
        for row in table.rows:
            done = f"{len(results.all_saved(table.name, row.name))}/{table.seeds}"
            state = row.missing or row.same_as or ("for a GPU" if row.gpu else "")
            grid.add_row(table.name, row.name, table.schedule, "" if row.same_as else done, state)
    for name in named:
        grid.add_row(name, "", "reduced", "", f"benchmarks/{scripts.SCRIPTS[name].file}")
    rows.console.print(grid)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = os.environ.get("MOTLEY_DATA_DIR", "")
    parser.add_argument("tables", nargs="*", help="names; --list shows them")
    parser.add_argument("--data", type=Path, default=Path(default) if default else None)
    parser.add_argument("--rows", nargs="+", default=[], help="these rows alone")
    parser.add_argument("--seeds", type=int, default=1000, help="of a row at most")
    parser.add_argument("--minutes", type=float, default=1e6, help="for all rows together")
    parser.add_argument("--row-minutes", type=float, default=30, help="for one row")
    parser.add_argument("--search", action="store_true", help="score candidates for settings")
    parser.add_argument("--pages", action="store_true", help="write the pages again, run nothing")
    parser.add_argument("--check", action="store_true", help="run and record the short rows")
    parser.add_argument("--list", action="store_true", help="show tables and what has been run")
    options = parser.parse_args()
    alone = options.search or options.check or options.rows
    if alone and any(name in scripts.SCRIPTS for name in options.tables):
        parser.error(f"{', '.join(scripts.SCRIPTS)} are scripts: without --search, --check, --rows")
    if options.data is None and not (options.list or options.pages or options.check):
        parser.error("give --data FOLDER, the folder of the data sets, or set MOTLEY_DATA_DIR")
    return options


if __name__ == "__main__":
    main()
