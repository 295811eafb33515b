"""One line of a doctor's report, and the report."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING

from motley.logs import printable

if TYPE_CHECKING:
    from rich.console import Console

MARGIN = 26
"""Columns before the words: those of verdict and name."""
LEAST_WORDS = 30
"""Columns of words, also on a narrower terminal."""


class Verdict(str, Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "bold red"}


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was seen, and what to do about it."""

    what: str
    verdict: Verdict
    found: str
    do: str = ""
    """"" when nothing is to be done."""
    commands: tuple[str, ...] = ()
    """What to type for it, each a whole line of a shell."""


def fine(what: str, found: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(what, Verdict.OK, found)


def warning(what: str, found: str, do: str, *commands: str) -> Finding:
    """Return a finding that may become a problem."""
    return Finding(what, Verdict.WARNING, found, do, commands)


def problem(what: str, found: str, do: str, *commands: str) -> Finding:
    """Return a finding that keeps things from working."""
    return Finding(what, Verdict.PROBLEM, found, do, commands)


def exit_status(findings: Sequence[Finding]) -> int:
    """Return 1 when there is a problem, else 0."""
    return int(any(finding.verdict is Verdict.PROBLEM for finding in findings))


def as_json(findings: Sequence[Finding]) -> str:
    """Return the report for scripts."""
    lines = [{**asdict(finding), "verdict": finding.verdict.value} for finding in findings]
    return json.dumps({"problems": exit_status(findings) == 1, "findings": lines}, indent=1)


def report(findings: Iterable[Finding], *, json_output: bool) -> int:
    """Print each finding as it comes, or one JSON document at the end; return the exit status.

    A terminal shows that more is looked at, for JSON on standard error.
    """
    from rich.console import Console

    console, seen = Console(stderr=json_output, highlight=False), []
    with console.status("looking ...", spinner="line"):  # of ASCII: any terminal has it
        for finding in findings:
            seen.append(finding)
            if not json_output:
                _print(finding, console)
    if json_output:
        print(as_json(seen))
    return exit_status(seen)


def _print(finding: Finding, console: Console) -> None:
    """Print a finding for people; colours where the terminal has them."""
    from rich.text import Text

    verdict, wide = finding.verdict.value, max(console.width, MARGIN + LEAST_WORDS)

    def wrapped(words: str, head: str) -> list[str]:
        # Words stay whole, paths among them: a terminal that folds them lets them be copied.
        return textwrap.wrap(
            printable(words),
            wide,
            initial_indent=f"{head:<{MARGIN - 1}} ",
            subsequent_indent=" " * MARGIN,
            break_long_words=False,
            break_on_hyphens=False,
        )

    lines = wrapped(finding.found, f"{verdict:<8} {finding.what}")
    lines += wrapped(finding.do + ":" * bool(finding.commands), "") if finding.do else []
    lines += [f"  {printable(command)}" for command in finding.commands]
    text = Text("\n".join(lines))
    text.stylize(COLOURS[finding.verdict], 0, len(verdict))
    console.print(text, soft_wrap=True)
