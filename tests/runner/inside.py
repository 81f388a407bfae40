"""Process 1 of a part's namespaces on the host: makes them a machine of their own, runs one command, ends them.

Arguments: a directory for temporary files, then the command. Started by `isolation.isolated`, in new process, network
and mount namespaces; when this process ends, the kernel ends everything in them. The host sees nothing of it.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path


def mount(kind: str, target: str, options: str = "defaults") -> None:
    subprocess.run(["mount", "-t", kind, "-o", options, kind, target], check=True)


def main() -> int:
    mount("tmpfs", "/run", "mode=0755")  # named network namespaces and sockets live here
    mount("sysfs", "/sys")  # shows the links of the namespace in which it is mounted
    for directory in ("/run/netns", "/run/lock"):
        Path(directory).mkdir()
    temporary, *words = sys.argv[1:]
    mount("tmpfs", temporary, "mode=1777")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    signal.signal(signal.SIGINT, lambda *_: None)  # the command decides; a handler, so that it does not inherit it
    command = subprocess.Popen(words, env={**os.environ, "TMPDIR": temporary})
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == command.pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
