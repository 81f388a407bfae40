"""What the running kernel can do, found out by trying it where it leaves no trace."""

import shutil
import subprocess
from functools import cache

__all__ = ["has_wireguard"]


@cache
def has_wireguard() -> bool:
    """True when this kernel makes WireGuard links. Tried in a network namespace that ends with the probe."""
    if not shutil.which("ip"):
        return False
    probe = ["unshare", "--net", "--", "ip", "link", "add", "wgprobe", "type", "wireguard"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0
