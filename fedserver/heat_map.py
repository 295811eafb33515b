"""Bit-widths as a small heat map for a terminal: clients by layers."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group
from rich.style import Style
from rich.text import Text

from fedserver.widths import ClientWidths, RoundWidths
from motley.logs import printable

SHADES = (
    "#440154",
    "#46327e",
    "#365c8d",
    "#277f8e",
    "#1fa187",
    "#4ac16d",
    "#a0da39",
    "#fde725",
)
"""Colour of 1 to 8 bits: viridis, which grows lighter evenly, also for the colour-blind."""
FIRST_LIGHT = 5
"""Width from which a shade is so light that it takes dark digits."""
SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈"
FULL = "·"
"""A layer in full precision."""


def digit_colour(width: int) -> str:
    """Return the colour in which a digit is legible on the shade of a width."""
    return "#000000" if width >= FIRST_LIGHT else "#ffffff"


def heat_map(widths: RoundWidths, columns: int, *, legend: bool = True) -> Group:
    """Return the map, in blocks of layers where `columns` do not take all of them.

    Digits say all that the colours say. `legend`: whether the layers' names come below.
    """
    lines = [_title(widths)]
    cell = max(3, len(str(len(widths.layers))) + 1)
    labels = _labels(widths)
    side = len(labels[0])
    room = max(1, (columns - side) // cell)
    for first in range(0, len(widths.layers), room):
        lines += _block(widths, labels, range(first, min(first + room, len(widths.layers))), cell)
    if legend:
        names = (f"{n} {printable(layer)}" for n, layer in enumerate(widths.layers, 1))
        lines += [Text(line) for line in _wrapped(names, columns)]
    return Group(*lines)


def _title(widths: RoundWidths) -> Text:
    text = f"round {widths.round} ({widths.status}): bits of each layer"
    if any(client.dropped(layer) for client in widths.clients for layer in client.sent):
        text += "; 6₄: 6 planned, 4 sent"
    if any(len(client.planned) < len(client.weights) for client in widths.clients):
        text += f"; {FULL} full precision"
    return Text(text, style="bold", no_wrap=True)


def _labels(widths: RoundWidths) -> list[str]:
    """Return what stands left of the map, of equal width: the heading, then each client."""
    rows = [("client", "tier", "mean")]
    for client in widths.clients:
        means = [client.average(client.planned)]
        if any(client.dropped(layer) for layer in client.sent):
            means.append(client.average(client.sent))
        mean = ">".join(f"{value:.2f}" for value in means if value is not None)
        rows.append((printable(client.name), printable(client.tier), mean or FULL))
    sizes = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        f"{name:<{sizes[0]}}  {tier:<{sizes[1]}}  {mean:>{sizes[2]}} " for name, tier, mean in rows
    ]


def _block(widths: RoundWidths, labels: list[str], columns: range, cell: int) -> Iterator[Text]:
    head = labels[0] + "".join(f"{column + 1:>{cell - 1}} " for column in columns)
    yield Text(head, style="dim", no_wrap=True)
    for label, client in zip(labels[1:], widths.clients, strict=True):
        line = Text(label, no_wrap=True)
        for column in columns:
            line.append_text(_cell(client, widths.layers[column], cell))
        yield line


def _cell(client: ClientWidths, layer: str, cell: int) -> Text:
    width = client.planned.get(layer)
    if width is None:
        has_layer = layer in client.weights
        return Text(f"{FULL if has_layer else '':>{cell - 1}} ")
    text = f"{width:>{cell - 1}}"
    text += SUBSCRIPTS[client.sent[layer]] if client.dropped(layer) else " "
    if not 1 <= width <= len(SHADES):
        return Text(text)
    shade = Style(color=digit_colour(width), bgcolor=SHADES[width - 1])
    return Text(text, style=shade)


def _wrapped(names: Iterator[str], columns: int) -> Iterator[str]:
    line = ""
    for name in names:
        if line and len(line) + 2 + len(name) > columns:
            yield line
            line = ""
        line += ("  " if line else "") + name
    if line:
        yield line
