"""Runs and clients for people: tables, and a live view."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedserver.cli_options import check_target
from fedserver.heat_map import heat_map
from fedserver.rounds.lines import finite
from fedserver.widths import RoundWidths, round_widths
from motley.errors import MotleyError
from motley.logs import in_words, printable
from motley.task import UNTRAINED
from motley.terminal import PlainConsole, WholeTable

_UNITS = ("B", "KB", "MB", "GB", "TB")


def size(count: float) -> str:
    """Return bytes as a short text, e.g. `1.4 MB`."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


PIPED_WIDTH = 160
"""Columns where no terminal says how many there are: a pipe, a file."""
CLIENTS_WIDTH = 100
"""The same for the table of clients, whose reasons may be long."""


def console(*, to_stderr: bool = False, piped: int = PIPED_WIDTH) -> Console:
    """Return where people read: the terminal, or a pipe of a fixed width."""
    stream = sys.stderr if to_stderr else sys.stdout
    return PlainConsole(stderr=to_stderr, width=None if stream.isatty() else piped)


def print_runs(records: list[dict[str, Any]]) -> None:
    """Print a table of runs."""
    if not records:
        print("no runs yet; queue one with `fedserver submit RUN.toml`")
        return
    table = WholeTable("id", "name", "status", "round", "down", "up", "reason")
    for r in records:
        done = f"{r['round']}/{r['rounds']}"
        amounts = (size(r["bytes_down"]), size(r["bytes_up"]))
        table.add_row(r["id"], r["name"], r["status"], done, *amounts, r["reason"])
    console().print(table)


def print_clients(records: list[dict[str, Any]]) -> None:
    """Print a table of clients."""
    if not records:
        print("no clients yet; `fedserver tokens create` lets one join")
        return
    table = WholeTable("name", "here", "tier", "device", "task", "certificate")
    workloads = dict[str, list[str]]()
    for r in records:
        seen = "yes" if r["here"] else _ago(r["last_seen_seconds"])
        if r["set_aside"]:
            seen = f"put aside for {r['set_aside_seconds']:.0f} s: {r['set_aside']}"
        table.add_row(
            r["name"],
            seen,
            r["tier"] or "-",
            _device(r),
            r["task"] or "-",
            _certificate(r),
        )
        if r["workloads"]:
            workloads.setdefault(", ".join(sorted(r["workloads"])), []).append(r["name"])
    screen = console(piped=CLIENTS_WIDTH)
    screen.print(table)
    for known, names in workloads.items():
        whose = ", ".join(names) if len(workloads) > 1 else "all"
        screen.print(f"workloads of {whose}: {known}", highlight=False)


def _device(client: dict[str, Any]) -> str:
    if not client["cores"]:
        return "-"  # joined, and never checked in
    parts = [f"{client['cores']} cores", size(client["memory_bytes"]), client["accelerator"]]
    return ", ".join(filter(None, parts))


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.0f} s ago"


def _certificate(client: dict[str, Any]) -> str:
    if client["revoked"]:
        return f"revoked: {client['revoked']}"
    if client["certificate_expires"] is None:
        return "-"
    return f"until {moment(client['certificate_expires'])}"


def moment(seconds: float) -> str:
    """Return a time of the wall clock (UTC) for people."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def print_tokens(records: list[dict[str, Any]]) -> None:
    """Print a table of join tokens."""
    if not records:
        print("no join tokens; make one with `fedserver tokens create`")
        return
    table = WholeTable("id", "state", "uses left", "until (UTC)", "for client")
    for r in records:
        left = f"{r['uses_left']} of {r['uses']}"
        table.add_row(r["id"], r["state"], left, moment(r["expires"]), r["client"] or "any")
    console().print(table)


def print_operators(records: list[dict[str, Any]]) -> None:
    """Print a table of operators."""
    if not records:
        print("no operators; make one with `fedserver operators create NAME -o FILE`")
        return
    table = WholeTable("name", "certificate until (UTC)")
    for r in records:
        table.add_row(r["name"], moment(r["not_after"]))
    console().print(table)


def print_join(record: dict[str, Any]) -> None:
    """Print a new join token as the command that uses it."""
    whom = f"client {record['client']} alone" if record["client"] else "any new client"
    print_facts(
        {
            "token id": record["id"],
            "for": whom,
            "devices": str(record["uses"]),
            "until": f"{moment(record['expires'])} UTC",
            "join port": record["server"],
        }
    )
    print("\non each device:\n")
    print(f"  {record['join']}")


def print_facts(facts: Mapping[str, str]) -> None:
    """Print what is known of something, a line each, whole however narrow the terminal is."""
    for name, value in facts.items():
        print(printable(f"{name:<11}{value}"))


def print_run(record: dict[str, Any]) -> None:
    """Print a run with its rounds and clients."""
    screen = console()
    screen.print(_head(record))
    print_promises(record)
    screen.print(client_table(record))
    table = WholeTable("round", "kind", "status", "counted", "collect", "fold", "metrics", "model")
    for entry in record["history"]:
        counted = sum(c["status"] in ("counted", "done") for c in entry["clients"].values())
        seconds = entry["seconds"]
        table.add_row(
            f"{entry['round']}" + (f".{entry['attempt']}" if entry["attempt"] else ""),
            entry["kind"],
            entry["status"] + (f": {entry['reason']}" if entry["reason"] else ""),
            f"{counted}/{len(entry['clients'])}",
            f"{seconds.get('collect', 0):.2f} s",
            f"{seconds.get('fold', 0):.3f} s",
            metrics_text(entry["metrics"]),
            entry["state_after"][:12],
        )
    screen.print(table)


def show_widths(record: dict[str, Any], number: int, png: Path | None, *, as_json: bool) -> None:
    """Print the bit-widths of a round as a heat map or as JSON; with `png` draw them there."""
    if png:
        check_target(png)
    widths = round_widths(record, number)
    if png:
        from fedserver.heat_image import write_png

        size = write_png(widths, png)
        print(
            json.dumps({"file": str(png), "bytes": size}) if as_json else f"{png}: {size:,} bytes"
        )
    elif as_json:
        print(json.dumps(finite(widths.to_json())))
    else:
        screen = console()
        screen.print(heat_map(widths, screen.width), highlight=False)


def print_promises(record: Mapping[str, Any]) -> None:
    """Print what a private run promises, a line for each tier; nothing for other runs."""
    for tier, promise in (record.get("privacy") or {}).items():
        console().print(_promise(tier, promise), highlight=False, soft_wrap=True)


def _promise(tier: str, p: dict[str, Any]) -> str:
    """Return a line on what a private run promises a tier's clients."""
    sigma = p.get("theorem_sigma")  # not in records of older servers
    theorem = "" if sigma is None else f"the theorem's with c = 8: {sigma:.4g}; "
    return (
        f"privacy of tier {tier}: epsilon {p['epsilon']:g} at delta {p['delta']:g} for one "
        f"{p['unit']}, {p['neighbouring']}; {p['mode']}, clip {p['clip']:g}, {p['steps']} noisy "
        f"steps at rate {p['sampling_rate']:g}; noise multiplier {p['noise_multiplier']:.5g} "
        f"(epsilon {p['planned_epsilon']:.4g}), sigma {p['sigma']:.4g} "
        f"({theorem}c_eff {p['c_eff']:.3g})"
    )


def client_table(record: dict[str, Any]) -> Table:
    """Return a table of a run's clients."""
    table = WholeTable("client", "tier", "model", "counted", "state", "accuracy", "down", "up")
    now = (record.get("current") or {}).get("clients", {})
    for c in record["clients"]:
        state = c["reason"] or now.get(c["name"], "finished" if c["finished"] else "-")
        table.add_row(
            c["name"],
            c["tier"],
            c["variant"],
            str(c["counted"]),
            state,
            _newest_accuracy(c),
            size(c["bytes_down"]),
            size(c["bytes_up"]),
        )
    return table


def follow(records: Iterable[dict[str, Any]], *, whole: bool = True) -> str:
    """Show a run live until its records end; return its last status.

    Without a terminal that is a line for each closed round; unless `whole`, of those that were
    closed before for the newest alone.
    """
    screen = console()
    if not screen.is_terminal:
        return _follow_in_lines(screen, records, whole)
    status, shown = "", False
    newest: RoundWidths | None = None
    with Live(console=screen, refresh_per_second=8) as live:
        for record in records:
            status, shown = record["status"], True
            newest = newest_widths(record) or newest
            parts = [_head(record), client_table(record)]
            live.update(Group(*parts, *live_map(newest, screen, len(record["clients"]))))
    return status if shown else "unknown"


def _follow_in_lines(screen: Console, records: Iterable[dict[str, Any]], whole: bool) -> str:
    status = reason = name = ""
    for number, record in enumerate(records):
        name, status, before = record["name"], record["status"], reason
        reason = record["reason"]
        if reason and reason != before:
            screen.print(f"{name} {status}: {reason}", soft_wrap=True)
        entries = record["history"]
        if number == 0 and not whole:
            entries = [e for e in entries if e["round"] == entries[-1]["round"]]
        for entry in entries:
            screen.print(_line(record, entry), highlight=False, soft_wrap=True)
    screen.print(f"run {name} is {status} {reason}".rstrip())
    return status


def newest_widths(record: dict[str, Any]) -> RoundWidths | None:
    """Return the widths of the round under way, else of the one that closed last."""
    current = record["current"]
    try:
        return round_widths(record, current["round"] if current else 0)
    except MotleyError:
        return None  # an evaluation, or a record that repeats no history


TABLE_LINES = 6
"""Lines of the live view besides one for each client: the head, the table's frame, a spare."""


def live_map(widths: RoundWidths | None, console: Console, clients: int) -> list[RenderableType]:
    """Return the heat map as far as the terminal is tall enough: whole, without names, or not."""
    if widths is None:
        return []
    left = console.height - TABLE_LINES - clients
    for legend in (True, False):
        shown = heat_map(widths, console.width, legend=legend)
        if len(shown.renderables) <= left:
            return [shown]
    return []


def _head(record: dict[str, Any]) -> Table:
    """Return one line with the run's progress."""
    grid = Table.grid(padding=(0, 2))
    current = record.get("current")
    doing = record["reason"]
    if current:
        doing = f"{current['kind']} round {current['round']}: {current['arrived']}"
        doing += f" of {current['goal']} came, {current['seconds_left']:.0f} s left"
    grid.add_row(
        Text(str(in_words(f"{record['name']} ({record['id']})")), style="bold"),
        record["status"],
        ProgressBar(total=max(1, record["rounds"]), completed=record["round"], width=30),
        f"{record['round']}/{record['rounds']} rounds",
        f"down {size(record['bytes_down'])}, up {size(record['bytes_up'])}",
        doing,
    )
    return grid


def _line(record: dict[str, Any], entry: dict[str, Any]) -> str:
    counted = sum(c["status"] in ("counted", "done") for c in entry["clients"].values())
    if entry["status"] == "abandoned":
        tried = f"round {entry['round']}/{record['rounds']} {entry['kind']}"
        return f"{record['name']} {tried} abandoned: {entry['reason']}"
    shown = (metrics_text(entry["metrics"]), entry["reason"])
    return (
        f"{record['name']} round {entry['round']}/{record['rounds']} {entry['kind']} "
        f"{entry['status']}: {counted} of {len(entry['clients'])} clients, "
        f"{entry['seconds'].get('collect', 0):.2f} s, {'; '.join(filter(None, shown))}"
    )


def metrics_text(metrics: Mapping[str, float | None]) -> str:
    """Return accuracies and losses as a short text, and how many clients have no model yet."""
    shown = ((n, v) for n, v in sorted(metrics.items()) if n.endswith(("accuracy", "loss")))
    # None: it was not finite, which only records of older servers hold.
    parts = [f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in shown]
    untrained = metrics.get(UNTRAINED) or metrics.get(f"personal_{UNTRAINED}")
    return ", ".join([*parts, *([f"{untrained:.0f} {UNTRAINED}"] if untrained else [])])


def _newest_accuracy(client: dict[str, Any]) -> str:
    trained = client["metrics"].get("train", {}).get("round", 0)
    for kind in ("finish", "evaluate", "train"):
        found = client["metrics"].get(kind, {})
        if found.get(UNTRAINED) and found.get("round", trained) >= trained:
            return UNTRAINED
        if "accuracy" in client["metrics"].get(kind, {}):
            return f"{client['metrics'][kind]['accuracy']:.2%}"
    return "-"
