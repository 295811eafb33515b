"""The bit-widths of one round, read out of a run's record: clients by layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedserver.errors import UnknownRunError, WidthsError


@dataclass(frozen=True, kw_only=True)
class ClientWidths:
    """One client's widths in one round; a layer without one is in full precision."""

    name: str
    tier: str
    variant: str
    status: str
    """Of its task."""
    weights: Mapping[str, int]
    """Number of weights of each layer of its variant to which low bit-widths apply."""
    planned: Mapping[str, int]
    """Width of each layer."""
    sent: Mapping[str, int]
    """Width of each layer as it came; empty before, and where layers do not travel in planes."""

    def average(self, widths: Mapping[str, int]) -> float | None:
        """Return the mean width over all weights of the layers that have one; None without any."""
        total = sum(self.weights.get(layer, 0) for layer in widths)
        if not total:
            return None
        return sum(self.weights.get(layer, 0) * width for layer, width in widths.items()) / total

    def dropped(self, layer: str) -> bool:
        """Return whether fewer planes came than were planned."""
        return layer in self.sent and self.sent[layer] < self.planned[layer]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "name": self.name,
            "tier": self.tier,
            "variant": self.variant,
            "status": self.status,
            "planned": dict(self.planned),
            "sent": dict(self.sent),
            "planned_average": self.average(self.planned),
            "sent_average": self.average(self.sent),
        }


@dataclass(frozen=True, kw_only=True)
class RoundWidths:
    """The widths of a training round, clients in order of name, layers in the model's order."""

    run: str
    """Name of the run."""
    round: int
    status: str
    """`closed`, or how far the round is."""
    layers: tuple[str, ...]
    clients: tuple[ClientWidths, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "run": self.run,
            "round": self.round,
            "status": self.status,
            "layers": list(self.layers),
            "clients": [client.to_json() for client in self.clients],
        }


def round_widths(record: Mapping[str, Any], number: int = 0) -> RoundWidths:
    """Return the widths of round `number`; 0: the newest closed one, else the one that is open.

    Args:
        record: a run as `show --json` prints it.
        number: 1-based.

    Raises:
        UnknownRunError: the run has no such training round.
        WidthsError: the round gave no layer of any client a width.
    """
    rounds = _training_rounds(record)
    chosen = number or max(record["round"], 1)
    if chosen not in rounds:
        raise UnknownRunError(_no_round(record, number, sorted(rounds)))
    status, tasks = rounds[chosen]
    found = RoundWidths(
        run=record["name"],
        round=chosen,
        status=status,
        layers=_layers(record, tasks),
        clients=tuple(_client(record, name, tasks[name]) for name in sorted(tasks)),
    )
    if not any(client.planned for client in found.clients):
        raise WidthsError(
            f"round {chosen} of run {record['name']} gave no layer a bit-width: "
            f"{record['algorithm'] or 'its method'} trains in full precision there. Widths come "
            f"from `bits` of the run file's tiers, with the methods fedmpq, quped and local"
        )
    return found


def _training_rounds(record: Mapping[str, Any]) -> dict[int, tuple[str, dict[str, Any]]]:
    """Return each training round's status and its tasks by client: status and widths."""
    found = {}
    current = record["current"]
    if current and current["kind"] == "train":
        tasks = {
            name: {"status": status, **current["widths"].get(name, {"bits": {}, "sent_bits": {}})}
            for name, status in current["clients"].items()
        }
        found[current["round"]] = (current["status"], tasks)
    for entry in record["history"]:
        if (entry["kind"], entry["status"]) == ("train", "closed"):
            found[entry["round"]] = ("closed", entry["clients"])
    return found


def _no_round(record: Mapping[str, Any], number: int, known: list[int]) -> str:
    there = "none so far"
    if known:
        there = f"{known[0]} to {known[-1]}" if len(known) > 1 else f"{known[0]} alone"
    return (
        f"run {record['name']} ({record['id']}, {record['status']}) has no training round "
        f"{number or 1} that is closed or open; expected one that there is: {there}"
    )


def _client(record: Mapping[str, Any], name: str, task: Mapping[str, Any]) -> ClientWidths:
    member = next(c for c in record["clients"] if c["name"] == name)
    planned = task["bits"]
    return ClientWidths(
        name=name,
        tier=member["tier"],
        variant=member["variant"],
        status=task["status"],
        weights=record["layers"].get(member["variant"], {}),
        planned=planned,
        sent=task["sent_bits"],
    )


def _layers(record: Mapping[str, Any], tasks: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the layers of the clients' variants, each once, the largest variant's order first."""
    variants = {c["variant"] for c in record["clients"] if c["name"] in tasks}
    tables = [record["layers"].get(variant, {}) for variant in sorted(variants)]
    # A run whose file this version cannot read has no tables; its plans name their layers.
    tables = [table for table in tables if table] or [t["bits"] for t in tasks.values()]
    tables.sort(key=len, reverse=True)
    return tuple(dict.fromkeys(layer for table in tables for layer in table))
