"""A body that is read by its form says what a whole reading of it says; whatever has another form is read whole."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.gateway.bodies import BodyForm
from agentd.gateway.jsonrpc import BodyError, parse

DEPTH = 8
META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "n": [1, {"a": "}"}]}


def written(number: int, arguments: Any, *, order: int = 0) -> bytes:
    """As several clients write it: who begins with what differs."""
    params = {"name": "add", "arguments": arguments, "_meta": META}
    if order % 2:
        params = dict(reversed(params.items()))
    message = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
    if order // 2:
        message = dict(reversed(message.items()))
    return orjson.dumps(message)


def form(body: bytes) -> BodyForm:
    found = BodyForm.of(body)
    assert found is not None
    return found


IDS = st.integers(0, 10**18 - 1)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=3)


@given(st.integers(0, 3), IDS, IDS, ARGUMENTS, ARGUMENTS)
def test_another_id_and_other_arguments_are_read_as_in_the_whole(
    order: int, first_id: int, number: int, first: dict[str, Any], arguments: dict[str, Any]
) -> None:
    body = written(number, arguments, order=order)
    found = form(written(first_id, first, order=order)).read(body, DEPTH)
    try:
        message = parse(body, DEPTH)
    except BodyError:
        assert found is None
    else:
        assert found == (message.id, message.params["arguments"])
        assert orjson.dumps(found[1]) == orjson.dumps(message.params["arguments"])


@st.composite
def damaged(draw: st.DrawFn) -> tuple[int, bytes]:
    """A body with some of its bytes gone, and others put there."""
    order = draw(st.integers(0, 3))
    body = written(draw(IDS), draw(ARGUMENTS), order=order)
    start = draw(st.integers(0, len(body)))
    end = min(len(body), start + draw(st.integers(0, 12)))
    pieces = st.sampled_from(
        [
            b"",
            b"0",
            b"-",
            b"1.0",
            b" ",
            b'"',
            b"{}",
            b"}",
            b",",
            b'"a":1',
            b'"name":"x",',
            b'},"_meta":{',
            b"\\",
            b"\xff",
        ]
    )
    return order, body[:start] + draw(pieces | st.binary(max_size=3)) + body[end:]


@given(damaged())
def test_what_is_read_by_its_form_is_never_read_otherwise_in_the_whole(case: tuple[int, bytes]) -> None:
    order, body = case
    found = form(written(1, {"a": 1}, order=order)).read(body, DEPTH)
    if found is not None:
        message = parse(body, DEPTH)
        params = {"name": "add", "arguments": found[1], "_meta": META}
        assert (message.kind, message.id, message.method) == ("request", found[0], "tools/call")
        assert json.dumps(message.params, sort_keys=True) == json.dumps(params, sort_keys=True)
        assert type(message.id) is int


@given(IDS)
def test_a_call_without_arguments_has_a_form_of_its_own(number: int) -> None:
    without = b'{"jsonrpc":"2.0","id":%d,"method":"resources/read","params":{"uri":"test://one"}}'
    made = form(without % 5)
    assert made.read(without % number, DEPTH) == (number, None)
    assert made.read(written(number, {}), DEPTH) is None
    assert made.read(without % (number + 10**20), DEPTH) is None


NESTED = orjson.dumps({"a": [[[[[[]]]]]]})


@pytest.mark.parametrize(
    "arguments",
    [
        b'{"a":1,"a":2}',
        b'{"a":1,"A":2}',
        b"[]",
        b"null",
        b"1",
        b'"x"',
        b"",
        NESTED,
        b'{"a":1}}',
        b'{"a":18446744073709551616}',
    ],
    ids=[
        "a repeated key",
        "a key in two cases",
        "array",
        "null",
        "number",
        "text",
        "none",
        "deep",
        "open",
        "a huge number",
    ],
)
def test_arguments_that_are_to_be_refused_are_left_to_who_says_why(arguments: bytes) -> None:
    body = written(1, {"x": 0}).replace(b'{"x":0}', arguments)
    assert form(written(1, {})).read(body, DEPTH) is None


@pytest.mark.parametrize("number", [b"01", b"-1", b"1.0", b"1e3", b"true", b"null", b'"1"', b"", b" 1", b"9" * 19])
def test_an_id_that_is_not_a_plain_number_is_left_to_the_whole_reading(number: bytes) -> None:
    body = written(7, {"a": 1}).replace(b'"id":7', b'"id":' + number)
    assert form(written(7, {"a": 1})).read(body, DEPTH) is None


def test_arguments_nest_as_deep_as_in_the_whole() -> None:
    arguments: Any = {}
    for _ in range(DEPTH - 3):
        arguments = {"a": arguments}
    made = form(written(1, {}))
    assert made.read(written(2, arguments), DEPTH) is not None
    assert made.read(written(2, {"a": arguments}), DEPTH) is None


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"jsonrpc": "2.0", "id": 1, "method": "a", "params": {}}).encode(),
        b'{"jsonrpc":"2.0","id":"x","method":"a","params":{}}',
        b'{"jsonrpc":"2.0","id":1,"method":"a"}',
        orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "a", "params": {"x": "y" * 5000}}),
    ],
    ids=["spaces", "a text as its id", "no parameters", "large"],
)
def test_a_body_that_others_will_not_be_like_has_no_form(body: bytes) -> None:
    assert BodyForm.of(body) is None
