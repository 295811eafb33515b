"""What people read of clients and runs, at the widths of their terminals."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from fedserver import display

BUILT_IN = "cifar10, cifar100, digits, emnist-letters, fashion-mnist, mnist, shakespeare, text"


def client(name: str, **other: Any) -> dict[str, Any]:
    """Return a client's record as the server tells it."""
    return {
        "name": name,
        "here": True,
        "last_seen_seconds": 3.0,
        "set_aside": "",
        "set_aside_seconds": 0.0,
        "tier": "phone",
        "cores": 2,
        "memory_bytes": 25.3e9,
        "accelerator": "",
        "workloads": dict.fromkeys(BUILT_IN.split(", "), 1),
        "task": "",
        "certificate_expires": 1.8e9,
        "revoked": "",
        **other,
    }


CROWD = [
    client("desk"),
    client("pi", workloads={"digits": 1, "wine": 1}, task="7b1c5a90d2e4"),
    client("jetson-in-the-greenhouse", accelerator="cuda: Orin (8.1 GB)"),
    client("lost", cores=0, memory_bytes=0, workloads={}, revoked="left on the train to the coast"),
    client("odd", set_aside="wrong digests again and again", set_aside_seconds=600.0),
]


def printed(
    records: list[dict[str, Any]], width: int, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Return the lines that a terminal of a width shows."""
    screen = io.StringIO()
    monkeypatch.setattr(display, "console", lambda **_: Console(file=screen, width=width))
    display.print_clients(records)
    return screen.getvalue().splitlines()


@pytest.mark.parametrize("width", [100, 80])
def test_clients_fit_the_terminal_and_nothing_is_cut(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(CROWD, width, monkeypatch)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    # Without what frames and folds it, every word is there.
    cells = "".join("".join(line).translate(dict.fromkeys(map(ord, " │"))) for line in lines)
    for record in CROWD:
        assert record["name"][:8] in cells
    text = " ".join(" ".join(lines).split())
    assert f"workloads of desk, jetson-in-the-greenhouse, odd: {BUILT_IN}" in text
    assert "workloads of pi: digits, wine" in text


def test_a_pipe_gets_a_hundred_columns(capsys: pytest.CaptureFixture[str]) -> None:
    display.print_clients(CROWD)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("jetson-in-the-greenhouse" in line for line in lines)


def test_workloads_that_all_have_take_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed([client("desk"), client("pi")], 120, monkeypatch)
    assert lines[-1] == f"workloads of all: {BUILT_IN}"
    assert max(map(len, lines[:-1])) <= 80


def round_of(number: int, kind: str = "train") -> dict[str, Any]:
    return {
        "round": number,
        "kind": kind,
        "status": "closed",
        "reason": "",
        "seconds": {"collect": 0.5},
        "metrics": {"loss": 0.25},
        "clients": {"desk": {"status": "counted"}},
    }


def record(status: str, *history: dict[str, Any]) -> dict[str, Any]:
    return {"name": "wine", "status": status, "reason": "", "rounds": 4, "history": list(history)}


BEFORE = [round_of(1), round_of(2), round_of(2, "evaluate")]


@pytest.mark.parametrize(
    ("whole", "shown"),
    [
        (True, ["1/4 train", "2/4 train", "2/4 evaluate", "3/4 train"]),
        (False, ["2/4 train", "2/4 evaluate", "3/4 train"]),
    ],
)
def test_watching_begins_at_the_newest_round(
    whole: bool, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = [record("running", *BEFORE), record("running", round_of(3)), record("finished")]
    assert display.follow(told, whole=whole) == "finished"
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(" closed")[0] for line in lines] == [f"wine round {one}" for one in shown]
    assert last == "run wine is finished"


def test_a_held_out_set_that_failed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    failed = {**round_of(1, "evaluate"), "reason": "held-out set: no file x.csv"}
    display.follow([record("running", failed)], whole=True)
    assert "loss 0.2500; held-out set: no file x.csv\n" in capsys.readouterr().out


def test_ids_stay_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(display, "console", lambda **_: Console(file=screen, width=60))
    amounts = {"round": 120, "rounds": 1000, "bytes_down": 8.5e8, "bytes_up": 8.5e8}
    display.print_runs(
        [{"id": "d108ada0", "name": "digits-quped", "status": "preparing", "reason": "", **amounts}]
    )
    token = {"state": "usable", "uses": 10, "uses_left": 6, "expires": 1.8e9, "client": "desk"}
    display.print_tokens([{"id": "a8e669150519", **token}])
    assert "d108ada0" in screen.getvalue()
    assert "a8e669150519" in screen.getvalue()
    assert "…" not in screen.getvalue()


def test_watching_a_run_without_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert display.follow([record("stopped")], whole=False) == "stopped"
    assert capsys.readouterr().out == "run wine is stopped\n"


def test_facts_are_aligned_and_never_folded(capsys: pytest.CaptureFixture[str]) -> None:
    display.print_facts({"authority": "/home/" + "x" * 200, "for": "any new client"})
    first, second = capsys.readouterr().out.splitlines()
    assert first.index("/home/") == second.index("any")
