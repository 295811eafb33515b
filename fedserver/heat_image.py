"""Bit-widths as a heat map in a PNG file: clients by layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedserver.heat_map import FULL, SHADES, digit_colour
from fedserver.widths import RoundWidths
from motley.errors import MotleyError

CELL = 0.32
"""Inches of a cell's side."""
MARGIN = 2.0
"""Inches around the cells; what names and title leave of them is cut off."""


def write_png(widths: RoundWidths, target: Path) -> int:
    """Draw the map to a file, whole or not at all; return its size in bytes.

    Cells have the colour of the width that was planned and its number; where fewer planes came,
    both numbers.

    Raises:
        MotleyError: matplotlib, which comes with the server's extra, is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MotleyError(
            "--png needs matplotlib; install it with `pip install 'motley-fl[server]'`"
        ) from None
    wide, high = CELL * len(widths.layers), CELL * len(widths.clients)
    figure = Figure(figsize=(wide + 2 * MARGIN, high + 2 * MARGIN), dpi=150)
    axes = figure.add_axes(
        (
            MARGIN / (wide + 2 * MARGIN),
            MARGIN / (high + 2 * MARGIN),
            wide / (wide + 2 * MARGIN),
            high / (high + 2 * MARGIN),
        )
    )
    _draw(axes, widths)
    partial = target.with_name(target.name + ".part")
    try:
        figure.savefig(partial, format="png", bbox_inches="tight")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target.stat().st_size


def _draw(axes: Any, widths: RoundWidths) -> None:
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colours = ListedColormap(list(SHADES))
    image = axes.imshow(
        _planned(widths),
        cmap=colours,
        norm=BoundaryNorm(np.arange(0.5, len(SHADES) + 1), colours.N),
        aspect="equal",
    )
    for row, client in enumerate(widths.clients):
        for column, layer in enumerate(widths.layers):
            width = client.planned.get(layer)
            if width is None:
                text, colour, size = (FULL if layer in client.weights else ""), "#000000", 8
            elif client.dropped(layer):
                text, colour, size = f"{width}→{client.sent[layer]}", digit_colour(width), 7
            else:
                text, colour, size = str(width), digit_colour(width), 8
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
    axes.set_xticks(range(len(widths.layers)), widths.layers, rotation=90, fontsize=7)
    axes.set_yticks(range(len(widths.clients)), _names(widths), fontsize=8)
    axes.set_title(f"{widths.run}, round {widths.round}: bits of each layer", fontsize=9)
    _rule_off(axes, len(widths.clients), len(widths.layers))
    beside = axes.inset_axes((1 + 0.4 / len(widths.layers), 0, 0.7 / len(widths.layers), 1))
    bar = axes.figure.colorbar(image, cax=beside, ticks=range(1, len(SHADES) + 1))
    bar.set_label("planned bits; a→b: b sent", fontsize=7)
    bar.ax.tick_params(labelsize=7)


def _rule_off(axes: Any, rows: int, columns: int) -> None:
    """Part the cells by thin white lines."""
    axes.set_xticks(np.arange(0.5, columns - 1), minor=True)
    axes.set_yticks(np.arange(0.5, rows - 1), minor=True)
    axes.grid(which="minor", color="#ffffff", linewidth=0.8)
    axes.tick_params(which="minor", length=0)


def _planned(widths: RoundWidths) -> npt.NDArray[np.float64]:
    """Return planned widths [clients, layers]; NaN where a layer has none."""
    rows = [
        [float(client.planned.get(layer, np.nan)) for layer in widths.layers]
        for client in widths.clients
    ]
    return np.array(rows, np.float64)


def _names(widths: RoundWidths) -> list[str]:
    names = []
    for client in widths.clients:
        mean = client.average(client.planned)
        names.append(f"{client.name} ({client.tier})" + (f" {mean:.2f}" if mean else ""))
    return names
