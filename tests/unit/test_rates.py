"""Limits of rates: a burst, a pace, a wait that is true, and memory that does not grow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.rates import Rate, client_key


def taken(rate: Rate, key: str, times: int, now: float) -> list[int]:
    return [rate.take(key, now) for _ in range(times)]


def test_a_burst_passes_and_then_one_at_a_time() -> None:
    rate = Rate(per_second=0.5, burst=3)
    assert taken(rate, "a", 5, 100.0) == [0, 0, 0, 2, 2]
    assert taken(rate, "a", 2, 102.0) == [0, 2]


def test_a_burst_comes_back_with_time_and_not_more_than_it() -> None:
    rate = Rate(per_second=1, burst=3)
    assert taken(rate, "a", 4, 0.0) == [0, 0, 0, 1]
    assert taken(rate, "a", 4, 1000.0) == [0, 0, 0, 1]


def test_to_ask_for_the_wait_counts_nothing() -> None:
    rate = Rate(per_second=1, burst=1)
    assert [rate.wait("a", 0.0) for _ in range(5)] == [0] * 5
    assert rate.take("a", 0.0) == 0
    assert rate.wait("a", 0.0) == 1


def test_others_do_not_wait() -> None:
    rate = Rate(per_second=1, burst=1)
    taken(rate, "a", 5, 0.0)
    assert rate.take("b", 0.0) == 0


def test_no_rate_is_no_limit_and_keeps_nothing() -> None:
    rate = Rate(per_second=0, burst=1)
    assert taken(rate, "a", 1000, 0.0) == [0] * 1000
    assert len(rate) == 0


def test_memory_is_bounded_and_those_seen_last_are_kept() -> None:
    rate = Rate(per_second=1 / 60, burst=1, keys=100)
    for number in range(1000):
        rate.take(str(number), 0.0)
    assert len(rate) == 100
    assert rate.wait("999", 0.0) == 60
    assert rate.wait("0", 0.0) == 0


@given(st.floats(0.01, 1000), st.integers(1, 50), st.lists(st.floats(0, 10), max_size=60), st.floats(0, 1_000_000))
def test_who_waits_as_long_as_told_may(per_second: float, burst: int, pauses: list[float], now: float) -> None:
    rate = Rate(per_second, burst)
    for pause in pauses:
        now += pause
        wait = rate.take("a", now)
        if wait:
            now += wait
            assert rate.take("a", now) == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::9"),
        ("fe80::1%eth0", "fe80::2%eth0"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unix", "unix"),
    ],
)
def test_counts_as_one_client(one: str, other: str) -> None:
    assert client_key(one) == client_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("192.0.2.1", "192.0.2.2"), ("2001:db8:0:1::1", "2001:db8:0:2::1"), ("::ffff:192.0.2.1", "::ffff:192.0.2.2")],
)
def test_counts_as_two_clients(one: str, other: str) -> None:
    assert client_key(one) != client_key(other)
