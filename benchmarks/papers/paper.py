"""Repeats the papers' tables: a queue of rows that can be stopped and goes on where it stopped.

    python benchmarks/papers/paper.py [TABLE ...] [--data FOLDER] [--rows ROW ...] [--seeds N]
        [--minutes 1000000] [--row-minutes 30] [--device cpu] [--jobs 1]
        [--search | --pages | --check | --list]

Without a name all tables are run. `fedmpq` and `fedp3` are scripts of their own, which are called
when named. FOLDER holds the sets in their published formats (`mnist`,
`qmnist`, `cifar-10-batches-bin`, `shakespeare`, ...); default: the variable MOTLEY_DATA_DIR.
Rows run in order of worth, first every row with its first seed, then further seeds; what has a
result is not run again, nor what another queue is at. Ctrl-C, a kill or a power cut lose at most a
round; of a search, the candidates that are being scored. With `--device cuda` the rows that need a
GPU are run, and they alone; one that is stopped starts anew.
`--jobs` is how many rows or candidates run at the same time, each in a process.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import page
import results
import rows
import scripts
import search
import structlog
import tables
import torch
from rich.table import Table as Grid

from fedserver.errors import DataDirectoryError
from motley.allocator import use_huge_pages

Entry = tuple[tables.Table, str, int]
"""A table, a row of it, and a seed."""


def main() -> None:
    options = _options()
    _set_up()
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
    gpu = options.device != "cpu"
    # Asked when its turn comes: another queue may have run it meanwhile.
    waiting = (
        (table, row, seed)
        for table, row, seed in rows.queue(chosen, options.rows, options.seeds, gpu=gpu)
        if results.saved(table.name, row, seed) is None
    )
    refused, ended = 0, 0
    for (table, row, seed), result in _ended(waiting, options, limits):
        ended += 1
        try:
            found = result()
        except (rows.TooLongError, DataDirectoryError) as error:  # or another queue is at it
            rows.console.print(f"  refused: {error}")
            refused += 1
            continue
        spent = f"{found.mean:.2f} % in {found.seconds:.0f} s"
        rows.console.print(f"  {table.name}/{row} seed {seed}: {spent}")
        page.write(table)
    for table in chosen:
        page.write(table)
        if not ended:
            told = f"nothing is left to run; docs/results/{table.name}.md has what was"
            rows.console.print(f"{table.name}: {told}")
    skipped = 0 if gpu else sum(row.gpu for table in chosen for row in table.rows)
    if skipped:
        rows.console.print(f"{skipped} rows are for a GPU: --device cuda")
    raise SystemExit(f"{refused} rows were refused" if refused else None)


def _ended(
    waiting: Iterable[Entry], options: argparse.Namespace, limits: rows.Limits
) -> Iterator[tuple[Entry, Callable[[], results.Result]]]:
    """Yield each entry with what returns its result, or raises: in order, or as they end."""
    if options.jobs == 1:
        for entry in waiting:
            rows.console.print(f"{entry[0].name}/{entry[1]} seed {entry[2]}")
            yield entry, partial(rows.run_row, *entry, options.data, limits, options.device)
        return
    with _pool(options.jobs) as pool:
        started: dict[Future[results.Result], Entry] = {}
        # One is handed out as one ends: what is handed out is run, whatever happens here.
        for entry in waiting:
            if len(started) == options.jobs:
                yield from _first_ended(started)
            one = pool.submit(rows.run_row, *entry, options.data, limits, options.device)
            started[one] = entry
        while started:
            yield from _first_ended(started)


def _first_ended(
    started: dict[Future[results.Result], Entry],
) -> Iterator[tuple[Entry, Callable[[], results.Result]]]:
    """Wait for one to end; take out and yield those that have."""
    for one in wait(started, return_when=FIRST_COMPLETED).done:
        yield started.pop(one), one.result


def _pool(jobs: int) -> ProcessPoolExecutor:
    """Return processes that start afresh: a GPU cannot be used on both sides of a fork."""
    return ProcessPoolExecutor(jobs, get_context("spawn"), _set_up)


def _set_up() -> None:
    """Make a process ready to run rows; one that others started ends with who started it."""
    if (parent := parent_process()) is not None:
        Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    torch.set_num_threads(1)
    use_huge_pages()


def _search(chosen: list[tables.Table], options: argparse.Namespace) -> None:
    with _pool(options.jobs) as pool:
        for table in chosen:
            search.search(table, options.data, options.rows, options.device, pool)
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
    parser.add_argument("--device", default="cpu", help="what trains: cpu, cuda, ...")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--search", action="store_true", help="score candidates for settings")
    parser.add_argument("--pages", action="store_true", help="write the pages again, run nothing")
    parser.add_argument("--check", action="store_true", help="run and record the short rows")
    parser.add_argument("--list", action="store_true", help="show tables and what has been run")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error("--jobs is at least 1")
    if options.check and (options.device != "cpu" or options.jobs > 1):
        parser.error("--check runs on the processor, one by one")
    alone = options.search or options.check or options.rows
    if alone and any(name in scripts.SCRIPTS for name in options.tables):
        parser.error(f"{', '.join(scripts.SCRIPTS)} are scripts: without --search, --check, --rows")
    if not (options.list or options.pages or options.check):
        if options.data is None:
            parser.error("give --data FOLDER, the folder of the data sets, or set MOTLEY_DATA_DIR")
        if not options.data.is_dir():
            parser.error(f"--data {options.data} is no folder; give that of the data sets")
    return options


if __name__ == "__main__":
    main()
