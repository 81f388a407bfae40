"""How a command is started so that nothing of it can stay behind on the host, however it ends."""

import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["isolated"]

_INSIDE = Path(__file__).with_name("inside.py")


def isolated(command: Sequence[str], temporary: Path) -> list[str]:
    """`command` in process, network and mount namespaces of its own. They end with it, or with whoever started it.

    `temporary`: an empty directory; temporary files go there, into memory.

    Killing any process of the chain ends the rest: the parent-death signal reaches unshare, --kill-child reaches
    process 1 of the namespace, and its end is the end of everything inside, links and nftables tables included.
    """
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL"),
        *("--mount-proc", "--", sys.executable, str(_INSIDE), str(temporary)),
        *command,
    ]
