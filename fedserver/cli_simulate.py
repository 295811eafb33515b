"""The command `fedserver simulate`: a run file on one machine, before any device sees it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from fedserver.cli_options import JsonOption, WorkloadOption, read_run_file
from fedserver.rounds.lines import finite
from motley.errors import MotleyError
from motley.logs import LogFormat, configure, in_words

if TYPE_CHECKING:
    from fedserver.simulate.progress import Watcher
    from fedserver.simulate.simulation import SimulationResult

LONGEST_TABLE = 50
"""Clients that are still listed one by one."""


def simulate(
    runfile: Annotated[Path, typer.Argument(help="The run file (TOML).")],
    data: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads annotations of Python 3.10 at run time
        typer.Option(
            "--data",
            help="Data directory for the record, the models and personal states; a run that was "
            "killed goes on there. Default: a temporary one.",
        ),
    ] = None,
    clients: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="How many clients. Default: simulate.clients of the run file.", min=1),
    ] = None,
    client_data: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="Data of each client; {client} is its number, {clients} how many there are.",
        ),
    ] = "",
    tiers: Annotated[
        str, typer.Option(metavar="NAME=N,...", help="Clients of each tier: phone=2,pc=4.")
    ] = "",
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Training threads of each client. Default: 1, with --batch all cores.", min=1
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(help="Clients that train at once; 1: one by one, exactly.", min=1)
    ] = 1,
    device: Annotated[str, typer.Option(help="What trains: cpu, cuda, cuda:1 ...")] = "cpu",
    workload: WorkloadOption = None,
    json_output: JsonOption = False,
) -> None:
    """Run a run file with all of its clients in this process; exits with 1 unless it finished."""
    from fedserver.simulate import simulation
    from fedserver.simulate.population import population_of
    from motley.allocator import use_huge_pages
    from motley.plugins import parse_mappings
    from motley.runfile import parse

    # Before torch is imported: threads that spin while they wait take the cores from each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    use_huge_pages()  # gradients of a batch of clients are made and freed in each step
    text = read_run_file(runfile)
    configure(LogFormat.CONSOLE, logging.WARNING)
    parsed = parse(text, str(runfile))
    population = population_of(
        parsed,
        clients=clients,
        data=client_data,
        tiers=parse_tiers(tiers) if tiers else None,
        threads=threads,
    )
    with _watching(parsed.run.name, parsed.run.rounds, json_output) as watcher:
        result = simulation.simulate(
            text,
            population=population,
            directory=data,
            source=str(runfile),
            mappings=parse_mappings(workload or []),
            batch=batch,
            device=device,
            watcher=watcher,
        )
    _print(result, data, json_output)
    if result.status != "finished":
        raise typer.Exit(1)


def parse_tiers(text: str) -> dict[str, int]:
    """Read `NAME=N,NAME=N`; raise MotleyError on another form."""
    counts = {}
    for entry in text.split(","):
        name, _, number = entry.partition("=")
        if not name or not (number.isascii() and number.isdigit()):
            raise MotleyError(f"--tiers {text!r}: expected NAME=N,NAME=N, e.g. phone=2,pc=4")
        counts[name] = int(number)
    return counts


@contextmanager
def _watching(name: str, rounds: int, json_output: bool) -> Iterator[Watcher]:
    """Give what shows the run: a bar on a terminal, else a line a round; stdout is JSON's alone."""
    from rich.progress import Progress

    from fedserver.display import console
    from fedserver.simulate.progress import Bar, Lines

    screen = console(to_stderr=json_output)
    if not screen.is_terminal:
        yield Lines(screen, name, rounds)
        return
    with Progress(*Bar.columns(), console=screen) as progress:
        yield Bar(progress, name, rounds)


def _print(result: SimulationResult, data: Path | None, json_output: bool) -> None:
    summary = {
        "run_id": result.run_id,
        "status": result.status,
        "reason": result.reason,
        "data": str(data or ""),
        "seconds": round(result.seconds, 3),
        "client_steps": result.client_steps,
    }
    if json_output:
        print(json.dumps(finite({**summary, "record": result.record})))
        return
    from fedserver.display import client_table, console, print_promises

    print_promises(result.record)
    if len(result.record["clients"]) <= LONGEST_TABLE:
        console().print(client_table(dict(result.record)))
    ended = f"run {result.record['name']} is {result.status} {result.reason}".rstrip()
    print(in_words(ended), end=": ")
    print(f"{result.client_steps:,} client steps, {result.seconds:.1f} s", end="")
    print(f"; `fedserver show {result.run_id} --data {data}` prints this again" if data else "")
