"""Join tokens as text: there and back, and no wrong character goes unnoticed."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motley.errors import TokenError
from motley.identity.tokens import JoinToken, parse_token

tokens = st.builds(
    JoinToken,
    authority=st.binary(min_size=32, max_size=32),
    id=st.binary(min_size=6, max_size=6),
    secret=st.binary(min_size=16, max_size=16),
    server=st.from_regex(r"[a-z0-9.-]{1,40}:[0-9]{1,5}", fullmatch=True),
)


@given(tokens)
def test_a_token_comes_back(token: JoinToken) -> None:
    text = str(token)
    assert parse_token(text) == token
    assert parse_token(f"  {text}\n") == token
    assert set(text.removeprefix("motley1-")) <= set(string.ascii_lowercase + "234567")


@given(tokens, st.data())
def test_every_wrong_character_is_noticed(token: JoinToken, data: st.DataObject) -> None:
    text = str(token)
    at = data.draw(st.integers(0, len(text) - 1))
    wrong = data.draw(st.sampled_from(string.ascii_letters + string.digits + "-_=+/ ."))
    if wrong == text[at]:
        return
    with pytest.raises(TokenError):
        parse_token(text[:at] + wrong + text[at + 1 :])


@given(tokens, st.data())
def test_a_token_cut_short_or_grown_is_noticed(token: JoinToken, data: st.DataObject) -> None:
    text = str(token)
    at = data.draw(st.integers(0, len(text) - 1))
    for spoiled in (text[:at], text[:at] + text[at + 1 :], text[:at] + "a" + text[at:]):
        if spoiled != text:
            with pytest.raises(TokenError):
                parse_token(spoiled)


@given(st.text(max_size=300))
def test_any_text_ends_in_the_named_error(text: str) -> None:
    with pytest.raises(TokenError):
        parse_token(f"motley1-{text}")


def test_the_errors_say_what_to_do_and_the_secret_stays_out_of_logs() -> None:
    token = JoinToken(authority=b"a" * 32, id=b"i" * 6, secret=b"s" * 16, server="h:1")
    with pytest.raises(TokenError, match="typing error"):
        parse_token(str(token)[:-1])
    with pytest.raises(TokenError, match="fedserver tokens create"):
        parse_token("hello")
    assert "ssss" not in repr(token)
    assert str(b"s" * 16) not in repr(token)
