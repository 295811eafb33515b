"""`fedclient join | start | profile | models | export | predict | privacy | doctor`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedclient import cli_export
from fedclient.conditions import parse_conditions
from fedclient.errors import EXIT_LOCAL, ClientError, OptionError
from fedclient.options import (
    ClientOptions,
    check_memory_limit,
    check_name,
    check_server,
    check_utf8,
    clients_directory,
    parse_labels,
)
from motley import __version__
from motley.command_line import Program
from motley.errors import DataError, MotleyError, WorkloadError
from motley.logs import LogFormat, configure, in_words, printable

app = Program(
    help="A Motley client: trains on this device's own data and takes part in a server's runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)

Workloads = Annotated[
    list[str] | None,
    typer.Option("--workload", metavar="NAME=MODULE:OBJECT", help="What a run's workload means."),
]
Threads = Annotated[
    int,
    typer.Option(
        min=0,
        help="Training threads; 0: the cores divided by the clients on this machine, counted anew "
        "at each check-in and frozen when a run starts. Give a number where a run's result must "
        "repeat: it depends on the threads.",
    ),
]
Device = Annotated[str, typer.Option(help="Where training runs: cpu, cuda, cuda:1, mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]


app.command("models")(cli_export.models)
app.command("export")(cli_export.export)
app.command("predict")(cli_export.predict)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    """Answer --version."""
    if show:
        typer.echo(f"fedclient {__version__}")
        raise typer.Exit


@app.command()
def join(
    token: Annotated[str, typer.Argument(help="The word that the server's operator gave you.")],
    name: Annotated[
        str, typer.Option(help="This client's name; default: that of this machine.")
    ] = "",
    state: Annotated[Path | None, typer.Option(help="State directory.")] = None,
    server: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Join port; default: the token's.")
    ] = "",
) -> None:
    """Become a client of a server: make a key on this device, and get a certificate for it."""
    from fedclient.identity.join import host_name
    from fedclient.identity.join import join as join_server
    from fedclient.identity.store import IdentityStore
    from fedclient.state import StateDirectory, was_started
    from motley.identity.tokens import parse_token

    parsed, name = parse_token(token), check_name(name or host_name())
    root = state or clients_directory() / name
    directory, is_new = StateDirectory(root), not was_started(root)
    directory.open(name)
    try:
        found = join_server(parsed, name, IdentityStore(root), server and check_server(server))
    except BaseException:
        if is_new:
            directory.abandon()
        raise
    finally:
        directory.close()
    option = f" --state {root}" if state else ""
    typer.echo(f"{name} has joined; its certificate and key are in {root / 'identity'}")
    told = f"server {found.server}; now: fedclient start --name {name}{option} --data ..."
    typer.echo(printable(told))


@app.command()
def start(
    name: Annotated[str, typer.Option(help="This client's name, unique at the server.")],
    data: Annotated[str, typer.Option(help="Where the data lies: LOCATION[?option=value&...].")],
    server: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="The server's client port; default: as joined."),
    ] = "",
    workload: Workloads = None,
    state: Annotated[Path | None, typer.Option(help="State directory.")] = None,
    tier: Annotated[str, typer.Option(help="Tier of the run file; else its rules decide.")] = "",
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A label.")] = None,
    threads: Threads = 0,
    memory_limit: Annotated[
        str, typer.Option(metavar="SIZE", help="Limit of the training process, e.g. 512M.")
    ] = "",
    device: Device = "cpu",
    insecure: Annotated[bool, typer.Option("--insecure", help="Connect without TLS.")] = False,
    log_format: LogFormat = LogFormat.CONSOLE,
    idle_minutes: Annotated[
        float, typer.Option(min=0.01, help="Idle time after which the training process ends.")
    ] = 10.0,
    only_when: Annotated[
        str,
        typer.Option(
            metavar="CONDITION,...",
            help="Take tasks only while these hold: charging, unmetered, idle. A task in hand is "
            "finished.",
        ),
    ] = "",
    privacy_budget: Annotated[
        str,
        typer.Option(
            metavar="EPSILON,DELTA",
            help="What all runs together may spend of a record's privacy, from now on and also "
            "after a restart; only private runs are then taken part in. none: no bound.",
        ),
    ] = "",
) -> None:
    """Take part in the runs of a server until stopped."""
    root = state or clients_directory() / check_name(name)
    check_utf8("the folder it is started in,", str(Path.cwd()))
    options = ClientOptions(
        server=_server(server, name, root, insecure),
        name=check_name(name),
        data=_checked_data(data),
        state=Path(check_utf8("--state", str(root))),
        workloads=_mappings(workload),
        tier=tier,
        labels=parse_labels(label or []),
        threads=threads,
        memory_limit=check_memory_limit(memory_limit),
        device=device,
        insecure=insecure,
        idle_seconds=idle_minutes * 60,
        only_when=parse_conditions(only_when),
        privacy_budget=_checked_budget(privacy_budget),
    )
    configure(log_format)
    from fedclient.daemon import serve

    asyncio.run(serve(options))


@app.command()
def profile(
    workload: Workloads = None,
    threads: Threads = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure this device and show what a server would be told."""
    from fedclient.profile_view import measured_profile

    configure(LogFormat.CONSOLE)
    facts = asyncio.run(measured_profile(_mappings(workload), threads, device))
    if as_json:
        typer.echo(json.dumps(facts, indent=1, sort_keys=True))
        return
    for key, value in facts.items():
        shown = json.dumps(value) if isinstance(value, dict) else value
        typer.echo(in_words(f"{key:22} {shown}"))


@app.command()
def privacy(
    state: Annotated[Path | None, typer.Option(help="State directory; else all clients'.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what was spent of this data's privacy, by all runs together and by each."""
    from fedclient.privacy_view import as_text, privacy_record
    from fedclient.state import was_started

    folders = [state] if state else filter(was_started, sorted(clients_directory().glob("*")))
    records = [privacy_record(folder) for folder in folders]
    if as_json:
        typer.echo(json.dumps(records, indent=1))
        return
    if not records:
        typer.echo("no client was started yet")
    for record in records:
        typer.echo(printable(as_text(record)))


@app.command()
def doctor(
    name: Annotated[str, typer.Option(help="This client's name; default: as joined.")] = "",
    state: Annotated[Path | None, typer.Option(help="State directory.")] = None,
    server: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The client port; default: as joined.")
    ] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="Ask without TLS.")] = False,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Look for what may keep this device from taking part; exits with 1 on a problem."""
    from fedclient.doctor import Patient, examine
    from motley.checkup.findings import report

    if insecure and not server:
        raise OptionError("--insecure needs --server HOST:PORT: nothing is known from joining")
    patient = Patient(
        state=state or _only_state(name),
        name=name,
        server=server and check_server(server),
        insecure=insecure,
        device=device,
    )
    raise typer.Exit(report(examine(patient), json_output=as_json))


def main() -> None:
    """Run the command line; errors on purpose end in one line and a status of their own."""
    try:
        app()
    except MotleyError as error:
        words = printable(" ".join(str(error).split()))
        print(f"fedclient: {words} [{error.number}]", file=sys.stderr)
        sys.exit(error.exit_status if isinstance(error, ClientError) else EXIT_LOCAL)
    except OSError as error:
        print(printable(f"fedclient: {error}"), file=sys.stderr)
        sys.exit(EXIT_LOCAL)


def _only_state(name: str) -> Path:
    """Return a client's default state directory; without a name that of the only client here."""
    from fedclient.state import was_started

    folders = sorted(filter(was_started, clients_directory().glob("*")))
    if not name and len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise OptionError(f"this machine has several clients ({names}): choose one with --name")
    return clients_directory() / check_name(name) if name else (*folders, clients_directory())[0]


def _server(given: str, name: str, state: Path, insecure: bool) -> str:
    """Return the server's address: as given, else as this device was told when it joined."""
    if insecure:
        if not given:
            raise OptionError("--insecure needs --server HOST:PORT: nothing is known from joining")
        return check_server(given)
    if not (state / "identity" / "client.pem").exists():
        raise OptionError(
            f"this device has not joined yet ({state} holds no certificate): first `fedclient join "
            f"TOKEN --name {name}` with the token that the operator gave you. Or say --insecure "
            f"--server HOST:PORT to go without certificates, in a network that you trust"
        )
    if given:
        return check_server(given)
    from fedclient.identity.store import IdentityStore

    return check_server(IdentityStore(state).load(name).server)


def _checked_data(text: str) -> str:
    from motley.workload import DataSpec

    try:
        DataSpec.parse(text)
    except DataError as error:
        raise OptionError(f"--data: {error}") from None
    return check_utf8("--data", text)


def _checked_budget(text: str) -> str:
    if text:
        # Not before: it brings cryptography along, 8 MB that a daemon in plain text does without.
        from fedclient.privacy import parse_budget

        parse_budget(text)
    return text


def _mappings(options: list[str] | None) -> dict[str, str]:
    from motley.plugins import parse_mappings

    try:
        return parse_mappings(options or [])
    except WorkloadError as error:
        raise OptionError(str(error)) from None


if __name__ == "__main__":
    main()
