"""The papers' tables: short rows repeat, pages say what the results say, the queue stops and goes
on, and refuses what cannot end in time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

PAPERS = Path(__file__).resolve().parents[2] / "benchmarks" / "papers"
sys.path.insert(0, str(PAPERS))

import page  # noqa: E402
import results  # noqa: E402
import rows  # noqa: E402
import search  # noqa: E402
import tables  # noqa: E402

from motley.algorithms import registry  # noqa: E402
from motley.runfile import parse  # noqa: E402

TABLES = tables.names()
FOREVER = rows.Limits(row=1e9, queue=1e9, began=0.0)


@pytest.mark.parametrize("name", TABLES)
def test_the_short_row_ends_as_on_record(name: str) -> None:
    now = rows.run_check(tables.load(name))
    before = results.saved(name, rows.CHECK, 0)
    assert before is not None, "record it with paper.py --check"
    assert now.run_file == before.run_file
    if (now.processor, now.versions) == (before.processor, before.versions):
        assert now.digests == before.digests
        assert now.accuracy == before.accuracy
    else:  # other arithmetic: the digests cannot be the same
        assert now.mean == pytest.approx(before.mean, abs=15)


@pytest.mark.parametrize("name", TABLES)
def test_the_page_is_what_the_results_make(name: str) -> None:
    table = tables.load(name)
    path = results.RESULTS / f"{name}.md"
    drawn = path.with_suffix(".png").exists()
    assert path.read_text() == page.text(table, drawn=drawn), "write it with paper.py --pages"


@pytest.mark.parametrize("name", TABLES)
def test_results_are_of_the_run_files_that_are_there(name: str) -> None:
    table = tables.load(name)
    for row in table.rows:
        text = table.run_file(row.name, 0)
        runfile = parse(text)
        registry.find(runfile.run.algorithm).configure(runfile.settings)
        for found in results.all_saved(name, row.name):
            assert found.run_file == results.digest(table.run_file(row.name, found.seed))
            assert len(found.accuracy) >= runfile.clients.expected
            assert len(found.digests) == runfile.run.rounds


@pytest.mark.parametrize("name", TABLES)
def test_rows_have_the_settings_that_scored_best(name: str) -> None:
    table = tables.load(name)
    for row in table.rows:
        chosen = search.best(name, row.settings_of or row.name)
        settings = parse(table.run_file(row.name, 0)).settings
        assert {key: settings[key] for key in chosen if key in settings} == {
            key: value for key, value in chosen.items() if key in settings
        }
        assert row.settings_of or set(chosen) <= set(settings)


def small_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, rounds: int) -> tables.Table:
    folder = tmp_path / "small"
    folder.mkdir()
    check = tables.load("quped-2-femnist").run_file("check", 0)
    text = check.replace("rounds = 3", f"rounds = {rounds}")
    (folder / "row.toml").write_text(text)
    (folder / "other.toml").write_text(text.replace('"quped"', '"quped" # the same'))
    for module, name, place in (
        (tables, "HERE", tmp_path),
        (results, "RESULTS", tmp_path / "results"),
        (page, "RESULTS", tmp_path / "results"),
        (rows, "WORK", tmp_path / "work"),
    ):
        monkeypatch.setattr(module, name, place)
    return tables.Table.model_validate(
        {
            "name": "small",
            "title": "Small",
            "paper": "none",
            "schedule": "reduced",
            "setup": "",
            "data": "digits?clients={clients}&client={client}&classes=4&train=40",
            "batch": 4,
            "seeds": 2,
            "rows": [
                {"name": "row", "title": "Row", "worth": 2},
                {"name": "other", "title": "Other", "worth": 1},
                {"name": "big", "title": "Big", "gpu": True},
            ],
        }
    )


def test_first_seeds_come_first_then_worth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = small_table(tmp_path, monkeypatch, rounds=3)
    order = [(row, seed) for _, row, seed in rows.queue([table], [])]
    assert order == [("other", 0), ("row", 0), ("other", 1), ("row", 1)]


def test_what_cannot_end_in_time_is_refused_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = small_table(tmp_path, monkeypatch, rounds=12)
    whole = rows.run_row(table, "other", 0, tmp_path, FOREVER)
    hurried = rows.Limits(row=1e-3, queue=1e9, began=time.monotonic())
    with pytest.raises(rows.TooLongError, match="What is done is kept"):
        rows.run_row(table, "row", 0, tmp_path, hurried)
    assert results.saved("small", "row", 0) is None
    begun = list((tmp_path / "work" / "small").iterdir())
    assert [path.name[:5] for path in begun] == ["row-0"]
    ended = rows.run_row(table, "row", 0, tmp_path, FOREVER)
    assert ended.digests == whole.digests
    assert ended.accuracy == whole.accuracy
    assert not list((tmp_path / "work" / "small").iterdir())


def test_pages_tell_what_was_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = small_table(tmp_path, monkeypatch, rounds=3)
    found = rows.run_row(table, "row", 0, tmp_path, FOREVER)
    text = page.text(table, drawn=False)
    assert f"| Row | {found.mean:.2f} | {min(found.accuracy.values()):.1f} | 1 |" in text
    assert "| Other | not run: not yet |" in text
    assert "| Big | not run: needs a GPU |" in text


def test_settings_are_laid_over_a_shortened_run_file() -> None:
    text = tables.load("quped-2-femnist").run_file("quped-2bit", 0)
    short = parse(rows.shortened(text, 7, 5, {"learning_rate": 0.9, "mode": "soft"}))
    assert (short.run.rounds, short.clients.expected, short.evaluate.every) == (7, 5, 0)
    assert (short.settings["learning_rate"], short.settings["mode"]) == (0.9, "soft")
    assert short.settings["local_steps"] == 10


def test_the_command_lists_every_table() -> None:
    called = subprocess.run(
        [sys.executable, str(PAPERS / "paper.py"), "--list"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin"},
    )
    assert all(name in called.stderr for name in TABLES)
