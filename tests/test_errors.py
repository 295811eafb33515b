"""Numbers of errors: every class has one of its own, and a section in docs/errors.md."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedclient
import fedserver
import motley
from fedserver.client import ControlError
from motley.errors import MotleyError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
OURS = ("motley", "fedserver", "fedclient")


def kinds() -> list[type[MotleyError]]:
    """Return every error class of the three packages."""
    for package in (motley, fedserver, fedclient):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not re.search(r"migrations|\.__main__$", found.name):
                importlib.import_module(found.name)
    return [kind for kind in descend(MotleyError) if kind.__module__.split(".")[0] in OURS]


def descend(kind: type[MotleyError]) -> Iterator[type[MotleyError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from descend(child)


def test_every_error_has_a_number_of_its_own():
    found = kinds()
    assert len(found) > 50
    lacking = [kind.__name__ for kind in found if "number" not in vars(kind)]
    assert not lacking, f"{lacking} need a number: the next free one of their area"
    twice = [n for n, times in Counter(kind.number for kind in found).items() if times > 1]
    assert not twice
    assert all(re.fullmatch(r"M\d{4}", kind.number) for kind in found)


def test_every_number_has_a_section_and_none_is_used_again():
    text, _, retired = PAGE.read_text().partition("## Retired numbers")
    sections = re.findall(r"^### (M\d{4}): (\w+)\n\n(.+?)(?=^##|\Z)", text, flags=re.M | re.S)
    expected = sorted((kind.number, kind.__name__, kind.code) for kind in kinds())
    told = [
        (number, name, re.findall(r"^Code `(\w+)`\. ", body)) for number, name, body in sections
    ]
    assert told == [(number, name, [code]) for number, name, code in expected]
    for number, _, body in sections:
        assert re.search(r"^\*\*Do\.\*\* .{8,}$", body, flags=re.M), f"{number} says nothing to do"
    assert not set(re.findall(r"M\d{4}", retired)) & {kind.number for kind in kinds()}


@pytest.mark.parametrize(
    ("module", "arguments", "number"),
    [
        ("fedclient", ["start", "--name", "a b", "--data", "x"], "M2002"),
        ("fedserver", ["serve", "--insecure", "--listen", "nowhere"], "M1104"),
        ("fedserver", ["runs", "--data", "/nonexistent/data"], "M1506"),
    ],
)
def test_commands_end_their_message_with_the_number(module, arguments, number):
    done = subprocess.run(
        [sys.executable, "-m", f"{module}.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert done.stderr.strip().endswith(f"[{number}]"), done.stderr


def test_a_refusal_has_the_number_of_the_servers_error():
    assert ControlError.refusal("[unknown_run] no run is called 'x'").number == "M1201"
    assert ControlError.refusal("[storage] the disk is full").number == "M1102"
    assert ControlError.refusal("something else").number == "M1506"
