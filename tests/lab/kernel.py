"""What the running kernel can do, found out by trying it where it leaves no trace."""

import shutil
import subprocess
from functools import cache
from typing import Final

__all__ = ["has_wireguard", "missing_features"]

# What the kernel tests build on: a command for each, run in a network namespace that ends with it.
_PROBES: Final = {
    "WireGuard": "ip link add probe type wireguard",
    "veth": "ip link add probe type veth",
    "bridge": "ip link add probe type bridge",
    "nftables": "nft add table inet probe",
    "netem": "tc qdisc add dev lo root netem delay 1ms",
}


@cache
def missing_features() -> tuple[str, ...]:
    """What this kernel lacks of what the kernel tests need; empty when they can run on it."""
    return tuple(name for name, command in _PROBES.items() if not _works(command))


@cache
def has_wireguard() -> bool:
    """True when this kernel makes WireGuard links."""
    return _works(_PROBES["WireGuard"])


def _works(command: str) -> bool:
    words = command.split()
    if not shutil.which(words[0]):
        return False
    return subprocess.run(["unshare", "--net", "--", *words], capture_output=True, check=False).returncode == 0
