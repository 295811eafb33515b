"""The search for settings: level, on validation data, to be stopped, and what it decides."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from test_paper_tables import FOREVER, page, results, rows, search, small_table, tables

from fedserver.simulate.population import Population
from fedserver.storage.database import lock_directory
from motley.runfile import parse


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
    # The free worker may have begun another before the failure was heard of: it is kept too.
    kept = [one.settings for one in search.found("small")["row"]]
    assert {"learning_rate": 0.2} in kept
    assert {"learning_rate": 0.1} not in kept
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
