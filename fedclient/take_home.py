"""Finished models out of the state directory, and packed models at work on this device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedclient.errors import OptionError
from fedclient.models import StoredModel, stored_models
from motley import plugins
from motley.errors import PackedModelError
from motley.export.about import About
from motley.export.convert import Format, Ground, export
from motley.export.packed import PackedModel, read_packed, read_tensors
from motley.export.report import Exported
from motley.workload import DataSpec, Split

if TYPE_CHECKING:
    from motley.export.predictions import Array, Run
    from motley.workload import Workload

ONNX_SUFFIX = ".onnx"


def packed_model(stored: StoredModel) -> PackedModel:
    """Return a finished model with its description.

    Raises:
        PackedModelError: its file is damaged, or its record is from before there was an export.
    """
    record = stored.record
    if not record.variant:
        raise PackedModelError(
            f"the record of {stored.path} does not say which variant the model is: an older "
            f"version of this program wrote it. Extend the run by a round (`fedserver extend "
            f"{record.run_name} --rounds 1`), then the model is written anew"
        )
    about = About(
        workload=record.workload,
        version=record.workload_version,
        arguments=record.arguments,
        variant=record.variant,
        run=record.run_id,
        name=record.run_name,
        algorithm=record.algorithm,
        rounds=record.rounds,
        client=stored.client,
    )
    return PackedModel.of(about, read_tensors(stored.path))


def export_model(
    stored: StoredModel,
    path: Path,
    kind: Format,
    mappings: Mapping[str, str],
    *,
    half_ends: bool,
    data: str,
) -> Exported:
    """Write a finished model in a format; see `motley.export.convert.export`.

    `data` names other data to check on than the device's own.
    """
    model, ground = packed_model(stored), None
    if half_ends or kind.is_checked:
        workload = _workload(model.about, mappings)
        local = workload.load(DataSpec.parse(data or stored.record.data))
        ground = Ground.of(workload, local.test, local.train)
    return export(model, path, kind, ground, half_ends=half_ends)


@dataclass(frozen=True)
class Predicted:
    """A model at work on samples."""

    about: About
    data: str
    """Spec of the data."""
    split: Split
    predictions: Array
    """Classes, or the outputs themselves."""
    is_class: bool
    metrics: Mapping[str, float]

    def record(self, file: Path) -> dict[str, Any]:
        """Return it as plain values."""
        about = self.about
        return {
            "file": str(file),
            "run": about.run,
            "client": about.client,
            "workload": about.workload,
            "variant": about.variant,
            "data": self.data,
            "metrics": dict(self.metrics),
            "predictions": self.predictions.tolist(),
            "targets": self.split.targets.tolist(),
        }


def predict(path: Path, mappings: Mapping[str, str], data: str, *, train: bool) -> Predicted:
    """Run a packed model, or an ONNX file that was made of one, on data.

    Args:
        path: the file.
        mappings: `module:object` by workload name.
        data: spec of the data; "" for the data that this device trained it on.
        train: whether to take the samples for training instead of those for testing.

    Raises:
        OptionError: no data is named, and this device did not train the model.
        PackedModelError: the file is no model, or does not fit the workload.
    """
    from motley.export.predictions import are_classes, outputs_of, predictions, scores

    about, run, workload = _opened(path, mappings)
    spec = data or _own_data(about)
    local = workload.load(DataSpec.parse(spec))
    split = local.train if train else local.test
    outputs = outputs_of(run, split)
    return Predicted(
        about=about,
        data=spec,
        split=split,
        predictions=predictions(outputs, split.targets),
        is_class=are_classes(outputs, split.targets),
        metrics=scores(workload, outputs, split),
    )


def _opened(path: Path, mappings: Mapping[str, str]) -> tuple[About, Run, Workload]:
    from motley.export.onnx_file import about_of, session
    from motley.export.predictions import build, runner

    if path.suffix == ONNX_SUFFIX:
        about = about_of(path)
        return about, session(path), _workload(about, mappings)
    model = read_packed(path)
    workload = _workload(model.about, mappings)
    return model.about, runner(build(workload, model.about, model.values())), workload


def _workload(about: About, mappings: Mapping[str, str]) -> Workload:
    return plugins.create(about.workload, mappings, about.arguments)


def _own_data(about: About) -> str:
    for stored in stored_models(None):
        if (stored.record.run_id, stored.client) == (
            about.run,
            about.client,
        ) and stored.record.data:
            return stored.record.data
    raise OptionError(
        f"this device did not train the model of {about.client or 'all'} in run {about.name}; name "
        f"the data to predict with --data"
    )
