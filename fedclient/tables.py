"""Finished models and predictions as tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from fedclient.models import StoredModel
from fedclient.take_home import Predicted
from motley.logs import in_words
from motley.task import UNTRAINED
from motley.terminal import PlainConsole, WholeTable

KB = 1000
PIPED_WIDTH = 160
"""Columns where no terminal says how many there are."""
MOST_CLASSES = 30
"""Classes that are listed one by one."""
FIGURES = frozenset(
    {
        *("packed_bytes", "dense_bytes", "peak_memory_bytes", "samples"),
        *("unused_centres", "centre_updates_moved", UNTRAINED),
    }
)
"""Metrics that are no scores."""


def show(table: Table) -> None:
    """Print a table on the terminal, or into a pipe at a fixed width."""
    PlainConsole(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)


def models_table(models: Sequence[StoredModel]) -> Table:
    """Return finished models, one a row."""
    table = WholeTable("client", "run", "id", "algorithm", "model")
    for column in ("KB", "of fp32"):
        table.add_column(column, justify="right")
    table.add_column("scores")
    for model in models:
        record = model.record
        dense = record.metrics.get("dense_bytes", 0)
        scores = [f"{k} {v:.4g}" for k, v in sorted(record.metrics.items()) if k not in FIGURES]
        table.add_row(
            model.client,
            record.run_name,
            record.run_id,
            record.algorithm,
            " ".join(filter(None, (record.workload, record.variant))),
            f"{record.size / KB:,.1f}",
            f"{record.size / dense:.1%}" if dense else "-",
            ", ".join([*scores, *([UNTRAINED] if record.metrics.get(UNTRAINED) else [])]),
        )
    return table


def show_predictions(found: Predicted) -> None:
    """Print what was right by class, and the workload's metrics over all samples."""
    about = found.about
    whose = about.client or "global model"
    words = f"{whose} of run {about.name}: {about.workload} {about.variant} on {found.data}"
    print(in_words(words))
    if found.is_class:
        show(classes_table(found))
    print(in_words(found.metrics))


def classes_table(found: Predicted) -> Table:
    """Return the samples of each class and how many were predicted right."""
    table = WholeTable()
    for column in ("class", "samples", "right", "accuracy"):
        table.add_column(column, justify="right")
    targets = found.split.targets
    right = found.predictions == targets
    classes = np.unique(targets)
    for one in classes if len(classes) <= MOST_CLASSES else []:
        own = right[targets == one]
        table.add_row(str(one), str(own.size), str(int(own.sum())), f"{own.mean():.1%}")
    table.add_section()
    table.add_row("all", str(right.size), str(int(right.sum())), f"{right.mean():.1%}")
    return table
