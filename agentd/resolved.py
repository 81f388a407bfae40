"""systemd-resolved, where this host asks it: told by `resolvectl` to ask our responder about the mesh's domain alone.

Split DNS (resolvectl(1)): the link's server is asked for the names below the link's domain, and for nothing else.
systemd-resolved forgets it all when the link goes. Knows nothing of names.
"""

import asyncio
from pathlib import Path
from typing import Final

from .errors import AgentError
from .kernel.process import find

__all__ = ["Resolved", "ResolvedError", "is_asked"]

_SOCKET: Final = Path("/run/systemd/resolve/io.systemd.Resolve")
_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_STUBS: Final = ("127.0.0.53", "127.0.0.54")  # systemd-resolved.service(8)
_PATIENCE: Final = 10.0  # seconds


class ResolvedError(AgentError):
    """systemd-resolved did not take what it was told; with its words, and the remedy."""


def is_asked(resolv_conf: Path = _RESOLV_CONF, socket: Path = _SOCKET) -> bool:
    """Does systemd-resolved run, and do this host's programs ask it?

    It may run for its own sake, while resolv.conf names another server: then nobody would hear what we tell it.
    """
    try:
        lines = resolv_conf.read_text(errors="replace").splitlines()
    except OSError:
        return False
    asked = {tuple(line.split()[:2]) for line in lines}
    return socket.exists() and any(("nameserver", stub) in asked for stub in _STUBS)


class Resolved:
    """What systemd-resolved knows of one link."""

    def __init__(self, link: str) -> None:
        self._link = link

    async def register(self, server: str, domain: str) -> None:
        """Have names below `domain` asked of `server` (an address with its port). Doing it again changes nothing.

        Raises ResolvedError.
        """
        await self._resolvectl("dns", self._link, server)
        await self._resolvectl("domain", self._link, f"~{domain}")  # for routing: short names stay as they are
        await self._resolvectl("default-route", self._link, "no")
        # The server is this host's own, and signs and encrypts nothing, whatever is the rule for others.
        await self._resolvectl("dnssec", self._link, "no")
        await self._resolvectl("dnsovertls", self._link, "no")

    async def revert(self) -> None:
        """Have it forget what it was told. Raises ResolvedError."""
        await self._resolvectl("revert", self._link)

    async def _resolvectl(self, verb: str, *arguments: str) -> None:
        path = find("resolvectl")
        if path is None:
            raise ResolvedError("systemd-resolved runs, but there is no resolvectl to tell it of the mesh's names")
        process = await asyncio.create_subprocess_exec(
            *(path, verb, *arguments),
            stdin=asyncio.subprocess.DEVNULL,  # no terminal: nobody is asked for a password
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_PATIENCE):
                _, said = await process.communicate()
        except TimeoutError:
            raise ResolvedError(
                f"systemd-resolved does not answer `resolvectl {verb}` within {_PATIENCE:g} s"
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            why = said.decode(errors="replace").strip().rpartition("\n")[2] or f"exit code {process.returncode}"
            command = f"resolvectl {verb} {' '.join(arguments)}"
            raise ResolvedError(
                f"systemd-resolved was not told of the mesh's names (`{command}`: {why}): let agentd's user do so, as "
                "wardmesh.polkit.rules does; the hosts file has them meanwhile"
            )
