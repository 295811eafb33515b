"""Tokens that are shown again, and tokens of those who are shut out."""

from __future__ import annotations

from pathlib import Path

import pytest
from renewal_cases import Records
from sqlalchemy import select

from fedserver.storage.schema import certificates
from motley.errors import TokenError
from motley.identity.certificates import read_certificate
from motley.identity.keys import new_key, signing_request


def test_a_device_that_asks_again_gets_the_same_certificate(tmp_path: Path) -> None:
    records = Records(tmp_path)
    token, _ = records.registry.create_token(1, 600, "", "h:1")
    request = signing_request(new_key())
    first = records.registry.enrol(token.id, token.secret, "c0", request)
    for _ in range(20):
        records.clock.now += 1
        again = records.registry.enrol(token.id, token.secret, "c0", request)
    with records.database.connect() as tx:
        assert len(tx.execute(select(certificates)).all()) == 1
    known, given = read_certificate(first.certificate), read_certificate(again.certificate)
    assert (given.serial, given.not_after) == (known.serial, known.not_after)
    assert records.registry.revoke_client("c0", "stolen")["certificates"] == 1


def test_who_is_shut_out_has_no_token_left_to_come_back_with(tmp_path: Path) -> None:
    records = Records(tmp_path)
    token, record = records.registry.create_token(2, 600, "c0", "h:1")
    request = signing_request(new_key())
    records.registry.enrol(token.id, token.secret, "c0", request)
    assert records.registry.revoke_client("c0", "stolen")["open_tokens"] == []
    states = {one["id"]: one["state"] for one in records.registry.tokens()}
    assert states == {record["id"]: "revoked"}
    with pytest.raises(TokenError, match="was revoked"):
        records.registry.enrol(token.id, token.secret, "c0", signing_request(new_key()))
    assert records.joined("c0", client="c0"), "a token made afterwards takes it back"


def test_who_is_shut_out_may_know_tokens_for_any_name_which_are_told(tmp_path: Path) -> None:
    records = Records(tmp_path)
    shared, record = records.registry.create_token(2, 600, "", "h:1")
    spent, _ = records.registry.create_token(1, 600, "", "h:1")
    records.registry.create_token(1, 600, "c1", "h:1")
    for token, name in ((shared, "c0"), (spent, "c2")):
        records.registry.enrol(token.id, token.secret, name, signing_request(new_key()))
    assert records.registry.revoke_client("c0", "stolen")["open_tokens"] == [record["id"]]
    records.registry.enrol(shared.id, shared.secret, "c9", signing_request(new_key()))
    assert records.registry.revoke_client("c9", "the same")["open_tokens"] == []
