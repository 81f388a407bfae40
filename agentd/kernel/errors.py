"""The kernel's refusals in words that a person can act on."""

import errno
from typing import Final

from agentd.model import KernelError

__all__ = ["refused"]

_REMEDIES: Final = {
    errno.EPERM: "this process needs CAP_NET_ADMIN: run agentd as root or from its systemd unit",
    errno.ENODEV: "the link is gone: another program removed it; it is made again at the next attempt",
    errno.EEXIST: "something of that name is already there: remove it, or choose another name",
    errno.EADDRINUSE: "another program uses that UDP port: choose another listen port",
    errno.EAFNOSUPPORT: "this kernel runs without that address family: enable IPv6",
    errno.EOPNOTSUPP: "this kernel was built without it: install a kernel that has it",
    errno.ENOBUFS: "the kernel is short of memory for sockets: raise net.core.wmem_max or free memory",
    errno.ETIMEDOUT: "the kernel does not answer: look at its log (dmesg)",
}


def refused(what: str, error: OSError, remedy: str = "") -> KernelError:
    """The error for `what` (an activity, with its value), in the kernel's words, with what to do."""
    code = errno.errorcode.get(error.errno or 0, str(error.errno))
    words = error.strerror or str(error)
    remedy = remedy or _REMEDIES.get(error.errno or 0, "")
    message = f"{what}: the kernel refused it ({code}: {words})"
    return KernelError(f"{message}; {remedy}" if remedy else message)
