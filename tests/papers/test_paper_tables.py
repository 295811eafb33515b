"""The papers' tables: short rows repeat, pages say what the results say, the queue stops and goes
on, and refuses what cannot end in time."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

PAPERS = Path(__file__).resolve().parents[2] / "benchmarks" / "papers"
sys.path.insert(0, str(PAPERS))

import page  # noqa: E402
import paper  # noqa: E402
import results  # noqa: E402
import rows  # noqa: E402
import scripts  # noqa: E402
import search  # noqa: E402
import tables  # noqa: E402

from fedserver.storage.database import lock_directory  # noqa: E402
from motley.algorithms import registry  # noqa: E402
from motley.runfile import parse  # noqa: E402

TABLES = tables.names()
FOREVER = rows.Limits(row=1e9, queue=1e9, began=0.0)


@pytest.mark.parametrize("name", TABLES)
def test_the_short_row_ends_as_on_record(name: str) -> None:
    now = rows.run_check(tables.load(name))
    on_record = results.checks(name)
    assert on_record, "record it with paper.py --check"
    assert {before.run_file for before in on_record} == {now.run_file}
    assert len({before.processor for before in on_record}) == len(on_record)
    for before in on_record:
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
        if row.same_as:
            owner, _, other = row.same_as.rpartition("/")
            assert tables.load(owner).row(other).same_as == ""
            continue
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
    for row in (row for row in table.rows if not row.same_as):
        chosen = search.chosen(table, row)
        settings = parse(table.run_file(row.name, 0)).settings
        assert {key: settings.get(key) for key in chosen} == chosen


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
    order = [(row, seed) for _, row, seed in rows.queue([table], [], 2)]
    assert order == [("other", 0), ("row", 0), ("other", 1), ("row", 1)]
    assert [seed for _, _, seed in rows.queue([table], ["row"], 1)] == [0]


def test_what_cannot_end_in_time_is_refused_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = small_table(tmp_path, monkeypatch, rounds=12)
    whole = rows.run_row(table, "other", 0, tmp_path, FOREVER)
    hurried = rows.Limits(row=1e-3, queue=1e9, began=time.monotonic())
    with pytest.raises(rows.TooLongError, match="takes 0 minutes"):
        rows.run_row(table, "row", 0, tmp_path, hurried)
    assert results.saved("small", "row", 0) is None
    begun = list((tmp_path / "work" / "small").iterdir())
    assert [path.name[:5] for path in begun] == ["row-0"]
    ended = rows.run_row(table, "row", 0, tmp_path, FOREVER)
    assert ended.digests == whole.digests
    assert ended.accuracy == whole.accuracy
    assert not list((tmp_path / "work" / "small").iterdir())


def test_rows_for_a_gpu_wait_for_one() -> None:
    table = tables.load("quped-2-cifar10-full")
    assert not list(rows.queue([table], [], 1))
    assert len(list(rows.queue([table], [], 1, gpu=True))) == len(table.rows)
    assert not list(rows.queue([tables.load("quped-2-femnist")], [], 1, gpu=True))


def test_a_row_that_fails_ends_rows_side_by_side() -> None:
    table = tables.load("quped-2-femnist").model_copy(update={"name": "no-such-table"})
    options = argparse.Namespace(jobs=2, data=None, device="cpu")
    ended = paper._ended([(table, f"row-{number}", 0) for number in range(4)], options, FOREVER)
    _, result = next(ended)
    with pytest.raises(FileNotFoundError, match="no-such-table"):
        result()
    ended.close()


def test_a_row_that_another_queue_runs_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = small_table(tmp_path, monkeypatch, rounds=3)
    text = results.digest(table.run_file("other", 0))[:8]
    place = tmp_path / "work" / "small" / f"other-0-{text}"
    place.mkdir(parents=True)
    options = argparse.Namespace(
        jobs=1, data=tmp_path, device="cpu", rows=[], seeds=1, minutes=1e6, row_minutes=30
    )
    with lock_directory(place), pytest.raises(SystemExit) as ended:
        paper._run([table], options)
    assert ended.value.code == "1 rows were refused"
    assert [bool(results.all_saved("small", row)) for row in ("other", "row")] == [False, True]
    said = capsys.readouterr().err
    assert "refused: data directory" in said
    assert "is in use by another" in said


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


def test_a_row_that_is_another_one_is_shown_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = small_table(tmp_path, monkeypatch, rounds=3)
    again = tables.Row(name="again", title="Again", same_as="small/row")
    table = table.model_copy(update={"rows": (*table.rows, again)})
    assert "again" not in [row for _, row, _ in rows.queue([table], [], 2)]
    found = rows.run_row(table, "row", 0, tmp_path, FOREVER)
    assert f"| Again (`small/row`) | {found.mean:.2f} |" in page.text(table, drawn=False)


def test_the_command_lists_every_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["paper.py", "--list"])
    monkeypatch.setattr(rows, "console", Console(stderr=True, width=200))
    paper.main()
    told = capsys.readouterr().err
    assert all(name in told for name in (*TABLES, *scripts.SCRIPTS))


def test_comparisons_with_scripts_of_their_own_are_called_by_name() -> None:
    first, second = scripts.commands("fedp3", Path("/sets"), 5, pages=False)
    assert first[1:] == [
        str(PAPERS.parent / "fedp3_accuracy.py"),
        *("--data", "/sets/fashion-mnist", "--minutes", "5"),
    ]
    assert second[2:6] == ["--set", "cifar10", "--data", "/sets/cifar-10-batches-bin"]
    (summary,) = scripts.commands("fedmpq", None, 5, pages=True)
    assert summary[1:] == [str(PAPERS.parent / "fedmpq_tables.py"), "--summary"]
    with pytest.raises(SystemExit, match="give --data FOLDER"):
        scripts.commands("fedmpq", None, 5, pages=False)
    assert all((PAPERS.parent / script.file).exists() for script in scripts.SCRIPTS.values())
