"""What a model says of samples: outputs, the predictions in them, and how two models compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from motley.errors import ExportError, MotleyError, PackedModelError, WorkloadError
from motley.export.about import About
from motley.models.units import load_tensors
from motley.training.evaluation import to_torch
from motley.workload import Split, Workload

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
Run = Callable[[Array], Floats]
"""A model as a function: inputs [N, ...] to outputs [N, ...]."""

BATCH = 500
"""Samples of one pass, as in evaluations."""
TOLERANCE = 1e-3
"""Of the largest output: what two runtimes may differ by that compute one model."""


def build(workload: Workload, about: About, values: Mapping[str, Array]) -> torch.nn.Module:
    """Return the model that a description names, with these values, ready to predict.

    Raises:
        PackedModelError: the workload has no such variant, or builds another model.
    """
    variants = workload.variants()
    if about.variant not in variants:
        raise PackedModelError(
            f"the model is variant {about.variant!r} of workload {about.workload!r}, which here "
            f"has {', '.join(variants)}; map the name to the code that trained it with --workload"
        )
    if type(workload).version != about.version:
        raise PackedModelError(
            f"the model is of version {about.version} of workload {about.workload!r}, here is "
            f"version {type(workload).version}; map the name to the code that trained it"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            module = variants[about.variant].build()
        load_tensors(module, values)
    except (MotleyError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise PackedModelError(
            f"the file does not fit variant {about.variant!r} of workload {about.workload!r} as it "
            f"is here: {error}"
        ) from None
    return module.eval()


def runner(module: torch.nn.Module) -> Run:
    """Return a module in evaluation mode as a function of arrays."""

    @torch.no_grad()
    def run(inputs: Array) -> Floats:
        outputs = module(torch.from_numpy(np.ascontiguousarray(inputs)))
        if not isinstance(outputs, torch.Tensor):
            raise ExportError(
                f"the model returns a {type(outputs).__name__}; expected one tensor of outputs"
            )
        return np.asarray(outputs.numpy())

    return run


def outputs_of(run: Run, split: Split) -> Floats:
    """Return a model's outputs for all samples, `BATCH` at a time; raise ExportError for none."""
    if not len(split):
        raise ExportError("the data holds no sample to test on; name other data with --data")
    starts = range(0, len(split), BATCH)
    return np.concatenate([run(split.inputs[start : start + BATCH]) for start in starts])


def are_classes(outputs: Array, targets: Array) -> bool:
    """Return whether outputs [N, C, ...] score C classes of which targets [N, ...] name one."""
    return (
        np.issubdtype(targets.dtype, np.integer)
        and outputs.ndim == targets.ndim + 1
        and outputs.shape[1] > 1
    )


def predictions(outputs: Array, targets: Array) -> Array:
    """Return the predicted class of each sample; outputs themselves where they score no classes."""
    return np.argmax(outputs, axis=1) if are_classes(outputs, targets) else outputs


def scores(workload: Workload, outputs: Array, split: Split) -> dict[str, float]:
    """Return the means of the workload's loss and metrics, and the number of samples."""
    _, targets = to_torch(split, "cpu")
    found = torch.from_numpy(np.ascontiguousarray(outputs))
    try:
        values = {"loss": workload.loss(found, targets), **workload.metrics(found, targets)}
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise WorkloadError(f"the workload cannot score its model's outputs: {error}") from None
    means = {name: float(value.double().mean()) for name, value in values.items()}
    return {"samples": float(len(split)), **means}


@dataclass(frozen=True)
class Agreement:
    """How a second model's outputs compare with a first one's, on the same samples."""

    samples: int
    changed: int
    """Samples whose prediction is another. Numbers count as another where they are further apart
    than `TOLERANCE` times the largest."""
    apart: float
    """The largest difference of two outputs, in parts of the largest output."""

    @classmethod
    def of(cls, first: Array, second: Array, targets: Array) -> Agreement:
        """Compare outputs [N, ...] with others of the same samples."""
        if first.shape != second.shape:
            raise ExportError(f"outputs of shape {second.shape}; expected {first.shape}")
        largest = max(float(np.abs(first).max()), np.finfo(np.float32).tiny)
        distance = np.abs(np.subtract(first, second, dtype=np.float64)) / largest
        each = distance.reshape(len(first), -1).max(axis=1)
        if are_classes(first, targets):
            mine, other = predictions(first, targets), predictions(second, targets)
            differs = (mine != other).reshape(len(mine), -1).any(axis=1)
        else:
            differs = ~(each <= TOLERANCE)
        return cls(len(first), int(np.count_nonzero(differs)), float(each.max()))


def check_close(runtime: str, *agreements: Agreement) -> None:
    """Raise ExportError where a runtime's outputs are further from the model's than `TOLERANCE`.

    Which predictions changed is not looked at: two classes may be equally likely.
    """
    apart = max(found.apart for found in agreements)
    if not apart <= TOLERANCE:
        raise ExportError(
            f"{runtime} computes other outputs from the file than torch from the model (apart by "
            f"{apart:.2g} of the largest): the model was traced once, so what it does must not "
            f"depend on the values or the number of its inputs. Use --format packed"
        )
