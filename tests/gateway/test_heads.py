"""A head that was read before is read alike again, and nothing that differs from it is taken for it."""

from typing import Any

import pytest

from agentd.gateway.http.head import RequestHead
from agentd.gateway.http.heads import KnownAnswers, KnownHeads
from agentd.gateway.http.limits import HttpLimits
from tests.gateway.harness import ALICE, BOB, Lab, tool

LIMITS = HttpLimits()
START = b"POST /mcp HTTP/1.1\r\nhost: a\r\n"


def request(
    body: bytes, before: bytes = START, after: bytes = b"\r\nmcp-name: x", name: bytes = b"content-length"
) -> bytes:
    return before + name + b": %d" % len(body) + after + b"\r\n\r\n" + body


def head(length: int, **fields: Any) -> RequestHead:
    headers = [(b"host", b"a"), (b"content-length", b"%d" % length), (b"mcp-name", b"x")]
    return RequestHead(**{"method": "POST", "target": b"/mcp", "headers": headers, "fields": dict(headers), **fields})


def known(**fields: Any) -> KnownHeads:
    heads = KnownHeads()
    heads.learn(request(b"four"), head(4, **fields), b"four", LIMITS)
    return heads


@pytest.mark.parametrize("body", [b"four", b"three", b"x" * 12_345])
def test_a_known_head_is_found_with_the_length_and_body_of_each_request(body: bytes) -> None:
    found = known().find(request(body), LIMITS)
    assert found is not None
    assert found.is_all_of(request(body))
    assert found.body(request(body)) == body
    assert found.head.headers == head(len(body)).headers
    assert found.head.fields == head(len(body)).fields


@pytest.mark.parametrize("data", [request(b"four")[:-1], request(b"four")[:-4], request(b"four") + b"G"])
def test_a_known_head_tells_where_its_message_ends_whatever_came(data: bytes) -> None:
    found = known().find(data, LIMITS)
    assert found is not None
    assert found.size == len(request(b"four"))
    assert not found.is_all_of(data)


@pytest.mark.parametrize(
    "data",
    [
        request(b"four")[:-5],  # more of the head is to come
        request(b"x" * 100_000),  # too large to be kept together
        request(b"four", after=b"\r\nmcp-name: y"),
        request(b"four", before=START + b"content-length: 4\r\n"),
        request(b"four", before=START + b"transfer-encoding: chunked\r\n"),
        request(b"four", before=b"POST /mcp HTTP/1.1\r\nhost: b\r\n"),
        request(b"four", name=b"Content-Length"),
        START + b"content-length: +4\r\nmcp-name: x\r\n\r\nfour",
        START + b"content-length: 4 \r\nmcp-name: x\r\n\r\nfour",
        START + b"content-length: 4,4\r\nmcp-name: x\r\n\r\nfour",
        START + b"content-length: \r\nmcp-name: x\r\n\r\n",
        START + b"content-length: 4\nmcp-name: x\r\n\r\nfour",
        b"",
    ],
)
def test_what_differs_in_anything_but_the_length_is_left_to_the_parser(data: bytes) -> None:
    assert known().find(data, LIMITS) is None


@pytest.mark.parametrize(
    "fields",
    [{"version": "1.0"}, {"repeated": frozenset({b"mcp-name"})}, {"fields": {b"expect": b"x"}}],
)
def test_an_unusual_head_is_not_remembered(fields: dict[str, Any]) -> None:
    assert known(**fields).find(request(b"four"), LIMITS) is None


def test_a_head_that_the_parser_read_otherwise_is_not_remembered() -> None:
    heads = KnownHeads()
    heads.learn(request(b"four"), head(4), b"fou", LIMITS)
    assert heads.find(request(b"four"), LIMITS) is None


def test_heads_accepted_under_other_limits_are_read_anew() -> None:
    assert known().find(request(b"four"), HttpLimits(header_bytes=10)) is None


def test_heads_are_forgotten_before_they_fill_memory() -> None:
    heads = known()
    for number in range(1000):
        name = b"%d" % number
        heads.learn(request(b"four", after=b"\r\nmcp-name: " + name), head(4), b"four", LIMITS)
    assert heads.find(request(b"four"), LIMITS) is None
    assert heads.find(request(b"four", after=b"\r\nmcp-name: 999"), LIMITS) is not None


def test_heads_that_differ_in_their_length_alone_are_kin() -> None:
    heads = known()
    heads.learn(request(b"four", after=b"\r\nmcp-name: y"), head(4), b"four", LIMITS)
    found = [heads.find(request(body), LIMITS) for body in (b"four", b"three", b"four")]
    other = heads.find(request(b"four", after=b"\r\nmcp-name: y"), LIMITS)
    kin = [one.head.kin for one in (*found, other) if one is not None]
    assert kin[0] is not None
    assert kin[0] is kin[1] is kin[2] is not kin[3]


async def test_callers_with_one_head_stay_who_they_are(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(
        upstream, grants=[{"id": "bobs", "peers": ["bob"], "services": ["svc"], "tools": ["add"]}]
    )
    alice, bob = await lab.client(running, ALICE), await lab.client(running, BOB)
    calls = [(caller, text) for text in ("a", "longer", "a") for caller in (alice, bob)]
    for client, text in calls:
        assert (await client.call(tool(text=text))).status == 200
    assert [dict(seen.headers)["wardmesh-node"] for seen in upstream.seen] == ["alice", "bob"] * 3
    assert [seen.body for seen in upstream.seen] == [tool(text=text)[0] for _, text in calls]
    assert [dict(seen.headers)["content-length"] for seen in upstream.seen] == [
        str(len(seen.body)) for seen in upstream.seen
    ]


def answer(body: bytes, more: bytes = b"", start: bytes = b"HTTP/1.1 200 OK\r\n") -> bytes:
    return start + b"content-length: %d\r\n" % len(body) + more + b"\r\n" + body


def read(data: bytes, body: bytes, status: int = 200) -> KnownAnswers:
    """Answers, after the parser read this one."""
    lines = data.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    headers = [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines)]
    answers = KnownAnswers()
    answers.learn(data, status, headers, body)
    return answers


@pytest.mark.parametrize("body", [b"four", b"three", b""])
def test_a_known_answers_head_is_found_with_the_length_of_each(body: bytes) -> None:
    found = read(answer(b"four", b"x-a: 1\r\n"), b"four").find(answer(body, b"x-a: 1\r\n"))
    assert found is not None
    assert (found.head.status, found.head.headers) == (200, [(b"content-length", b"%d" % len(body)), (b"x-a", b"1")])
    assert found.is_all_of(answer(body, b"x-a: 1\r\n"))
    assert found.body(answer(body, b"x-a: 1\r\n")) == body


@pytest.mark.parametrize(
    "data",
    [
        answer(b"four")[:-5],
        answer(b"four", b"x: 1\r\n"),
        answer(b"four", b"transfer-encoding: chunked\r\n"),
        answer(b"four", b"connection: close\r\n"),
        answer(b"four", b"content-length: 4\r\n"),
        answer(b"four", start=b"HTTP/1.1 500 OK\r\n"),
    ],
)
def test_an_answer_that_differs_in_anything_but_the_length_is_left_to_the_parser(data: bytes) -> None:
    assert read(answer(b"four"), b"four").find(data) is None


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (answer(b"four", b"connection: close\r\n"), 200),
        (answer(b"four", b"transfer-encoding: chunked\r\n"), 200),
        (answer(b"four", b"x: 1\r\nx: 2\r\n"), 200),
        (answer(b"four", start=b"HTTP/1.0 200 OK\r\n"), 200),
        (answer(b"four", start=b"HTTP/1.1 304 OK\r\n"), 304),
        (answer(b"four", start=b"HTTP/1.1 103 OK\r\n"), 103),
    ],
)
def test_an_unusual_answers_head_is_not_remembered(data: bytes, status: int) -> None:
    assert read(data, b"four", status).find(data) is None
