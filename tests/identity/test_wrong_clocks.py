"""Clocks of either side that are wrong for a while: nothing that counts is lost, or comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from renewal_cases import Records

from fedserver.errors import RevokedError
from fedserver.identity.authority import DAY
from fedserver.identity.registry import MOST_CERTIFICATES


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
