"""The join string: a copy that is not exact is recognised as such before anything is sent anywhere."""

import base64
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.wire.enrol import JoinString, JoinStringError

JOIN = JoinString(url="https://mesh.example.com:8443", ca="ab" * 32, key="wmk_0123456789abcdef_secret")
TEXT = JOIN.encode()
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def forge(body: object) -> str:
    """A string with a right checksum around any body: what a hostile or future controller could print."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    check = hashlib.sha256(b"wardmesh join string\0" + raw).digest()[:6]
    return "wmj1." + base64.urlsafe_b64encode(raw + check).decode().rstrip("=")


def test_it_round_trips() -> None:
    assert JoinString.decode(TEXT) == JOIN
    assert JoinString.decode(f"  {TEXT}\n") == JOIN


def test_it_is_one_word_for_any_shell() -> None:
    assert set(TEXT) <= set(ALPHABET + ".")


def test_it_is_not_shown_by_repr() -> None:
    assert JOIN.key not in repr(JOIN)


@pytest.mark.parametrize("key", ["wmk_" + "x" * n for n in range(12)])
def test_every_truncation_is_recognised(key: str) -> None:
    text = JoinString(url="https://a.example", ca="system", key=key).encode()
    for length in range(5, len(text)):
        with pytest.raises(JoinStringError, match="damaged"):
            JoinString.decode(text[:length])


@given(key=st.text(max_size=8), position=st.integers(0), replacement=st.sampled_from(ALPHABET))
def test_every_edited_character_is_recognised(key: str, position: int, replacement: str) -> None:
    text = JoinString(url="https://a.example", ca="system", key=key).encode()
    position = 5 + position % (len(text) - 5)
    edited = text[:position] + replacement + text[position + 1 :]
    if edited == text:
        assert JoinString.decode(edited).key == key
        return
    with pytest.raises(JoinStringError, match="damaged"):
        JoinString.decode(edited)


@pytest.mark.parametrize("damage", [TEXT + "A", TEXT + "=", TEXT[:20] + "\n" + TEXT[20:], TEXT + "\u0410", "wmj1."])
def test_other_damage_is_recognised(damage: str) -> None:
    with pytest.raises(JoinStringError, match="damaged"):
        JoinString.decode(damage)


@pytest.mark.parametrize("text", ["", "wmk_abc", "wmj2." + TEXT[5:], "https://mesh.example.com", TEXT.upper()])
def test_something_else_is_named_as_such(text: str) -> None:
    with pytest.raises(JoinStringError, match="not a join string"):
        JoinString.decode(text)


@pytest.mark.parametrize(
    "body",
    [
        1,
        [],
        ["https://a.example", "system"],
        [1, 2, 3],
        ["https://a.example", None, "k"],
        ["https://a.example", "system", 5],
        {"url": "https://a.example"},
        "abc",
        b"\xff\xfe",
        b"[" * 100_000,
        ["http://a.example", "system", "k"],
        ["https://", "system", "k"],
        ["https://[", "system", "k"],
        ["https://a.example:port", "system", "k"],
        ["file:///etc/passwd", "system", "k"],
        ["https://a.example", "AB" * 32, "k"],
        ["https://a.example", "", "k"],
    ],
)
def test_a_well_formed_string_with_a_wrong_body_is_one_clear_error(body: object) -> None:
    with pytest.raises(JoinStringError):
        JoinString.decode(forge(body))


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    for candidate in (text, "wmj1." + text):
        with pytest.raises(JoinStringError):
            JoinString.decode(candidate)
