"""Telling systemd how the service is (sd_notify(3)): one datagram to $NOTIFY_SOCKET. Does nothing without it."""

import os
import socket

__all__ = ["notify"]


def notify(**fields: str) -> None:
    """Send `FIELD=value` lines, for example `notify(READY="1", STATUS="in force revision=7")`."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    message = "\n".join(f"{key}={value}" for key, value in fields.items())
    # A leading @ stands for the abstract namespace's NUL.
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(address)
        sender.send(message.encode())
