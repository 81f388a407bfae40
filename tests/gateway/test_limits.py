"""Token buckets: bursts, refill, clocks, bounds."""

from hypothesis import given
from hypothesis import strategies as st

from agentd.gateway.limits import Limiter
from controller.wire.mcp import Rate

RATE = Rate(calls=5, seconds=10)


def test_a_burst_is_granted_and_then_refilled_evenly() -> None:
    limiter = Limiter()
    assert [limiter.take("k", RATE, 100.0) for _ in range(5)] == [0.0] * 5
    assert limiter.take("k", RATE, 100.0) == 2.0
    assert limiter.take("k", RATE, 101.0) == 1.0
    assert limiter.take("k", RATE, 102.0) == 0.0
    assert limiter.take("k", RATE, 102.0) == 2.0


@given(st.lists(st.floats(0, 5), max_size=60), st.integers(1, 5), st.floats(0.5, 20))
def test_no_window_lets_more_through_than_burst_plus_refill(gaps: list[float], calls: int, seconds: float) -> None:
    limiter, rate, now = Limiter(), Rate(calls=calls, seconds=seconds), 0.0
    granted: list[float] = []
    for gap in gaps:
        now += gap
        if limiter.take("k", rate, now) == 0.0:
            granted.append(now)
    for first, start in enumerate(granted):
        for count, end in enumerate(granted[first:], 1):
            assert count <= calls + (end - start) * calls / seconds + 1e-6


def test_a_clock_that_jumps_back_refills_nothing() -> None:
    limiter = Limiter()
    for _ in range(5):
        limiter.take("k", RATE, 1000.0)
    assert limiter.take("k", RATE, 0.0) > 0.0
    assert limiter.take("k", RATE, 1.0) > 0.0
    assert limiter.take("k", RATE, 2.0) == 0.0


def test_a_changed_rate_keeps_what_was_spent() -> None:
    limiter = Limiter()
    for _ in range(4):
        limiter.take("k", RATE, 0.0)
    assert limiter.take("k", Rate(calls=4, seconds=10), 0.0) > 0.0


def test_keys_are_apart() -> None:
    limiter = Limiter()
    for _ in range(5):
        limiter.take("a", RATE, 0.0)
    assert limiter.take("a", RATE, 0.0) > 0.0
    assert limiter.take("b", RATE, 0.0) == 0.0


def test_buckets_are_bounded_and_the_spent_ones_stay() -> None:
    limiter = Limiter(most_buckets=100)
    for _ in range(5):
        limiter.take("spent", Rate(calls=5, seconds=1e4), 1000.0)
    for number in range(1000):
        limiter.take(number, RATE, 900.0 + number / 1000)
    assert len(limiter._buckets) <= 100
    assert limiter.take("spent", Rate(calls=5, seconds=1e4), 1000.0) > 0.0


def test_a_cool_down_ends_by_itself_and_is_not_lengthened() -> None:
    limiter = Limiter()
    limiter.cool("k", 5.0, 0.0)
    limiter.cool("k", 5.0, 4.0)
    assert limiter.cooling("k", 4.0) == 1.0
    assert limiter.cooling("k", 5.0) == 0.0
    assert limiter.cooling("other", 1.0) == 0.0


def test_several_rates_are_paid_all_or_none() -> None:
    limiter, few, many = Limiter(), Rate(calls=1, seconds=10), Rate(calls=3, seconds=10)
    prices = [("many", many), ("few", few)]
    assert limiter.take_each(prices, 0.0)
    assert not limiter.take_each(prices, 0.0)
    assert [limiter.take("many", many, 0.0) for _ in range(2)] == [0.0, 0.0]
    assert limiter.take("many", many, 0.0) > 0
