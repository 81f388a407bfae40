"""The fixture client behind a gateway: `python -m tests.conformance.through URL`, started by the suite like the client.

URL is the suite's own server; a gateway is put in front of it for as long as the client runs. The client is told the
same URL, and finds the gateway there: a server that names itself in what it says, as those do that ask for OAuth tokens
(RFC 9728), must be known under the name by which its callers reach the gateway.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from controller.wire.mcp import HttpUpstream

from .processes import ROOT, gateway

__all__ = ["main"]

BESIDE = "127.0.0.2"  # the suite's servers have 127.0.0.1


def main() -> int:
    url = sys.argv[-1]
    with (
        tempfile.TemporaryDirectory(prefix="wm-") as directory,
        gateway(Path(directory), HttpUpstream(url=url), address=BESIDE, port=urlsplit(url).port),
    ):
        command = [sys.executable, "-m", "tests.conformance.fixture.client", url]
        environment = {**os.environ, "WARDMESH_FIXTURE_SERVER_AT": BESIDE}
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
