"""Clocks of either side that are wrong for a while: nothing that counts is lost, or comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from renewal_cases import Device, Records, after, due

from fedclient.errors import CertificateError
from fedclient.identity.renewal import LONGEST_WAIT, LOOKS_AGAIN
from fedserver.errors import RevokedError
from fedserver.identity.authority import DAY, Authority, Settings
from fedserver.identity.registry import MOST_CERTIFICATES
from motley.identity.keys import new_key


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


@pytest.mark.parametrize("days", [2, -61, -100])
def test_a_server_whose_clock_is_wrong_takes_no_good_certificate_away(
    tmp_path: Path, days: int
) -> None:
    device = due(tmp_path)
    before = device.held()
    device.records.clock.now += days * DAY
    after(device, 20)
    asyncio.run(device.run())
    assert device.held() == before
    assert len(device.asked) == 20, "it is tried again"
    device.records.clock.now = device.clock.now
    after(device, 1)
    asyncio.run(device.run())
    assert device.held().not_after > before.not_after
    assert device.held().renew_at > device.clock.now


def test_what_is_wrong_with_a_renewed_certificate_is_said_with_its_dates(tmp_path: Path) -> None:
    device = due(tmp_path)
    identity, key = device.store.load("c0"), new_key()
    device.records.clock.now += 2 * DAY
    signed = device.records.authority.sign("client", "c0", key.public_key())
    words = (
        r"from 2027-03-18 06:40:01 UTC until 2027-06-16 07:40:01 UTC, at 2027-03-16 07:40:01 UTC "
        r"by the clock .* until 2027-04-15 08:00:00 UTC; set the server's clock"
    )
    with pytest.raises(CertificateError, match=words):
        device.store.renew(identity, key, signed, device.clock.now)


def test_no_certificate_gives_way_to_one_that_ends_before_it(tmp_path: Path) -> None:
    device = due(tmp_path)
    identity, key = device.store.load("c0"), new_key()
    short = Authority.create(tmp_path, Settings(host="h", client_lifetime=DAY), device.clock)
    with pytest.raises(CertificateError, match="keeps the one it has"):
        device.store.renew(
            identity, key, short.sign("client", "c0", key.public_key()), device.clock.now
        )
    assert device.store.load("c0") == identity


@pytest.mark.parametrize("days", [100, -100])
def test_a_daemon_outlives_a_clock_that_is_wrong_for_minutes(tmp_path: Path, days: int) -> None:
    device = Device(tmp_path)
    begun = device.clock.now

    def clock() -> float:
        wrong = 7200 <= device.clock.now - begun < 7200 + sum(LOOKS_AGAIN)
        return device.clock.now + (days * DAY if wrong else 0)

    after(device, 10)
    asyncio.run(device.run(clock))
    assert device.waits == [LONGEST_WAIT] * 2 + [*LOOKS_AGAIN] + [LONGEST_WAIT] * 4
    assert not device.asked


@pytest.mark.parametrize(("days", "words"), [(91, "ran out on"), (-1, "the clock is wrong")])
def test_a_daemon_ends_when_its_certificate_stays_of_no_use(
    tmp_path: Path, days: int, words: str
) -> None:
    device = Device(tmp_path)
    device.clock.now += days * DAY
    with pytest.raises(CertificateError, match=words):
        asyncio.run(device.run())
    assert device.waits == [*LOOKS_AGAIN]
