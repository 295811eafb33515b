"""A run's global model, fetched from the server and told what it is."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motley import plugins
from motley.errors import ExportError, PayloadError
from motley.export.about import About
from motley.export.packed import PackedModel
from motley.models.units import variant_table
from motley.wire import PayloadReader

if TYPE_CHECKING:
    from fedserver.client import Operator
    from motley.workload import Workload


def workload_of(record: Mapping[str, Any], mappings: Mapping[str, str]) -> Workload:
    """Return the workload of a run; raise ExportError where the run has no global model."""
    if not record.get("global_variant"):
        raise ExportError(
            f"run {record['name']} has no global model ({record['algorithm'] or 'not prepared'}); "
            f"personal models are exported where they lie, with `fedclient export {record['name']}`"
        )
    return plugins.create(record["workload"], mappings, record.get("arguments", {}))


def fetched(
    operator: Operator, record: Mapping[str, Any], number: int, workload: Workload
) -> PackedModel:
    """Fetch the global model after a round; raise ExportError where it is of another workload."""
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
