"""The papers' tables: short rows repeat, pages say what the results say, the queue stops and goes
on, and refuses what cannot end in time."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

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

from fedserver.simulate.population import Population  # noqa: E402
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


def searched_table(table: tables.Table) -> tables.Table:
    first = {"row": [{"learning_rate": 0.1}, {"learning_rate": 0.2}]}
    last = {"row": [{"learning_rate": 0.01}, {"learning_rate": 0.02}]}
    stages = [
        {"clients": 4, "rounds": 2, "candidates": first},
        {"clients": 6, "rounds": 3, "candidates": last},
    ]
    content = table.model_dump()
    content["rows"][1]["settings_of"] = "row"
    content["search"] = {"validate_share": 0.2, "stages": stages}
    return tables.Table.model_validate(content)


def searched(table: tables.Table, folder: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        search.search(table, folder, [], "cpu", pool)


def test_the_last_stage_that_has_begun_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = searched_table(small_table(tmp_path, monkeypatch, rounds=3))
    monkeypatch.setattr(tables, "names", list)
    scores = {0.1: 70.0, 0.2: 90.0, 0.01: 60.0, 0.02: 50.0}
    asked: list[tuple[int, int, object]] = []

    def score(
        _: object, __: object, stage: tables.Stage, row: str, settings: rows.Settings, *_a: object
    ) -> float:
        asked.append((stage.clients, stage.rounds, settings["learning_rate"]))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return scores[float(settings["learning_rate"])]

    monkeypatch.setattr(rows, "score", score)
    with pytest.raises(KeyboardInterrupt):
        searched(table, tmp_path)
    assert search.best(table, "row") is None
    assert search.chosen(table, table.row("other")) == {}, "nothing changes on the way"
    assert "| Row | not run: not yet |" in page.text(table, drawn=False)
    searched(table, tmp_path)
    assert asked == [(4, 2, 0.1), (4, 2, 0.2), (6, 3, 0.01), (6, 3, 0.02), (6, 3, 0.02)]
    assert search.best(table, "row") == {"learning_rate": 0.01}
    assert search.chosen(table, table.row("other")) == {"learning_rate": 0.01}
    assert "`learning_rate` 0.01: **60.0**; `learning_rate` 0.02: 50.0" in page.text(
        table, drawn=False
    )
    assert table.search is not None
    last = {"diverged": {"row": ({"learning_rate": 0.01},)}}
    stages = (table.search.stages[0], table.search.stages[1].model_copy(update=last))
    plan = table.search.model_copy(update={"stages": stages})
    table = table.model_copy(update={"search": plan})
    assert search.best(table, "row") == {"learning_rate": 0.02}
    told = "`learning_rate` 0.01: 60.0, diverges with all clients; `learning_rate` 0.02: **50.0**"
    assert told in page.text(table, drawn=False)


def test_a_search_writes_run_files_and_drops_results_of_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = searched_table(small_table(tmp_path, monkeypatch, rounds=3))
    monkeypatch.setattr(tables, "names", lambda: ["small"])
    monkeypatch.setattr(tables, "load", lambda _: table)
    monkeypatch.setattr(rows, "score", lambda *given: float(given[4]["learning_rate"]))
    rows.run_row(table, "row", 0, tmp_path, FOREVER)
    searched(table, tmp_path)
    assert results.saved("small", "row", 0) is None
    for name in ("row", "other"):
        assert parse(table.run_file(name, 0)).settings["learning_rate"] == 0.02
    assert (
        "learning_rate" not in (tmp_path / "small" / "row.toml").read_text().split("[simulate]")[1]
    )
    found = rows.run_row(table, "row", 0, tmp_path, FOREVER)
    search.apply()
    assert results.saved("small", "row", 0) == found


def test_scores_of_what_is_no_candidate_any_more_count_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = searched_table(small_table(tmp_path, monkeypatch, rounds=3))
    monkeypatch.setattr(tables, "names", list)
    monkeypatch.setattr(rows, "score", lambda *given: float(given[4]["learning_rate"]))
    searched(table, tmp_path)
    assert search.best(table, "row") == {"learning_rate": 0.02}
    content = table.model_dump()
    content["search"]["stages"][1]["candidates"] = {
        "row": [{"learning_rate": 0.001}, {"learning_rate": 0.01}]
    }
    changed = tables.Table.model_validate(content)
    assert search.best(changed, "row") is None, "one of two has no score yet"
    searched(changed, tmp_path)
    assert search.best(changed, "row") == {"learning_rate": 0.01}
    content["search"]["stages"] = content["search"]["stages"][:1]
    fewer = tables.Table.model_validate(content)
    searched(fewer, tmp_path)
    assert search.best(fewer, "row") == {"learning_rate": 0.2}


def test_what_runs_beside_a_candidate_that_fails_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = searched_table(small_table(tmp_path, monkeypatch, rounds=3))
    monkeypatch.setattr(tables, "names", list)
    failed = Event()

    def score(*given: object) -> float:
        settings: rows.Settings = given[4]  # type: ignore[assignment]
        if settings["learning_rate"] == 0.1:
            failed.set()
            raise SystemExit("the disk is full")
        assert failed.wait(30)
        time.sleep(0.2)
        return 50.0

    monkeypatch.setattr(rows, "score", score)
    with ThreadPoolExecutor(2) as pool, pytest.raises(SystemExit, match="disk is full"):
        search.search(table, tmp_path, [], "cpu", pool)
    assert search.found("small")["row"][0].settings == {"learning_rate": 0.2}
    busy = lock_directory(rows.WORK / "small" / "search")
    with busy, pytest.raises(SystemExit, match="another search of small"):
        searched(table, tmp_path)


def test_candidates_of_rows_for_a_gpu_are_scored_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = searched_table(small_table(tmp_path, monkeypatch, rounds=3))
    row = table.rows[0].model_copy(update={"gpu": True})
    table = table.model_copy(update={"rows": (row, *table.rows[1:])})
    monkeypatch.setattr(tables, "names", list)
    asked: list[object] = []
    monkeypatch.setattr(rows, "score", lambda *given: asked.append(given[6]) or 1.0)
    searched(table, tmp_path)
    assert not asked
    with ThreadPoolExecutor(1) as pool:
        search.search(table, tmp_path, [], "cuda", pool)
    assert asked == ["cuda"] * 4


def test_every_row_of_a_stage_has_the_same_number_of_candidates() -> None:
    uneven = {"clients": 1, "rounds": 1, "candidates": {"a": [{"x": 1}], "b": [{"x": 1}, {"x": 2}]}}
    with pytest.raises(ValueError, match="same number of candidates"):
        tables.Stage.model_validate(uneven)
    strange = {"clients": 1, "rounds": 1, "candidates": {"a": [{"x": 1}]}}
    with pytest.raises(ValueError, match="is no candidate of this stage"):
        tables.Stage.model_validate({**strange, "diverged": {"a": [{"x": 2}]}})


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


def test_a_candidate_scores_zero_where_it_diverges_and_no_other_failure_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = small_table(tmp_path, monkeypatch, rounds=3)
    stage = tables.Stage(clients=2, rounds=2, candidates={})
    plan = tables.Search(validate_share=0.2, stages=(stage,))
    assert rows.score(table, plan, stage, "row", {"learning_rate": 1e30}, tmp_path) == 0
    assert rows.score(table, plan, stage, "row", {"learning_rate": 0.1}, tmp_path) > 0
    broken = table.model_copy(update={"data": f"{table.data}&no-such-option=1"})
    with pytest.raises(SystemExit, match=r"small/row is paused: .*no-such-option"):
        rows.score(broken, plan, stage, "row", {"learning_rate": 0.1}, tmp_path)


def test_a_stage_has_its_clients_own_data_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, seen, texts = tables.load("quped-2-cifar10-full"), [], []

    def noted(text: str, population: Population, **_: object) -> None:
        texts.append(text)
        seen.extend(population.clients)
        raise KeyboardInterrupt

    monkeypatch.setattr(rows, "simulate", noted)
    stage = table.search.stages[0].model_copy(update={"settings": {"lr_decay": 0.5}})
    with pytest.raises(KeyboardInterrupt):
        rows.score(table, table.search, stage, "quped", {"learning_rate": 0.1}, tmp_path)
    expected = parse(table.run_file("quped", 0)).clients.expected
    assert len(seen) == stage.clients < expected
    for number, client in enumerate(seen):
        assert f"?clients={expected}&client={number}&" in client.data
    settings = parse(texts[0]).settings
    assert (settings["lr_decay"], settings["learning_rate"]) == (0.5, 0.1)
