"""The daemon's side of the local API: a Unix socket, who may connect, lines in and out, and sockets that go with them.

What the requests mean is not known here.
"""

import asyncio
import grp
import logging
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from .errors import AgentError
from .local_api import GATEWAY_ONLY, LARGEST_REQUEST, PRIVILEGED, Answer, Failure, Request, request_type

__all__ = ["Handed", "Handler", "Subscription", "listening", "serve"]

log = logging.getLogger("agentd.local_api")


@dataclass(frozen=True, slots=True)
class Handed:
    """An answer, and the socket whose descriptor goes with it. Ours is closed when that has been sent."""

    answer: Answer
    socket: socket.socket


class Subscription(ABC):
    """What a connection is for from one request on: answers that come when there are some."""

    @abstractmethod
    def begin(self, process: int) -> None:
        """Process `process` is at the other end, and now listens."""

    @abstractmethod
    def answers(self) -> AsyncIterator[Answer]:
        """Whatever is to be said, for as long as the connection lasts."""

    @abstractmethod
    def heard(self, request: Request) -> None:
        """The other end said this. Raises AgentError when it makes no sense: the connection ends."""

    @abstractmethod
    def end(self) -> None:
        """The connection is over."""


Handler = Callable[[Request], Awaitable[Answer | Handed | Subscription]]
# struct ucred: pid, uid, gid (unix(7), SO_PEERCRED).
_UCRED: Final = struct.Struct("iII")


@contextmanager
def listening(path: Path, group: str | int | None) -> Iterator[socket.socket]:
    """A listening socket at `path`, for its owner and `group` (name or id); removed in the end. Raises AgentError.

    A socket file that nobody answers is what a killed daemon left and is replaced; one that answers is another agentd.
    """
    gid = _group_id(group)
    if _is_alive(path):
        raise AgentError(f"another agentd answers at {path}: stop it, or give this one another --socket")
    made = not path.parent.exists()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    with server:
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                server.bind(str(path))
            finally:
                os.umask(before)
            if gid is not None:
                os.chown(path, -1, gid)
            path.chmod(0o660)
            server.listen(16)
        except OSError as error:
            raise AgentError(
                f"cannot listen at {path} ({error.strerror}): give another --socket, or run agentd as root"
            ) from error
        inode = path.stat().st_ino
        try:
            yield server
        finally:
            with suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    path.unlink()
            if made:
                with suppress(OSError):  # another program uses it meanwhile
                    path.parent.rmdir()


async def serve(
    server: socket.socket, handle: Handler, answered: Callable[[Answer], None], *, gateway_user: int | None = None
) -> None:
    """Answer requests until cancelled. `answered` is called with each answer when it has been written.

    `gateway_user`: the user id that may ask what is for the gateway, besides root and the daemon's own.
    """
    gateway_users = {0, os.geteuid()} | ({gateway_user} if gateway_user is not None else set())

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A descriptor is sent beside the transport: what was written before must be on its way.
        writer.transport.set_write_buffer_limits(0)
        conversation = _Conversation(reader, writer, handle, gateway_users)
        try:
            await conversation.run(answered)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has what it wanted
        finally:
            writer.close()

    listener = await asyncio.start_unix_server(talk, sock=server, limit=LARGEST_REQUEST)
    # Python 3.13 unlinks a Unix server's path on close, 3.11 does not: `listening` does it for both.
    async with listener:
        await listener.serve_forever()


class _Conversation:
    """One connection, and who is at its other end."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handler, gateway_users: set[int]
    ) -> None:
        self._reader, self._writer, self._handle, self._gateway_users = reader, writer, handle, gateway_users
        self._connection = writer.get_extra_info("socket")
        raw = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        self._process, self._user, _ = _UCRED.unpack(raw)

    async def run(self, answered: Callable[[Answer], None]) -> None:
        """Until the client hangs up."""
        while line := await self._line():
            outcome = await self._answer(line)
            if isinstance(outcome, Subscription):
                await self._follow(outcome)
                return
            if isinstance(outcome, Handed):
                with outcome.socket:
                    self._hand(outcome)
                answered(outcome.answer)
                continue
            await self._write(outcome)
            answered(outcome)

    async def _line(self) -> bytes:
        """The next line; nothing when there is none to come."""
        try:
            return await self._reader.readline()
        except ValueError:
            await self._write(Failure(error=f"a request is one line of at most {LARGEST_REQUEST} bytes"))
            return b""

    async def _answer(self, line: bytes) -> Answer | Handed | Subscription:
        try:
            request = request_type.validate_json(line)
        except ValidationError as error:
            return Failure(error=f"not a request that this agentd knows: {error.errors()[0]['msg']}")
        if isinstance(request, PRIVILEGED) and self._user not in {0, os.geteuid()}:
            return Failure(error=f"{request.request} is for root: run it with sudo")
        if isinstance(request, GATEWAY_ONLY) and self._user not in self._gateway_users:
            return Failure(
                error=f"{request.request} is for the gateway, and user {self._user} is not the gateway's: "
                "name it in the configuration file (`gateway = USER`)"
            )
        try:
            return await self._handle(request)
        except AgentError as error:
            return Failure(error=str(error))
        except Exception:
            # The daemon carries traffic: one question that it cannot answer must not end it.
            log.exception("the request %s failed", request.request)
            return Failure(error="agentd failed to answer; its log says why")

    async def _write(self, answer: Answer) -> None:
        self._writer.write(_line(answer))
        await self._writer.drain()

    def _hand(self, handed: Handed) -> None:
        line = _line(handed.answer)
        with self._connection.dup() as connection:
            try:
                sent = socket.send_fds(connection, [line], [handed.socket.fileno()])
            except BlockingIOError:
                sent = 0
        if sent != len(line):
            raise ConnectionAbortedError("the client does not read")

    async def _follow(self, subscription: Subscription) -> None:
        subscription.begin(self._process)
        sending = asyncio.create_task(self._send_all(subscription))
        try:
            while line := await self._line():
                subscription.heard(request_type.validate_json(line))
        except (ValidationError, AgentError) as error:
            log.warning("what follows on this connection makes no sense", extra={"from": self._process, "why": error})
        finally:
            subscription.end()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send_all(self, subscription: Subscription) -> None:
        with suppress(ConnectionError):  # the reader sees it too
            async for answer in subscription.answers():
                await self._write(answer)


def _line(answer: Answer) -> bytes:
    return answer.model_dump_json().encode() + b"\n"


def _is_alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError as error:
            raise AgentError(f"cannot use {path} ({error.strerror}): give another --socket") from error
        return True


def _group_id(name: str | int | None) -> int | None:
    if not isinstance(name, str):
        return name
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise AgentError(f"socket_group: there is no group {name!r}: make it with `groupadd --system {name}`") from None
