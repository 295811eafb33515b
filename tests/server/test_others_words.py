"""Words of devices and of run files on the operator's terminal: shown as they are, no more."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from bench import Bench, runfile
from rich.progress import Progress
from rich.text import Text
from test_display import client

from fedserver import cli, display
from fedserver.heat_map import heat_map
from fedserver.rounds.view import list_runs
from fedserver.simulate.progress import Bar, Closed, Lines
from fedserver.widths import ClientWidths, RoundWidths
from motley.errors import MotleyError
from motley.task import TaskKind
from motley.terminal import PlainConsole

ODD = ("[/phone]", "[storage] [red]full[/red]", ":smile: [link=x]", "\x1b[2J\x1b]0;owned\x07\rx")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the operator's console fold nothing."""
    real = display.console
    monkeypatch.setattr(display, "console", lambda **given: real(**{**given, "piped": 400}))


def text_of(printed: str) -> str:
    """Return what is printed, without frames and blanks; no command may be in it."""
    assert "\x1b" not in printed
    assert "\r" not in printed
    return "".join(printed.translate(dict.fromkeys(map(ord, "│┃"))).split())


def shown(words: str) -> str:
    """Return how words are to be shown."""
    for command, name in (("\x1b", "\\x1b"), ("\x07", "\\x07"), ("\r", "; ")):
        words = words.replace(command, name)
    return "".join(words.split())


@pytest.mark.parametrize("words", ODD)
def test_clients_may_say_anything(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    display.print_clients([client("c0", tier=words), client("c1", accelerator=words)])
    display.print_clients([client("c2", workloads={words: 1})])
    assert text_of(capsys.readouterr().out).count(shown(words)) == 3


@pytest.mark.parametrize("words", ODD)
def test_a_run_whose_device_fails_is_shown_with_its_words(
    words: str, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.arrive("c0", "c1")
    run_id = bench.submit(runfile(clients=2))
    task = bench.task("c1")
    bench.desk.report_failure("c1", task.task_id, "data", words, permanent=True)
    bench.settle()
    record = bench.record(run_id)
    capsys.readouterr()
    display.print_run(record)
    assert shown(words) in text_of(capsys.readouterr().out)
    display.print_runs([{**run, "reason": words} for run in list_runs(bench.engine)])
    assert shown(words) in text_of(capsys.readouterr().out)
    display.follow([{**record, "reason": words}])
    assert shown(words) in text_of(capsys.readouterr().out)


TASK: Any = SimpleNamespace(kind=TaskKind.TRAIN, round=1)


def closed(words: str) -> Closed:
    return Closed(
        round=1,
        kind="train",
        status="abandoned",
        reason=words,
        counted=0,
        seconds={},
        metrics={f"{words}loss": 0.5},
    )


@pytest.mark.parametrize("words", ODD)
def test_a_simulation_may_say_anything(words: str) -> None:
    for live in (False, True):
        stream = io.StringIO()
        screen = PlainConsole(file=stream, width=300)
        if live:
            with Progress(*Bar.columns(), console=screen) as progress:
                bar = Bar(progress, "demo", 3)
                bar.closed(closed(words))
                bar.answered(TASK)
        else:
            Lines(screen, "demo", 3).closed(closed(words))
        assert shown(words) in text_of(stream.getvalue())


def test_the_live_head_and_the_heat_map_are_cleaned() -> None:
    record: dict[str, Any] = {"name": ODD[3], "id": "r1", "reason": ODD[0], "status": "running"}
    record |= {"rounds": 3, "round": 1, "bytes_down": 1, "bytes_up": 1}
    one = ClientWidths(
        name="c0",
        tier=ODD[3],
        variant="m",
        status="counted",
        weights={ODD[3]: 4},
        planned={},
        sent={},
    )
    widths = RoundWidths(
        run="demo",
        round=1,
        status="closed",
        layers=(ODD[3],),
        clients=(one,),
    )
    stream = io.StringIO()
    screen = PlainConsole(file=stream, width=300)
    screen.print(display._head(record), heat_map(widths, 300), Text("[ours]"))
    found = text_of(stream.getvalue())
    assert found.count("\\x1b[2J") == 3
    assert ODD[0] in found
    assert "[ours]" in found


def test_an_errors_words_are_cleaned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise MotleyError(f"no run {ODD[3]}")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    assert "\\x1b[2J" in text_of(capsys.readouterr().err)
