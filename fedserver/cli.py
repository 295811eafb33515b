"""The command `fedserver`: serve, and steer a server that runs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from fedserver import cli_export, cli_identity, cli_simulate
from fedserver.cli_options import (
    DashboardOption,
    DataOption,
    JsonOption,
    MetricsOption,
    TrackOption,
    WorkloadOption,
    check_target,
    default_data,
    read_run_file,
    steers,
    watch_ports,
)
from fedserver.rounds.lines import finite
from motley import __version__
from motley.command_line import Program
from motley.errors import MotleyError
from motley.logs import LogFormat, configure, in_words, printable

if TYPE_CHECKING:
    from fedserver.client import Operator
else:
    Operator = Any  # typer reads annotations at run time

app = Program(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Federated training across devices that are all different: the server.",
)

app.command("init")(cli_identity.init)
app.command("simulate")(cli_simulate.simulate)
app.command("export")(cli_export.export_global)
app.add_typer(cli_identity.clients, name="clients")
app.add_typer(cli_identity.tokens, name="tokens")
app.add_typer(cli_identity.operators, name="operators")

RunArgument = Annotated[str, typer.Argument(help="Id, start of an id, or name of a run.")]


@app.command()
def serve(
    data: DataOption = None,
    listen: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="For clients. Default: 0.0.0.0:9400, with --insecure 127.0.0.1:9400.",
        ),
    ] = "",
    join_listen: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", help="For devices that join. Default: the port after --listen."
        ),
    ] = "",
    no_join: Annotated[bool, typer.Option("--no-join", help="Let no device join.")] = False,
    control_listen: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="For operators on other machines; default: none."),
    ] = "",
    workload: WorkloadOption = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain text, without certificates.")
    ] = False,
    insecure_anywhere: Annotated[
        bool,
        typer.Option(
            "--insecure-anywhere", help="Plain text also on addresses that others can reach."
        ),
    ] = False,
    log_format: Annotated[
        LogFormat, typer.Option(help="For people or for machines.")
    ] = LogFormat.CONSOLE,
    transfers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Transfers at the same time; others wait. Default: 16.", min=1),
    ] = None,
    limits: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="TOML file with what one client may ask for: docs/operations.md."),
    ] = None,
    dashboard: DashboardOption = "",
    metrics: MetricsOption = "",
    track: TrackOption = None,
    reserve: Annotated[int, typer.Option(help="MiB of the disk that stay free.", min=0)] = 64,
    ready_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Written with the address once the server listens."),
    ] = None,
) -> None:
    """Run the server until it is told to stop."""
    from fedserver.listeners import Ports, check_address, next_port
    from fedserver.serve import serve as run_server
    from fedserver.service.limits import read_limits
    from motley.plugins import check, parse_mappings

    configure(log_format)
    root, ports = data or default_data(), None
    if insecure or insecure_anywhere:
        listen = listen or "127.0.0.1:9400"
        check_address(listen, anywhere=insecure_anywhere)
        if join_listen or control_listen:
            raise MotleyError("--join-listen and --control-listen need certificates; see --help")
    else:
        _check_authority(root)
        listen = listen or "0.0.0.0:9400"
        join = "" if no_join else join_listen or next_port(listen)
        ports = Ports(join=join, control=control_listen)
    mappings = parse_mappings(workload or [])
    for name in mappings:
        check(name, mappings)
    allowed = read_limits(limits, transfers)
    asyncio.run(
        run_server(
            root,
            listen,
            mappings,
            ports=ports,
            limits=allowed,
            reserve=reserve << 20,
            watch=watch_ports(dashboard, metrics, track or []),
            on_ready=ready_file,
        )
    )


@app.command()
def doctor(
    data: DataOption = None,
    listen: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", help="The client port. Default: where it listens, or did last."
        ),
    ] = "",
    join_listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The join port. Default: likewise.")
    ] = "",
    no_join: Annotated[bool, typer.Option("--no-join", help="There is no join port.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="It serves plain text.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Look for what may keep a server from working; exits with 1 on a problem."""
    from fedserver.doctor import Patient, examine
    from motley.checkup.findings import report

    patient = Patient(
        data=data or default_data(),
        listen=listen,
        join_listen=join_listen,
        no_join=no_join,
        insecure=insecure,
    )
    raise typer.Exit(report(examine(patient), json_output=json_output))


def _check_authority(root: Path) -> None:
    if not (root / "identity" / "authority.pem").exists():
        raise MotleyError(
            f"{root} has no certificate authority; make one with `fedserver init --data {root}`, "
            f"or say --insecure to serve plain text on this machine alone"
        )


@app.command()
@steers
def submit(
    operator: Operator,
    runfile: Annotated[Path, typer.Argument(help="The run file (TOML).")],
    json_output: JsonOption = False,
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow it until it ends.")] = False,
) -> None:
    """Queue a run."""
    text = read_run_file(runfile)
    run_id = operator.submit(text, str(runfile))
    _print_reply((run_id, "queued"), json_output, operator)
    if watch_it:
        _follow(operator, run_id, json_output, whole=True)


@app.command()
@steers
def runs(operator: Operator, json_output: JsonOption = False) -> None:
    """List runs, the newest first."""
    records = operator.runs()
    if json_output:
        print(json.dumps(finite(records)))
    else:
        from fedserver.display import print_runs

        print_runs(records)


@app.command()
@steers
def show(
    operator: Operator,
    run: RunArgument,
    bits: Annotated[
        bool, typer.Option("--bits", help="The bit-width of every layer of every client.")
    ] = False,
    round_number: Annotated[
        int, typer.Option("--round", help="With --bits; 0: the newest closed one.", min=0)
    ] = 0,
    png: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--png", metavar="FILE", help="With --bits: draw it to this file instead."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Show a run: its rounds and its clients, or the bit-widths of a round."""
    from fedserver import display

    if not bits and (round_number or png):
        raise MotleyError("--round and --png say more about --bits; give that too")
    record = operator.show(run)
    if bits:
        display.show_widths(record, round_number, png, as_json=json_output)
    elif json_output:
        print(json.dumps(finite(record)))
    else:
        display.print_run(record)


@app.command()
@steers
def watch(
    operator: Operator,
    run: RunArgument,
    whole: Annotated[
        bool, typer.Option("--all", help="Without a terminal: list the earlier rounds too.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Follow a run live until it ends; exits with 1 when it paused, failed or was stopped."""
    _follow(operator, run, json_output, whole=whole)


def _follow(operator: Operator, run: str, json_output: bool, *, whole: bool) -> None:
    status, records = "", operator.watch(run)
    if json_output:
        for record in records:
            print(json.dumps(finite(record)), flush=True)
            status = record["status"]
    else:
        from fedserver.display import follow

        status = follow(records, whole=whole)
    if status != "finished":
        raise typer.Exit(1)


@app.command()
@steers
def stop(operator: Operator, run: RunArgument, json_output: JsonOption = False) -> None:
    """Stop a run; what was counted stays, and `resume` takes it up again."""
    _print_reply(operator.stop(run), json_output)


@app.command()
@steers
def resume(operator: Operator, run: RunArgument, json_output: JsonOption = False) -> None:
    """Put a paused or stopped run back into the queue."""
    _print_reply(operator.resume(run), json_output, operator)


@app.command()
@steers
def extend(
    operator: Operator,
    run: RunArgument,
    rounds: Annotated[int, typer.Option(help="How many rounds more.", min=1)],
    json_output: JsonOption = False,
) -> None:
    """Add rounds to a run; one that has finished goes on."""
    _print_reply(operator.extend(run, rounds), json_output, operator)


@app.command()
@steers
def remove(
    operator: Operator,
    run: RunArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Forget a run that has ended or paused: its record, its models and its updates."""
    if not yes:
        record = operator.show(run)
        typer.confirm(
            f"remove run {record['name']} ({record['id']}, {record['status']}, "
            f"{record['round']} rounds) for good?",
            abort=True,
        )
        run = record["id"]
    _print_reply(operator.remove(run), json_output)


@app.command()
@steers
def fetch(
    operator: Operator,
    run: RunArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")],
    round_number: Annotated[int, typer.Option("--round", help="0: the newest.")] = 0,
    json_output: JsonOption = False,
) -> None:
    """Write a run's global model to a payload file (docs/wire-format.md)."""
    check_target(output)
    size = operator.fetch(run, round_number, output)
    if json_output:
        print(json.dumps({"file": str(output), "bytes": size}))
    else:
        print(f"{output}: {size:,} bytes")


@app.command()
@steers
def replay(operator: Operator, run: RunArgument, json_output: JsonOption = False) -> None:
    """Recompute every round's global model from the record; exits with 1 on a difference."""
    agreed = total = pruned = 0
    for record in operator.replay(run):
        agreed, total = agreed + record["agrees"], total + 1
        pruned += record["pruned"]
        if json_output:
            print(json.dumps(finite(record)), flush=True)
        else:
            word = "agrees" if record["agrees"] else f"DIFFERS {record['problem']}"
            word = record["problem"] if record["pruned"] else word
            people = ", ".join(record["participants"])
            line = f"round {record['round']:>5}  {record['recorded'][:16]}  {word}  ({people})"
            print(in_words(line))
    if not json_output:
        print(f"{agreed} of {total - pruned} rounds agree")
        if pruned:
            print(f"{pruned} older rounds cannot be checked: their payloads were removed")
    if agreed < total - pruned:
        raise typer.Exit(1)


def _print_reply(reply: tuple[str, str], json_output: bool, at: Operator | None = None) -> None:
    """Print what became of a run, and the command that comes next: `at` a server."""
    run_id, status = reply
    if json_output:
        print(json.dumps({"run_id": run_id, "status": status}))
    else:
        rests = status in ("paused", "stopped", "failed")
        how, command = ("take it up", "resume") if rests else ("follow it", "watch")
        hint = f"; {how} with `fedserver {command} {run_id}{at.options}`" if at else ""
        print(f"run {run_id} is {status}{hint}")


def _version(value: bool) -> None:
    if value:
        print(f"fedserver {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script: errors become one line on stderr."""
    # gRPC's C core logs on its own, in its own format, what we report as an error anyway.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app()
    except MotleyError as error:
        print(printable(f"fedserver: {error} [{error.number}]"), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
