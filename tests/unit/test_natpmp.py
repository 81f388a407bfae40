"""NAT-PMP as bytes, by the figures of RFC 6886 section 3."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.paths.natpmp import External, Mapped, ask_external, ask_mapping, read
from agentd.paths.router import RouterError


def test_questions_are_those_of_the_rfc() -> None:
    assert ask_external() == bytes.fromhex("0000")
    assert ask_mapping(51820, 51821, 7200) == bytes.fromhex("0001 0000 ca6c ca6d 00001c20")


def test_a_mapping_is_ended_by_a_lifetime_of_nothing_and_no_port() -> None:
    assert ask_mapping(51820, 51821, 0) == bytes.fromhex("0001 0000 ca6c 0000 00000000")


def test_answers_are_read() -> None:
    assert read(bytes.fromhex("0080 0000 00000064 c0000207")) == External("192.0.2.7", 100)
    assert read(bytes.fromhex("0081 0000 00000064 ca6c ca6d 00001c20")) == Mapped(51820, 51821, 7200)


def test_a_refusal_says_why() -> None:
    with pytest.raises(RouterError, match="switched off"):
        read(bytes.fromhex("0081 0002 00000064 ca6c 0000 00000000"))


@given(st.binary(max_size=40))
def test_any_bytes_are_an_answer_or_an_error(data: bytes) -> None:
    try:
        read(data)
    except RouterError:
        return
    assert len(data) in {12, 16}
