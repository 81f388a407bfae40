"""The WireGuard key in use, and replacing it while traffic flows. Knows nothing of the connection to the controller."""

import logging

from controller.wire.base import PublicKey

from .apply import Applier
from .errors import AgentError
from .keys import WireguardKey
from .model import KernelError
from .reconcile import Reconciler
from .state import WIREGUARD_KEY, StateDir

__all__ = ["TunnelKey"]

log = logging.getLogger("agentd.tunnel_key")


class TunnelKey:
    """Holds the key that the kernel has and that the state directory keeps."""

    def __init__(self, key: WireguardKey, state: StateDir, kernel: Reconciler, applier: Applier) -> None:
        self._key = key
        self._state = state
        self._kernel = kernel
        self._applier = applier

    @property
    def public(self) -> PublicKey:
        """What peers must know this host by now."""
        return self._key.public

    @property
    def raw(self) -> bytes:
        """The private key, 32 bytes."""
        return self._key.raw

    async def rotate(self) -> None:
        """Replace the key on disk, then in the kernel. Raises AgentError; the old key then stands in both."""
        new = WireguardKey.generate()
        async with self._applier.paused():
            # The disk first: a crash after this leaves a key that the next start puts into the kernel and reports.
            self._state.write(WIREGUARD_KEY, new.text)
            try:
                await self._kernel.set_private_key(new.raw)
            except KernelError as error:
                self._state.write(WIREGUARD_KEY, self._key.text)
                raise AgentError(f"the key was not replaced: {error}") from error
            self._key = new
        log.info("the WireGuard key was replaced", extra={"public_key": new.public})
