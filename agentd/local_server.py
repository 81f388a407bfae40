"""The daemon's side of the local API: a Unix socket, who may connect, and lines in and out.

What the requests mean is not known here.
"""

import asyncio
import grp
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from .errors import AgentError
from .local_api import LARGEST_REQUEST, PRIVILEGED, Answer, Failure, Request, request_type

__all__ = ["listening", "serve"]

log = logging.getLogger("agentd.local_api")

Handler = Callable[[Request], Awaitable[Answer]]
# struct ucred: pid, uid, gid (unix(7), SO_PEERCRED).
_UCRED: Final = struct.Struct("iII")


@contextmanager
def listening(path: Path, group: str | None) -> Iterator[socket.socket]:
    """A listening socket at `path`, for its owner and `group`; removed in the end. Raises AgentError.

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


async def serve(server: socket.socket, handle: Handler, answered: Callable[[Answer], None]) -> None:
    """Answer requests until cancelled. `answered` is called with each answer when it has been written."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _converse(reader, writer, handle, answered)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has what it wanted
        finally:
            writer.close()

    listener = await asyncio.start_unix_server(talk, sock=server, limit=LARGEST_REQUEST)
    # Python 3.13 unlinks a Unix server's path on close, 3.11 does not: `listening` does it for both.
    async with listener:
        await listener.serve_forever()


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handler, answered: Callable[[Answer], None]
) -> None:
    trusted = _is_trusted(writer.get_extra_info("socket"))
    while True:
        try:
            line = await reader.readline()
        except ValueError:
            writer.write(_line(Failure(error=f"a request is one line of at most {LARGEST_REQUEST} bytes")))
            await writer.drain()
            return
        if not line:
            return
        answer = await _answer(line, handle, trusted=trusted)
        writer.write(_line(answer))
        await writer.drain()
        answered(answer)


async def _answer(line: bytes, handle: Handler, *, trusted: bool) -> Answer:
    try:
        request = request_type.validate_json(line)
    except ValidationError as error:
        return Failure(error=f"not a request that this agentd knows: {error.errors()[0]['msg']}")
    if isinstance(request, PRIVILEGED) and not trusted:
        return Failure(error=f"{request.request} is for root: run it with sudo")
    try:
        return await handle(request)
    except AgentError as error:
        return Failure(error=str(error))
    except Exception:
        # The daemon carries traffic: one question that it cannot answer must not end it.
        log.exception("the request %s failed", request.request)
        return Failure(error="agentd failed to answer; its log says why")


def _line(answer: Answer) -> bytes:
    return answer.model_dump_json().encode() + b"\n"


def _is_trusted(connection: socket.socket) -> bool:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(raw)
    return uid in {0, os.geteuid()}


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


def _group_id(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise AgentError(f"socket_group: there is no group {name!r}: make it with `groupadd --system {name}`") from None
