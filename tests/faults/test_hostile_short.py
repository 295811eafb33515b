"""A thousand hostile inputs against a live server with certificates; `make faults` sends more."""

from __future__ import annotations

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from federation import federation
from hostile import attack

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


def test_hostile_inputs_are_refused_by_name_and_healthy_clients_go_on(tmp_path: Path) -> None:
    outcome = attack(tmp_path, inputs=1000, seed=3, rounds=100_000)
    assert outcome.problems() == []
    assert sum(outcome.statuses.values()) == 1000
    kinds = {kind for kind, _ in outcome.statuses}
    assert len([kind for kind in kinds if "certificate" in kind]) >= 10, "of every wrong kind"
    assert len([kind for kind in kinds if "token" in kind]) >= 6
    assert outcome.rounds_beside >= 2


def test_a_flood_of_handshakes_does_not_end_the_server(tmp_path: Path) -> None:
    """Many at once that break off: what gRPC shares between handshakes must not go under them."""
    with federation(tmp_path, []) as bench:
        bench.serve()
        host, _, port = bench.address.rpartition(":")
        stranger = ssl.create_default_context()
        stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
        stranger.set_alpn_protocols(["h2"])

        def knock(number: int) -> None:
            with suppress(OSError), socket.create_connection((host, int(port)), 10) as stream:
                if number % 3:
                    stranger.wrap_socket(stream).close()
                else:
                    stream.sendall(b"GET / HTTP/1.1\r\n\r\n")

        with ThreadPoolExecutor(8) as strangers:
            list(strangers.map(knock, range(2000)))
        assert bench.processes["server"].poll() is None
        assert bench.join("c0").returncode == 0, "and lets in who has a token"
