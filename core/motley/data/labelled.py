"""Labelled texts in a CSV or TSV file: one text a row, its label in one of the columns.

Without names of columns the first is the label and the others are the text, as in AG News:
`"3","Title","Description"`. With them the first row names the columns.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from motley.errors import DataError


def read_labelled(
    path: Path,
    labels: Sequence[str],
    columns: tuple[str, Sequence[str]] | None = None,
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return (texts, targets [N]), where a target is the place of the row's label in `labels`.

    A name that ends in `.tsv` is read with tabs between columns and quotes as they stand, any
    other as CSV. Text of several columns is joined by spaces.

    Args:
        path: the file, UTF-8.
        labels: all labels there may be.
        columns: names of the column of the label and of those of the text.

    Raises:
        DataError: the file is missing or no such table, or a label or column is unknown.
    """
    known = {label: number for number, label in enumerate(labels)}
    texts: list[str] = []
    targets: list[int] = []
    rows = _rows(path)
    label_at, text_at = (0, None) if columns is None else _places(path, next(rows, []), *columns)
    for number, row in enumerate(rows, start=1 if columns is None else 2):
        found = row[1:] if text_at is None else [row[at] for at in text_at if at < len(row)]
        label = row[label_at].strip() if label_at < len(row) else ""
        if label not in known or not found:
            raise DataError(
                f"row {number} of {path} has {len(row)} columns and the label {label[:40]!r}; "
                f"expected one of {', '.join(labels)}, and a text. Where the first row names the "
                f"columns, say which: label=COLUMN&text=COLUMN"
            )
        texts.append(" ".join(found))
        targets.append(known[label])
    return texts, np.array(targets, np.int64)


def _rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a file that are not empty."""
    tabs = path.suffix == ".tsv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = (
                csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
                if tabs
                else csv.reader(stream)
            )
            yield from (row for row in reader if row)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; expected CSV or TSV") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no table of UTF-8 text: {error}; expected CSV or TSV") from None


def _places(
    path: Path, header: Sequence[str], label: str, texts: Sequence[str]
) -> tuple[int, list[int]]:
    """Return the column of the label and those of the text."""
    for name in (label, *texts):
        if name not in header:
            raise DataError(
                f"{path} has no column {name!r}; its first row names {', '.join(header) or 'none'}"
            )
    return header.index(label), [header.index(name) for name in texts]
