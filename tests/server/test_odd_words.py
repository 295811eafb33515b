"""What devices and operators say that is no number, no address, or far too long."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest
from bench import Bench
from sqlalchemy import update

from fedserver.dashboard.events import EventFeed
from fedserver.display import metrics_text
from fedserver.errors import AddressError, ProtocolError
from fedserver.listeners import split_address
from fedserver.rounds import lines, view
from fedserver.rounds.closing import mean_metrics
from fedserver.service.requests import LONGEST_WORDS, arrival_of
from fedserver.storage.schema import clients
from motley.wire.stubs import common_pb2, federation_pb2

SPEEDS = ("probe_gflops", "download_bytes_per_second", "upload_bytes_per_second")


def check_in(
    profile: dict[str, Any] | None = None, **capabilities: Any
) -> federation_pb2.CheckInRequest:
    """Return a check-in that says all this."""
    return federation_pb2.CheckInRequest(
        name="c0",
        session="s",
        capabilities=common_pb2.Capabilities(protocol=1, **capabilities),
        profile=common_pb2.DeviceProfile(cores=1, **(profile or {})),
    )


def parsed(text: str) -> Any:
    """Read JSON as browsers do, which know no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_a_measurement_that_is_no_number_is_not_known(value: float) -> None:
    said = check_in(dict.fromkeys(SPEEDS, value))
    arrival = arrival_of(said, 0.0, 0)
    assert [getattr(arrival.profile, name) for name in SPEEDS] == [0.0, 0.0, 0.0]
    assert arrival.profile == arrival_of(said, 1.0, 1).profile, "it says the same again"
    good = arrival_of(check_in(dict.fromkeys(SPEEDS, 1.5)), 0.0, 0).profile
    assert [getattr(good, name) for name in SPEEDS] == [1.5, 1.5, 1.5]


def test_long_words_are_cut_and_long_names_refused() -> None:
    long = "a" * 500_000
    arrival = arrival_of(check_in({"accelerator": long, "architecture": long}, software=long), 0, 0)
    profile = arrival.profile
    said = (profile.accelerator, profile.architecture, arrival.capabilities.software)
    assert {len(words) for words in said} == {LONGEST_WORDS}
    for encodings in ([long], ["dense"] * 65):
        with pytest.raises(ProtocolError, match="encodings: expected up to 64 entries"):
            arrival_of(check_in(encodings=encodings), 0.0, 0)


def test_records_are_json_whatever_is_in_them(bench: Bench) -> None:
    bench.arrive("c0")
    with bench.engine.database.begin() as tx:  # as a server of before kept it
        row = tx.execute(clients.select()).one()
        tx.execute(update(clients).values(profile={**row.profile, "probe_gflops": math.nan}))
    [record] = view.list_clients(bench.engine)
    assert parsed(json.dumps(record))["probe_gflops"] is None
    said = {"metrics": [{"loss": math.inf}, {"loss": 0.5}], "reason": "NaN", "round": 1}
    expected = {"metrics": [{"loss": None}, {"loss": 0.5}], "reason": "NaN", "round": 1}
    assert parsed(lines.to_json(said)) == expected


def test_events_are_json_whatever_is_in_them() -> None:
    async def body() -> None:
        feed = EventFeed()
        feed(None, "info", {"event": "e", "seconds": math.nan, "left": 1.5})
        assert parsed(feed.after(0)[0].text)["fields"] == {"seconds": "nan", "left": 1.5}

    asyncio.run(body())


def test_a_mean_that_is_no_number_is_left_out() -> None:
    class Row:
        def __init__(self, client: str) -> None:
            self.client, self.metrics = client, {"loss": 1.7e308, "accuracy": 0.5}

    assert mean_metrics([Row("a"), Row("b")]) == {"accuracy": 0.5}


def test_a_mean_that_was_no_number_is_shown_as_missing() -> None:
    found = parsed(lines.to_json({"loss": math.inf, "accuracy": 0.5}))
    assert metrics_text(found) == "accuracy 0.5000, loss -"


def test_a_port_is_a_number() -> None:
    with pytest.raises(AddressError, match="expected HOST:PORT"):
        split_address("127.0.0.1:²")
