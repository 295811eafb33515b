"""Heavy work of a run, done off the event loop and off the database thread.

A job is made from the record alone and only reads whole files, so that it can be done again
after a crash with the same result; the engine commits what it returns.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedserver.aggregation.fold import Contribution, fold
from fedserver.aggregation.reducers import reducer_for
from fedserver.model_process import run_job
from fedserver.rounds.context import EMPTY_TABLE, RunContext
from fedserver.storage.payloads import PayloadStore
from motley.plan import FULL_PRECISION
from motley.seeding import numpy_generator
from motley.wire import PayloadReader, encode_dense, quantize_uniform, write_payload


@dataclass(frozen=True, kw_only=True)
class PrepareJob:
    """Make the unit tables and the initial global state."""

    context: RunContext
    init: str
    """Payload file to start from, or ""."""
    mappings: Mapping[str, str]

    def run(self, payloads: PayloadStore) -> dict[str, object]:
        """Return `model_process.prepare`'s result, with the state in the store."""
        payloads.require(0)
        with payloads.scratch(f"{self.context.id}-initial") as out:
            return self._prepare(payloads, out)

    def _prepare(self, payloads: PayloadStore, out: Path) -> dict[str, object]:
        runfile = self.context.runfile
        result = run_job(
            {
                "kind": "prepare",
                "workload": runfile.workload.name,
                "arguments": dict(runfile.workload.arguments),
                "mappings": dict(self.mappings),
                "global_variant": runfile.run.global_variant,
                "variants": [t.variant for t in runfile.tiers if t.variant],
                "seed": runfile.run.seed,
                "init": self.init,
                "out": str(out),
            }
        )
        if not self.context.algorithm.has_global_model:
            info = write_payload(out, [], EMPTY_TABLE.tensor_table)
            result = {**result, "sha256": info.sha256.hex()}
        payloads.adopt(out, str(result["sha256"]))
        return result


@dataclass(frozen=True, kw_only=True)
class OpenJob:
    """Encode each distinct broadcast of a round once."""

    context: RunContext
    round_id: int
    round: int
    state: str
    """Digest of the global state."""
    down_bits: frozenset[int]

    def run(self, payloads: PayloadStore) -> dict[int, str]:
        """Return the broadcast's digest by bit-width."""
        # In full precision the state file itself is the broadcast: nothing is encoded twice.
        digests = {FULL_PRECISION: self.state}
        encoded = sorted(self.down_bits - {FULL_PRECISION})
        payloads.require(len(encoded) * payloads.path(self.state).stat().st_size)
        for bits in encoded:
            with payloads.scratch(f"broadcast-{self.round_id}-{bits}") as out:
                digests[bits] = self._encode(payloads, bits, out)
        return digests

    def _encode(self, payloads: PayloadStore, bits: int, out: Path) -> str:
        """Write the broadcast of one bit-width and return its digest."""
        table, seed = self.context.global_table, self.context.runfile.run.seed
        with PayloadReader(payloads.path(self.state), table.tensor_table) as reader:
            encoded = (
                (
                    row.name,
                    quantize_uniform(
                        reader[row.name].decode(),
                        bits,
                        numpy_generator(seed, "broadcast", self.round, bits, row.name),
                    )
                    if row.dtype == "float32"
                    else encode_dense(reader[row.name].decode()),
                )
                for row in table.rows
            )
            digest = write_payload(out, encoded, table.tensor_table).sha256.hex()
        payloads.adopt(out, digest)
        return digest


@dataclass(frozen=True, kw_only=True)
class CountedUpdate:
    """A counted update as the record names it."""

    client: str
    digest: str
    is_delta: bool
    scalars: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class FoldJob:
    """Fold a round's counted updates into the next global state."""

    context: RunContext
    round_id: int
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
        info = fold(
            table=self.context.global_table,
            state=payloads.path(self.state),
            contributions=[
                Contribution(u.client, payloads.path(u.digest), u.is_delta, weights[u.client])
                for u in self.updates
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

    def run(self, payloads: PayloadStore) -> dict[str, float]:
        """Return metrics, each name with the prefix `held_out_`."""
        runfile = self.context.runfile
        result = run_job(
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
