"""From a packed model to a file in the asked format, with what was checked on the way."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from motley.errors import ExportError
from motley.export.packed import Encoded, PackedModel, write_packed
from motley.export.report import Exported, Written
from motley.workload import Split

if TYPE_CHECKING:
    import torch

    from motley.export.predictions import Agreement
    from motley.workload import Workload


class Format(str, Enum):
    """What a model can be written as."""

    PACKED = "packed"
    ONNX = "onnx"
    SAFETENSORS = "safetensors"
    EXECUTORCH = "executorch"

    @property
    def suffix(self) -> str:
        """The end of a file's name."""
        return {"packed": ".motley", "executorch": ".pte"}.get(self.value, f".{self.value}")

    @property
    def is_checked(self) -> bool:
        """Whether a file is run on samples before it is kept."""
        return self in (Format.ONNX, Format.EXECUTORCH)


@dataclass(frozen=True)
class Ground:
    """What a model is checked on: the code that builds it, and samples."""

    workload: Workload
    split: Split

    @classmethod
    def of(cls, workload: Workload, *splits: Split) -> Ground:
        """Take the first split that holds samples; raise ExportError where none does."""
        for split in splits:
            if len(split):
                return cls(workload, split)
        raise ExportError("the data holds no sample to check the model on; name other data")

    def module(self, model: PackedModel) -> torch.nn.Module:
        """Return the model in torch."""
        from motley.export.predictions import build

        return build(self.workload, model.about, model.values())


@dataclass(frozen=True)
class Halved:
    """A model with its ends in fp16, and what that changes."""

    tensors: Encoded
    agreement: Agreement | None
    """None where a value is too large for fp16: the tensors are as they were."""

    @property
    def holds(self) -> bool:
        """Whether no prediction changes."""
        return self.agreement is not None and not self.agreement.changed

    @cached_property
    def note(self) -> str:
        """What is said of it."""
        what = "first and last layer, biases and normalisation"
        if self.agreement is None:
            return f"{what} stay in fp32: a value is too large for fp16"
        count = f"{self.agreement.samples:,}"
        if not self.holds:
            changed = f"{self.agreement.changed:,} of {count}"
            return f"{what} stay in fp32: fp16 would change {changed} predictions"
        return f"{what} are in fp16: that changes no prediction on {count} test samples"


def with_half_ends(model: PackedModel, ground: Ground) -> tuple[PackedModel, Halved]:
    """Return a model with its ends in fp16 where no prediction on the samples changes by that."""
    from motley.export.halves import halved
    from motley.export.predictions import Agreement, outputs_of, runner
    from motley.models.units import variant_table

    own = ground.module(model)
    table = variant_table(ground.workload.variants()[model.about.variant])
    tensors = halved(model.tensors, table)
    if tensors is None:
        return model, Halved(model.tensors, None)
    other = PackedModel.of(model.about, tensors)
    first, second = (outputs_of(runner(m), ground.split) for m in (own, ground.module(other)))
    found = Halved(tensors, Agreement.of(first, second, ground.split.targets))
    return (other if found.holds else model), found


def export(
    model: PackedModel,
    path: Path,
    kind: Format,
    ground: Ground | None = None,
    *,
    half_ends: bool = False,
) -> Exported:
    """Write a model in a format, whole or not at all.

    Args:
        model: what to write.
        path: the file.
        kind: its format.
        ground: what to check on; needed for formats that are checked, and for `half_ends`.
        half_ends: put the ends of the model in fp16 where no prediction changes by that.

    Raises:
        ExportError: it cannot be written so.
        MissingExtraError: a library that the format needs is not installed.
        PackedModelError: the model is not one of the workload.
        OSError: the file cannot be written.
    """
    done: Halved | None = None
    if half_ends:
        assert ground is not None
        model, done = with_half_ends(model, ground)
    written = _write(model, path, kind, ground)
    return Exported(
        file=path,
        format=kind.value,
        run=model.about.run,
        client=model.about.client,
        variant=model.about.variant,
        size=written.size,
        dense_bytes=model.dense_bytes,
        digest=model.about.digest,
        half_ends=done.agreement if done else None,
        agreement=written.agreement,
        plain=written.plain,
        notes=(done.note,) if done else (),
    )


def _write(model: PackedModel, path: Path, kind: Format, ground: Ground | None) -> Written:
    if kind is Format.PACKED:
        return Written(write_packed(path, model).size)
    if kind is Format.SAFETENSORS:
        from motley.export.safetensors_file import write_safetensors

        return Written(write_safetensors(path, model))
    assert ground is not None
    module = ground.module(model)
    if kind is Format.EXECUTORCH:
        from motley.export.executorch_file import write_executorch

        return write_executorch(path, module, ground.split)
    from motley.export.onnx_file import write_onnx

    return write_onnx(path, model, module, ground.split)
