"""Heavy work of a run, done off the event loop and off the database thread.

A job is made from the record alone and only reads whole files, so that it can be done again
after a crash with the same result; the engine commits what it returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from structlog.stdlib import get_logger

from fedserver.aggregation.fold import Contribution, fold
from fedserver.aggregation.reducers import reducer_for
from fedserver.model_process import run_job
from fedserver.rounds.context import EMPTY_TABLE, RunContext
from fedserver.rounds.private import noise_to_plan
from fedserver.storage.payloads import PayloadStore
from motley.algorithms.base import Coefficient
from motley.errors import MotleyError
from motley.models.units import TensorInfo
from motley.plan import FULL_PRECISION, HALF, Plan
from motley.prune.masks import PRUNING_RULES, UploadMasks, is_prunable, named
from motley.seeding import derive, numpy_generator
from motley.wire import (
    EncodedTensor,
    Mask,
    PayloadReader,
    encode_dense,
    encode_masked,
    quantize_planes,
    quantize_uniform,
    write_payload,
)

log = get_logger()

RunModelJob = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Does what needs torch: in a child process (`run_job`), or in this one."""


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """Make the unit tables and the initial global state."""

    context: RunContext
    init: str
    """Payload file to start from, or ""."""
    mappings: Mapping[str, str]

    def run(self, payloads: PayloadStore, models: RunModelJob | None = None) -> dict[str, object]:
        """Return `model_process.prepare`'s result, with the state in the store."""
        payloads.require(0)
        with payloads.scratch(f"{self.context.id}-initial") as out:
            return self._prepare(payloads, models or run_job, out)

    def _prepare(self, payloads: PayloadStore, models: RunModelJob, out: Path) -> dict[str, object]:
        runfile = self.context.runfile
        result = models(
            {
                "kind": "prepare",
                "workload": runfile.workload.name,
                "arguments": dict(runfile.workload.arguments),
                "mappings": dict(self.mappings),
                "global_variant": runfile.run.global_variant,
                "variants": [t.variant for t in runfile.tiers if t.variant],
                "seed": runfile.run.seed,
                "init": self.init,
                "quantizes_ends": self.context.algorithm.quantizes_ends,
                "private": self.context.is_private,
                "noise": noise_to_plan(runfile),
                "out": str(out),
            }
        )
        if not self.context.algorithm.has_global_model:
            info = write_payload(out, [], EMPTY_TABLE.tensor_table)
            result = {**result, "sha256": info.sha256.hex()}
        payloads.adopt(out, str(result["sha256"]))
        return result


@dataclass(frozen=True, order=True)
class Form:
    """How a broadcast is encoded: clients whose plans say the same share one payload."""

    bits: int
    """Of float32 tensors that are not in planes: 32, 16 or, quantized, 1 to 8. The last of
    parameters alone: buffers then travel as values."""
    widths: tuple[tuple[str, int], ...] = ()
    """Magnitude planes by unit, in order of name."""
    whole: tuple[str, ...] = ()
    """Where weights are pruned: units that are not, in order of name."""
    keep: float = 1.0
    """Share of a pruned weight tensor's values."""
    rule: str = ""
    """Which values: name of the pruning rule."""
    withheld: str = ""
    """Unit that is left out."""

    @classmethod
    def of(cls, plan: Plan) -> Form:
        """Return the form that a plan asks for."""
        if plan.layout == "planes":
            return cls(plan.tail_bits, tuple(sorted(plan.bits.items())))
        sparsity = plan.sparsity
        if sparsity is None:
            return cls(plan.down_bits)
        form = cls(plan.down_bits, withheld=sparsity.final if sparsity.final_stays else "")
        if sparsity.down_keep == 1 or not plan.upload:
            return form
        whole = tuple(sorted(plan.upload))
        return replace(form, whole=whole, keep=sparsity.down_keep, rule=sparsity.down_rule)

    @property
    def is_full_precision(self) -> bool:
        """Whether the global state as it is stored has this form."""
        return self == Form(FULL_PRECISION)

    @property
    def planes(self) -> dict[str, int]:
        """Magnitude planes by unit."""
        return dict(self.widths)


@dataclass(frozen=True, kw_only=True)
class OpenJob:
    """Encode each distinct broadcast of a round once."""

    context: RunContext
    round_id: int
    round: int
    state: str
    """Digest of the global state."""
    forms: frozenset[Form]

    def run(self, payloads: PayloadStore) -> dict[Form, str]:
        """Return the broadcast's digest by form."""
        # In full precision the state file itself is the broadcast: nothing is encoded twice.
        digests = {form: self.state for form in self.forms if form.is_full_precision}
        encoded = sorted(self.forms - set(digests))
        payloads.require(len(encoded) * payloads.path(self.state).stat().st_size)
        for number, form in enumerate(encoded):
            with payloads.scratch(f"broadcast-{self.round_id}-{number}") as out:
                digests[form] = self._write(payloads, form, out)
        return digests

    def _write(self, payloads: PayloadStore, form: Form, out: Path) -> str:
        """Write the broadcast of one form and return its digest."""
        table = self.context.global_table
        with PayloadReader(payloads.path(self.state), table.tensor_table) as reader:
            encoded = (
                (row.name, self._encode(row, reader[row.name].decode(), form))
                for row in table.rows
                if row.unit != form.withheld
            )
            digest = write_payload(out, encoded, table.tensor_table).sha256.hex()
        payloads.adopt(out, digest)
        return digest

    def _encode(
        self, row: TensorInfo, values: npt.NDArray[np.generic], form: Form
    ) -> EncodedTensor:
        planes = form.planes.get(row.unit, 0) if row.quantized else 0
        if planes:
            return quantize_planes(values, planes)
        mask = self._mask(row, values, form)
        if mask is None:
            return self._encode_values(row, values, form)
        return encode_masked(self._encode_values(row, mask.take(values), form), mask, values.shape)

    def _mask(self, row: TensorInfo, values: npt.NDArray[np.generic], form: Form) -> Mask | None:
        """Return which values of a tensor come down; None: all."""
        if form.keep == 1 or row.unit in form.whole or not is_prunable(row):
            return None
        prune = named(PRUNING_RULES, form.rule, "pruning rule")
        seed = derive(self.context.runfile.run.seed, "prune", self.round, row.name)
        return prune(values.astype(np.float32, copy=False), form.keep, seed)

    def _encode_values(
        self, row: TensorInfo, values: npt.NDArray[np.generic], form: Form
    ) -> EncodedTensor:
        if form.bits == HALF and row.dtype == "float32":
            return encode_dense(values, "float16")
        if form.bits == FULL_PRECISION or not row.takes_wire_bits:
            return encode_dense(values)
        seed = self.context.runfile.run.seed
        rng = numpy_generator(seed, "broadcast", self.round, form.bits, row.name)
        return quantize_uniform(values, form.bits, rng)


@dataclass(frozen=True, kw_only=True)
class CountedUpdate:
    """A counted update as the record names it."""

    client: str
    digest: str
    plan: Plan
    scalars: Mapping[str, float]

    def contribution(
        self, payloads: PayloadStore, weight: Coefficient, run_seed: int, round: int
    ) -> Contribution:
        """Return what the fold reads of it."""
        plan = self.plan
        sparsity = plan.sparsity
        return Contribution(
            client=self.client,
            path=payloads.path(self.digest),
            is_delta=plan.sends_delta,
            coefficient=weight,
            masks=UploadMasks.of(plan, run_seed, round, self.client),
            values_of=frozenset({sparsity.final} if sparsity and sparsity.final_stays else ()),
        )


@dataclass(frozen=True, kw_only=True)
class FoldJob:
    """Fold a round's counted updates into the next global state."""

    context: RunContext
    round_id: int
    round: int
    state: str
    updates: Sequence[CountedUpdate]

    def run(self, payloads: PayloadStore) -> tuple[str, float]:
        """Return (digest of the new state, seconds)."""
        started = time.monotonic()
        with payloads.scratch(f"state-{self.round_id}") as out:
            digest = self.fold_to(payloads, out)
            payloads.adopt(out, digest)
        return digest, time.monotonic() - started

    def fold_to(self, payloads: PayloadStore, out: Path) -> str:
        """Write the new state to `out` and return its digest; `replay` uses the same path."""
        algorithm = self.context.algorithm
        weights = algorithm.coefficients({u.client: u.scalars for u in self.updates})
        seed = self.context.runfile.run.seed
        info = fold(
            table=self.context.global_table,
            state=payloads.path(self.state),
            contributions=[
                u.contribution(payloads, weights[u.client], seed, self.round) for u in self.updates
            ],
            reducer=reducer_for(algorithm.reducer, self.context.runfile.aggregate),
            finish_tile=algorithm.finish_tile,
            out=out,
        )
        return info.sha256.hex()


@dataclass(frozen=True, kw_only=True)
class HeldOutJob:
    """Evaluate the global model on the server's own data."""

    context: RunContext
    round_id: int
    state: str
    mappings: Mapping[str, str]

    def run(self, payloads: PayloadStore, models: RunModelJob | None = None) -> dict[str, float]:
        """Return metrics, each name with the prefix `held_out_`."""
        runfile = self.context.runfile
        result = (models or run_job)(
            {
                "kind": "held_out",
                "workload": runfile.workload.name,
                "arguments": dict(runfile.workload.arguments),
                "mappings": dict(self.mappings),
                "global_variant": self.context.prepared.global_variant,
                "state": str(payloads.path(self.state)),
                "data": runfile.evaluate.held_out,
            }
        )
        return {f"held_out_{name}": float(value) for name, value in result.items()}


Job = PrepareJob | OpenJob | FoldJob | HeldOutJob


def note_failure(job: Job, error: Exception) -> None:
    """Log a job that failed: the reason where the run asks for what cannot be, else the trace."""
    told = {"job": type(job).__name__, "run": job.context.id}
    if isinstance(error, MotleyError):
        log.error("job_failed", **told, reason=str(error))
    else:
        log.error("job_failed", **told, exc_info=error)
