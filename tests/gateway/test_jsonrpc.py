"""Bodies: what is accepted is read by every parser alike; everything else is refused."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.gateway.jsonrpc import INVALID_REQUEST, PARSE_ERROR, BodyError, parse

HEAD = b'{"jsonrpc":"2.0","id":1,"method":"a"'


def code_of(body: bytes, depth: int = 64) -> int:
    with pytest.raises(BodyError) as caught:
        parse(body, depth)
    assert str(caught.value)
    return caught.value.code


@pytest.mark.parametrize(
    ("body", "kind", "number"),
    [
        (HEAD + b"}", "request", 1),
        (b' { "jsonrpc" : "2.0" , "id" : "x" , "method" : "a" , "params" : { } } \n', "request", "x"),
        (b'{"jsonrpc":"2.0","method":"notifications/x"}', "notification", None),
        (b'{"jsonrpc":"2.0","id":3,"result":{}}', "response", 3),
        (b'{"jsonrpc":"2.0","id":3,"error":{"code":1,"message":""}}', "response", 3),
        (b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":""}}', "response", None),
        (b'{"jsonrpc":"2.0","id":-9223372036854775808,"method":"a"}', "request", -(2**63)),
    ],
)
def test_what_is_a_message_is_read(body: bytes, kind: str, number: object) -> None:
    message = parse(body, 64)
    assert (message.kind, message.id) == (kind, number)


REFUSED = {
    "repeated id": b'{"jsonrpc":"2.0","id":1,"id":2,"method":"a"}',
    "repeated method": HEAD + b',"method":"b"}',
    "repeated method, escaped": HEAD + b',"\\u006dethod":"b"}',
    "repeated in arguments": HEAD + b',"params":{"arguments":{"path":"/ok","path":"/etc"}}}',
    "repeated deep inside": HEAD + b',"params":{"x":[{"y":{"z":1,"z":2}}]}}',
    "repeated with equal values": HEAD + b',"params":{"a":1,"a":1}}',
    "other case of method": HEAD + b',"METHOD":"b"}',
    "other case of params": HEAD + b',"Params":{"name":"b"}}',
    "other case of name": HEAD + b',"params":{"Name":"b"}}',
    "both cases of name": HEAD + b',"params":{"name":"a","NAME":"b"}}',
    "both cases of an argument": HEAD + b',"params":{"arguments":{"path":"/ok","Path":"/etc"}}}',
    "long s for s": HEAD + b',"params":{"argument\xc5\xbf":{}}}',
    "Kelvin sign": HEAD + b',"params":{"to\xe2\x84\xaaen":1,"token":2}}',
    "batch": b"[" + HEAD + b"}]",
    "empty batch": b"[]",
    "a string": b'"x"',
    "a number": b"1",
    "null": b"null",
    "no version": b'{"id":1,"method":"a"}',
    "version 1.0": b'{"jsonrpc":"1.0","id":1,"method":"a"}',
    "version as number": b'{"jsonrpc":2.0,"id":1,"method":"a"}',
    "id null": b'{"jsonrpc":"2.0","id":null,"method":"a"}',
    "id fraction": b'{"jsonrpc":"2.0","id":1.5,"method":"a"}',
    "id float": b'{"jsonrpc":"2.0","id":1.0,"method":"a"}',
    "id exponent": b'{"jsonrpc":"2.0","id":1e0,"method":"a"}',
    "id boolean": b'{"jsonrpc":"2.0","id":true,"method":"a"}',
    "id object": b'{"jsonrpc":"2.0","id":{},"method":"a"}',
    "id too large": b'{"jsonrpc":"2.0","id":18446744073709551616,"method":"a"}',
    "id too long": b'{"jsonrpc":"2.0","id":"' + b"x" * 2000 + b'","method":"a"}',
    "method empty": b'{"jsonrpc":"2.0","id":1,"method":""}',
    "method number": b'{"jsonrpc":"2.0","id":1,"method":1}',
    "method with NUL": b'{"jsonrpc":"2.0","id":1,"method":"a\\u0000b"}',
    "method too long": b'{"jsonrpc":"2.0","id":1,"method":"' + b"m" * 300 + b'"}',
    "params array": HEAD + b',"params":[]}',
    "params null": HEAD + b',"params":null}',
    "request and response": HEAD + b',"result":{}}',
    "result and error": b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}',
    "neither": b'{"jsonrpc":"2.0","id":1}',
    "response without id": b'{"jsonrpc":"2.0","result":{}}',
    "integer beyond 64 bits": HEAD + b',"params":{"a":18446744073709551616}}',
    "integer below 64 bits": HEAD + b',"params":{"a":-9223372036854775809}}',
    "integer of 5,000 digits": HEAD + b',"params":{"a":' + b"9" * 5000 + b"}}",
    "infinite number": HEAD + b',"params":{"a":1e999}}',
    "fraction of 5,000 digits": HEAD + b',"params":{"a":0.' + b"1" * 5000 + b"}}",
    "nested too deep": HEAD + b',"params":{"a":' + b"[" * 70 + b"]" * 70 + b"}}",
    "nested too deep, with spaces": HEAD + b',"params":{"a": ' + b"[ " * 70 + b"]" * 70 + b"}}",
    "nested beyond all parsers": HEAD + b',"params":{"a":' + b'{"a":' * 100_000,
}
NOT_JSON = {
    "nothing": b"",
    "white space": b"  ",
    "cut short": HEAD,
    "two values": HEAD + b"}{}",
    "trailing comma": HEAD + b",}",
    "comment": HEAD + b"/* */}",
    "single quotes": b"{'jsonrpc':'2.0'}",
    "NaN": HEAD + b',"params":{"a":NaN}}',
    "Infinity": HEAD + b',"params":{"a":-Infinity}}',
    "leading zero": HEAD + b',"params":{"a":01}}',
    "hexadecimal": HEAD + b',"params":{"a":0x1}}',
    "invalid UTF-8": HEAD + b',"params":{"a":"\xff"}}',
    "overlong UTF-8": HEAD + b',"params":{"a":"\xc0\xaf"}}',
    "surrogate in UTF-8": HEAD + b',"params":{"a":"\xed\xa0\x80"}}',
    "lone surrogate escaped": HEAD + b',"params":{"a":"\\ud800"}}',
    "control character": HEAD + b',"params":{"a":"\x01"}}',
    "byte order mark": b"\xef\xbb\xbf" + HEAD + b"}",
    "UTF-16": (HEAD + b"}").decode().encode("utf-16"),
    "vertical tab": b"\x0b" + HEAD + b"}",
    "no-break space": b"\xc2\xa0" + HEAD + b"}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(name: str) -> None:
    assert code_of(REFUSED[name]) in {INVALID_REQUEST, PARSE_ERROR}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_not_json_is_a_parse_error(name: str) -> None:
    assert code_of(NOT_JSON[name]) == PARSE_ERROR


def test_a_refusal_names_the_request_where_it_can() -> None:
    with pytest.raises(BodyError) as caught:
        parse(b'{"jsonrpc":"2.0","id":"r","method":"a","params":{"NAME":1}}', 64)
    assert caught.value.id == "r"


@pytest.mark.parametrize("depth", [4, 5, 64])
def test_the_limit_of_depth_is_exact(depth: int) -> None:
    def nested(levels: int) -> bytes:
        inner = levels - 2  # the message and its params
        return HEAD + b',"params":{"a":' + b"[" * inner + b"]" * inner + b"}}"

    parse(nested(depth), depth)
    assert code_of(nested(depth + 1), depth) == INVALID_REQUEST


def test_many_brackets_are_not_depth() -> None:
    parse(HEAD + b',"params":{"a":[' + b",".join([b"[]"] * 500) + b"]}}", 4)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), inner)
    ),
    max_leaves=12,
)


@given(JSON, st.booleans(), st.booleans())
def test_what_is_accepted_is_what_another_parser_reads(value: Any, compact: bool, ascii_only: bool) -> None:
    separators = (",", ":") if compact else None
    message = {"jsonrpc": "2.0", "id": 1, "method": "a", "params": {"x": value}}
    body = json.dumps(message, separators=separators, ensure_ascii=ascii_only).encode()
    read = parse(body, 64).params["x"]
    assert read == json.loads(body)["params"]["x"]
    assert orjson.dumps(read) == orjson.dumps(json.loads(body)["params"]["x"])


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_bytes_are_a_crash(body: bytes) -> None:
    try:
        message = parse(body, 64)
    except BodyError:
        return
    assert json.loads(body)["jsonrpc"] == "2.0"
    assert message.kind in {"request", "notification", "response"}


@given(st.data())
def test_no_change_of_a_good_body_makes_two_parsers_disagree(data: st.DataObject) -> None:
    """Bytes are replaced, doubled and removed; what is still accepted, the standard library reads in the same way."""
    body = bytearray(HEAD + b',"params":{"name":"get","arguments":{"path":"/a","n":1.5,"list":[1,{"b":null}]}}}')
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        change = data.draw(st.sampled_from(["replace", "double", "remove"]))
        if change == "replace":
            body[place] = data.draw(st.integers(0, 255))
        elif change == "double":
            size = data.draw(st.integers(1, 30))
            body[place:place] = body[place : place + size]
        else:
            del body[place]
    try:
        message = parse(bytes(body), 64)
    except BodyError:
        return

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), "a repeated key was accepted"
        return dict(pairs)

    read = json.loads(bytes(body), object_pairs_hook=unique)
    assert message.params == read.get("params", {})
    assert message.method == read.get("method", "")
