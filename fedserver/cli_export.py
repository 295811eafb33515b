"""The command `fedserver export`: a run's global model in a format that others read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from fedserver.cli_options import JsonOption, WorkloadOption, check_target, steers
from motley import plugins
from motley.errors import ExportError, PayloadError
from motley.export.about import About
from motley.export.convert import Format, Ground, export
from motley.export.packed import PackedModel
from motley.workload import DataSpec

if TYPE_CHECKING:
    from fedserver.client import Operator
    from motley.workload import Workload
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
    record, kind = operator.show(run), Format(form.value)
    if not record["round"]:
        raise ExportError(
            f"run {record['name']} has no trained model yet: it is {record['status']}, round 0 of "
            f"{record['rounds']}; `fedserver watch {record['id']}` follows it"
        )
    code = _workload(record, plugins.parse_mappings(workload or []))
    target = output or Path(f"{record['name']}{kind.suffix}")
    check_target(target)
    model, ground = _fetched(operator, record, round_number, code), None
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
    print(json.dumps(done.record()) if json_output else "\n".join(done.lines()))


def _workload(record: Mapping[str, Any], mappings: Mapping[str, str]) -> Workload:
    if not record.get("global_variant"):
        raise ExportError(
            f"run {record['name']} has no global model ({record['algorithm'] or 'not prepared'}); "
            f"personal models are exported where they lie, with `fedclient export {record['name']}`"
        )
    return plugins.create(record["workload"], mappings, record.get("arguments", {}))


def _fetched(
    operator: Operator, record: Mapping[str, Any], number: int, workload: Workload
) -> PackedModel:
    """Fetch the global model after a round; raise ExportError where it is of another workload."""
    from motley.models.units import variant_table
    from motley.wire import PayloadReader

    # The round that the record is of: another one may close before the model is fetched.
    number = number or record["round"]
    variant = record["global_variant"]
    variants = workload.variants()
    if variant not in variants:
        raise ExportError(f"workload {record['workload']} has no variant {variant} here")
    with tempfile.TemporaryDirectory(prefix="motley-export-") as folder:
        path = Path(folder) / "global.motley"
        operator.fetch(record["id"], number, path)
        try:
            with PayloadReader(path, variant_table(variants[variant]).tensor_table) as reader:
                tensors = dict(reader.items())
        except PayloadError as error:
            raise ExportError(
                f"the global model does not fit variant {variant} of workload "
                f"{record['workload']} as it is here ({error}); name the code of the run with "
                f"--workload {record['workload']}=module:object"
            ) from None
    about = About(
        workload=record["workload"],
        version=type(workload).version,
        arguments=record.get("arguments", {}),
        variant=variant,
        run=record["id"],
        name=record["name"],
        algorithm=record["algorithm"],
        rounds=number,
    )
    return PackedModel.of(about, tensors)
