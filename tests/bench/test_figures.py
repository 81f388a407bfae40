"""The library that every bench reports through."""

import json
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.figures import Bar, Bench, Runs, alternate


def test_a_bar_holds_at_its_limit() -> None:
    assert Bar(3, 3, "<=").holds
    assert Bar(3, 3, ">=").holds


@given(value=st.floats(allow_nan=False), limit=st.floats(allow_nan=False))
def test_a_bar_holds_on_one_side_of_its_limit_only(value: float, limit: float) -> None:
    assert Bar(value, limit, "<=").holds == (value <= limit)
    assert Bar(value, limit, ">=").holds == (value >= limit)


def test_alternating_takes_turns_and_changes_the_order() -> None:
    order: list[str] = []

    def measured(name: str) -> int:
        order.append(name)
        return len(order)

    runs = alternate({name: partial(measured, name) for name in ("a", "b")}, rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert runs["a"].values == (1, 4, 5)
    assert (runs["a"].lowest, runs["a"].highest, runs["a"].median) == (1, 5, 4)


def test_a_disturbed_round_does_not_count_in_a_comparison_of_rounds() -> None:
    relay, coturn = Runs((40, 4, 41)), Runs((10, 1, 100))  # the second was slow for both, the third for one
    assert relay.over(coturn) == 4


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        alternate({}, rounds=0)


def test_the_result_is_one_line_with_figures_and_bars() -> None:
    bench = Bench("some-bench", "6.1")
    bench.figure("apply_ms", 1.5)
    bench.bar("ratio", 2.9, "<=", 3)
    line = bench.to_json()
    assert "\n" not in line
    assert json.loads(line) == {
        "bench": "some-bench",
        "kernel": "6.1",
        "figures": {"apply_ms": 1.5, "ratio": 2.9},
        "bars": {"ratio": {"value": 2.9, "limit": 3, "sense": "<=", "holds": True}},
    }
    assert Bench.from_json(line).to_json() == line


def test_a_missing_measurement_is_not_printed_as_a_number() -> None:
    bench = Bench("some-bench", "6.1")
    bench.figure("apply_ms", float("nan"))
    with pytest.raises(ValueError, match="Out of range"):
        bench.to_json()
