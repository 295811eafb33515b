"""What the papers' tables are: a folder each, with `table.toml` and one run file a row."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
_SEED = re.compile(r"^seed = 0$", re.MULTILINE)

Value = str | int | float | bool


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Strict):
    """One row of a table: a run file, and what the paper has for it."""

    name: str
    """Of its run file, NAME.toml."""
    title: str
    paper: str = ""
    """The paper's figure as it stands there, e.g. "97.31 ± 0.12"."""
    worth: int = 5
    """Rows of low numbers are run first."""
    gpu: bool = False
    """More than two cores can do in half an hour."""
    missing: str = ""
    """Why there is no result: data that cannot be had, settings with which training diverges."""
    settings_of: str = ""
    """Row whose searched settings it takes where it has none of its own: `ROW` of this table or
    `TABLE/ROW`; "": none."""
    same_as: str = ""
    """`TABLE/ROW` that is the same run: its results are shown, and there is no run file here."""

    @model_validator(mode="after")
    def _of_one_table(self) -> Row:
        if self.same_as and (self.settings_of or self.same_as.count("/") != 1):
            raise ValueError("same_as is TABLE/ROW, whose settings the row has")
        return self


class Stage(_Strict):
    """One stage of a search: candidates, each trained on so many clients for so many rounds."""

    clients: int = Field(ge=1)
    """The table's first ones."""
    rounds: int = Field(ge=1)
    settings: dict[str, Value] = {}
    """What all candidates have besides, as a faster decay where rounds are fewer than a row's."""
    candidates: dict[str, tuple[dict[str, Value], ...]]
    """By row, the same number for each."""
    diverged: dict[str, tuple[dict[str, Value], ...]] = {}
    """By row, candidates with which the row itself diverges: no settings for it, whatever they
    score on the stage's clients."""

    @field_validator("candidates")
    @classmethod
    def _same_budget(
        cls, found: dict[str, tuple[dict[str, Value], ...]]
    ) -> dict[str, tuple[dict[str, Value], ...]]:
        if len({len(tried) for tried in found.values()}) > 1:
            raise ValueError("every row of a stage gets the same number of candidates")
        return found

    @model_validator(mode="after")
    def _diverged_are_candidates(self) -> Stage:
        for row, settings in self.diverged.items():
            strange = [one for one in settings if one not in self.candidates.get(row, ())]
            if strange:
                raise ValueError(f"diverged.{row}: {strange[0]} is no candidate of this stage")
        return self


class Search(_Strict):
    """How settings that the paper does not give are found: candidates scored on validation data."""

    validate_share: float = Field(gt=0, lt=1)
    """Share of the training samples that is held back for scoring."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """A row's settings are the best of the last one that has candidates for it."""


class Claim(_Strict):
    """An order that the paper shows: one row above others, by a margin."""

    better: str
    than: tuple[str, ...]
    by: float | Literal["deviation"] = 0.0
    """Points; "deviation": the lower row's standard deviation over seeds."""
    at_most: float | None = None
    """Instead: `than` is above `better` by at most so many points."""


class Table(_Strict):
    """One table of a paper."""

    name: str
    title: str
    paper: str
    """Source."""
    schedule: Literal["full", "reduced"]
    setup: str
    """Data, schedule and network in words; of a reduced one also what the paper's is."""
    data: str = ""
    """Template of a client's data spec, {folder} is where the sets lie; "": the run files' own."""
    batch: int = 1
    """Clients that train together."""
    seeds: int = 1
    measure: str = "accuracy"
    rows: tuple[Row, ...]
    search: Search | None = None
    claims: tuple[Claim, ...] = ()
    notes: str = ""
    """What is said below the table, in Markdown."""

    def run_file(self, row: str, seed: int) -> str:
        """Return the text of a row's run file for a seed."""
        text = (HERE / self.name / f"{row}.toml").read_text()
        replaced, count = _SEED.subn(f"seed = {seed}", text)
        if count != 1:
            raise SystemExit(f"{self.name}/{row}.toml: expected exactly one line `seed = 0`")
        return replaced

    def data_of(self, template: str, folder: Path | None) -> str:
        """Return a data template with its folders filled in."""
        here = str(HERE / self.name)
        return template.replace("{folder}", str(folder)).replace("{here}", here)

    def row(self, name: str) -> Row:
        """Return the row of a name."""
        return next(row for row in self.rows if row.name == name)


def load(name: str) -> Table:
    """Read one table; exit with what is wrong with its name."""
    path = HERE / name / "table.toml"
    if not path.exists():
        raise SystemExit(f"no table {name!r}; there are {', '.join(names())}")
    return Table.model_validate({"name": name, **tomllib.loads(path.read_text())})


def names() -> list[str]:
    """Return the names of all tables, in order."""
    return sorted(path.parent.name for path in HERE.glob("*/table.toml"))
