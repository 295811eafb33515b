"""Text workloads: the next character by speaking role, and any set of labelled texts.

Both train an embedding bag whose vocabulary is fixed beforehand: no device needs another's data, or
tells what its own holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from motley.data import labelled, plays, tokens
from motley.data.draws import Indices
from motley.data.shared import shared
from motley.errors import DataError, WorkloadError, did_you_mean
from motley.workload import DataSpec, LocalData, Split, Variant, Workload
from motley.workloads.options import Range, amount, check_known, count, fraction, index, value
from motley.workloads.selection import Selection
from motley.workloads.shares import held_out_share, own_share, pooled_shares

if TYPE_CHECKING:
    from torch import nn

WIDTHS = (32, 16, 64)
EMBEDDING = "embedding.weight"
ROLE_OPTIONS = ("role", "clients", "client", "least", "train", "validate")
ROLE_LEAST, ROLE_TRAIN = 4000, 0.8
TEXT_OPTIONS = (
    "clients",
    "client",
    "split",
    "classes",
    "alpha",
    "train",
    "validate",
    "seed",
    "label",
    "text",
)
TEXT_TRAIN = 0.7


def bag_variants(*, vocabulary: int, classes: int) -> dict[str, Variant]:
    """Return embedding bags of 32, 16 and 64 values a token; the embedding alone is quantized."""
    return {
        f"bag{width}": Variant(
            partial(_bag, vocabulary=vocabulary, width=width, classes=classes),
            quantized=(EMBEDDING,),
        )
        for width in WIDTHS
    }


class NextCharacter(Workload):
    """Inputs int64 [N, context + ngrams - 1], tokens; targets int64 [N], one of 97 symbols.

    A data spec is the file of plays, or its folder: `/data/shakespeare?role=HAMLET` is one role,
    `?clients=71&client=3` one of the 71 roles that speak most. A role's first 80 % of characters
    train, the rest is for testing; no window reaches across that cut or into another speech.
    """

    def __init__(self, context: int = 8, ngrams: int = 4, buckets: int = 8192) -> None:
        """Characters of a window, the longest n-gram, and tokens for n-grams; from the run file.

        Raises:
            WorkloadError: one of them is too small.
        """
        if not (1 <= ngrams <= context and buckets >= 1):
            raise WorkloadError(
                f"context={context}, ngrams={ngrams}, buckets={buckets}; expected 1 <= ngrams <= "
                f"context, and at least one bucket"
            )
        self._context, self._ngrams, self._buckets = context, ngrams, buckets

    def variants(self) -> Mapping[str, Variant]:
        """Return the embedding bags."""
        size = tokens.context_size(self._context, self._ngrams, self._buckets)
        return bag_variants(vocabulary=size, classes=tokens.SYMBOLS)

    def load(self, spec: DataSpec) -> LocalData:
        """Return the characters of one role, or of all roles where the spec names no client.

        Raises:
            DataError: the file is missing, an option is unknown, or there is no such role.
        """
        choice = RoleChoice.parse(spec)
        if choice.clients is not None and choice.client is None:
            raise DataError(
                f"data option client is missing; expected 0 to {choice.clients - 1}, as "
                f"{choice.clients} roles are clients"
            )
        train, test = choice.speeches(Path(spec.location))
        return LocalData(train=self._split(train), test=self._split(test))

    def held_out(self, spec: DataSpec) -> Split:
        """Return the test characters of the spec's role, else of all roles that are clients.

        Raises:
            DataError: as `load`.
        """
        return self._split(RoleChoice.parse(spec).speeches(Path(spec.location))[1])

    def _split(self, speeches: Sequence[str]) -> Split:
        before, symbols = tokens.windows(speeches, self._context)
        return Split(tokens.context_tokens(before, self._ngrams, self._buckets), symbols)


class LabelledText(Workload):
    """Inputs int64 [N, length * ngrams], hashed words; targets int64 [N], places in `labels`.

    A data spec is a CSV or TSV file, with the options of `motley.workloads.selection` and the names
    of its columns behind it: `/data/news.csv?clients=10&client=2&label=topic&text=title,body`.
    """

    def __init__(
        self, labels: str, vocabulary: int = 8192, length: int = 64, ngrams: int = 1
    ) -> None:
        """All labels, `spam,ham`; tokens; words of a text that count; longest run of words.

        Raises:
            WorkloadError: there are fewer than two labels, or a number is too small.
        """
        self._labels = [label.strip() for label in labels.split(",")]
        if len(set(self._labels)) < max(2, len(self._labels)) or "" in self._labels:
            raise WorkloadError(f"labels is {labels!r}; expected two or more different ones: 'a,b'")
        if vocabulary < 2 or length < 1 or ngrams < 1:
            raise WorkloadError(
                f"vocabulary={vocabulary}, length={length}, ngrams={ngrams}; expected at least 2, "
                f"1 and 1"
            )
        self._vocabulary, self._length, self._ngrams = vocabulary, length, ngrams

    def variants(self) -> Mapping[str, Variant]:
        """Return the embedding bags."""
        return bag_variants(vocabulary=self._vocabulary, classes=len(self._labels))

    def load(self, spec: DataSpec) -> LocalData:
        """Return the client's own texts.

        Raises:
            DataError: the file is missing or damaged, or an option is unknown.
        """
        selection = Selection.parse(spec, TEXT_OPTIONS)
        texts, targets = self._read(spec)
        share = own_share(pooled_shares(targets, selection, TEXT_TRAIN), selection)
        return LocalData(
            train=self._take(texts, targets, share.train),
            test=self._take(texts, targets, share.test),
        )

    def held_out(self, spec: DataSpec) -> Split:
        """Return the test texts of the client that the spec names, else of all clients.

        Raises:
            DataError: as `load`.
        """
        selection = Selection.parse(spec, TEXT_OPTIONS)
        texts, targets = self._read(spec)
        shares = pooled_shares(targets, selection, TEXT_TRAIN)
        return self._take(texts, targets, held_out_share(shares, selection).test)

    def _read(self, spec: DataSpec) -> tuple[list[str], Indices]:
        label, text = spec.options.get("label"), spec.options.get("text")
        if (label is None) != (text is None):
            raise DataError("data options label and text (columns) are only given together")
        return self._published(Path(spec.location), label, text)

    @shared
    def _published(
        self, path: Path, label: str | None, text: str | None
    ) -> tuple[list[str], Indices]:
        columns = None if label is None or text is None else (label, text.split(","))
        return labelled.read_labelled(path, self._labels, columns)

    def _take(self, texts: Sequence[str], targets: Indices, indices: Indices) -> Split:
        mine = [texts[at] for at in indices]
        words = tokens.word_tokens(mine, self._length, self._ngrams, self._vocabulary)
        return Split(words, targets[indices])


@dataclass(frozen=True, kw_only=True)
class RoleChoice:
    """The options of a data spec of plays. None: not given."""

    role: str | None = None
    clients: int | None = None
    client: int | None = None
    least: int = ROLE_LEAST
    """Characters that a role has at least to be a client."""
    train: int | float = ROLE_TRAIN
    """Characters that train: a number, or a fraction."""
    validate: float | None = None
    """This fraction of the characters that train, the last, takes the place of those that test."""

    @classmethod
    def parse(cls, spec: DataSpec) -> RoleChoice:
        """Read a spec's options; raise DataError at an unknown one or a bad value."""
        check_known(spec, ROLE_OPTIONS)
        options = spec.options
        train = value(options.get("train"), "train", amount)
        if isinstance(train, Range):
            raise DataError(f"data option train={options['train']}; expected one number here")
        return cls(
            role=options.get("role"),
            clients=value(options.get("clients"), "clients", count),
            client=value(options.get("client"), "client", index),
            least=value(options.get("least"), "least", count) or ROLE_LEAST,
            train=ROLE_TRAIN if train is None else train,
            validate=value(options.get("validate"), "validate", fraction),
        )

    def __post_init__(self) -> None:
        if self.role is not None and self.clients is not None:
            raise DataError("data options role and clients exclude each other; give one")
        if self.client is not None and self.clients is None:
            raise DataError("data option client needs clients, the number of roles")
        if self.clients is not None and self.client is not None and self.client >= self.clients:
            raise DataError(f"data option client={self.client}; expected 0 to {self.clients - 1}")

    def speeches(self, location: Path) -> tuple[list[str], list[str]]:
        """Return what trains and what tests, of the roles that are chosen.

        Raises:
            DataError: the file is missing, or has not these roles.
        """
        roles = plays.read_roles(location)
        train: list[str] = []
        test: list[str] = []
        for name in self._names(roles):
            first, rest = plays.cut(roles[name], self._cut(name, plays.characters(roles[name])))
            if self.validate is not None:
                first, rest = plays.cut(first, _share(1 - self.validate, plays.characters(first)))
            train += first
            test += rest
        return train, test

    def _names(self, roles: Mapping[str, list[str]]) -> Sequence[str]:
        names = list(roles)
        if self.role is not None:
            if self.role not in roles:
                raise DataError(
                    f"no role is called {self.role!r}; there are {len(names)}, those that speak "
                    f"most are {', '.join(names[:8])}{did_you_mean(self.role, names)}"
                )
            return [self.role]
        if self.clients is None:
            return names
        enough = [name for name in names if plays.characters(roles[name]) >= self.least]
        if self.clients > len(enough):
            raise DataError(
                f"clients={self.clients}, but {len(enough)} roles have {self.least} characters; "
                f"ask for at most {len(enough)} clients, or give a smaller least"
            )
        return enough[: self.clients] if self.client is None else [enough[self.client]]

    def _cut(self, name: str, characters: int) -> int:
        if isinstance(self.train, float):
            return _share(self.train, characters)
        if self.train >= characters:
            raise DataError(
                f"train={self.train} leaves none of the {characters} characters of {name} for "
                f"testing"
            )
        return self.train


def _share(part: float, characters: int) -> int:
    """Return a part of the characters that leaves some; a role of one character trains on it."""
    return min(max(1, round(part * characters)), max(1, characters - 1))


def _bag(*, vocabulary: int, width: int, classes: int) -> nn.Module:
    from motley.models.bag import EmbeddingBag

    return EmbeddingBag(vocabulary=vocabulary, width=width, classes=classes)
