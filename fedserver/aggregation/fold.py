"""Folding the counted updates of a round into the new global state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from fedserver.aggregation.reducers import (
    Reducer,
    reduce_present,
    relative_weights,
    weighted_mean,
)
from fedserver.errors import AggregationError
from motley.algorithms.base import Coefficient
from motley.models.units import TensorInfo, UnitTable
from motley.wire import (
    TILE,
    Dense,
    EncodedTensor,
    Mask,
    PayloadInfo,
    PayloadReader,
    encode_dense,
    write_payload,
)

Tile = npt.NDArray[np.floating]
Weights = npt.NDArray[np.float64]

MAPPED_BYTES = 16 << 20
"""Of files that may stay mapped: they count as memory of the process that reads them."""
_FOLIO_BYTES = 2 << 20
"""What a kernel may map of a file where one byte is read, of what there is."""


@dataclass(frozen=True)
class Contribution:
    """One counted update."""

    client: str
    path: Path
    """Payload file: values of the global model's tensors, or differences to the state."""
    is_delta: bool
    coefficient: Coefficient
    """The client's weight: one number, or one for each unit."""
    masks: Callable[[TensorInfo], Mask | None] | None = None
    """Which values of a tensor a sparse update holds; None: all of each."""
    values_of: frozenset[str] = frozenset()
    """Units whose values travel also in an update of differences."""

    def weight(self, unit: str) -> float:
        """Return the weight for a unit."""
        if isinstance(self.coefficient, Mapping):
            return self.coefficient.get(unit, 0.0)
        return self.coefficient


def fold(
    *,
    table: UnitTable,
    state: Path,
    contributions: Sequence[Contribution],
    reducer: Reducer,
    finish_tile: Callable[[Tile, Tile], Tile],
    out: Path,
) -> PayloadInfo:
    """Write the new global state to `out` and return its digest and size.

    Each tile of `TILE` elements is decoded from every client that sent its tensor, in order of
    name, and reduced; of sparse updates each coordinate over those that sent it. A tensor or
    coordinate that nobody sent stays. Memory is one tensor of the new state and a few
    tiles; for sparse updates one tile times the clients, for rules that sort two.

    Raises:
        PayloadError: a stored file is damaged.
        AggregationError: a mean is not finite; nothing is written.
    """
    ordered = sorted(contributions, key=lambda c: c.client)
    with ExitStack() as stack:
        base = stack.enter_context(PayloadReader(state, table.tensor_table))
        readers = [stack.enter_context(_opened(c.path, table)) for c in ordered]
        folding = _Folding(ordered, base, readers, reducer, finish_tile, Pages())
        layout = [(row, Dense(row.dtype)) for row in table.tensor_table]
        return write_payload(out, folding.tensors(table), table.tensor_table, layout)


def _opened(path: Path, table: UnitTable) -> PayloadReader:
    reader = PayloadReader(path, table.tensor_table)
    # Opening has looked at the end of every tensor: a MiB mapped for each client.
    reader.release()
    return reader


@dataclass(frozen=True)
class _View:
    """One client's part of one tensor."""

    reader: PayloadReader
    tensor: EncodedTensor
    is_delta: bool
    mask: Mask | None

    @classmethod
    def of(cls, row: TensorInfo, reader: PayloadReader, contribution: Contribution) -> _View:
        tensor = reader[row.name]
        # As `Plan.sends_delta_of` says (motley/execution).
        is_delta = contribution.is_delta and row.takes_wire_bits
        is_delta = is_delta and row.unit not in contribution.values_of
        mask = contribution.masks(row) if contribution.masks else None
        return cls(reader, tensor if mask is None else tensor.under(mask), is_delta, mask)

    def nbytes(self, count: int) -> int:
        """Return about how many bytes of its file `count` values take."""
        return self.tensor.nbytes * count // max(self.tensor.size, 1)

    def read(self, base: Tile, start: int, out: Tile) -> None:
        """Write the client's values of a tile; those that it did not send have no meaning."""
        self.tensor.decode_slice(start, start + out.size, out)
        if self.is_delta:
            out += base


class Pages:
    """Counts what is mapped of files that are read, and lets go of it now and then."""

    def __init__(self) -> None:
        self._count, self._read = 0, set[PayloadReader]()

    def read(self, reader: PayloadReader, count: int) -> None:
        """Note `count` bytes more of a file."""
        mapped = 0 if reader in self._read else min(_FOLIO_BYTES, reader.size)
        self._count += max(count, mapped)
        self._read.add(reader)
        if self._count >= MAPPED_BYTES:
            for one in self._read:
                one.release()
            self._count, self._read = 0, set()


@dataclass(frozen=True)
class _Folding:
    contributions: Sequence[Contribution]
    base: PayloadReader
    readers: Sequence[PayloadReader]
    reduce: Reducer
    finish_tile: Callable[[Tile, Tile], Tile]
    pages: Pages

    def tensors(self, table: UnitTable) -> Iterator[tuple[str, EncodedTensor]]:
        """Yield every tensor of the new state in the table's order."""
        for row in table.rows:
            yield row.name, encode_dense(self._tensor(row), copy=False)
            self.pages.read(self.base, row.nbytes)

    def _tensor(self, row: TensorInfo) -> npt.NDArray[np.generic]:
        senders = [
            (reader, contribution, contribution.weight(row.unit))
            for reader, contribution in zip(self.readers, self.contributions, strict=True)
            if row.name in reader and contribution.weight(row.unit) > 0
        ]
        old = self.base[row.name].decode()
        if not senders:
            return old
        dtype = np.dtype(row.dtype)
        weights = np.array([weight for _, _, weight in senders], np.float64)
        if not np.issubdtype(dtype, np.floating):
            # Counters, such as batch normalisation's: the rounded mean keeps their meaning.
            stacked = np.stack([r[row.name].decode().astype(np.float64) for r, _, _ in senders])
            return np.rint(self.reduce(stacked, weights)).astype(dtype).reshape(row.shape)
        flat = cast(Tile, old.reshape(-1))
        new = np.empty_like(flat)
        views = [_View.of(row, reader, c) for reader, c, _ in senders]
        reduce = self._reduction(views, weights, min(TILE, flat.size), dtype)
        for start in range(0, flat.size, TILE):
            stop = min(start + TILE, flat.size)
            with np.errstate(over="ignore", invalid="ignore"):
                reduced = reduce(flat[start:stop], start)
            # Statistics end with the mean: to go beyond one of variances can end below zero.
            finished = self.finish_tile(flat[start:stop], reduced) if row.parameter else reduced
            new[start:stop] = finished
            if not np.isfinite(new[start:stop]).all():
                raise AggregationError(
                    f"the mean of {row.name} is not finite: the updates of "
                    f"{', '.join(c.client for _, c, _ in senders)} add up beyond the range of "
                    f"{dtype}; look for a client whose training diverges"
                )
        return new.reshape(row.shape)

    def _reduction(
        self, views: Sequence[_View], weights: Weights, length: int, dtype: np.dtype[np.generic]
    ) -> Callable[[Tile, int], Tile]:
        """Return what makes one tile, of `length` elements or less, of the old one and its place.

        A mean of whole updates adds one client after the other; other rules see all at once.
        """
        is_sparse = any(view.mask is not None for view in views)
        if self.reduce is weighted_mean and not is_sparse:
            return functools.partial(self._mean, views, weights)
        values = np.empty((len(views), length), dtype)
        sent = np.ones(values.shape if is_sparse else (len(views), 0), np.bool_)

        def reduce(base: Tile, start: int) -> Tile:
            tile, held = values[:, : base.size], sent[:, : base.size]
            for line, own, view in zip(tile, held, views, strict=True):
                self._read(view, base, start, line)
                if view.mask is not None:
                    own[:] = view.mask.tile(start, start + base.size)
            if is_sparse:
                return reduce_present(self.reduce, tile, weights, held, base)
            return self.reduce(tile, weights)

        return reduce

    def _mean(self, views: Sequence[_View], weights: Weights, base: Tile, start: int) -> Tile:
        """Return what `weighted_mean` makes of the clients' values, bit for bit."""
        relative = relative_weights(weights, base.dtype)
        total = np.empty_like(base)
        self._read(views[0], base, start, total)
        total *= relative[0]
        for view, weight in zip(views[1:], relative[1:], strict=True):
            view.tensor.add_slice(start, weight, total, base if view.is_delta else None)
            self.pages.read(view.reader, view.nbytes(base.size))
        total /= relative.sum(axis=0, dtype=base.dtype)
        return total

    def _read(self, view: _View, base: Tile, start: int, out: Tile) -> None:
        view.read(base, start, out)
        self.pages.read(view.reader, view.nbytes(out.size))
