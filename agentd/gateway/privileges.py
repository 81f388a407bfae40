"""The gateway reads what strangers send and starts servers: neither may ever gain a privilege that it was not given."""

import ctypes
import logging
import os
from typing import Final

from ..errors import AgentError

__all__ = ["gain_no_privileges"]

log = logging.getLogger("agentd.gateway")

_PR_SET_NO_NEW_PRIVS: Final = 38  # linux/prctl.h


def gain_no_privileges() -> None:
    """From here on no program that we start has more rights than we have (prctl(2)). Raises AgentError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise AgentError(f"the kernel does not let us give up new privileges: {os.strerror(ctypes.get_errno())}")
    if os.geteuid() == 0:
        log.warning("the gateway runs as root: give it a user of its own")
