"""PCP as bytes, by the figures of RFC 6887 sections 7, 11 and 14, and when a router has begun anew (section 8.5)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.paths.pcp import Announced, Assigned, PcpUnspokenError, announced, ask_map, read
from agentd.paths.router import Epoch, RouterError, granted

NONCE = bytes(range(12))
CLIENT = "00000000 00000000 0000ffff c0000205"  # ::ffff:192.0.2.5
OUTSIDE = "00000000 00000000 0000ffff cb007107"  # ::ffff:203.0.113.7
ANY = "00000000 00000000 0000ffff 00000000"
MAPPING = f"{NONCE.hex()} 11 000000 ca6c ca6d"


def answer(head: str, mapping: str = f"{MAPPING} {OUTSIDE}") -> bytes:
    return bytes.fromhex(f"{head} 00001c20 00000064 {'00' * 12} {mapping}")


def test_a_question_is_that_of_the_rfc() -> None:
    asked = ask_map("192.0.2.5", NONCE, 51820, 51821, 7200)
    assert asked == bytes.fromhex(f"02 01 0000 00001c20 {CLIENT} {MAPPING} {ANY}")


def test_a_mapping_is_ended_by_a_lifetime_of_nothing_and_no_port() -> None:
    asked = ask_map("192.0.2.5", NONCE, 51820, 51821, 0)
    assert asked == bytes.fromhex(f"02 01 0000 00000000 {CLIENT} {NONCE.hex()} 11 000000 ca6c 0000 {ANY}")


def test_an_answer_is_read() -> None:
    assert read(answer("02 81 00 00")) == Assigned(NONCE, 51820, "203.0.113.7", 51821, 7200, 100)


def test_a_refusal_says_why() -> None:
    with pytest.raises(RouterError, match="switched off"):
        read(answer("02 81 00 02"))


@pytest.mark.parametrize("data", ["00 80 0001 00000064", "01 81 00 01"], ids=["NAT-PMP", "an older PCP"])
def test_a_router_without_pcp_is_told_from_one_that_refuses(data: str) -> None:
    with pytest.raises(PcpUnspokenError):
        read(bytes.fromhex(data))


@pytest.mark.parametrize(
    "data",
    [
        answer("02 01 00 00"),
        answer("02 82 00 00"),
        answer("02 81 00 00")[:56],
        answer("02 81 00 00", f"{NONCE.hex()} 06 000000 ca6c ca6d {OUTSIDE}"),
        answer("02 81 00 00", f"{MAPPING} 20010db8 00000000 00000000 00000001"),
        answer("02 81 00 00") + bytes(1100),
    ],
    ids=["a question", "of PEER", "cut short", "of TCP", "at an IPv6 address", "too long"],
)
def test_what_is_no_answer_to_the_question_is_refused(data: bytes) -> None:
    with pytest.raises(RouterError):
        read(data)


@given(st.binary(max_size=80))
def test_any_bytes_are_an_answer_or_an_error(data: bytes) -> None:
    announced(data)
    try:
        read(data)
    except RouterError:
        return
    assert len(data) >= 60


def test_routers_announce_themselves_in_both_protocols() -> None:
    assert announced(bytes.fromhex(f"02 80 00 00 00000000 00000003 {'00' * 12}")) == Announced(3)
    assert announced(bytes.fromhex("0080 0000 00000003 cb007107")) == Announced(3, "203.0.113.7")
    assert announced(bytes.fromhex("0081 0000 00000003 cb007107")) is None


@pytest.mark.parametrize(
    ("before", "after", "seconds", "lost"),
    [
        (100, 160, 60.0, False),
        (100, 158, 60.0, False),
        (100, 157, 62.9, False),
        (100, 0, 60.0, True),
        (100, 110, 60.0, True),
        (100, 260, 60.0, True),
        (1000, 4380, 3600.0, False),
    ],
)
def test_a_router_has_begun_anew_when_its_clock_cannot_be_explained(
    before: int, after: int, seconds: float, lost: bool
) -> None:
    epoch = Epoch()
    assert not epoch.lost(before, 5.0)
    assert epoch.lost(after, 5.0 + seconds) is lost


def test_another_routers_clock_is_not_compared() -> None:
    epoch = Epoch()
    epoch.lost(1000, 0)
    epoch.forget()
    assert not epoch.lost(3, 10)


def test_what_is_given_for_decades_is_asked_for_again_within_a_day() -> None:
    assert granted("pcp", "11.0.0.9", 51820, 2**32 - 1).again == 12 * 3600


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "169.254.3.4", "255.255.255.255"])
def test_an_address_that_cannot_be_outside_is_refused(address: str) -> None:
    with pytest.raises(RouterError, match="no address of its own"):
        granted("pcp", address, 51820, 7200)


@pytest.mark.parametrize(("port", "lifetime"), [(0, 7200), (51820, 0), (51820, 5)])
def test_a_port_that_is_of_no_use_is_refused(port: int, lifetime: float) -> None:
    with pytest.raises(RouterError):
        granted("nat-pmp", "203.0.113.7", port, lifetime)
