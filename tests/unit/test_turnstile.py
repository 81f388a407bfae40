"""Streams that come all at once: some have their turn, some wait for it, the rest are given times of their own."""

import asyncio

from controller.turnstile import Turnstile


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_so_many_have_their_turn_at_once_and_the_next_when_one_has_left() -> None:
    turnstile = Turnstile(Clock(), at_once=2, waiting=10)
    places = [turnstile.enter() for _ in range(3)]
    first, second, third = [place for place in places if place is not None]
    await first.turn()
    await second.turn()
    waits = asyncio.create_task(third.turn())
    await asyncio.sleep(0)
    assert not waits.done()
    first.leave()
    async with asyncio.timeout(5):
        await waits


async def test_beyond_those_who_may_wait_nobody_enters_until_one_has_left() -> None:
    turnstile = Turnstile(Clock(), at_once=1, waiting=2)
    places = [turnstile.enter() for _ in range(3)]
    assert [place is not None for place in places] == [True, True, False]
    assert places[0] is not None
    places[0].leave()
    assert turnstile.enter() is not None


async def test_to_leave_twice_is_to_leave_once() -> None:
    turnstile = Turnstile(Clock(), at_once=1, waiting=10)
    one, other = turnstile.enter(), turnstile.enter()
    assert one is not None
    assert other is not None
    await one.turn()
    one.leave()
    one.leave()
    assert turnstile.inside == 1
    await other.turn()
    third = turnstile.enter()
    assert third is not None
    waits = asyncio.create_task(third.turn())
    await asyncio.sleep(0)
    assert not waits.done(), "leaving twice made a second turn"
    waits.cancel()


async def test_who_gives_up_while_waiting_leaves_no_turn_behind_and_takes_none() -> None:
    turnstile = Turnstile(Clock(), at_once=1, waiting=10)
    one, gone, next_ = turnstile.enter(), turnstile.enter(), turnstile.enter()
    assert one is not None
    assert gone is not None
    assert next_ is not None
    await one.turn()
    waits = asyncio.create_task(gone.turn())
    await asyncio.sleep(0)
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    gone.leave()
    one.leave()
    async with asyncio.timeout(5):
        await next_.turn()
    assert turnstile.inside == 1


def test_those_who_are_refused_are_spread_over_the_time_that_it_takes() -> None:
    clock = Clock()
    turnstile = Turnstile(clock, at_once=1, waiting=1000)
    while turnstile.enter() is not None:
        pass
    times = [turnstile.come_back() for _ in range(4000)]
    assert times == sorted(times)
    assert times[0] >= 5, "before those have been greeted who wait"
    assert max(times.count(second) for second in times) <= 201, "at the pace at which they are greeted"
    clock.now += 60
    assert turnstile.come_back() <= 6, "promises of long ago hold nobody up"


def test_nobody_is_sent_away_for_more_than_a_minute() -> None:
    turnstile = Turnstile(Clock(), at_once=1, waiting=1)
    assert max(turnstile.come_back() for _ in range(100_000)) == 60


async def test_a_slow_controller_spreads_them_over_more_time() -> None:
    clock = Clock()
    turnstile = Turnstile(clock, at_once=1, waiting=500)
    quick = turnstile.come_back()
    for _ in range(200):
        place, behind = turnstile.enter(), turnstile.enter()
        assert place is not None
        assert behind is not None
        await place.turn()
        waits = asyncio.create_task(behind.turn())
        await asyncio.sleep(0)
        clock.now += 0.1
        place.leave()
        await waits
        clock.now += 0.1
        behind.leave()
    while turnstile.enter() is not None:
        pass
    assert quick == 1
    assert turnstile.come_back() > 10
