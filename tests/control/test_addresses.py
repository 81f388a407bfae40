"""IPAM's arithmetic, and the allocator against a model: random joins, leaves, requests and time."""

import asyncio
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.addresses import DEFAULT_PREFIX4, FIRST_NUMBER, AddressPlan, PrefixError, random_prefix6
from controller.admission import Admission
from controller.audit import Action
from controller.problems import Kind, Refused
from controller.store.store import Store

from .stores import MESH
from .support import MovableClock, opened

PLAN = AddressPlan.parse(DEFAULT_PREFIX4, "fd12:3456:789a::/48")


def test_the_default_prefix_is_shared_address_space() -> None:
    assert IPv4Network(DEFAULT_PREFIX4).subnet_of(IPv4Network("100.64.0.0/10"))


def test_random_ula_prefixes_are_48s_and_differ() -> None:
    prefixes = {random_prefix6() for _ in range(100)}
    assert len(prefixes) == 100
    assert all(IPv6Network(prefix).subnet_of(IPv6Network("fd00::/8")) for prefix in prefixes)
    assert {IPv6Network(prefix).prefixlen for prefix in prefixes} == {48}


@given(st.integers(FIRST_NUMBER, PLAN.last_number))
def test_a_number_and_its_addresses_mean_each_other(number: int) -> None:
    four, six = PLAN.addresses(number)
    assert ip_address(four) in PLAN.prefix4
    assert ip_address(six) in PLAN.prefix6
    assert PLAN.requested([four]) == PLAN.requested([six]) == PLAN.requested([four, six]) == number


@given(st.ip_addresses())
def test_any_address_is_a_number_or_refused(address: object) -> None:
    asked = str(address)
    usable = any(asked in PLAN.addresses(number) for number in _numbers(asked))
    outcome = _outcome(asked)
    assert isinstance(outcome, int) == usable
    assert outcome is Kind.ADDRESS_UNUSABLE or (isinstance(outcome, int) and asked in PLAN.addresses(outcome))


def _numbers(address: str) -> list[int]:
    offset = int(ip_address(address)) % 2**16
    return [offset] if FIRST_NUMBER <= offset <= PLAN.last_number else []


def _outcome(address: str) -> int | Kind | None:
    try:
        return PLAN.requested([address])
    except Refused as refused:
        return refused.kind


def test_two_addresses_of_different_numbers_are_refused_with_a_pair_that_fits() -> None:
    with pytest.raises(Refused, match=r"request 100\.88\.0\.5 and fd12:3456:789a::5"):
        PLAN.requested(["100.88.0.5", "fd12:3456:789a::6"])


@pytest.mark.parametrize(
    ("prefix4", "prefix6"),
    [
        ("nonsense", "fd00::/48"),
        ("100.88.0.1/16", "fd00::/48"),
        ("100.88.0.0/30", "fd00::/48"),
        ("0.0.0.0/0", "fd00::/48"),
        ("224.0.0.0/8", "fd00::/48"),
        ("127.0.0.0/8", "fd00::/48"),
        ("100.88.0.0/16", "2001:db8::/48"),
        ("100.88.0.0/16", "fd00::/8"),
        ("100.88.0.0/16", "fd00::/120"),
        ("100.88.0.0/16", "nonsense"),
        ("fd00::/48", "100.88.0.0/16"),
    ],
)
def test_prefixes_that_cannot_work_are_refused(prefix4: str, prefix6: str) -> None:
    with pytest.raises(PrefixError):
        AddressPlan.parse(prefix4, prefix6)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.none()),
        st.tuples(st.just("join"), st.integers(0, 15)),
        st.tuples(st.just("leave"), st.integers(0, 12)),
        st.tuples(st.just("wait"), st.integers(1, 90)),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_the_allocator_keeps_its_promises(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    asyncio.run(_play(tmp_path_factory.mktemp("pool"), steps))


async def _play(directory: Path, steps: list[tuple[str, int]]) -> None:
    """A pool of thirteen numbers (a /28), so that it runs empty and is reused often."""
    clock = MovableClock()
    async with opened(f"sqlite:///{directory / 'pool.db'}", clock) as store:
        async with store.mutation("system", Action.MESH_CREATE, "mesh:m") as tx:
            await tx.create_mesh(MESH.model_copy(update={"prefix4": "100.88.0.0/28"}), "00" * 32)
        await store.load_mesh()
        taken: dict[str, int] = {}
        released: dict[int, timedelta] = {}
        for index, (step, value) in enumerate(steps):
            if step == "wait":
                clock.advance(minutes=value)
            elif step == "leave" and taken:
                name = sorted(taken)[value % len(taken)]
                number = taken.pop(name)
                async with store.mutation("t", Action.NODE_DELETE, name) as tx:
                    await tx.addresses.release(number, tx.now)
                released[number] = clock.offset
            elif step == "join":
                await _join(store, clock, taken, released, f"n{index}", value)
        async with store.read() as tables:
            assert await tables.addresses.used() == len(taken)


async def _join(
    store: Store,
    clock: MovableClock,
    taken: dict[str, int],
    released: dict[int, timedelta],
    name: str,
    wanted: int | None,
) -> None:
    rest = timedelta(hours=1)
    resting = {number for number, when in released.items() if clock.offset - when < rest}
    valid = set(range(2, 15))
    free = valid - set(taken.values()) - resting
    outcome = await _allocate(store, name, () if wanted is None else (f"100.88.0.{wanted}",))
    if isinstance(outcome, Kind):
        expected = {
            wanted is None and not free: Kind.POOL_EMPTY,
            wanted is not None and wanted not in valid: Kind.ADDRESS_UNUSABLE,
            wanted in taken.values(): Kind.ADDRESS_TAKEN,
            wanted in resting: Kind.ADDRESS_QUARANTINED,
        }
        assert outcome is expected[True]
        return
    assert outcome in free
    assert wanted in {None, outcome}
    never_used = free - set(released)
    if wanted is None and never_used:
        assert outcome == min(never_used)  # released ones come last
    released.pop(outcome, None)
    taken[name] = outcome


async def _allocate(store: Store, name: str, requested: tuple[str, ...]) -> int | Kind:
    try:
        async with store.mutation("t", Action.NODE_ENROL, name) as tx:
            return await Admission(timedelta(hours=1)).allocate(tx, name, requested)
    except Refused as refused:
        return refused.kind
