"""Renewals that do not go through at once: no certificate and no device is lost by them."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest
from renewal_cases import Device, after, due

from fedserver.identity.authority import DAY
from fedserver.identity.registry import MOST_CERTIFICATES
from motley.identity.certificates import load_certificate, read_certificate
from motley.identity.keys import new_key, public_key_sha256, requested_key, signing_request

ATTEMPTS = 3 * MOST_CERTIFICATES


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def keys_of(device: Device) -> set[str]:
    return {public_key_sha256(requested_key(request)) for request in device.asked}


def test_a_disk_that_takes_no_certificate_does_not_lock_the_device_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = due(tmp_path)
    before = device.held()
    with monkeypatch.context() as patch:
        patch.setattr(device.store, "_put", full)
        for _ in range(2):  # the daemon is started again in between
            after(device, ATTEMPTS)
            asyncio.run(device.run())
    assert device.held() == before
    assert len(device.asked) == 2 * ATTEMPTS
    assert len(keys_of(device)) == 1, "one key until a certificate of it is stored"
    after(device, 1)
    asyncio.run(device.run())
    assert device.held().not_after > before.not_after
    assert not (tmp_path / "c0/identity/renewing.key").exists()
    struck = device.records.registry.revoke_client("c0", "stolen")["certificates"]
    assert struck == 2, "one was signed, and given again"


def test_a_disk_that_takes_no_key_asks_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = due(tmp_path)
    monkeypatch.setattr("fedclient.identity.store.write_private", full)
    after(device, 5)
    asyncio.run(device.run())
    assert not device.asked


@pytest.mark.parametrize("what", ["damaged", "seen by others", "in use"])
def test_a_left_key_that_is_of_no_use_gives_way_to_a_new_one(tmp_path: Path, what: str) -> None:
    device = Device(tmp_path)
    before = device.store.load("c0")
    left = tmp_path / "c0/identity/renewing.key"
    device.store.renewing_key(before)
    if what == "seen by others":
        left.chmod(0o644)
    else:
        left.write_bytes(before.key if what == "in use" else b"")
    old = left.read_bytes()
    key = device.store.renewing_key(before)
    assert left.read_bytes() not in (old, before.key)
    assert device.store.renewing_key(before).private_numbers() == key.private_numbers()


def test_the_server_gives_one_key_the_same_certificate_while_it_is_fresh(tmp_path: Path) -> None:
    records = Device(tmp_path).records

    def ask(key: Any) -> Any:
        issued = records.registry.renew("c0", signing_request(key))
        assert load_certificate(issued.certificate).public_key() == key.public_key()
        return read_certificate(issued.certificate)

    keys = [new_key() for _ in range(MOST_CERTIFICATES - 1)]
    firsts = [ask(key) for key in keys]
    assert [ask(key) for key in keys] == firsts
    records.clock.now += 61 * DAY
    second = ask(keys[0])
    assert second.not_after > firsts[0].not_after, "a key at the limit still gets a fresh one"
    assert second.serial != firsts[0].serial
    struck = records.registry.revoke_client("c0", "stolen")["certificates"]
    assert struck == 1 + len(keys) + 1, "both certificates of one key are revoked"
