"""One client's connection: the parser's events become exchanges, which one task serves in order.

Knows how a request arrives and when it arrives too slowly; what it means is the app's.
"""

import asyncio
import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import httptools

from .arrivals import Arrivals
from .exchange import Begun, Exchange
from .head import BadRequestError, RequestHead, check_request, render_fault
from .offers import body_parser

if TYPE_CHECKING:
    from .server import Server

__all__ = ["Connection"]

log = logging.getLogger("agentd.gateway.http")


class Connection(asyncio.Protocol):
    """One client. Its requests are served one after the other, by one task; those that need not wait, without it.

    `fault`: what it did wrong by coming here at all, which is its only answer. `settled`: it is ours, whoever calls.
    """

    def __init__(self, server: "Server", fault: BadRequestError | None = None, *, settled: bool = False) -> None:
        self._server = server
        self.limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._queue: deque[Exchange] = deque()
        self._incoming: Exchange | None = None  # whose head or body is arriving
        self._current: Exchange | None = None  # that is being served
        self._begun: Begun | None = None  # how, when the task has no part in it
        self._handed_over = False  # it is the task's now
        self._wanted: asyncio.Future[None] | None = None  # the task waits for a request
        self._drained: asyncio.Future[None] | None = None  # set while the client does not take what we write
        self._fault = fault
        self._settled = settled
        self._headers: list[tuple[bytes, bytes]] | None = None  # of the head that is arriving
        self._head_bytes = 0  # of segments that held nothing but a part of the head
        self._segment = 0  # bytes of the segment that is being read
        self._now = 0.0  # when it came
        self._arrivals = Arrivals(server.heads, server.limits)
        self._finished: Exchange | None = None  # that just arrived, through the parser
        self._offered = False  # the head that is arriving offers an upgrade
        self._discarding = False
        self._retired = False
        self._task: asyncio.Task[None] | None = None
        self.closed = False
        self.deadline = math.inf
        self.transport: asyncio.Transport
        self.peer, self.local = "", ("", 0)

    # --- events of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        peer, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.peer = peer[0] if peer else ""
        self.local = (local[0], local[1]) if local else ("", 0)
        descriptor = transport.get_extra_info("socket").fileno()
        if self._server.turns_away(self.peer, descriptor, settled=self._settled):
            self.closed = True
            self.transport.abort()
            return
        self._server.connections.add(self)
        self.deadline = self._loop.time() + self.limits.head_seconds
        self._task = self._loop.create_task(self._run())

    def data_received(self, data: bytes) -> None:
        if self._discarding or self._fault is not None or self.closed:
            return
        if self._incoming is not None or self._queue:
            self._parse(data, between=False)
            return
        arrived = self._arrivals.take(data)
        if isinstance(arrived, tuple):
            self._arrived_whole(*arrived)
        elif arrived is not None:
            self._parse(arrived, between=True)
        elif self._current is None:
            self.deadline = min(self.deadline, self._loop.time() + self.limits.gather_seconds)  # from its first piece

    def _parse(self, data: bytes, *, between: bool) -> None:
        """Bytes behind no known head. `between`: they begin a request."""
        self._now = self._loop.time()
        self._segment = len(data)
        unfinished = self._incoming
        self._arrivals.parsed(data, anew=between)
        if between and self._current is None:
            self.deadline = self._now + self.limits.head_seconds
        try:
            self._parser.feed_data(data)
            if self._finished is not None:
                self._remember(self._finished)
            if unfinished is not None and unfinished is self._incoming and not unfinished.complete_head:
                self._count_head(len(data))
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_after_offer(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._blame(_fault_of(error))

    def _stop_gathering(self) -> None:
        """The parser is to have what came of a request, if anything did, and the task to wait for the rest."""
        if self._arrivals.unfinished:
            self._parse(self._arrivals.release(), between=True)

    def _arrived_whole(self, head: RequestHead, body: bytes) -> None:
        """A whole request behind a head that the parser knows already."""
        exchange = Exchange(self, head, body)
        self.deadline = math.inf
        waiting = self._wanted is not None and not self._wanted.done() and self._begun is None
        if waiting and (begun := self._server.app.begin(exchange)) is not None:
            self._current, self._begun = exchange, begun
        else:
            self._queue.append(exchange)
            self._wake()

    def _remember(self, finished: Exchange) -> None:
        self._finished = None
        if self._fault is None and finished.keep_alive and (body := finished.whole_body()) is not None:
            self._arrivals.learn(finished.head, body)

    def eof_received(self) -> bool:
        return False  # half a connection is no connection: a client that stopped sending has cancelled

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._server.forget(self)
        self.resume_writing()
        for exchange in (self._current, self._incoming, *self._queue):
            if exchange is not None:
                exchange.client_gone()
        self._queue.clear()
        if self._task is None or self._task.done():
            return
        if self._current is None or self._current.ends_with_client:
            self._task.cancel()
        else:
            self._server.orphans.add(self)

    def pause_writing(self) -> None:
        if self._drained is None:
            self._drained = self._loop.create_future()
            self.deadline = self._loop.time() + self.limits.stalled

    def resume_writing(self) -> None:
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None
            self.deadline = math.inf

    # --- events of the parser

    def on_message_begin(self) -> None:
        if self._fault is not None:
            return
        if len(self._queue) >= self.limits.pipelined:
            self._blame(BadRequestError(400, "too many requests before the first answer"))
            return
        self._incoming = Exchange(self, RequestHead())
        self._headers = self._incoming.head.headers
        self._head_bytes = 0
        self._offered = False

    def on_url(self, url: bytes) -> None:
        if self._incoming is None:
            return
        self._incoming.head.target += url
        if len(self._incoming.head.target) > self.limits.target_bytes:
            self._blame(BadRequestError(414, f"the path is longer than {self.limits.target_bytes} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self._headers
        if headers is None:
            return  # a trailer: nothing of what we decide may come after the body, so they end here
        headers.append((name.lower(), value.strip(b" \t")))
        if len(headers) > self.limits.header_count:
            self._blame(BadRequestError(431, f"there are more than {self.limits.header_count} headers"))

    def on_headers_complete(self) -> None:
        incoming, parser = self._incoming, self._parser
        if incoming is None or incoming.complete_head or self._fault is not None:
            return  # the second head of a body-only parser, or of a request that was refused already
        head, self._headers = incoming.head, None
        head.method = parser.get_method().decode()
        head.version = parser.get_http_version()
        head.arrived()
        # llhttp takes an offered upgrade for the end of persistence; it is not
        self._offered = parser.should_upgrade()
        incoming.keep_alive = parser.should_keep_alive() or (self._offered and head.version == "1.1")
        try:
            if self._head_bytes + self._segment > self.limits.header_bytes:
                self._weigh(head.headers)
            check_request(head)
        except BadRequestError as error:
            self._blame(error)
            return
        incoming.complete_head = True
        self._queue.append(incoming)
        self.deadline = self._now + self.limits.body_pause
        self._wake()

    def on_body(self, body: bytes) -> None:
        if self._incoming is not None:
            # a client that is held back is not the one who is slow
            self.deadline = math.inf if self._incoming.body_arrived(body) else self._now + self.limits.body_pause

    def on_message_complete(self) -> None:
        if self._offered or self._incoming is None or self._fault is not None:
            return
        self._incoming.body_ended()
        self._finished, self._incoming = self._incoming, None
        self.deadline = math.inf

    def _go_on_after_offer(self, rest: bytes) -> None:
        incoming = self._incoming
        if incoming is None or incoming.head.method == "CONNECT" or self._fault is not None:
            self._blame(BadRequestError(501, "this server passes no tunnels"))
            return
        self._parser = body_parser(incoming.head.headers, self)
        self._offered = False
        if rest:
            self.data_received(rest)

    def next_parser(self) -> None:
        """The body after an offered upgrade has ended; an ordinary parser reads on."""
        self._parser = httptools.HttpRequestParser(self)

    def _weigh(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Exactly, where the segments' sizes do not show that they are small enough. Raises BadRequestError."""
        if sum(len(name) + len(value) + 4 for name, value in headers) > self.limits.header_bytes:
            raise BadRequestError(431, "the request's headers are too large")

    def _count_head(self, size: int) -> None:
        """The parser keeps a header to itself until it has ended; one without end must not fill memory."""
        self._head_bytes += size
        if self._head_bytes > self.limits.header_bytes + self.limits.target_bytes:
            self._blame(BadRequestError(431, "the request's headers are too large"))

    def _blame(self, fault: BadRequestError) -> None:
        """The client made a mistake: no byte after it is looked at."""
        if self._fault is not None:
            return
        self._fault = fault
        incoming, self._incoming = self._incoming, None
        self._headers = None
        if incoming is not None and incoming.complete_head:
            incoming.body_failed(fault)
            if incoming is not self._current and incoming in self._queue:
                self._queue.remove(incoming)  # never served: the fault is its answer
        self.deadline = math.inf
        self._wake()

    # --- the task

    def _wake(self) -> None:
        """Let the task look what there is to do; what was begun without it comes first."""
        if self._begun is None and self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    async def _run(self) -> None:
        try:
            if await self._server.app.admit(self.peer):
                await self._serve_all()
            else:
                self.transport.abort()
        except asyncio.CancelledError:
            self.transport.abort()
            raise
        except Exception:
            # One connection's failure must not end the others; its client sees it broken, never an empty success.
            log.exception("a request from %s could not be served", self.peer)
            self.transport.abort()
        finally:
            begun, self._begun, self._current = self._begun, None, None
            self._server.orphans.discard(self)
            if begun is not None:
                begun.cancel()

    async def _serve_all(self) -> None:
        while (exchange := await self._next()) is not None:
            begun, self._begun = self._begun, None
            self._current = exchange
            try:
                await (self._server.app.serve(exchange) if begun is None else begun.rest())
            except BadRequestError as error:
                if not exchange.started and not self.closed:
                    self._refuse(error)
                    return
            self._current = None
            if self.closed or not self._goes_on(exchange):
                return

    async def _next(self) -> Exchange | None:
        """The next request; None when there is none to come."""
        while not self._queue or self._begun is not None:
            if self._handed_over:
                self._handed_over = False
                return self._current
            if self.closed:
                return None
            if self._fault is not None:
                self._refuse(self._fault)
                return None
            if self._retired:
                self.transport.close()
                return None
            self._wanted = self._loop.create_future()
            await self._wanted
            self._wanted = None
        return self._queue.popleft()

    def _goes_on(self, exchange: Exchange) -> bool:
        """End the connection, or make it ready for another request."""
        if not exchange.ended:
            self.transport.abort()  # an answer without its end must not look like one with it
        elif not exchange.complete_body:
            self._linger()  # the rest of its body would be read as a request
        elif not exchange.keep_alive:
            self.transport.close()
        else:
            arriving = self._incoming is not None or self._arrivals.unfinished
            self.deadline = self._loop.time() + (self.limits.head_seconds if arriving else self.limits.idle_seconds)
            return True
        return False

    def _refuse(self, fault: BadRequestError) -> None:
        self.transport.write(render_fault(fault))
        self._linger()

    def _linger(self) -> None:
        """Close so that the answer arrives: closing over unread data resets the connection (RFC 9112 section 9.6)."""
        self._discarding = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.deadline = self._loop.time() + self.limits.linger
        else:
            self.transport.close()

    # --- what exchanges, what was begun, and the server ask for

    def has_ended(self, exchange: Exchange) -> None:
        """What was begun without the task is over."""
        self._begun = self._current = None
        if self.closed or (self._goes_on(exchange) and (self._queue or self._fault is not None)):
            self._wake()

    def has_to_wait(self) -> None:
        """What was begun without the task goes on in it."""
        self._handed_over = True
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    async def drain(self) -> None:
        """Wait until the client has taken what was written."""
        if self._drained is not None:
            await asyncio.shield(self._drained)

    def out_of_time(self) -> None:
        """The deadline has passed."""
        self.deadline = math.inf
        if self._discarding or self._drained is not None:
            self.transport.abort()
        elif self._arrivals.unfinished:
            self._stop_gathering()
        elif self._incoming is not None or (self._current is not None and not self._current.complete_body):
            self._blame(BadRequestError(408, "the request took too long to arrive"))
        elif self._current is None and not self._queue:
            self.transport.close()

    def retire(self) -> None:
        """No request after the present one."""
        self._retired = True
        self._stop_gathering()
        if self._current is None:
            self._wake()
        else:
            self._current.keep_alive = False

    def abort(self) -> asyncio.Task[None] | None:
        """End everything now; returns the task that is ending."""
        if self._task is not None:
            self._task.cancel()
        self.transport.abort()
        return self._task


def _fault_of(error: Exception) -> BadRequestError:
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return BadRequestError(501, "the method is not one that is served")
    return BadRequestError(400, f"not a request of HTTP/1.1: {error}")
