"""Servers on standard input and output: one process, many callers, and nothing of one that reaches another."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentd.gateway.stdio import StdioPool
from agentd.gateway.types import (
    TRANSPORT_RESPONSE,
    TRANSPORT_STREAM,
    TRANSPORT_TERMINATE,
    Call,
    Caller,
    UpstreamError,
    UpstreamRequest,
    UpstreamResponse,
)
from controller.wire.mcp import StdioUpstream

from .policies import caller

SCRIPT = (sys.executable, str(Path(__file__).with_name("scripted_server.py")))
ANN, BOB = caller("192.0.2.1", "ann"), caller("192.0.2.2", "bob")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def pool(clock: Callable[[], float] | None = None, **fields: Any) -> AsyncIterator[StdioPool]:
    upstream = StdioUpstream(**{"command": SCRIPT, **fields})
    made = StdioPool("scripted", upstream, clock=clock or Clock())
    try:
        async with asyncio.timeout(60):
            yield made
    finally:
        await made.close()


def request(
    who: Caller,
    method: str,
    params: dict[str, Any],
    *,
    era: str = "legacy",
    number: Any = 1,
    session: str | None = None,
) -> UpstreamRequest:
    body = json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()
    call = Call("scripted", era, method, params.get("name"), params.get("arguments"), number, body, params)
    verb = {TRANSPORT_STREAM: "GET", TRANSPORT_TERMINATE: "DELETE"}.get(method, "POST")
    return UpstreamRequest(verb, b"/", (), body, who, call, session)


async def whole(response: UpstreamResponse) -> bytes:
    parts = []
    while data := await response.read():
        parts.append(data)
    return b"".join(parts)


async def messages(response: UpstreamResponse) -> list[dict[str, Any]]:
    """Every message of an answer, JSON or stream."""
    body = await whole(response)
    if dict(response.headers).get(b"content-type") == b"text/event-stream":
        return [json.loads(line[5:]) for line in body.splitlines() if line.startswith(b"data:")]
    return [json.loads(body)]


async def begin(stdio: StdioPool, who: Caller, capabilities: dict[str, Any] | None = None) -> str:
    params = {
        "protocolVersion": "2025-06-18",
        "capabilities": capabilities or {},
        "clientInfo": {"name": "c", "version": "1"},
    }
    response = await stdio.open(request(who, "initialize", params))
    (message,) = await messages(response)
    assert message["result"]["serverInfo"]["name"] == "scripted"
    assert message["result"]["protocolVersion"] == "2025-06-18"
    return dict(response.headers)[b"mcp-session-id"].decode()


def tool(who: Caller, session: str | None, name: str, arguments: Any = None, **fields: Any) -> UpstreamRequest:
    params = {"name": name, "arguments": arguments, **fields.pop("params", {})}
    return request(who, "tools/call", params, session=session, **fields)


async def result_of(stdio: StdioPool, asked: UpstreamRequest) -> Any:
    *_, last = await messages(await stdio.open(asked))
    return json.loads(last["result"]["content"][0]["text"])


async def facts(stdio: StdioPool, who: Caller, session: str) -> dict[str, Any]:
    found: dict[str, Any] = await result_of(stdio, tool(who, session, "facts"))
    return found


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except FileNotFoundError:
        return False


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


async def test_callers_with_the_same_ids_and_tokens_get_their_own() -> None:
    async with pool() as stdio:
        ann, bob = await begin(stdio, ANN), await begin(stdio, BOB)
        held = [
            asyncio.create_task(
                stdio.open(tool(who, session, "hold", who.name, params={"_meta": {"progressToken": "t"}}))
            )
            for who, session in ((ANN, ann), (BOB, bob))
        ]
        responses = await asyncio.gather(*held)
        assert await result_of(stdio, tool(ANN, ann, "release", number=2)) == "released"
        for who, response in zip((ANN, BOB), responses, strict=True):
            progress, final = await messages(response)
            assert progress["params"] == {"progressToken": "t", "progress": 1}
            assert final["id"] == 1
            assert json.loads(final["result"]["content"][0]["text"]) == who.name


async def test_many_callers_at_once_start_one_process() -> None:
    async with pool() as stdio:
        sessions = await asyncio.gather(*(begin(stdio, ANN if n % 2 else BOB) for n in range(20)))
        found = await asyncio.gather(*(facts(stdio, ANN if n % 2 else BOB, s) for n, s in enumerate(sessions)))
        assert len({one["pid"] for one in found}) == 1
        assert [m["method"] for m in found[0]["heard"][:2]] == ["initialize", "notifications/initialized"]
        assert found[0]["heard"][0]["params"]["capabilities"] == {}


async def test_each_caller_may_have_a_process_of_its_own() -> None:
    async with pool(per="caller") as stdio:
        ann, bob = await begin(stdio, ANN, {"roots": {}}), await begin(stdio, BOB)
        one, other = await facts(stdio, ANN, ann), await facts(stdio, BOB, bob)
        assert one["pid"] != other["pid"]
        assert one["heard"][0]["params"]["capabilities"] == {"roots": {}}


async def test_the_gateways_environment_stays_with_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_GATEWAY", "x")
    async with pool(environment={"SETTING": "1"}) as stdio:
        environment = (await facts(stdio, ANN, await begin(stdio, ANN)))["environment"]
    assert environment["SETTING"] == "1"
    assert "SECRET_OF_THE_GATEWAY" not in environment


async def test_a_process_that_dies_is_told_and_started_again_later() -> None:
    clock = Clock()
    async with pool(clock) as stdio:
        session = await begin(stdio, ANN)
        first = (await facts(stdio, ANN, session))["pid"]
        with pytest.raises(UpstreamError, match="ended before it answered") as died:
            await stdio.open(tool(ANN, session, "die"))
        assert died.value.reached
        with pytest.raises(
            UpstreamError, match=r"exited with code 3: fatal: told to die; it is started again in 0\.5 s"
        ) as away:
            await begin(stdio, ANN)
        assert not away.value.reached
        assert not alive(first)
        clock.now += 0.6
        gone = await stdio.open(tool(ANN, session, "facts"))
        assert gone.status == 404  # its sessions died with it
        assert (await facts(stdio, ANN, await begin(stdio, ANN)))["pid"] != first


async def test_the_delay_grows_while_it_dies_and_is_forgotten_when_it_lives() -> None:
    clock, waits = Clock(), []
    async with pool(clock) as stdio:
        for _ in range(4):
            session = await begin(stdio, ANN)
            with pytest.raises(UpstreamError):
                await stdio.open(tool(ANN, session, "die"))
            with pytest.raises(UpstreamError) as away:
                await begin(stdio, ANN)
            waits.append(float(str(away.value).split(" in ")[1].split()[0]))
            clock.now += waits[-1] + 0.1
        assert waits == [0.5, 1.0, 2.0, 4.0]
        session = await begin(stdio, ANN)
        clock.now += 61
        with pytest.raises(UpstreamError):
            await stdio.open(tool(ANN, session, "die"))
        with pytest.raises(UpstreamError, match=r"in 0\.5 s"):
            await begin(stdio, ANN)


async def test_a_command_that_is_not_there_is_one_sentence() -> None:
    async with pool(command=("/nonexistent/server",)) as stdio:
        with pytest.raises(UpstreamError, match="'/nonexistent/server' cannot be started: No such file") as error:
            await begin(stdio, ANN)
        assert not error.value.reached


async def test_a_command_that_exits_at_once_is_explained() -> None:
    async with pool(command=("sh", "-c", "echo no licence >&2; exit 7")) as stdio:
        with pytest.raises(UpstreamError, match="exited with code 7: no licence"):
            await begin(stdio, ANN)


async def test_closing_ends_the_process_and_what_it_started() -> None:
    async with pool() as stdio:
        session = await begin(stdio, ANN)
        server = (await facts(stdio, ANN, session))["pid"]
        grandchild = await result_of(stdio, tool(ANN, session, "child"))
        assert alive(server)
        assert alive(grandchild)
    await eventually(lambda: not alive(server) and not alive(grandchild))


async def test_a_server_that_ignores_its_end_is_killed() -> None:
    stubborn = (
        "import signal, time; signal.signal(15, signal.SIG_IGN)\nexec(open(%r).read())\nwhile True: time.sleep(9)"
    )
    async with pool(command=(sys.executable, "-c", stubborn % SCRIPT[1])) as stdio:
        server = (await facts(stdio, ANN, await begin(stdio, ANN)))["pid"]
    await eventually(lambda: not alive(server))


async def test_leaving_cancels_the_callers_request_and_no_other() -> None:
    async with pool() as stdio:
        ann, bob = await begin(stdio, ANN), await begin(stdio, BOB)
        streams = [
            await stdio.open(tool(who, session, "hold", who.name, params={"_meta": {"progressToken": 1}}))
            for who, session in ((ANN, ann), (BOB, bob))
        ]
        streams[0].close()
        heard = (await facts(stdio, BOB, bob))["heard"]
        (cancelled,) = [m for m in heard if m.get("method") == "notifications/cancelled"]
        (mine,) = [m for m in heard if m.get("params", {}).get("arguments") == "ann"]
        assert cancelled["params"]["requestId"] == mine["id"]
        await result_of(stdio, tool(BOB, bob, "release", number=2))
        assert (await messages(streams[1]))[-1]["id"] == 1
        with pytest.raises(UpstreamError):
            await whole(streams[0])


async def test_a_caller_cannot_cancel_anothers_request() -> None:
    async with pool() as stdio:
        ann, bob = await begin(stdio, ANN), await begin(stdio, BOB)
        held = await stdio.open(tool(ANN, ann, "hold", "ann", params={"_meta": {"progressToken": 1}}))
        cancel = request(BOB, "notifications/cancelled", {"requestId": 1}, number=None, session=bob)
        assert (await stdio.open(cancel)).status == 202
        await result_of(stdio, tool(BOB, bob, "release", number=2))
        assert (await messages(held))[-1]["id"] == 1


async def test_sessions_are_their_callers() -> None:
    async with pool() as stdio:
        session = await begin(stdio, ANN)
        assert (await stdio.open(tool(BOB, session, "facts"))).status == 404
        assert (await stdio.open(tool(ANN, "made-up", "facts"))).status == 404
        assert (await stdio.open(tool(ANN, None, "facts"))).status == 400
        assert (await stdio.open(request(ANN, TRANSPORT_TERMINATE, {}, number=None, session=session))).status == 200
        assert (await stdio.open(tool(ANN, session, "facts"))).status == 404


async def test_garbage_from_the_server_is_passed_over() -> None:
    async with pool(per="caller") as stdio:
        session = await begin(stdio, ANN)
        assert await result_of(stdio, tool(ANN, session, "garbage")) == "still here"


async def test_a_server_may_ask_the_caller_that_it_serves() -> None:
    async with pool(per="caller") as stdio:
        session = await begin(stdio, ANN, {"elicitation": {}})
        response = await stdio.open(tool(ANN, session, "ask"))
        first = json.loads((await response.read()).partition(b"data:")[2])
        assert first["method"] == "elicitation/create"
        assert first["id"] != "s1"

        async def respond(number: str, who: Caller = ANN) -> int:
            body = json.dumps({"jsonrpc": "2.0", "id": number, "result": {"action": "accept"}}).encode()
            call = Call("scripted", "legacy", TRANSPORT_RESPONSE, None, None, None, body)
            return (await stdio.open(UpstreamRequest("POST", b"/", (), body, who, call, session))).status

        assert await respond("s1") == 400
        assert await respond(first["id"]) == 202
        assert await respond(first["id"]) == 400
        final = json.loads((await whole(response)).partition(b"data:")[2])
        assert json.loads(final["result"]["content"][0]["text"])["result"] == {"action": "accept"}


async def test_a_shared_server_may_ask_nobody() -> None:
    async with pool() as stdio:
        session = await begin(stdio, ANN, {"elicitation": {}})
        refusal = await result_of(stdio, tool(ANN, session, "ask"))
        assert refusal["error"]["code"] == -32601


async def test_the_servers_ping_is_answered_by_the_gateway() -> None:
    async with pool() as stdio:
        session = await begin(stdio, ANN)
        assert (await result_of(stdio, tool(ANN, session, "ping")))["result"] == {}


async def test_what_names_no_request_stays_out_of_a_shared_conversation() -> None:
    for per, count in (("service", 1), ("caller", 2)):
        async with pool(per=per) as stdio:
            session = await begin(stdio, ANN)
            assert len(await messages(await stdio.open(tool(ANN, session, "log")))) == count


async def test_updates_go_to_who_subscribed() -> None:
    async with pool() as stdio:
        ann, bob = await begin(stdio, ANN), await begin(stdio, BOB)
        streams = [
            await stdio.open(request(who, TRANSPORT_STREAM, {}, number=None, session=session))
            for who, session in ((ANN, ann), (BOB, bob))
        ]
        for who, session in ((ANN, ann), (BOB, bob)):
            uri = {"uri": f"file:///{who.name}"}
            await messages(await stdio.open(request(who, "resources/subscribe", uri, session=session)))
        for who, stream in zip((ANN, BOB), streams, strict=True):
            update = json.loads((await stream.read()).partition(b"data:")[2])
            assert update["params"]["uri"] == f"file:///{who.name}"


async def test_a_modern_caller_reaches_a_legacy_server() -> None:
    async with pool() as stdio:

        async def ask(method: str, params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "mine": 1}
            response = await stdio.open(request(ANN, method, {**params, "_meta": meta}, era="modern", number="a"))
            (message,) = await messages(response)
            assert message["id"] == "a"
            return response.status, message

        _, found = await ask("server/discover", {})
        assert found["result"]["supportedVersions"] == ["2026-07-28"]
        assert found["result"]["instructions"] == "Be kind"
        assert "logging" not in found["result"]["capabilities"]
        _, listed = await ask("tools/list", {})
        assert listed["result"] == {"tools": [], "ttlMs": 0, "cacheScope": "private", "resultType": "complete"}
        _, called = await ask("tools/call", {"name": "facts", "inputResponses": {}, "requestState": "x"})
        assert json.loads(called["result"]["content"][0]["text"])["params"] == {"name": "facts", "_meta": {"mine": 1}}
        status, missing = await ask("resources/read", {"uri": "x"})
        assert (status, missing["error"]["code"]) == (400, -32602)
        status, removed = await ask("resources/subscribe", {"uri": "x"})
        assert (status, removed["error"]["code"]) == (404, -32601)
        status, unknown = await ask("no/such", {})
        assert (status, unknown["error"]["code"]) == (404, -32601)


async def test_a_modern_caller_listens_to_a_legacy_server() -> None:
    async with pool() as stdio:
        wanted = {"notifications": {"resourceSubscriptions": ["file:///a"], "promptsListChanged": False}}
        stream = await stdio.open(request(ANN, "subscriptions/listen", wanted, era="modern", number=5))
        seen = b""
        while b"resources/updated" not in seen:
            seen += await stream.read()
        acknowledged, update = [json.loads(line[5:]) for line in seen.splitlines() if line.startswith(b"data:")]
        assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
        assert acknowledged["params"]["notifications"] == {"resourceSubscriptions": ["file:///a"]}
        assert update["params"]["_meta"] == {"io.modelcontextprotocol/subscriptionId": 5}
        stream.close()
        heard = (await facts(stdio, ANN, await begin(stdio, ANN)))["heard"]
        assert heard[-2]["method"] == "resources/unsubscribe"


async def test_a_reader_that_is_too_slow_loses_its_answer_and_holds_up_nobody() -> None:
    async with pool() as stdio:
        session = await begin(stdio, ANN)
        slow = await stdio.open(tool(ANN, session, "flood", params={"_meta": {"progressToken": 1}}))
        assert await result_of(stdio, tool(ANN, session, "echo", "quick", number=2)) == "quick"
        with pytest.raises(UpstreamError, match="too slowly"):
            await whole(slow)


async def test_a_silent_call_begins_as_a_stream() -> None:
    async with pool() as stdio:
        session = await begin(stdio, ANN)
        response = await stdio.open(tool(ANN, session, "hold", "x"))
        assert dict(response.headers)[b"content-type"] == b"text/event-stream"
        await result_of(stdio, tool(ANN, session, "release", number=2))
        (final,) = await messages(response)
        assert final["id"] == 1


async def test_a_stopped_service_starts_nothing() -> None:
    async with pool() as stdio:
        await begin(stdio, ANN)
        await stdio.close()
        with pytest.raises(UpstreamError, match="stopping"):
            await begin(stdio, ANN)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_no_descriptor_stays_open() -> None:
    before = 0
    for number in range(4):
        async with pool() as stdio:
            await begin(stdio, ANN)
        if number == 0:  # the first makes what asyncio keeps for all
            before = descriptors()
    await eventually(lambda: descriptors() <= before)
