"""A host's systemd-resolved and polkit, for real: `python -m tests.kernel.resolved_host UID RULES`, as root.

In a mount namespace of its own, which others enter by nsenter(1). The machine's own files are hidden there and not
changed, none of its daemons is started, and systemd-resolved is not installed but unpacked (tests/setup). UID has the
name `wardmesh`. Says "ready", and goes on until it is ended.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.kernel.agentd_sandbox import CLONE_NEWNS, MS_BIND, MS_PRIVATE, MS_REC, check, mount
from tests.lab import eventually

UNPACKED: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "wardmesh/tools/resolved"
BUS: Final = Path("/run/dbus/system_bus_socket")
RESOLVED: Final = Path("/run/systemd/resolve/io.systemd.Resolve")
TOOLS: Final = Path("/run/tools")  # where resolvectl is, for those who may not look into anybody's home
RESOLVED_USER: Final = "systemd-resolve"  # which the package makes where it is installed
BOUND: Final = 30.0


def root() -> Path:
    """Where systemd-resolved's files are: the system's own, or the unpacked ones."""
    return Path("/") if Path("/lib/systemd/systemd-resolved").exists() else UNPACKED


def add_files(directory: str, *added: Path) -> None:
    """These files are in the directory, too."""
    kept = {one.name: one.read_bytes() for one in (*Path(directory).iterdir(), *added) if one.is_file()}
    mount("tmpfs", directory, "tmpfs", 0, "mode=755")
    for name, data in kept.items():
        Path(directory, name).write_bytes(data)


def rewrite(file: str, text: str) -> None:
    """The file says this instead."""
    copy = Path("/run", Path(file).name)
    copy.write_text(text)
    mount(str(copy), file, None, MS_BIND)


def furnish(uid: str, rules: Path) -> None:
    """Make it a host that has systemd-resolved, agentd's user, and these rules of polkit's."""
    files = root()
    check("unshare", CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    for made in (BUS.parent, RESOLVED.parent, TOOLS):
        made.mkdir(parents=True)
    shutil.copy(files / "usr/bin/resolvectl", TOOLS)
    users = {"wardmesh": int(uid), RESOLVED_USER: int(uid) + 1}
    for file, tail in (("/etc/passwd", ":{0}::/:/usr/sbin/nologin"), ("/etc/group", ":")):
        others = [one for one in Path(file).read_text().splitlines() if one.partition(":")[0] not in users]
        ours = [f"{name}:x:{number}{tail.format(number)}" for name, number in users.items()]
        rewrite(file, "\n".join([*others, *ours, ""]))
    shutil.chown(RESOLVED.parent, RESOLVED_USER, RESOLVED_USER)
    rewrite("/etc/resolv.conf", "nameserver 127.0.0.53\n")
    add_files("/usr/share/dbus-1/system.d", files / "usr/share/dbus-1/system.d/org.freedesktop.resolve1.conf")
    add_files("/usr/share/polkit-1/actions", files / "usr/share/polkit-1/actions/org.freedesktop.resolve1.policy")
    mount("tmpfs", "/etc/polkit-1/rules.d", "tmpfs", 0, "mode=755")
    if rules.is_file():
        shutil.copy(rules, "/etc/polkit-1/rules.d/50-wardmesh.rules")


def start(*command: str, ready: Callable[[], bool]) -> None:
    """Start a daemon, and wait until it is ready. It ends with our process group."""
    daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    eventually(lambda: daemon.poll() is not None or ready(), BOUND, what=f"{command[0]}, ready")
    if daemon.poll() is not None:
        raise RuntimeError(f"{command[0]} ended: exit code {daemon.poll()}")


def polkit_is_there() -> bool:
    asked = ("dbus-send", "--system", "--print-reply", "--dest=org.freedesktop.DBus", "/")
    question = ("org.freedesktop.DBus.NameHasOwner", "string:org.freedesktop.PolicyKit1")
    return b"true" in subprocess.run([*asked, *question], capture_output=True, check=False).stdout


def main(uid: str, rules: str) -> None:
    furnish(uid, Path(rules))
    start("dbus-daemon", "--system", "--nofork", "--nopidfile", ready=BUS.exists)
    start("/usr/lib/polkit-1/polkitd", "--no-debug", ready=polkit_is_there)
    start(str(root() / "lib/systemd/systemd-resolved"), ready=RESOLVED.exists)
    print("ready", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
