"""Calls like one before: the same head from the same caller, naming the same tool. They need no task and no waiting.

What follows from head, caller and policy alone was found when the first of them was served, by `proxy`; what a body
says, its arguments, the time, and whether policy and caller are still the same are looked at for every call. Whatever
is not as it was is left to `proxy`, before anything was done.
"""

import logging
import time
from dataclasses import dataclass, replace
from typing import Final

import orjson

from controller.wire.mcp import Service

from .bodies import BodyForm
from .eras import client_info, mirrored_name, speaks_alike, stated_trace
from .gateway import Gateway
from .http.client import Response, UpstreamConnection
from .http.exchange import Exchange
from .http.pool import HttpUpstream
from .jsonrpc import BodyError, Message, parse
from .mirrors import Mirrors
from .passage import Passage, plain_answer
from .trail import Asked, CallForms, Trail
from .types import Allow, Allowance, Call, Caller, Particulars, Policy, UpstreamError, UpstreamRequest, value
from .watch import check_answer, error_code

__all__ = ["Shortcuts"]

log = logging.getLogger("agentd.gateway")

# Each names one thing, and its answer passes as it is. (Lists are filtered, and asked again on a connection that died.)
_METHODS: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
# Callers choose what is remembered of them: it is bounded in number and size, to some 8 KB each.
_MOST = 4096  # tools behind callers' heads; not Final, which would be compiled in
_LONGEST_NAME: Final = 256
_LARGEST_REST: Final = 2048  # bytes of the parameters that are not arguments


@value
class _Use:
    """What the calls of one tool behind one head have in common. `like` is the first of them, without its particulars.

    `form`: how the client writes them, where that can be told.
    """

    like: Call
    allowance: Allowance
    forms: CallForms
    form: BodyForm | None


@dataclass(slots=True)
class _Habit:
    """What one caller's requests with one head have in common. `head`: what goes upstream, up to the length.

    `uses`: what was called behind this head, by method and name, so it states no other. `last` was the last of them.
    """

    caller: Caller
    policy: Policy
    head: bytes
    session: str | None
    last: _Use
    uses: dict[tuple[str, str], _Use]


class Shortcuts:
    """Of one service, in front of an HTTP upstream."""

    def __init__(
        self, gateway: Gateway, service: Service, upstream: HttpUpstream, trail: Trail, mirrors: Mirrors
    ) -> None:
        self.gateway = gateway
        self.service = service
        self.trail = trail
        self._upstream = upstream
        self._mirrors = mirrors
        self._habits: dict[tuple[object, str], _Habit] = {}
        self._learned = 0  # uses

    def begin(self, exchange: Exchange) -> "_Begun | None":
        """Pass the request on, if it is a call like one before. None: nothing was done."""
        habit = self._habits.get((exchange.head.kin, exchange.peer))
        if habit is None or not self._stands(habit, exchange):
            return None
        call = self._read(exchange, habit)
        if call is None or (self._mirrors and self._contradicts(exchange, habit, call)):
            return None
        connection = self._upstream.kept()
        if connection is None:
            return None
        use, now = habit.last, time.time()
        begun = _Begun(self, exchange, habit, call, connection)
        if not self._takes(begun, use, call, now):
            self._upstream.give_back(connection)
            return None
        exchange.take_body()
        # as `Passage` has it
        exchange.ends_with_client = use.like.era != "legacy"
        connection.begin(b"%b%d\r\n\r\n%b" % (habit.head, len(call.body), call.body), begun.heard)
        return begun

    def _stands(self, habit: _Habit, exchange: Exchange) -> bool:
        """Is who calls still who it was, and the policy?"""
        gateway = self.gateway
        return (
            habit.caller is gateway.identity.known(exchange.peer)
            and habit.policy is gateway.policy
            and not gateway.stopping
        )

    def _takes(self, begun: "_Begun", use: _Use, call: Particulars, now: float) -> bool:
        """Is there room for it, is it allowed, and is it recorded? Then it is under way."""
        live, service = self.gateway.live, self.service
        if not live.add(begun, service.name, service.limits.streams):
            return False
        if use.allowance.allows(call.arguments or {}, now):
            if self.trail.allowed(use.forms, begun, call, now):
                return True
            use.allowance.uncount()
        live.discard(begun, service.name)
        return False

    def _read(self, exchange: Exchange, habit: _Habit) -> Particulars | None:
        """The call that the body makes, which is like `habit.last` then; None when it is like none, or no call."""
        body, limits = exchange.whole_body(), self.service.limits
        if body is None or len(body) > limits.body:
            return None
        form = habit.last.form
        found = form.read(body, limits.depth) if form is not None else None
        if found is not None:
            return Particulars(found[0], found[1], body)
        try:
            message = parse(body, limits.depth)
        except BodyError:
            return None  # which will be said to the client by who reads it again
        use = self._use(message, habit)
        if use is None:
            return None
        habit.last = use
        return Particulars(message.id, message.params.get("arguments"), body, stated_trace(message))

    def _use(self, message: Message, habit: _Habit) -> _Use | None:
        """What this message is a call of behind the habit's head."""
        name = mirrored_name(message)
        if message.kind != "request" or not isinstance(name, str):
            return None
        params, use = message.params, habit.uses.get((message.method, name))
        if "arguments" in params and not isinstance(params["arguments"], dict):
            return None
        alike = (
            use is not None
            and speaks_alike(params.get("_meta"), use.like.params.get("_meta"))
            and client_info(message) == use.like.client_info
        )
        return use if alike else None

    def _contradicts(self, exchange: Exchange, habit: _Habit, call: Particulars) -> bool:
        """Do Mcp-Param-* headers say the arguments of another call?"""
        head, whole = exchange.head, replace(habit.last.like, arguments=call.arguments)
        return self._mirrors.contradiction(habit.caller, whole, head.fields, head.repeated) is not None

    def learn(self, asked: Asked, request: UpstreamRequest, decision: Allow) -> None:
        """This call was allowed and recorded: the next one like it will be passed on at once."""
        kin, call, policy = asked.exchange.head.kin, request.call, self.gateway.policy
        if kin is None or call is None or call.name is None or b"traceparent" in asked.exchange.head.fields:
            return
        rest = {key: given for key, given in call.params.items() if key != "arguments"}
        if (
            call.method not in _METHODS
            or len(call.name) > _LONGEST_NAME
            or len(orjson.dumps(rest)) > _LARGEST_REST
            or (call.arguments is None and "arguments" in call.params)
        ):
            return
        allowance = policy.allowance(asked.caller, call, time.time())
        if allowance is None or allowance.decision != decision:
            return
        if self._learned >= _MOST:
            self._habits.clear()
            self._learned = 0
        like = replace(call, request_id=None, arguments=None, body=b"", params=rest, trace=None)
        # A trace is another for each call, so a form with one would be no other's.
        form = BodyForm.of(call.body) if call.trace is None else None
        use = _Use(like, allowance, self.trail.forms(asked, like, decision, request.session), form)
        key = kin, asked.exchange.peer
        habit = self._habits.get(key)
        if habit is None or not self._stands(habit, asked.exchange):
            head = self._upstream.head_before_length(request)
            habit = self._habits[key] = _Habit(asked.caller, policy, head, request.session, use, {})
        habit.last = habit.uses[call.method, call.name] = use
        self._learned += 1


class _Begun(Asked):
    """A call that was passed on (`http.exchange.Begun`, `live.Running`).

    Most end with a plain answer. For those that do not, and when it is asked for, it becomes a `Passage`.
    """

    __slots__ = ("_connection", "_habit", "_over", "_own", "_passage", "_response", "_shortcuts", "_use")

    def __init__(
        self,
        shortcuts: Shortcuts,
        exchange: Exchange,
        habit: _Habit,
        own: Particulars,
        connection: UpstreamConnection,
    ) -> None:
        super().__init__(exchange, habit.caller)
        self._shortcuts = shortcuts
        self._habit = habit
        self._use = habit.last
        self._own = own
        self._connection = connection
        self._passage: Passage | None = None
        self._response: Response | None = None
        self._over = False

    # --- as the registry of running exchanges sees it

    @property
    def call(self) -> Call:
        """The whole of it."""
        return self._whole().call

    def keep_alive(self, now: float) -> None:
        self._whole().keep_alive(now)

    def revoke(self, why: str) -> None:
        self._whole().revoke(why)

    def _whole(self) -> Passage:
        if self._passage is None:
            own, like, gateway = self._own, self._use.like, self._shortcuts.gateway
            arguments = {"arguments": own.arguments} if own.arguments is not None else {}
            self._passage = Passage(
                self.exchange,
                self.caller,
                replace(
                    like,
                    request_id=own.request_id,
                    arguments=own.arguments,
                    body=own.body,
                    params={**like.params, **arguments},
                    trace=own.trace,
                ),
                policy=self._habit.policy,
                sessions=gateway.sessions,
                patience=gateway.patience,
            )
        return self._passage

    # --- the answer

    def heard(self, found: Response | UpstreamError) -> None:
        """Of the answer."""
        if self._over:
            return
        exchange = self.exchange
        try:
            if isinstance(found, UpstreamError):
                self._whole().fail(found)
            elif (plain := plain_answer(found)) is None:
                self._response = found
                exchange.has_to_wait()
                return
            else:
                self._answer(*plain)
        except Exception:
            # As with requests that have a task: its client sees the connection broken, never an empty success.
            log.exception("the answer to a request from %s could not be passed on", exchange.peer)
            exchange.abort()
        self._end()
        exchange.has_ended()

    def _answer(self, head: bytes, body: bytes) -> None:
        try:
            message = check_answer(body, self._own.request_id)
        except UpstreamError as failure:
            self._whole().fail(failure)
            return
        if "error" in message:
            passage = self._whole()
            passage.status, passage.error = 200, error_code(message)
        self.exchange.reply_behind(head, body)

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
            await self._whole().follow(self._response)
        finally:
            self._end()

    def _end(self) -> None:
        """It is over, however it ended."""
        self._over = True
        shortcuts, use = self._shortcuts, self._use
        shortcuts.gateway.live.discard(self, shortcuts.service.name)
        well = self._passage is None and self.exchange.ended and not self.exchange.gone
        if not well or not shortcuts.trail.ended_well(use.forms, self, self._own):
            passage = self._whole()
            if well:
                passage.status = 200
            shortcuts.trail.ended(self, passage, use.allowance.decision, self._habit.session)
