"""The command `fedserver`: serve, and steer a server that runs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from motley import __version__
from motley.errors import MotleyError, RunFileError
from motley.logs import LogFormat, configure

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated training across devices that are all different: the server.",
)


def _default_data() -> Path:
    share = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(os.environ.get("MOTLEY_DATA") or Path(share).expanduser() / "motley")


DataOption = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads annotations of Python 3.10 at run time
    typer.Option("--data", help="Data directory of the server. [env: MOTLEY_DATA]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
RunArgument = Annotated[str, typer.Argument(help="Id, start of an id, or name of a run.")]


def _operator(data: Path | None) -> Any:
    from fedserver.client import Operator

    return Operator(data or _default_data())


@app.command()
def serve(
    data: DataOption = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT for clients.")] = "127.0.0.1:9400",
    workload: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="NAME=module:object; may be given more than once."),
    ] = None,
    insecure: Annotated[bool, typer.Option(help="Plain text: demanded for now.")] = False,
    insecure_anywhere: Annotated[
        bool, typer.Option(help="Plain text also on addresses that others can reach.")
    ] = False,
    log_format: Annotated[
        LogFormat, typer.Option(help="For people or for machines.")
    ] = LogFormat.CONSOLE,
    reserve: Annotated[
        int, typer.Option(help="MiB of the disk that are to stay free.", min=0)
    ] = 64,
    ready_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Written with the address once the server listens."),
    ] = None,
) -> None:
    """Run the server until it is told to stop."""
    from fedserver.serve import check_address
    from fedserver.serve import serve as run_server
    from motley.plugins import check, parse_mappings

    configure(log_format)
    if not (insecure or insecure_anywhere):
        raise MotleyError(
            "certificates do not exist yet, so traffic is plain text: say --insecure to accept that"
        )
    check_address(listen, anywhere=insecure_anywhere)
    mappings = parse_mappings(workload or [])
    for name in mappings:
        check(name, mappings)
    asyncio.run(
        run_server(
            data or _default_data(), listen, mappings, on_ready=ready_file, reserve=reserve << 20
        )
    )


@app.command()
def submit(
    runfile: Annotated[Path, typer.Argument(help="The run file (TOML).")],
    data: DataOption = None,
    json_output: JsonOption = False,
    watch_it: Annotated[bool, typer.Option("--watch", help="Follow it until it ends.")] = False,
) -> None:
    """Queue a run."""
    try:
        text = runfile.read_text()
    except OSError as error:
        raise RunFileError(f"{runfile} cannot be read: {error.strerror}") from None
    with _operator(data) as operator:
        run_id = operator.submit(text, str(runfile))
    if json_output:
        print(json.dumps({"run_id": run_id, "status": "queued"}))
    else:
        print(f"run {run_id} is queued; follow it with `fedserver watch {run_id}`")
    if watch_it:
        watch(run_id, data, json_output)


@app.command()
def runs(data: DataOption = None, json_output: JsonOption = False) -> None:
    """List runs, the newest first."""
    with _operator(data) as operator:
        records = operator.runs()
    if json_output:
        print(json.dumps(records))
    else:
        from fedserver.display import print_runs

        print_runs(records)


@app.command()
def clients(data: DataOption = None, json_output: JsonOption = False) -> None:
    """List the clients that ever enrolled."""
    with _operator(data) as operator:
        records = operator.clients()
    if json_output:
        print(json.dumps(records))
    else:
        from fedserver.display import print_clients

        print_clients(records)


@app.command()
def show(run: RunArgument, data: DataOption = None, json_output: JsonOption = False) -> None:
    """Show a run: its rounds and its clients."""
    with _operator(data) as operator:
        record = operator.show(run)
    if json_output:
        print(json.dumps(record))
    else:
        from fedserver.display import print_run

        print_run(record)


@app.command()
def watch(run: RunArgument, data: DataOption = None, json_output: JsonOption = False) -> None:
    """Follow a run live until it ends; exits with 1 when it paused, failed or was stopped."""
    status = ""
    with _operator(data) as operator:
        records = operator.watch(run)
        if json_output:
            for record in records:
                print(json.dumps(record), flush=True)
                status = record["status"]
        else:
            from fedserver.display import follow

            status = follow(records)
    if status != "finished":
        raise typer.Exit(1)


@app.command()
def stop(run: RunArgument, data: DataOption = None, json_output: JsonOption = False) -> None:
    """Stop a run; what was counted stays, and `resume` takes it up again."""
    with _operator(data) as operator:
        _print_reply(operator.stop(run), json_output)


@app.command()
def resume(run: RunArgument, data: DataOption = None, json_output: JsonOption = False) -> None:
    """Put a paused or stopped run back into the queue."""
    with _operator(data) as operator:
        _print_reply(operator.resume(run), json_output)


@app.command()
def extend(
    run: RunArgument,
    rounds: Annotated[int, typer.Option(help="How many rounds more.", min=1)],
    data: DataOption = None,
    json_output: JsonOption = False,
) -> None:
    """Add rounds to a run; one that has finished goes on."""
    with _operator(data) as operator:
        _print_reply(operator.extend(run, rounds), json_output)


@app.command()
def remove(
    run: RunArgument,
    data: DataOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Forget a run that has ended or paused: its record, its models and its updates."""
    with _operator(data) as operator:
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
def fetch(
    run: RunArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")],
    round_number: Annotated[int, typer.Option("--round", help="0: the newest.")] = 0,
    data: DataOption = None,
    json_output: JsonOption = False,
) -> None:
    """Write a run's global model to a payload file (docs/wire-format.md)."""
    if output.is_dir() or not output.parent.is_dir():
        raise MotleyError(f"{output} cannot be written: name a file in a folder that exists")
    with _operator(data) as operator:
        size = operator.fetch(run, round_number, output)
    if json_output:
        print(json.dumps({"file": str(output), "bytes": size}))
    else:
        print(f"{output}: {size:,} bytes")


@app.command()
def replay(run: RunArgument, data: DataOption = None, json_output: JsonOption = False) -> None:
    """Recompute every round's global model from the record; exits with 1 on a difference."""
    agreed = total = pruned = 0
    with _operator(data) as operator:
        for record in operator.replay(run):
            agreed, total = agreed + record["agrees"], total + 1
            pruned += record["pruned"]
            if json_output:
                print(json.dumps(record), flush=True)
            else:
                word = "agrees" if record["agrees"] else f"DIFFERS {record['problem']}"
                word = record["problem"] if record["pruned"] else word
                people = ", ".join(record["participants"])
                print(f"round {record['round']:>5}  {record['recorded'][:16]}  {word}  ({people})")
    if not json_output:
        print(f"{agreed} of {total - pruned} rounds agree")
        if pruned:
            print(f"{pruned} older rounds cannot be checked: their payloads were removed")
    if agreed < total - pruned:
        raise typer.Exit(1)


def _print_reply(reply: tuple[str, str], json_output: bool) -> None:
    run_id, status = reply
    if json_output:
        print(json.dumps({"run_id": run_id, "status": status}))
    else:
        print(f"run {run_id} is {status}")


def _version(value: bool) -> None:
    if value:
        print(__version__)
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
        print(f"fedserver: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
