"""Session ids are of use to the caller that they were issued to, and to nobody else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.gateway.sessions import Sessions
from tests.gateway.harness import ALICE, BOB, caller

alice, bob = caller(ALICE, "alice"), caller(BOB, "bob")
sessions = Sessions(b"k" * 32)
visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=200)


@given(visible)
def test_a_sealed_id_opens_for_its_caller_and_service_alone(upstream_id: str) -> None:
    sealed = sessions.seal(alice, "svc", upstream_id.encode())
    assert sealed is not None
    assert all(0x21 <= byte <= 0x7E for byte in sealed)
    assert sessions.open(alice, "svc", sealed) == upstream_id
    assert sessions.open(bob, "svc", sealed) is None
    assert sessions.open(alice, "other", sealed) is None
    assert Sessions(b"o" * 32).open(alice, "svc", sealed) is None
    assert sessions.open(caller(BOB, "alice"), "svc", sealed) == upstream_id, "the same node at another address"


@given(visible, st.integers(0, 400), st.integers(0, 255))
def test_no_edit_of_a_sealed_id_opens(upstream_id: str, place: int, byte: int) -> None:
    sealed = bytearray(sessions.seal(alice, "svc", upstream_id.encode()) or b"")
    place %= len(sealed)
    if sealed[place] == byte:
        return
    sealed[place] = byte
    assert sessions.open(alice, "svc", bytes(sealed)) is None


@given(st.binary(max_size=300))
def test_no_bytes_are_a_crash(given_id: bytes) -> None:
    assert sessions.open(alice, "svc", given_id) is None


@pytest.mark.parametrize("bad", [b"", b"two words", b"tab\t", b"\xe4", b"x" * 3000, b"nul\0"])
def test_an_id_that_the_protocol_does_not_allow_is_not_sealed(bad: bytes) -> None:
    assert sessions.seal(alice, "svc", bad) is None


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32"):
        Sessions(b"short")
