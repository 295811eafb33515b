"""The commands that take models home: `fedclient models | export | predict`."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fedclient.errors import OptionError
from motley.errors import WorkloadError
from motley.logs import printable

State = Annotated[
    Path | None, typer.Option(help="State directory; else those of all this user's clients.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Workloads = Annotated[
    list[str] | None,
    typer.Option("--workload", metavar="NAME=MODULE:OBJECT", help="What its workload means here."),
]


class ClientFormat(str, Enum):
    """What a personal model can be written as."""

    PACKED = "packed"
    ONNX = "onnx"
    EXECUTORCH = "executorch"


def models(state: State = None, as_json: AsJson = False) -> None:
    """List finished models with what they scored."""
    from fedclient.models import stored_models

    found = stored_models(state)
    if as_json:
        entries = [{**m.record.model_dump(), "path": str(m.path)} for m in found]
        typer.echo(json.dumps(entries, indent=1))
        return
    if not found:
        typer.echo("no finished models yet")
        return
    from fedclient.tables import models_table, show

    show(models_table(found))
    typer.echo("\n".join(dict.fromkeys(str(model.path.parent) for model in found)))


def export(
    run: Annotated[str, typer.Argument(help="Id, start of an id, or name of a run.")],
    form: Annotated[
        ClientFormat,
        typer.Option(
            "--format", help="packed: the model as it is; the others: for other runtimes."
        ),
    ] = ClientFormat.PACKED,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="File to write; default: the run's and the client's name, here."
        ),
    ] = None,
    half_ends: Annotated[
        bool,
        typer.Option(
            "--half-ends",
            help="First and last layer, biases and normalisation in fp16, if no prediction on this "
            "device's test data changes by that.",
        ),
    ] = False,
    name: Annotated[str, typer.Option(help="Whose model, where there are several.")] = "",
    state: State = None,
    data: Annotated[
        str, typer.Option(help="Data to check on; default: what the model was trained with.")
    ] = "",
    workload: Workloads = None,
    as_json: AsJson = False,
) -> None:
    """Write the personal model of a finished run to a file that can be used without this client."""
    from fedclient.models import find_model
    from fedclient.take_home import export_model
    from motley.export.convert import Format

    stored, kind = find_model(run, name, state), Format(form.value)
    target = output or Path(f"{stored.record.run_name}-{stored.client}{kind.suffix}")
    if output is None and target.exists():
        raise OptionError(f"{target} is there already; to write over it, name it with --output")
    if target.is_dir() or not target.parent.is_dir():
        raise OptionError(f"--output {target}: name a file in a folder that exists")
    done = export_model(stored, target, kind, _mappings(workload), half_ends=half_ends, data=data)
    typer.echo(json.dumps(done.record()) if as_json else printable("\n".join(done.lines())))


def predict(
    file: Annotated[Path, typer.Argument(help="A packed model, or an ONNX file, of `export`.")],
    data: Annotated[
        str, typer.Option(metavar="SPEC", help="Default: what this device trained it with.")
    ] = "",
    train: Annotated[
        bool, typer.Option("--train", help="Predict the samples for training instead.")
    ] = False,
    state: State = None,
    workload: Workloads = None,
    as_json: AsJson = False,
) -> None:
    """Run a model on this device's test data, or on other data."""
    from fedclient.take_home import predict as run

    found = run(file, _mappings(workload), data, train=train, state=state)
    if as_json:
        typer.echo(json.dumps(found.record(file)))
        return
    from fedclient.tables import show_predictions

    show_predictions(found)


def _mappings(options: list[str] | None) -> dict[str, str]:
    from motley.plugins import parse_mappings

    try:
        return parse_mappings(options or [])
    except WorkloadError as error:
        raise OptionError(str(error)) from None
