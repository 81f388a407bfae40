"""Who holds a service's addresses: the tables of controller/holders.py, row by row, and what follows from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.holders import ABSENCE, FAILING, RECONNECT, SILENCE, Condition, Vitals, condition, decide

NOW = 1000.0
HEALTHY = Vitals(online=True, changed=NOW - 100, heard=NOW - 1)
AILING = Vitals(online=True, changed=NOW - 100, heard=NOW - 1, error="refused", failing=NOW - 1)
LOST = Vitals(online=True, changed=NOW - 100, heard=NOW - SILENCE)
AWAY = Vitals(online=False, changed=NOW - 100)


@pytest.mark.parametrize(
    ("vitals", "expected"),
    [
        (HEALTHY, "healthy"),
        (Vitals(online=True, changed=NOW - 1), "ailing"),
        (Vitals(online=True, changed=NOW - SILENCE), "lost"),
        (Vitals(online=True, changed=NOW - 1, heard=NOW - 2), "ailing"),  # heard before it came back: says nothing
        (LOST, "lost"),
        (AILING, "ailing"),
        (Vitals(online=True, changed=NOW - 100, heard=NOW, error="refused", failing=NOW - FAILING), "lost"),
        (Vitals(online=False, changed=NOW - ABSENCE + 0.1, heard=NOW - 1), "ailing"),
        (Vitals(online=False, changed=NOW - ABSENCE, heard=NOW - 1), "lost"),
        (Vitals(online=False, changed=NOW - RECONNECT + 0.1, seen=False), "ailing"),
        (Vitals(online=False, changed=NOW - RECONNECT, seen=False), "lost"),
    ],
)
def test_the_condition_of_a_node_follows_from_its_stream_and_heartbeats(vitals: Vitals, expected: Condition) -> None:
    assert condition(vitals, NOW) == expected


@pytest.mark.parametrize(
    ("holder", "candidates", "expected"),
    [
        ("a", {"a": HEALTHY, "b": HEALTHY}, "a"),
        ("b", {"a": HEALTHY, "b": HEALTHY}, "b"),
        ("a", {"a": AILING, "b": HEALTHY}, "a"),
        ("a", {"a": LOST, "b": HEALTHY}, "b"),
        ("a", {"a": AWAY, "b": HEALTHY}, "b"),
        ("a", {"a": LOST, "b": AILING}, "a"),
        ("a", {"a": AWAY, "b": AILING}, "a"),
        ("a", {"a": AWAY}, "a"),
        ("a", {"b": HEALTHY, "c": LOST}, "b"),
        ("a", {"b": AILING, "c": AWAY}, "b"),
        ("a", {"b": AWAY}, None),
        ("a", {}, None),
        (None, {"a": AILING, "b": HEALTHY}, "b"),
        (None, {"a": AWAY, "b": AILING}, "b"),
        (None, {"a": AWAY}, None),
        (None, {}, None),
    ],
)
def test_the_holder_changes_only_where_the_table_says(
    holder: str | None, candidates: dict[str, Vitals], expected: str | None
) -> None:
    assert decide("github", holder, candidates, NOW) == expected


vitals = st.builds(
    Vitals,
    online=st.booleans(),
    changed=st.floats(NOW - 30, NOW),
    seen=st.booleans(),
    heard=st.none() | st.floats(NOW - 30, NOW),
    failing=st.none() | st.floats(NOW - 30, NOW),
)


@given(st.sampled_from([None, "a", "b", "z"]), st.dictionaries(st.sampled_from("abc"), vitals))
def test_a_decision_stands_until_something_changes(holder: str | None, candidates: dict[str, Vitals]) -> None:
    first = decide("github", holder, candidates, NOW)
    assert first is None or first in candidates
    assert decide("github", first, candidates, NOW) == first
    if any(condition(found, NOW) == "healthy" for found in candidates.values()):
        assert first is not None
        assert condition(candidates[first], NOW) != "lost"


def test_services_spread_over_healthy_nodes_and_stay_there_when_another_comes() -> None:
    two = {"a": HEALTHY, "b": HEALTHY}
    three = two | {"c": HEALTHY}
    names = [f"s{number}" for number in range(60)]
    before = {name: decide(name, None, two, NOW) for name in names}
    after = {name: decide(name, None, three, NOW) for name in names}
    assert {"a", "b"} == set(before.values())
    assert all(after[name] in {before[name], "c"} for name in names)
