"""Runs a command as a systemd unit would, where systemd is not running: `python -m tests.kernel.agentd_sandbox UNIT …`.

The unit file is read, so that what is tested and what is installed cannot diverge. Done as systemd does it: mounts,
capabilities, no-new-privileges, system calls, address families, write-xor-execute. Not done: cgroups (DevicePolicy=,
DeviceAllow=) and what is mere absence in a test (RemoveIPC=, ProtectHostname=, …). Needs root, and libseccomp.
"""

import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

CLONE_NEWNS: Final = 0x00020000
MS_NOSUID_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2 | 0x4, 0x1000, 0x4000, 0x40000
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, SYS_MOUNT_SETATTR = -100, 0x8000, 0x1, 442
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
SCMP_ACT_ALLOW, SCMP_CMP_EQ = 0x7FFF0000, 4
EPERM, EAFNOSUPPORT = 1, 97
LAST_FAMILY: Final = 46
CHECKOUT: Final = Path(__file__).parents[2]

_libc = ctypes.CDLL(None, use_errno=True)


class Unit:
    """The [Service] section. An option that occurs twice adds to itself; an empty value takes all back."""

    def __init__(self, path: Path) -> None:
        self._options: dict[str, list[str]] = {}
        section = ""
        for raw in path.read_text().splitlines():
            line = raw.strip()
            if line.startswith("["):
                section = line
            elif section == "[Service]" and line and not line.startswith("#"):
                key, _, value = line.partition("=")
                values = self._options.setdefault(key.strip(), [])
                values.append(value.strip()) if value.strip() else values.clear()

    def words(self, option: str) -> list[str]:
        return [word for value in self._options.get(option, []) for word in value.split()]

    def text(self, option: str) -> str:
        return " ".join(self._options.get(option, [])[-1:])

    def on(self, option: str) -> bool:
        return self.text(option) in {"yes", "true", "on", "1"}

    def system_calls(self) -> set[str]:
        """What SystemCallFilter= leaves, the sets spelled out by this machine's systemd."""
        allowed: set[str] = set()
        for value in self._options["SystemCallFilter"]:
            names = set(_spelled_out(value.removeprefix("~").split()))
            allowed = allowed - names if value.startswith("~") else allowed | names
        return allowed


def _spelled_out(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        if not name.startswith("@"):
            yield name
            continue
        listed = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
        members = (line.strip() for line in listed.stdout.splitlines()[1:])
        yield from _spelled_out(member for member in members if member and not member.startswith("#"))


def enter(unit: Unit, state: Path, uid: int) -> None:
    """The unit's view of the file system, in a mount namespace of its own. `state` becomes its StateDirectory=."""
    check("unshare", CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    opened = os.open(state, os.O_PATH | os.O_DIRECTORY)  # PrivateTmp= may hide its path
    if unit.on("ProtectHome"):
        _hide(0o755, "/root", "/home", "/run/user")
    if unit.on("PrivateTmp"):
        _hide(0o1777, "/tmp", "/var/tmp")
    writable = ["/dev", "/tmp", "/var/tmp"]
    (name,) = unit.words("StateDirectory")
    mount("tmpfs", "/var/lib", "tmpfs", MS_NOSUID_NODEV)
    home = Path("/var/lib", name)
    home.mkdir()
    mount(f"/proc/self/fd/{opened}", str(home), None, MS_BIND)
    _give(home, uid, unit.text("StateDirectoryMode"))
    writable.append(str(home))
    for name in unit.words("RuntimeDirectory"):
        path = Path("/run", name)
        path.mkdir(exist_ok=True)
        _give(path, uid, unit.text("RuntimeDirectoryMode"))
        mount(str(path), str(path), None, MS_BIND)
        writable.append(str(path))
    if unit.text("ProcSubset") == "pid":
        mount("proc", "/proc", "proc", MS_NOSUID_NODEV, f"hidepid={unit.text('ProtectProc') or '0'},subset=pid")
    if unit.text("ProtectSystem") == "strict":
        _set_read_only("/", AT_RECURSIVE, on=True)
        for place in writable:
            _set_read_only(place, 0, on=False)


def _hide(mode: int, *places: str) -> None:
    """Empty directories instead, but for what this test itself is run from."""
    needed = {Path(sys.base_prefix).resolve(), CHECKOUT, Path(sys.prefix).resolve()}
    for place in filter(Path.is_dir, map(Path, places)):
        kept = {path: os.open(path, os.O_PATH) for path in needed if path.is_relative_to(place)}
        mount("tmpfs", str(place), "tmpfs", MS_NOSUID_NODEV)
        place.chmod(mode)
        for path, descriptor in kept.items():
            path.mkdir(parents=True, exist_ok=True)
            mount(f"/proc/self/fd/{descriptor}", str(path), None, MS_BIND)


def _give(path: Path, uid: int, mode: str) -> None:
    for item in (path, *path.iterdir()):
        os.chown(item, uid, uid, follow_symlinks=False)
    path.chmod(int(mode or "755", 8))


def drop(unit: Unit, uid: int) -> list[str]:
    """The start of a command line that gives up what the unit does not have."""
    keep = "".join(f",+{name.removeprefix('CAP_').lower()}" for name in unit.words("CapabilityBoundingSet"))
    ambient = "".join(f",+{name.removeprefix('CAP_').lower()}" for name in unit.words("AmbientCapabilities"))
    words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", f"--inh-caps=-all{ambient}"]
    words += [f"--ambient-caps=-all{ambient}", f"--bounding-set=-all{keep}"]
    return [*words, "--no-new-privs"] if unit.on("NoNewPrivileges") else words


def confine(unit: Unit) -> None:
    """What a process takes from itself: it is the last step, because the steps before need what is taken here."""
    os.umask(int(unit.text("UMask") or "22", 8))
    if unit.on("MemoryDenyWriteExecute") and _libc.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
        print("sandbox: this kernel cannot refuse writable executable memory (needs 6.3)", file=sys.stderr)
    filters = _Seccomp()
    filters.deny_families({int(getattr(socket, name)) for name in unit.words("RestrictAddressFamilies")})
    if unit.on("RestrictNamespaces"):
        filters.deny({"unshare", "setns"})
    filters.allow_only(unit.system_calls())


class _Comparison(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class _Seccomp:
    """The part of libseccomp that is needed (seccomp_init(3), seccomp_rule_add(3))."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2")
        self._library.seccomp_init.restype = ctypes.c_void_p
        for name in ("seccomp_rule_add_array", "seccomp_load", "seccomp_release"):
            getattr(self._library, name).argtypes = None

    def deny_families(self, allowed: set[int]) -> None:
        rules: list[tuple[str, _Comparison | None]] = [
            ("socket", _Comparison(0, SCMP_CMP_EQ, f, 0)) for f in range(LAST_FAMILY) if f not in allowed
        ]
        self._load(SCMP_ACT_ALLOW, _errno(EAFNOSUPPORT), rules)

    def deny(self, names: set[str]) -> None:
        self._load(SCMP_ACT_ALLOW, _errno(EPERM), [(name, None) for name in sorted(names)])

    def allow_only(self, names: set[str]) -> None:
        self._load(_errno(EPERM), SCMP_ACT_ALLOW, [(name, None) for name in sorted(names)])

    def _load(self, default: int, action: int, rules: list[tuple[str, _Comparison | None]]) -> None:
        context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(default)))
        for name, comparison in rules:
            number = self._library.seccomp_syscall_resolve_name(name.encode())
            if number < 0:
                continue  # not a call of this architecture
            self._library.seccomp_rule_add_array(
                context,
                ctypes.c_uint32(action),
                number,
                ctypes.c_uint(comparison is not None),
                ctypes.byref(comparison) if comparison else None,
            )
        if code := self._library.seccomp_load(context):
            raise OSError(-code, os.strerror(-code), "seccomp_load")
        self._library.seccomp_release(context)


def _errno(code: int) -> int:
    return 0x00050000 | code


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    check("mount", source.encode(), target.encode(), kind and kind.encode(), flags, data.encode() or None)


def _set_read_only(path: str, flags: int, *, on: bool) -> None:
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY if on else 0, 0 if on else MOUNT_ATTR_RDONLY, 0, 0)
    check("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, attributes, ctypes.sizeof(attributes))


def check(function: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"{function}{arguments}")


def main(arguments: list[str]) -> None:
    """UNIT STATE_DIRECTORY UID COMMAND…; calls itself a second time, between the steps, as the unit's user."""
    path, state, uid, *command = arguments
    unit = Unit(Path(path))
    if state == "-":
        confine(unit)
        os.execvp(command[0], command)
    enter(unit, Path(state), int(uid))
    again = [sys.executable, "-m", "tests.kernel.agentd_sandbox", path, "-", uid, *command]
    words = [*drop(unit, int(uid)), *again]
    os.execvp(words[0], words)


if __name__ == "__main__":
    main(sys.argv[1:])
