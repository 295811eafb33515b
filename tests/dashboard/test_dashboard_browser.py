"""The live page in a real Chromium: a run from submit to finish, and a long run of many clients.

`MOTLEY_SCREENSHOT=FILE` keeps the picture that docs/dashboard.md shows.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from browser import browser, complaints, renderer_bytes, requests
from crowd import RUN_ID, make_crowd, name_of
from federation import federation, until
from test_dashboard_http import CLIENTS, EXAMPLES

pytestmark = pytest.mark.processes

RUN = (EXAMPLES / "fedmpq-digits.toml").read_text().replace("every = 4", "every = 1")
PEOPLE, ROUNDS = 200, 500
MOST_SECONDS, MOST_BYTES = 2.0, 100e6
LOADS = 4


def texts(page: Any, selector: str) -> list[str]:
    """Return the text of all that matches, without the browser's look at visibility."""
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
    found: list[str] = page.execute_script(script, selector)
    return found


def rows(page: Any, table: str) -> list[list[str]]:
    """Return a table's body, cell by cell."""
    script = (
        "return [...document.getElementById(arguments[0]).tBodies[0].rows]"
        ".map(r => [...r.cells].map(c => c.textContent))"
    )
    found: list[list[str]] = page.execute_script(script, table)
    return found


def focused(page: Any) -> str:
    """Return what the keyboard is on: its id, or its text."""
    script = "const e = document.activeElement; return e.id || e.textContent.trim()"
    return str(page.execute_script(script))


def test_a_run_is_watched_from_submit_to_finish(tmp_path: Path) -> None:
    with federation(tmp_path) as bench, browser(size="1500,1250") as page:
        bench.serve("--dashboard", "127.0.0.1:0")
        address = bench.ports["dashboard"]
        page.get(f"http://{address}/")
        until(lambda: page.execute_script("return document.body.dataset.shown"), "the page is up")
        assert texts(page, "#no-runs:not([hidden])"), "no run yet"
        for index, (name, tier) in enumerate(CLIENTS.items()):
            bench.client(name, f"digits?clients=4&client={index}", "--tier", tier)
        run = bench.submit(RUN)
        # Nobody reloads the page from here on.
        until(lambda: texts(page, "#run-heading") == ["Run fedmpq-digits"], "the run appears")
        until(lambda: "running" in rows(page, "runs")[0][1], "it runs")
        record = bench.finished(run)
        until(lambda: rows(page, "runs")[0][1:3] == ["finished", "8 of 8"], "the page says so")
        until(lambda: [r[3] for r in rows(page, "clients")] == ["finished"] * 4, "clients too")
        _compare(page, record)
        events = texts(page, "#events b")
        for event in ("run_submitted", "client_enrolled", "update_received", "run_finished"):
            assert event in events
        assert events.count("round_closed") == 8
        _use_the_keyboard(page)
        asked = requests(page)
        assert asked
        assert {url.split("/")[2] for url in asked if not url.startswith("data:")} == {address}
        assert complaints(page) == []
        if "MOTLEY_SCREENSHOT" in os.environ:
            _picture(page, os.environ["MOTLEY_SCREENSHOT"])


def _picture(page: Any, file: str) -> None:
    """Save the whole page, whatever its height."""
    page.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    height = 1000
    for _ in range(3):  # the height follows from the width, which loses its scroll bar
        view = {"width": 1500, "height": height, "deviceScaleFactor": 1, "mobile": False}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
        time.sleep(1)  # for the picture alone: charts grow to the new width
        height = page.execute_script("return document.documentElement.scrollHeight")
    page.save_screenshot(file)


def _compare(page: Any, record: dict[str, Any]) -> None:
    """Hold what is on the page to the run's record."""
    newest = [e for e in record["history"] if e["kind"] == "evaluate"][-1]
    by_name = {row[0]: row for row in rows(page, "clients")}
    tiers = {row[0]: row for row in rows(page, "tiers")}
    widths = {row[0]: row for row in rows(page, "widths")}
    trained = [e for e in record["history"] if e["kind"] == "train"][-1]
    for name, tier in CLIENTS.items():
        accuracy = f"{100 * newest['clients'][name]['metrics']['accuracy']:.1f} %"
        assert by_name[name][4] == accuracy
        assert tiers[tier][1:] == ["1", accuracy, accuracy, accuracy]
        assert by_name[name][5] == "8", "updates counted"
        planned = trained["clients"][name]["bits"].values()
        assert [cell[0] for cell in widths[name][3:]] == [str(bits) for bits in planned]
    timeline = rows(page, "rounds")
    assert [row[0] for row in timeline] == [str(e["round"]) for e in record["history"][::-1]]
    saved = dict(zip(texts(page, "#saved dt"), texts(page, "#saved dd"), strict=True))
    assert 0 < float(saved["Of uploads"].split(" ")[0]) < 100
    assert page.execute_script("return document.querySelectorAll('.chart canvas').length") == 3


def _use_the_keyboard(page: Any) -> None:
    """Reach the run without a mouse, and check what a screen reader is told."""
    from selenium.webdriver.common.keys import Keys

    def press(*keys: str) -> None:
        page.switch_to.active_element.send_keys(*keys)

    page.execute_script("document.activeElement.blur(); document.body.tabIndex = -1")
    page.execute_script("document.body.focus()")
    press(Keys.TAB)
    assert focused(page) == "Skip to the run"
    press(Keys.TAB, Keys.NULL)
    for _ in range(3):
        if focused(page) == "fedmpq-digits":
            break
        press(Keys.TAB)
    assert focused(page) == "fedmpq-digits"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.execute_script(outline) == "solid", "where the keyboard is can be seen"
    press(Keys.ENTER)
    assert focused(page) == "fedmpq-digits", "focus stays when the table is written anew"
    named = (
        "return [...document.querySelectorAll('canvas')]"
        ".every(c => c.closest('[role=img]').getAttribute('aria-label'))"
    )
    assert page.execute_script(named)
    assert page.execute_script("return document.getElementById('events').ariaLive") == "polite"
    unscoped = "th:not([scope])"
    assert texts(page, unscoped) == []
    levels = "return [...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])"
    found = page.execute_script(levels)
    assert found[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(found))


def busy() -> float:
    """Return how many times longer work takes here now than on a processor of its own."""
    begin, spent = time.monotonic(), time.process_time()
    while time.process_time() - spent < 0.2:
        sum(range(10_000))
    return max(1.0, (time.monotonic() - begin) / (time.process_time() - spent))


def _load(page: Any, url: str) -> float:
    """Open the crowd's page; return the seconds from asking for it until all of it is drawn."""
    page.get(url)
    shown = "return document.body.dataset.shown"
    until(lambda: page.execute_script(shown) == RUN_ID, "the page is up")
    mark = "return performance.getEntriesByName('shown')[0].startTime"
    return float(page.execute_script(mark)) / 1000


@pytest.mark.alone
def test_a_long_run_of_many_clients_loads_at_once(tmp_path: Path) -> None:
    with federation(tmp_path) as bench, browser() as page:
        make_crowd(bench.data, PEOPLE, ROUNDS)
        bench.serve("--dashboard", "127.0.0.1:0")
        url = f"http://{bench.ports['dashboard']}/"
        taken = []
        for _ in range(LOADS):
            page.get("about:blank")
            before = busy()
            seconds = _load(page, url)
            taken.append((seconds, min(before, busy())))
        heap = page.execute_script("return performance.memory.usedJSHeapSize")
        resident = renderer_bytes(page)
        print(json.dumps({"seconds, busy": taken, "heap": heap, "renderer": resident}))
        assert len(rows(page, "clients")) == len(rows(page, "widths")) == PEOPLE
        assert rows(page, "clients")[-1][0] == name_of(PEOPLE - 1)
        assert rows(page, "runs")[0][2] == f"{ROUNDS} of {ROUNDS}"
        # The first load apart: it also waits until the server has read the run from the disk.
        assert statistics.median(seconds for seconds, _ in taken[1:]) < MOST_SECONDS
        assert heap < MOST_BYTES
        assert resident < MOST_BYTES
