"""The fixture client behind a gateway: `python -m tests.conformance.through URL`, started by the suite like the client.

URL is the suite's own server; a gateway is put in front of it for as long as the client runs.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from controller.wire.mcp import HttpUpstream

from .processes import ROOT, gateway

__all__ = ["main"]


def main() -> int:
    with (
        tempfile.TemporaryDirectory(prefix="wm-") as directory,
        gateway(Path(directory), HttpUpstream(url=sys.argv[-1])) as running,
    ):
        command = [sys.executable, "-m", "tests.conformance.fixture.client", running.url]
        return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
