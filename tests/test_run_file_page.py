"""docs/run-file.md against the models: every field's type, bounds, choices and default."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from motley.algorithms import registry
from motley.algorithms.fedp3_settings import _STRATEGIES
from motley.runfile import Bits, RunFile, Tier, When

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "run-file.md").read_text()
ROW = re.compile(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|(?: ([^|]+) \|)? [^|]+ \|$", flags=re.M)
BIT_WIDTH = get_args(Bits)[1].description
Row = tuple[str, str, str | None]
"""Field, type and default of a row; `when` has no column of defaults."""


def rows(text: str) -> Iterator[Row]:
    """Yield the rows of the tables in a piece of the page."""
    for names, kind, default in ROW.findall(text):
        for name in re.findall(r"`(\w+)`", names):
            yield name, kind.strip(), default.strip() or None


def section(title: str) -> str:
    """Return the piece of the page below `## [title]`."""
    found = re.search(rf"^## `\[+{title}\]+`\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S)
    assert found, f"docs/run-file.md has no section about [{title}]"
    return found[1]


def models() -> Iterator[Any]:
    """Yield every model with the rows that describe it."""
    for name, field in RunFile.model_fields.items():
        if name in ("settings", "tiers"):
            continue
        assert isinstance(field.annotation, type)
        yield pytest.param(field.annotation, list(rows(section(name))), id=name)
    tiers, _, when = section("tiers").partition("`when` knows:")
    yield pytest.param(Tier, list(rows(tiers)), id="tiers")
    yield pytest.param(When, list(rows(when)), id="when")
    parts = re.split(r"^### ", section("settings"), flags=re.M)
    for name in registry.names():
        mine = [p for p in parts if p.startswith("All") or f"`{name}`" in p.partition("\n")[0]]
        found = dict.fromkeys(row for part in mine for row in rows(part))
        if any("Those of `fedavg`, with `uniform`" in part for part in mine):
            plain = next(p for p in parts if p.startswith("`fedavg`"))
            found |= dict.fromkeys(row for row in rows(plain) if row[0] != "weighting")
            found["weighting", "`samples`, `uniform`", "`uniform`"] = None
        yield pytest.param(registry.find(name).settings_type, list(found), id=name)


def choices(values: tuple[Any, ...]) -> set[str]:
    return {f"`{value}`" if value else '`""`' for value in values}


def span(bounds: list[Any]) -> str:
    """Say in the page's words which numbers some bounds let through."""
    low = next((b for b in bounds if isinstance(b, Ge | Gt)), None)
    high = next((b for b in bounds if isinstance(b, Le | Lt)), None)
    if low is None:
        assert high is None
        return "number"
    if isinstance(low, Gt):
        start = f"above {low.gt}"
        ends = {Le: ", up to ", Lt: ", below "}
    else:
        start = f"{low.ge}"
        ends = {Le: " to ", Lt: " up to below "}
    if high is None:
        return start if isinstance(low, Gt) else f"{start} or more"
    if isinstance(high, Lt) and high.lt == 2**63:
        return f"{start} to 2^63 − 1"
    end = high.le if isinstance(high, Le) else high.lt
    return f"{start}{ends[type(high)]}{end:,}"


def said(annotation: Any, bounds: list[Any]) -> set[str]:
    """Return what the page has to say of a type, in any order; {"text"} stands for any words."""
    if annotation == Bits:
        return {"bit-width"}
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        found = [b for m in more for b in (m.metadata if isinstance(m, FieldInfo) else [m])]
        return said(inner, [*bounds, *found])
    if origin in (Union, types.UnionType):
        inside = [kind for kind in get_args(annotation) if kind is not type(None)]
        return set().union(*(said(kind, bounds) for kind in inside))
    if origin is Literal:
        return choices(get_args(annotation))
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return {"table"}
    if annotation is bool:
        return {"true or false"}
    if annotation in (int, float):
        return {span(bounds)}
    return {"text"}


def parts_of(kind: str) -> set[str]:
    """Take a type of the page apart: `above 0, up to 1` is one part, choices are several."""
    kind = kind.replace('`"auto"`', "`auto`")
    found = set(re.findall(r"`[^`]*`", kind))
    left = re.sub(r"`[^`]*`(, | or )?", "", kind).strip().removesuffix(", or").rstrip(", ")
    if left.startswith("table"):
        left = "table"
    return found | ({left} if left else set())


@pytest.mark.parametrize(("model", "described"), list(models()))
def test_types_and_defaults_are_those_of_the_models(
    model: type[BaseModel], described: list[Row]
) -> None:
    by_name = {row[0]: row for row in described}
    assert set(model.model_fields) <= set(by_name)
    for name, field in model.model_fields.items():
        rows_of = [row for row in described if row[0] == name]
        assert any(_fits(row, field) for row in rows_of), (
            f"{model.__name__}.{name}: the page says {rows_of}; the model takes "
            f"{said(_annotation(field), [])}, default {_default(field)}"
        )


def _annotation(field: FieldInfo) -> Any:
    if field.description == BIT_WIDTH:
        return Bits
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _fits(row: Row, field: FieldInfo) -> bool:
    name, kind, default = row
    expected = said(_annotation(field), [])
    words = parts_of(kind)
    if name in _STRATEGIES and field.annotation is str:
        expected = choices(tuple(_STRATEGIES[name]))
    elif field.annotation is str or "text" in expected:
        words = expected  # free text: the page may say more of it
    return words == expected and (default is None or default in _default(field))


def _default(field: FieldInfo) -> set[str]:
    """Return the ways in which the page may give a field's default."""
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return {"required"}
    if value is None:
        return {"–", "25"} if field.annotation == (int | None) else {"–"}
    if isinstance(value, str):
        return {f"`{value}`", f'`"{value}"`'} if value else {'`""`'}
    if isinstance(value, bool):
        return {str(value).lower()}
    if isinstance(value, dict):
        return {"`{}`"}
    return {str(value), f"{value:g}"}


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ([Ge(1)], "1 or more"),
        ([Gt(0)], "above 0"),
        ([Gt(0), Le(1)], "above 0, up to 1"),
        ([Gt(0), Lt(0.5)], "above 0, below 0.5"),
        ([Ge(0), Lt(1)], "0 up to below 1"),
        ([Ge(1), Le(1_000_000)], "1 to 1,000,000"),
        ([], "number"),
    ],
)
def test_bounds_are_said_in_the_pages_words(bounds: list[Any], words: str) -> None:
    assert span(bounds) == words


def test_a_wrong_bound_or_default_in_the_page_would_be_found() -> None:
    field = RunFile.model_fields["clients"].annotation.model_fields["over_select"]  # type: ignore[union-attr]
    assert _fits(("over_select", "1 to 4", "1.0"), field)
    assert not _fits(("over_select", "1 to 5", "1.0"), field)
    assert not _fits(("over_select", "1 to 4", "1.5"), field)
