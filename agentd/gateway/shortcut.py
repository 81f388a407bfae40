"""Calls like one before: the same head from the same caller, naming the same tool. They need no task and no waiting.

What follows from head, caller and policy alone was found when the first of them was served, by `proxy`; what a body
says, its arguments, the time, and whether policy and caller are still the same are looked at for every call. Whatever
is not as it was is left to `proxy`, before anything was done.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import orjson

from controller.wire.mcp import Service

from .eras import speaks_alike
from .gateway import Gateway
from .http.client import Response, UpstreamConnection
from .http.exchange import Exchange
from .http.pool import HttpUpstream
from .jsonrpc import BodyError, parse
from .mirrors import Mirrors
from .passage import Passage
from .trail import Asked, CallForms, Trail
from .types import Allow, Allowance, Call, Caller, Policy, UpstreamError, UpstreamRequest, value

__all__ = ["Shortcuts"]

log = logging.getLogger("agentd.gateway")

_METHOD: Final = "tools/call"
# Callers choose what is remembered of them: it is bounded in number and size, to some 2 KB each.
_MOST: Final = 8192  # tools behind callers' heads
_LONGEST_NAME: Final = 256
_LARGEST_META: Final = 2048  # bytes


@value
class _Tool:
    """What was decided of a tool's calls, and what their records have in common."""

    allowance: Allowance
    forms: CallForms


@value
class _Habit:
    """What one caller's requests with one head have in common. `head`: what goes upstream, up to the length.

    `like` is the first of them, without its arguments; `tools` were all called behind this head, so it names no other.
    """

    caller: Caller
    policy: Policy
    head: bytes
    session: str | None
    like: Call
    tools: dict[str, _Tool]


class Shortcuts:
    """Of one service, in front of an HTTP upstream."""

    def __init__(
        self, gateway: Gateway, service: Service, upstream: HttpUpstream, trail: Trail, mirrors: Mirrors
    ) -> None:
        self._gateway = gateway
        self._service = service
        self._upstream = upstream
        self._trail = trail
        self._mirrors = mirrors
        self._habits: dict[tuple[object, str], _Habit] = {}
        self._learned = 0  # tools

    def begin(self, exchange: Exchange) -> "_Begun | None":
        """Pass the request on, if it is a call like one before. None: nothing was done."""
        habit = self._habits.get((exchange.head.kin, exchange.peer))
        if habit is None or not self._stands(habit, exchange):
            return None
        call = self._call(exchange, habit)
        tool = habit.tools.get(call.name) if call is not None and call.name is not None else None
        if call is None or tool is None:
            return None
        gateway, now = self._gateway, time.time()
        busy = gateway.live.count(habit.caller, call.service) >= self._service.limits.streams
        if busy or not tool.allowance.allows(call.arguments or {}, now):
            return None
        connection = self._upstream.kept()
        if connection is None:
            return None
        asked = Asked(exchange, habit.caller)
        if not self._trail.allowed(tool.forms, asked, call, now):
            self._upstream.give_back(connection)
            return None
        passage = Passage(
            exchange,
            habit.caller,
            call,
            policy=habit.policy,
            sessions=gateway.sessions,
            patience=gateway.patience,
        )
        exchange.take_body()
        begun = _Begun(exchange, passage, connection, lambda: self._ended(asked, passage, habit, tool))
        gateway.live.add(passage)
        connection.begin(b"%b%d\r\n\r\n%b" % (habit.head, len(call.body), call.body), begun.heard)
        return begun

    def _stands(self, habit: _Habit, exchange: Exchange) -> bool:
        """Is who calls still who it was, and the policy?"""
        gateway = self._gateway
        return (
            habit.caller is gateway.identity.known(exchange.peer)
            and habit.policy is gateway.policy
            and not gateway.stopping
        )

    def _call(self, exchange: Exchange, habit: _Habit) -> Call | None:
        """The call that the body makes behind a head that is a habit; None when it makes another sort, or none."""
        body, limits, like = exchange.whole_body(), self._service.limits, habit.like
        if body is None or len(body) > limits.body:
            return None
        try:
            message = parse(body, limits.depth)
        except BodyError:
            return None  # which will be said to the client by who reads it again
        params = message.params
        name, arguments = params.get("name"), params.get("arguments")
        if (
            message.method != _METHOD
            or message.kind != "request"
            or not isinstance(name, str)
            or not isinstance(arguments, dict)
            or not speaks_alike(params.get("_meta"), like.params.get("_meta"))
        ):
            return None
        call = Call(
            service=like.service,
            era=like.era,
            method=_METHOD,
            name=name,
            arguments=arguments,
            request_id=message.id,
            body=body,
            params=params,
            version=like.version,
            client_info=like.client_info,
        )
        head = exchange.head  # its Mcp-Param-* may say the arguments of another call
        if self._mirrors and self._mirrors.contradiction(habit.caller, call, head.fields, head.repeated) is not None:
            return None
        return call

    def learn(self, asked: Asked, request: UpstreamRequest, decision: Allow) -> None:
        """This call was allowed and recorded: the next one like it will be passed on at once."""
        kin, call, policy = asked.exchange.head.kin, request.call, self._gateway.policy
        if kin is None or call is None or not _is_usual(call):
            return
        allowance = policy.allowance(asked.caller, call, time.time())
        like = replace(call, arguments={}, body=b"", params={"_meta": call.params.get("_meta")})
        forms = self._trail.forms(asked, like, decision, request.session)
        if allowance is None or allowance.decision != decision or forms is None or call.name is None:
            return
        if self._learned >= _MOST:
            self._habits.clear()
            self._learned = 0
        key = kin, asked.exchange.peer
        habit = self._habits.get(key)
        if habit is None or not self._stands(habit, asked.exchange) or not _speak_alike(habit.like, like):
            head = self._upstream.head_before_length(request)
            habit = self._habits[key] = _Habit(asked.caller, policy, head, request.session, like, {})
        habit.tools[call.name] = _Tool(allowance, forms)
        self._learned += 1

    def _ended(self, asked: Asked, passage: Passage, habit: _Habit, tool: _Tool) -> None:
        """It is over, however it ended."""
        self._gateway.live.discard(passage)
        self._trail.ended(asked, passage, tool.allowance.decision, habit.session, tool.forms)


def _is_usual(call: Call) -> bool:
    """Is it a call that another can be like, and small enough to be remembered?"""
    return (
        call.method == _METHOD
        and call.name is not None
        and call.arguments is not None
        and call.trace is None
        and len(call.name) <= _LONGEST_NAME
        and len(orjson.dumps(call.params.get("_meta"))) <= _LARGEST_META
    )


def _speak_alike(call: Call, other: Call) -> bool:
    return speaks_alike(call.params.get("_meta"), other.params.get("_meta"))


class _Begun:
    """A call that was passed on (`http.exchange.Begun`)."""

    __slots__ = ("_connection", "_ended", "_exchange", "_over", "_passage", "_response")

    def __init__(
        self, exchange: Exchange, passage: Passage, connection: UpstreamConnection, ended: Callable[[], None]
    ) -> None:
        self._exchange = exchange
        self._passage = passage
        self._connection = connection
        self._ended = ended
        self._response: Response | None = None
        self._over = False

    def heard(self, found: Response | UpstreamError) -> None:
        """Of the answer."""
        if self._over:
            return
        exchange = self._exchange
        try:
            if isinstance(found, UpstreamError):
                self._passage.fail(found)
            elif not self._passage.answer_at_once(found):
                self._response = found
                exchange.has_to_wait()
                return
        except Exception:
            # As with requests that have a task: its client sees the connection broken, never an empty success.
            log.exception("the answer to a request from %s could not be passed on", exchange.peer)
            exchange.abort()
        self._end()
        exchange.has_ended()

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        if not self._over:
            if self._response is not None:
                self._response.close()
            else:
                self._connection.abort()
            self._end()

    async def rest(self) -> None:
        """Its answer takes longer, or needs more than a look."""
        assert self._response is not None
        try:
            await self._passage.follow(self._response)
        finally:
            self._end()

    def _end(self) -> None:
        self._over = True
        self._ended()
