"""One line of a doctor's report, and the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum


class Verdict(str, Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was seen, and what to do about it."""

    what: str
    verdict: Verdict
    found: str
    do: str = ""
    """"" when nothing is to be done."""


def fine(what: str, found: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(what, Verdict.OK, found)


def warning(what: str, found: str, do: str) -> Finding:
    """Return a finding that may become a problem."""
    return Finding(what, Verdict.WARNING, found, do)


def problem(what: str, found: str, do: str) -> Finding:
    """Return a finding that keeps things from working."""
    return Finding(what, Verdict.PROBLEM, found, do)


def exit_status(findings: Sequence[Finding]) -> int:
    """Return 1 when there is a problem, else 0."""
    return int(any(finding.verdict is Verdict.PROBLEM for finding in findings))


def as_json(findings: Sequence[Finding]) -> str:
    """Return the report for scripts."""
    lines = [{**asdict(finding), "verdict": finding.verdict.value} for finding in findings]
    return json.dumps({"problems": exit_status(findings) == 1, "findings": lines}, indent=1)


def print_table(findings: Sequence[Finding]) -> None:
    """Print the report for people; colours where the terminal has them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "bold red"}
    table = Table("what", "")
    # Folded, never cut: paths and commands in them are there to be copied.
    table.add_column("found", overflow="fold")
    table.add_column("what to do", overflow="fold")
    for finding in findings:
        verdict = Text(finding.verdict.value, style=colours[finding.verdict])
        table.add_row(finding.what, verdict, Text(finding.found), Text(finding.do))
    Console().print(table)
