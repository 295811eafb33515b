"""The heat map of bit-widths: what it reads out of a record, and that digits say all of it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, runfile
from rich.console import Console

from fedserver.display import TABLE_LINES, live_map, newest_widths, show_widths
from fedserver.errors import UnknownRunError, WidthsError
from fedserver.heat_image import write_png
from fedserver.heat_map import heat_map
from fedserver.widths import round_widths
from motley.errors import MotleyError

LAYERS = {"conv1": 10, "conv2": 30, "fc": 60}


def task(planned: dict[str, int], sent: dict[str, int]) -> dict[str, Any]:
    return {"status": "counted", "bits": planned, "sent_bits": sent}


def record(**changes: Any) -> dict[str, Any]:
    """Return a run's record: two closed rounds, and a third one under way."""
    first = task({"conv1": 2, "conv2": 2, "fc": 2}, {"conv1": 2, "conv2": 2, "fc": 2})
    second = task({"conv1": 8, "conv2": 6, "fc": 1}, {"conv1": 8, "conv2": 4, "fc": 1})
    done = {"kind": "train", "status": "closed"}
    return {
        "name": "mixed",
        "id": "ab12",
        "status": "running",
        "algorithm": "fedmpq",
        "round": 2,
        "layers": {"net": LAYERS},
        "clients": [{"name": n, "tier": "b2", "variant": "net"} for n in ("c0", "c1")],
        "history": [
            {**done, "round": 1, "status": "abandoned", "clients": {"c0": task({}, {})}},
            {**done, "round": 1, "clients": {"c0": first, "c1": first}},
            {**done, "round": 2, "clients": {"c1": task({"fc": 3}, {}), "c0": second}},
        ],
        "current": {
            "kind": "train",
            "round": 3,
            "status": "open",
            "clients": {"c0": "taken"},
            "widths": {"c0": {"bits": {"fc": 7}, "sent_bits": {}}},
        },
        **changes,
    }


def lines(document: dict[str, Any], columns: int = 80, number: int = 0) -> list[str]:
    """Return the map as it looks without colours."""
    console = Console(width=columns, color_system=None, file=open("/dev/null", "w"), record=True)  # noqa: SIM115
    console.print(heat_map(round_widths(document, number), columns), highlight=False)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_digits_say_what_was_planned_and_what_came() -> None:
    assert lines(record()) == [
        "round 2 (closed): bits of each layer; 6₄: 6 planned, 4 sent; · full precision",
        "client  tier       mean  1  2  3",
        # (8 * 10 + 6 * 30 + 1 * 60) / 100 = 3.2, and 2.6 with 4 bits for conv2
        "c0      b2    3.20>2.60  8  6₄ 1",
        "c1      b2         3.00  ·  ·  3",
        "1 conv1  2 conv2  3 fc",
    ]


def test_a_narrow_terminal_gets_blocks_of_layers() -> None:
    found = lines(record(), 31)
    assert [line[24:] for line in found if line.startswith("c0")] == [" 8  6₄", " 1"]
    assert all(len(line) <= 31 for line in found[1:])


def test_the_round_that_is_open_shows_what_is_planned() -> None:
    found = round_widths(record(), 3)
    assert (found.status, found.clients[0].planned, found.clients[0].sent) == (
        "open",
        {"fc": 7},
        {},
    )
    alone = round_widths(record(round=0, history=[], current={**record()["current"], "round": 1}))
    assert (alone.round, alone.status) == (1, "open")


def test_colours_follow_the_planned_width() -> None:
    spans = heat_map(round_widths(record()), 80).renderables[2].spans  # type: ignore[attr-defined]
    assert [span.style.bgcolor.name for span in spans] == ["#fde725", "#4ac16d", "#440154"]
    assert [span.style.color.name for span in spans] == ["#000000", "#000000", "#ffffff"]


def test_rounds_that_are_not_there_are_named() -> None:
    with pytest.raises(UnknownRunError, match=r"no training round 9 .* there is: 1 to 3"):
        round_widths(record(), 9)
    with pytest.raises(UnknownRunError, match=r"ab12, queued.* there is: none so far"):
        round_widths(record(status="queued", round=0, history=[], current=None))


def test_a_run_in_full_precision_has_no_map() -> None:
    entry = {"kind": "train", "status": "closed", "round": 1, "clients": {"c0": task({}, {})}}
    plain = record(algorithm="fedavg", round=1, history=[entry], current=None)
    with pytest.raises(WidthsError, match="round 1 of run mixed gave no layer a bit-width: fedavg"):
        round_widths(plain)


def test_the_picture_grows_with_the_map(tmp_path: Path) -> None:
    def size(layers: int, clients: int) -> tuple[int, int]:
        names = [f"layer{n:02}" for n in range(layers)]
        tasks = {
            f"c{n}": task(dict.fromkeys(names, 8), dict.fromkeys(names, 7)) for n in range(clients)
        }
        document = record(
            layers={"net": dict.fromkeys(names, 1)},
            clients=[{"name": name, "tier": "t", "variant": "net"} for name in tasks],
            history=[{"kind": "train", "status": "closed", "round": 2, "clients": tasks}],
        )
        target = tmp_path / "bits.png"
        assert write_png(round_widths(document), target) == target.stat().st_size
        head = target.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", head[16:])
        return width, height

    small, large = size(4, 2), size(44, 10)
    # 0.32 inches a cell at 150 dots an inch; a label beside few rows is taller than they are.
    assert large[0] - small[0] == pytest.approx(40 * 48, abs=8)
    assert large[1] - small[1] == pytest.approx(8 * 48, abs=40)
    assert [path.name for path in tmp_path.iterdir()] == ["bits.png"]


def test_the_command_prints_numbers_or_writes_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_widths(record(), 0, None, as_json=True)
    assert '"planned": {"conv1": 8, "conv2": 6, "fc": 1}' in capsys.readouterr().out
    show_widths(record(), 2, tmp_path / "b.png", as_json=False)
    assert capsys.readouterr().out.startswith(f"{tmp_path}/b.png: ")
    with pytest.raises(MotleyError, match="name a file in a folder that exists"):
        show_widths(record(), 2, tmp_path / "none" / "b.png", as_json=False)


def test_the_live_view_has_the_map_where_the_terminal_is_tall_enough() -> None:
    def shown(height: int) -> int:
        console = Console(width=80, height=height, force_terminal=True)
        parts = live_map(round_widths(record()), console, clients=2)
        return sum(len(part.renderables) for part in parts)

    assert [shown(TABLE_LINES + 2 + spare) for spare in (5, 4, 3, 0)] == [5, 4, 0, 0]
    assert newest_widths(record()).round == 3  # type: ignore[union-attr]
    between = record(current=None, history=[])
    assert newest_widths(between) is None


TIERS = """
[[tiers]]
name = "pc"
variant = "cnn2"
[[tiers]]
name = "phone"
variant = "cnn1"
bits = 2
"""


def test_tiers_of_quped_show_beside_those_in_full_precision(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.arrive("c0", tier="phone")
    bench.arrive("c1", tier="pc")
    run = bench.submit(runfile(sections=TIERS).replace('"fedavg"', '"quped"'))
    found = round_widths(bench.record(run))
    assert found.layers == ("conv2", "conv3", "fc1", "fc2")
    phone, pc = found.clients
    assert set(phone.planned.values()) == {2}
    assert phone.average(phone.planned) == 2
    assert pc.planned == {}
    assert set(pc.weights) == set(found.layers)
    assert set(phone.weights) < set(found.layers)
