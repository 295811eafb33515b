"""The command `fedserver export`: a run's global model in a format that others read."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from fedserver.cli_options import JsonOption, WorkloadOption, check_target, steers
from motley.errors import ExportError
from motley.logs import printable

if TYPE_CHECKING:
    from fedserver.client import Operator
else:
    Operator = Any  # typer reads annotations at run time


class ServerFormat(str, Enum):
    """What a global model can be written as."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"
    PACKED = "packed"


@steers
def export_global(
    operator: Operator,
    run: Annotated[str, typer.Argument(help="Id, start of an id, or name of a run.")],
    form: Annotated[
        ServerFormat, typer.Option("--format", help="packed: for `fedclient predict`.")
    ] = ServerFormat.SAFETENSORS,
    output: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads annotations of Python 3.10 at run time
        typer.Option("-o", "--output", help="File to write; default: the run's name, here."),
    ] = None,
    round_number: Annotated[int, typer.Option("--round", help="0: the newest.", min=0)] = 0,
    test_data: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="With onnx: data to check the file on. Default: evaluate.held_out of the run.",
        ),
    ] = "",
    workload: WorkloadOption = None,
    json_output: JsonOption = False,
) -> None:
    """Write a run's global model as safetensors, ONNX, or a packed file."""
    # Here, not above: every command would pay for them.
    from fedserver.global_model import fetched, workload_of
    from motley.export.convert import Format, Ground, export
    from motley.plugins import parse_mappings
    from motley.workload import DataSpec

    record, kind = operator.show(run), Format(form.value)
    if not record["round"]:
        raise ExportError(
            f"run {record['name']} has no trained model yet: it is {record['status']}, round 0 of "
            f"{record['rounds']}; `fedserver watch {record['id']}` follows it"
        )
    code = workload_of(record, parse_mappings(workload or []))
    target = output or Path(f"{record['name']}{kind.suffix}")
    check_target(target)
    model, ground = fetched(operator, record, round_number, code), None
    if kind is Format.ONNX:
        spec = test_data or record.get("held_out")
        if not spec:
            raise ExportError(
                "the format onnx is checked on samples, and the run file names no data of the "
                "server's own (evaluate.held_out); name some with --test-data"
            )
        ground = Ground.of(code, held_out=code.held_out(DataSpec.parse(spec)))
    if output is None and target.exists():
        raise ExportError(f"{target} is there already; to write over it, name it with --output")
    done = export(model, target, kind, ground)
    print(json.dumps(done.record()) if json_output else printable("\n".join(done.lines())))
