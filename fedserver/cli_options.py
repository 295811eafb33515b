"""What the commands of `fedserver` share: their options, and how they reach the server."""

from __future__ import annotations

import functools
import inspect
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, get_type_hints

import typer

if TYPE_CHECKING:
    from fedserver.watching import WatchPorts

from motley.errors import MotleyError, RunFileError


def default_data() -> Path:
    """Return the data directory where none is named."""
    share = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(os.environ.get("MOTLEY_DATA") or Path(share).expanduser() / "motley")


DataOption = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads annotations of Python 3.10 at run time
    typer.Option("--data", help="Data directory of the server; default: MOTLEY_DATA, if set."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
WorkloadOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--workload",
        metavar="NAME=MODULE:OBJECT",
        help="What a workload's name means here; may be given more than once.",
    ),
]
OperatorOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--operator",
        metavar="FILE",
        envvar="MOTLEY_OPERATOR",
        help="An operator's file: steer a server on another machine.",
    ),
]
ServerOption = Annotated[
    str,
    typer.Option(
        "--server", metavar="HOST:PORT", help="Its control port, where the file names none."
    ),
]


DashboardOption = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT",
        help="Serve the live page there, e.g. 127.0.0.1:9480; elsewhere it asks for a token.",
    ),
]
MetricsOption = Annotated[
    str,
    typer.Option(metavar="HOST:PORT", help="Serve /metrics for Prometheus, e.g. on port 9464."),
]
TrackOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        metavar="KIND:WHERE",
        help="tensorboard:FOLDER or mlflow:URI gets closed rounds; may be given again.",
    ),
]


def watch_ports(dashboard: str, metrics: str, track: list[str]) -> WatchPorts | None:
    """Return what `fedserver serve` shows to those who watch; None for nothing."""
    if not (dashboard or metrics or track):
        return None
    from fedserver.watching import WatchPorts

    return WatchPorts(dashboard=dashboard, metrics=metrics, track=tuple(track))


def check_target(path: Path) -> None:
    """Raise MotleyError unless a file can be written at `path`."""
    if path.is_dir() or not path.parent.is_dir():
        raise MotleyError(f"{path} cannot be written: name a file in a folder that exists")


def read_run_file(path: Path) -> str:
    """Return a run file's text.

    Raises:
        RunFileError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows' editors begin with a mark
    except OSError as error:
        raise RunFileError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RunFileError(
            f"{path} is not UTF-8, as a run file must be: see line {line}, and save it as UTF-8"
        ) from None


def steers(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a connection as its first argument, and the options that choose it."""
    hints = get_type_hints(command, include_extras=True)
    parameters = list(inspect.signature(command).parameters.values())[1:]
    options: dict[str, tuple[Any, Any]] = {
        "data": (DataOption, None),
        "operator": (OperatorOption, None),
        "server": (ServerOption, ""),
    }

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        data, operator, server = (arguments.pop(name) for name in options)
        with connect(data, operator, server) as connection:
            connection.options = _said(data, operator, server)
            command(connection, **arguments)

    keyword = inspect.Parameter.KEYWORD_ONLY
    given = [p.replace(kind=keyword, annotation=hints[p.name]) for p in parameters]
    added = [
        inspect.Parameter(name, keyword, default=default, annotation=kind)
        for name, (kind, default) in options.items()
    ]
    run.__signature__ = inspect.Signature([*given, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*given, *added)}
    return run


def _said(data: Path | None, operator: Path | None, server: str) -> str:
    """Return the options that chose a server, for commands that a user is told to type next."""
    given = {"data": data, "operator": operator, "server": server}
    return "".join(f" --{name} {shlex.quote(str(value))}" for name, value in given.items() if value)


def connect(data: Path | None, operator: Path | None, server: str) -> Any:
    """Return a connection over the data directory's socket, or over TCP with an operator's file.

    Without a server, what can be read of the directory's runs is read from its files.
    """
    from fedserver.client import Operator
    from fedserver.control_socket import is_served

    if operator is None:
        if server:
            raise MotleyError(
                "--server needs the certificate of an operator: name its file with --operator, "
                "or leave --server out to steer the server of this machine"
            )
        root = data or default_data()
        if is_served(root) or not (root / "motley.sqlite").exists():
            return Operator(root)
        from fedserver.stored import StoredRuns  # with the database, which others do without

        return StoredRuns(root)
    return Operator.over_network(operator, server)
