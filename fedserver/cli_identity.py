"""The commands that decide who may come: init, tokens, clients, operators."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from fedserver.cli_options import (
    DataOption,
    JsonOption,
    OperatorOption,
    ServerOption,
    connect,
    default_data,
    steers,
)
from motley.command_line import Program
from motley.logs import LogFormat, configure, printable

if TYPE_CHECKING:
    from fedserver.client import Operator
else:
    Operator = Any  # typer reads annotations at run time

tokens = Program(no_args_is_help=True, help="Join tokens: make, list, revoke.")
clients = Program(help="List the clients, or shut one out.")
operators = Program(no_args_is_help=True, help="Who may steer the server from elsewhere.")

LifetimeOption = Annotated[str, typer.Option(help="How long the token works: 24h, 7d, 30m.")]
UsesOption = Annotated[int, typer.Option(min=1, help="How many devices may join with it.")]
DEFAULT_USES = 10


def init(
    data: DataOption = None,
    address: Annotated[
        str,
        typer.Option(
            metavar="HOST[:PORT]",
            help="How devices reach the server; without a port, the one that it listens on. "
            "Default: this machine's outward address.",
        ),
    ] = "",
    client_lifetime: Annotated[str, typer.Option(help="Of clients' certificates.")] = "90d",
    operator_lifetime: Annotated[str, typer.Option(help="Of operators' certificates.")] = "365d",
    server_lifetime: Annotated[str, typer.Option(help="Of the server's certificate.")] = "90d",
    uses: UsesOption = DEFAULT_USES,
    lifetime: LifetimeOption = "24h",
    json_output: JsonOption = False,
) -> None:
    """Make the server's certificate authority, and print the command by which devices join."""
    from fedserver.identity.durations import parse_duration
    from fedserver.identity.setup import make_authority

    configure(LogFormat.CONSOLE, logging.WARNING)
    record = make_authority(
        data or default_data(),
        address=address,
        client_lifetime=parse_duration(client_lifetime, "--client-lifetime"),
        operator_lifetime=parse_duration(operator_lifetime, "--operator-lifetime"),
        server_lifetime=parse_duration(server_lifetime, "--server-lifetime"),
        uses=uses,
        seconds=parse_duration(lifetime, "--lifetime"),
    )
    if json_output:
        print(json.dumps(record))
        return
    from fedserver.display import print_facts, print_join

    print_facts(
        {
            "authority": f"{record['folder']}  (keep a copy of this folder, and keep it secret)",
            "address": f"{record['address']}  (as devices are told; another: --address)",
        }
    )
    print_join(record)
    given = f" --data {data}" if data else ""
    print(f"\nthen start the server: fedserver serve{given}")


@tokens.command("create")
@steers
def create_token(
    operator: Operator,
    uses: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="How many devices may join; default 10, with --client 1."),
    ] = None,
    lifetime: LifetimeOption = "24h",
    client: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="For this client alone; the device takes the place of the one that had the name.",
        ),
    ] = "",
    json_output: JsonOption = False,
) -> None:
    """Make a join token, and print the command that uses it."""
    from fedserver.identity.durations import parse_duration
    from motley.identity.tokens import parse_token

    seconds = parse_duration(lifetime, "--lifetime")
    text, record = operator.create_token(uses or (1 if client else DEFAULT_USES), seconds, client)
    record = {
        **record,
        "token": text,
        "server": parse_token(text).server,
        "join": join_command(text, client),
    }
    if json_output:
        print(json.dumps(record))
    else:
        from fedserver.display import print_join

        print_join(record)


def join_command(token: str, client: str) -> str:
    """Return the command by which a device joins."""
    return f"fedclient join {token} --name {client or 'NAME'}"


@tokens.command("list")
@steers
def list_tokens(operator: Operator, json_output: JsonOption = False) -> None:
    """List join tokens, the newest first. Their secrets are not kept."""
    records = operator.tokens()
    if json_output:
        print(json.dumps(records))
    else:
        from fedserver.display import print_tokens

        print_tokens(records)


@tokens.command("revoke")
@steers
def revoke_token(
    operator: Operator,
    token: Annotated[str, typer.Argument(metavar="ID", help="As `fedserver tokens list` shows.")],
    json_output: JsonOption = False,
) -> None:
    """Make a join token worthless. Clients that joined with it stay."""
    record = operator.revoke_token(token)
    print(json.dumps(record) if json_output else f"token {token} is {record['state']}")


@clients.callback(invoke_without_command=True)
def list_clients(
    context: typer.Context,
    data: DataOption = None,
    operator: OperatorOption = None,
    server: ServerOption = "",
    json_output: JsonOption = False,
) -> None:
    """List the clients that ever joined or checked in."""
    if context.invoked_subcommand:
        return
    with connect(data, operator, server) as connection:
        records = connection.clients()
    if json_output:
        print(json.dumps(records))
    else:
        from fedserver.display import print_clients

        print_clients(records)


@clients.command("revoke")
@steers
def revoke_client(
    operator: Operator,
    name: Annotated[str, typer.Argument(help="The client's name.")],
    reason: Annotated[str, typer.Option(help="For the record, and for the device.")] = "",
    json_output: JsonOption = False,
) -> None:
    """Shut a client out at once: its open calls end, and it leaves its runs."""
    record = operator.revoke_client(name, reason)
    if json_output:
        print(json.dumps(record))
        return
    print(printable(f"client {name} is shut out: {record['revoked']}"))
    if record["open_tokens"]:
        print("Who knows one of these join tokens can come back under another name:")
        for token in record["open_tokens"]:
            print(f"  fedserver tokens revoke {token}")


@operators.command("create")
def create_operator(
    name: Annotated[str, typer.Argument(help="Who it is for.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")],
    server: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Control port that the file names."),
    ] = "",
    data: DataOption = None,
    json_output: JsonOption = False,
) -> None:
    """Make an operator's file: who has it can steer the server over `serve --control-listen`."""
    from fedserver.identity.authority import Authority
    from fedserver.identity.operators import Operators

    configure(LogFormat.CONSOLE, logging.WARNING)
    root = data or default_data()
    entry = Operators(root).create(Authority(root), name, server, output)
    if json_output:
        print(json.dumps({**entry.model_dump(), "file": str(output)}))
    else:
        print(f"{output}: who has this file can steer the server; bring it over a safe way")


@operators.command("list")
def list_operators(data: DataOption = None, json_output: JsonOption = False) -> None:
    """List the operators whose certificates count."""
    from fedserver.identity.operators import Operators

    entries = Operators(data or default_data()).entries().values()
    records = sorted((entry.model_dump() for entry in entries), key=lambda entry: entry["name"])
    if json_output:
        print(json.dumps(records))
    else:
        from fedserver.display import print_operators

        print_operators(records)


@operators.command("revoke")
def revoke_operator(
    name: Annotated[str, typer.Argument(help="The operator's name.")], data: DataOption = None
) -> None:
    """Strike an operator off the list; the server heeds it from the next command on."""
    from fedserver.identity.operators import Operators

    Operators(data or default_data()).revoke(name)
    print(f"operator {name} is revoked")
