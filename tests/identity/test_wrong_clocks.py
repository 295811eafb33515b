"""Clocks of either side that are wrong for a while: nothing that counts is lost, or comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import ManualClock

from fedserver.errors import RevokedError
from fedserver.identity.authority import DAY, Authority, Settings
from fedserver.identity.registry import MOST_CERTIFICATES, Registry
from fedserver.storage.database import open_database
from motley.identity.certificates import read_certificate
from motley.identity.keys import new_key, signing_request


class Records:
    """A registry whose clock the test sets, and starts of its server anew."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.clock = ManualClock()
        self.clock.now = 1.8e9
        self.authority = Authority.create(root, Settings(host="h"), self.clock)
        self.database = open_database(root)
        self.registry = self.started()

    def started(self) -> Registry:
        return Registry(self.database, self.authority, self.clock)

    def joined(self, name: str, client: str = "") -> str:
        """Let a device join; returns the serial number of its certificate."""
        token, _ = self.registry.create_token(1, 600, client, "h:1")
        request = signing_request(new_key())
        issued = self.registry.enrol(token.id, token.secret, name, request)
        return read_certificate(issued.certificate).serial

    def renewed(self, name: str) -> str:
        issued = self.registry.renew(name, signing_request(new_key()))
        return read_certificate(issued.certificate).serial


def test_what_was_revoked_stays_so_when_the_servers_clock_was_ahead(tmp_path: Path) -> None:
    records = Records(tmp_path)
    stolen = records.joined("c0")
    records.joined("c0", client="c0")
    records.clock.now += 365 * DAY
    ahead = records.started()
    records.renewed("c0")
    records.clock.now -= 365 * DAY
    for registry in (records.registry, ahead, records.started()):
        with pytest.raises(RevokedError, match="another device joined in its place"):
            registry.check("c0", stolen)


def test_what_seemed_to_have_run_out_is_revoked_with_the_rest(tmp_path: Path) -> None:
    records = Records(tmp_path)
    stolen = records.joined("c0")
    records.clock.now += 365 * DAY
    records.renewed("c0")
    records.clock.now -= 365 * DAY
    records.joined("c0", client="c0")
    with pytest.raises(RevokedError):
        records.started().check("c0", stolen)


def test_the_record_of_a_device_that_renews_for_ever_does_not_grow(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.joined("c0")
    for _ in range(3 * MOST_CERTIFICATES):
        records.clock.now += 100 * DAY
        records.renewed("c0")
    struck = records.registry.revoke_client("c0", "stolen")["certificates"]
    assert struck == MOST_CERTIFICATES + 1
