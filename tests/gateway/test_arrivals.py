"""A request whose head is known and whose body comes apart from it is one request, read as strictly as in one piece."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.client.client import Client as SdkClient

from agentd.gateway.http.arrivals import Arrivals
from agentd.gateway.http.exchange import Exchange
from agentd.gateway.http.head import RequestHead
from agentd.gateway.http.heads import KnownHeads
from agentd.gateway.http.limits import HttpLimits
from agentd.gateway.identity import StaticIdentity
from agentd.gateway.types import AuditEvent, Code
from tests.gateway.harness import ALICE, CALLERS, Client, Lab, soon, tool
from tests.gateway.upstream import Upstream
from tests.gateway.warming import legacy, warm

LIMITS = HttpLimits()
HEAD = b"POST /mcp HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
BODY = b"0123456789"
REQUEST = HEAD % len(BODY) + BODY


def arrivals() -> Arrivals:
    heads = KnownHeads()
    headers = [(b"host", b"a"), (b"content-length", b"10")]
    heads.learn(REQUEST, RequestHead(method="POST", headers=headers, fields=dict(headers)), BODY, LIMITS)
    return Arrivals(heads, LIMITS)


@given(st.lists(st.integers(len(REQUEST) - len(BODY), len(REQUEST) - 1), max_size=4).map(sorted), st.booleans())
def test_wherever_the_body_is_cut_the_request_is_the_same(cuts: list[int], after_another: bool) -> None:
    made = arrivals()
    if after_another:
        made.take(REQUEST)
    *first, last = [REQUEST[start:end] for start, end in zip([0, *cuts], [*cuts, len(REQUEST)], strict=True)]
    for piece in first:
        assert made.take(piece) is None
        assert made.unfinished
    found = made.take(last)
    assert isinstance(found, tuple)
    assert (found[0].fields[b"content-length"], found[1]) == (b"10", BODY)
    assert not made.unfinished


@pytest.mark.parametrize("cut", [len(REQUEST) - 10, len(REQUEST) - 1])
def test_what_is_more_than_one_request_is_the_parsers_byte_for_byte(cut: int) -> None:
    made = arrivals()
    assert made.take(REQUEST[:cut]) is None
    assert made.take(REQUEST[cut:] + b"GET") == REQUEST + b"GET"
    assert not made.unfinished
    assert made.take(REQUEST + b"GET") == REQUEST + b"GET"


@pytest.mark.parametrize(
    "data",
    [REQUEST[:20], HEAD.replace(b"host: a", b"host: b") % 10, HEAD % 100_000, b"\r\n" + HEAD % 10],
    ids=["half a head", "another head", "a large body", "an empty line before it"],
)
def test_what_begins_otherwise_is_the_parsers_at_once(data: bytes) -> None:
    assert arrivals().take(data) == data


def test_what_was_given_up_is_the_parsers_and_the_next_request_is_found() -> None:
    made = arrivals()
    assert made.take(REQUEST[:-3]) is None
    assert made.release() == REQUEST[:-3]
    assert isinstance(made.take(REQUEST), tuple)


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What arrived, segment by segment."""
    found: list[bytes] = []
    take = Arrivals.take

    def seen(made: Arrivals, data: bytes) -> Any:
        found.append(data)
        return take(made, data)

    monkeypatch.setattr(Arrivals, "take", seen)
    return found


async def send_apart(
    client: Client,
    pieces: list[bytes],
    request: tuple[bytes, dict[str, str]],
    *cuts: int,
    between: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """The head, and when that has arrived the body, cut into further segments."""
    data, headers = request
    head = client.request_head("POST", data, headers)

    def came_last(piece: bytes) -> bool:
        return pieces[-1] == piece

    client.writer.write(head)
    await soon(lambda: pieces and pieces[-1] == head)
    if between is not None:
        await between()
    for start, end in zip([0, *cuts], cuts, strict=False):
        client.writer.write(data[start:end])
        await soon(partial(came_last, data[start:end]))
    client.writer.write(data[cuts[-1] if cuts else 0 :])


@pytest.mark.parametrize("cuts", [(), (1,), (10, 50)])
@pytest.mark.parametrize("request_", [tool(text="x"), legacy()], ids=["modern", "legacy"])
async def test_a_call_whose_head_and_body_come_apart_takes_the_shortcut(
    lab: Lab, taken: list[Exchange], pieces: list[bytes], request_: tuple[bytes, dict[str, str]], cuts: tuple[int, ...]
) -> None:
    upstream = await lab.upstream()
    client = await lab.client(await lab.gateway(upstream))
    await warm(client, taken, request_)
    before = len(taken)
    for _ in range(3):
        await send_apart(client, pieces, request_, *cuts)
        assert (await client.answer()).status == 200
    assert len(taken) == before + 3
    assert {seen.body for seen in upstream.seen} == {request_[0]}


async def test_a_head_that_always_comes_without_its_body_becomes_known(
    lab: Lab, taken: list[Exchange], pieces: list[bytes]
) -> None:
    client = await lab.client(await lab.gateway(await lab.upstream()))
    for _ in range(6):
        await send_apart(client, pieces, tool())
        assert (await client.answer()).status == 200
    assert len(taken) >= 3


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_the_calls_of_an_sdk_client_take_the_shortcut(
    lab: Lab, taken: list[Exchange], pieces: list[bytes], server: str, mode: str
) -> None:
    running = await lab.gateway(server)
    async with SdkClient(f"http://127.0.0.1:{running.port}/mcp", mode=mode) as client:
        # A call that comes before the server's connection is free again goes the long way, so it is not said how many.
        for number in range(64):
            added: Any = await client.call_tool("add", {"a": number, "b": 1})
            assert added.structured_content == {"result": number + 1}
            if len(taken) >= 4:
                break
    assert any(piece.endswith(b"\r\n\r\n") for piece in pieces), "it sends head and body together"
    assert len(taken) >= 4


async def test_a_policy_that_changed_between_head_and_body_decides(
    lab: Lab, taken: list[Exchange], pieces: list[bytes]
) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    await warm(client, taken)
    seen = len(upstream.seen)

    async def revoke() -> None:
        await running.adopt([], without_alice=True)

    await send_apart(client, pieces, tool(), between=revoke)
    assert (await client.answer()).code == Code.DENIED
    assert len(upstream.seen) == seen


async def test_an_address_that_became_nobodys_between_head_and_body_gets_no_answer(
    lab: Lab, taken: list[Exchange], pieces: list[bytes]
) -> None:
    identity = StaticIdentity(CALLERS)
    upstream = await lab.upstream()
    running = await lab.gateway(upstream, identity=identity)
    client = await lab.client(running)
    await warm(client, taken)
    seen = len(upstream.seen)

    async def leave() -> None:
        del identity.callers[ALICE]

    await send_apart(client, pieces, tool(), between=leave)
    assert await client.rest() == b""
    assert len(upstream.seen) == seen


async def test_a_client_that_goes_between_head_and_body_has_asked_nothing(
    lab: Lab, taken: list[Exchange], pieces: list[bytes]
) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    await warm(client, taken)
    seen, recorded = len(upstream.seen), len(running.records.all)
    data, headers = tool()
    client.writer.write(client.request_head("POST", data, headers) + data[:-1])
    await soon(lambda: pieces[-1].endswith(data[:-1]))
    client.vanish()
    other = await lab.client(running)
    assert (await other.call(tool(number=2))).status == 200
    assert [json.loads(one.body)["id"] for one in upstream.seen[seen:]] == [2]
    await soon(lambda: len(running.records.all) == recorded + 2)
    assert len(running.records.of(AuditEvent.REQUEST_REFUSED)) == 0


async def with_the_head_sent(lab: Lab, taken: list[Exchange], pieces: list[bytes]) -> tuple[Upstream, Client, bytes]:
    """A client of a known head, whose next request has come as far as that; and the body that belongs to it."""
    upstream = await lab.upstream()
    client = await lab.client(await lab.gateway(upstream))
    await warm(client, taken)
    del upstream.seen[:]
    data, headers = tool()
    head = client.request_head("POST", data, headers)
    client.writer.write(head)
    await soon(lambda: pieces[-1] == head)
    return upstream, client, data


@pytest.mark.parametrize("following", [tool("other", 2), tool("add", 2)], ids=["another head", "the same head"])
async def test_a_request_in_the_bodys_segment_is_a_request_of_its_own(
    lab: Lab, taken: list[Exchange], pieces: list[bytes], following: tuple[bytes, dict[str, str]]
) -> None:
    upstream, client, data = await with_the_head_sent(lab, taken, pieces)
    client.writer.write(data + client.request_head("POST", *following) + following[0])
    assert [(await client.answer()).json["id"] for _ in range(2)] == [1, 2]
    assert [seen.body for seen in upstream.seen] == [data, following[0]]


async def test_what_is_smuggled_behind_a_body_that_came_apart_is_refused(
    lab: Lab, taken: list[Exchange], pieces: list[bytes]
) -> None:
    upstream, client, data = await with_the_head_sent(lab, taken, pieces)
    client.writer.write(data + b"0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n")
    assert (await client.answer()).json["id"] == 1
    assert (await client.answer()).status == 501
    assert await client.rest() == b""
    assert [seen.body for seen in upstream.seen] == [data]


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What had come of requests when they were put together, or handed to the parser."""
    found: list[bytes] = []
    release = Arrivals.release

    def kept(made: Arrivals) -> bytes:
        found.append(release(made))
        return found[-1]

    monkeypatch.setattr(Arrivals, "release", kept)
    return found


HASTY = HttpLimits(gather_seconds=0.05, body_pause=0.3, body_seconds=1, tick=0.02)


async def test_a_body_that_does_not_follow_soon_is_waited_for_as_any_other(
    lab: Lab, taken: list[Exchange], released: list[bytes]
) -> None:
    running = await lab.gateway(await lab.upstream(), http=replace(HASTY, body_pause=30, body_seconds=30))
    client = await lab.client(running)
    await warm(client, taken)
    before, (data, headers) = len(taken), tool()
    head = client.request_head("POST", data, headers)
    client.writer.write(head)
    await soon(lambda: head in released)
    client.writer.write(data)
    assert (await client.answer()).status == 200
    assert len(taken) == before


async def test_a_body_that_comes_byte_by_byte_is_waited_for_as_any_other(
    lab: Lab, taken: list[Exchange], pieces: list[bytes], released: list[bytes]
) -> None:
    running = await lab.gateway(await lab.upstream(), http=HttpLimits(gather_seconds=0.2, tick=0.02))
    client = await lab.client(running)
    await warm(client, taken)
    data, headers = tool(text="x" * 3000)
    client.writer.write(client.request_head("POST", data, headers))
    sent = 0
    while not any(released) and sent < len(data) - 1:
        before = len(pieces)
        client.writer.write(data[sent : sent + 1])
        sent += 1
        await soon(partial(has_grown_or_was_released, pieces, before, released))
    assert any(released)
    client.writer.write(data[sent:])
    assert (await client.answer()).status == 200


def has_grown_or_was_released(pieces: list[bytes], before: int, released: list[bytes]) -> bool:
    return len(pieces) > before or any(released)


async def test_a_body_that_never_comes_ends_the_request(lab: Lab, taken: list[Exchange]) -> None:
    upstream = await lab.upstream()
    client = await lab.client(await lab.gateway(upstream, http=HASTY))
    await warm(client, taken)
    seen, (data, headers) = len(upstream.seen), tool()
    client.writer.write(client.request_head("POST", data, headers) + data[:-1])
    assert (await client.answer()).status == 408
    assert await client.rest() == b""
    assert len(upstream.seen) == seen


async def test_a_gateway_that_stops_answers_the_request_whose_head_had_come(
    lab: Lab, taken: list[Exchange], pieces: list[bytes]
) -> None:
    running = await lab.gateway(await lab.upstream())
    client = await lab.client(running)
    await warm(client, taken)
    data, headers = tool()
    head = client.request_head("POST", data, headers)
    client.writer.write(head)
    await soon(lambda: pieces[-1] == head)
    closing = asyncio.create_task(running.runtime.close(30))
    await soon(lambda: running.gateway.stopping)
    client.writer.write(data)
    assert (await client.answer()).code == Code.STOPPING
    assert await client.rest() == b""
    await closing
