"""Process 1 of the User-Mode Linux guest: mounts what a Linux machine has, runs one command, powers off.

The root is the host's file system, read-only, under an overlay in the guest's memory: everything can be written and
nothing reaches the host, except in the directories that the job shares. Standard library only; it runs with
`-I -S`, before anything is set up. What it needs to know is in job.json, whose directory is $WARDMESH_JOB.
"""

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import termios
import traceback
from pathlib import Path
from typing import Any, NoReturn

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MNT_DETACH = 2
RB_POWER_OFF = 0x4321FEDC
SYS_PIVOT_ROOT = 155  # x86_64, the only architecture that User-Mode Linux has
RNDADDENTROPY = 0x40085203
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
COMMAND_NOT_FOUND = 127

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, options: str = "", flags: int = 0) -> None:
    Path(target).mkdir(parents=True, exist_ok=True)
    call("mount", source.encode(), target.encode(), kind.encode(), flags, options.encode())


def enter_overlay() -> None:
    """Make a writable overlay over the read-only host the root. pivot_root, because user namespaces refuse chroots."""
    mount("tmpfs", "/run", "tmpfs", "mode=0755")
    for name in ("upper", "work", "root"):
        Path("/run", name).mkdir()
    mount("overlay", "/run/root", "overlay", "lowerdir=/,upperdir=/run/upper,workdir=/run/work")
    os.chdir("/run/root")
    # pivot_root(2): with both arguments ".", the old root ends up mounted over the new one, ready to be detached.
    call("syscall", SYS_PIVOT_ROOT, b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def mount_system() -> None:
    mount("proc", "/proc", "proc", flags=MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", "/sys", "sysfs", flags=MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("devtmpfs", "/dev", "devtmpfs", flags=MS_NOSUID)
    mount("devpts", "/dev/pts", "devpts", "mode=0620,ptmxmode=0666", MS_NOSUID | MS_NOEXEC)
    mount("tmpfs", "/dev/shm", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV)
    mount("tmpfs", "/run", "tmpfs", "mode=0755", MS_NOSUID | MS_NODEV)
    for directory in ("/run/netns", "/run/lock"):
        Path(directory).mkdir()
    for name, target in {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}.items():
        if not os.path.lexists(f"/dev/{name}"):
            Path("/dev", name).symlink_to(target)


def set_up_machine(seed: bytes) -> None:
    socket.sethostname("wardmesh-guest")
    # New network namespaces get a loopback link and nothing else, as on a distribution's kernel with modules.
    Path("/proc/sys/net/core/fb_tunnels_only_for_init_net").write_text("1")
    with Path("/dev/random").open("wb", buffering=0) as random:
        # struct rand_pool_info: the guest is short of entropy at boot, and key generation would wait for it.
        fcntl.ioctl(random, RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def start(job: dict[str, Any], stdin: int, output: int, controlling: int | None) -> int:
    """Fork the command; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        if controlling is not None:
            fcntl.ioctl(controlling, termios.TIOCSCTTY, 0)
        for descriptor, number in ((stdin, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, number)
        os.closerange(3, 64)
        os.chdir(job["cwd"])
        os.execvpe(job["argv"][0], job["argv"], job["env"])
    except OSError as error:
        os.write(2, f"cannot run {job['argv'][0]!r} in the guest: {error}\n".encode())
    os._exit(COMMAND_NOT_FOUND)


def reap_until(pid: int) -> int:
    """Wait for `pid`, burying orphans meanwhile. Returns its exit code, 128 + signal when a signal ended it."""
    while True:
        found, status = os.waitpid(-1, 0)
        if found == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def run_piped(job: dict[str, Any], console: int) -> int:
    """Run the command with no terminal, its output copied to the console until it exits."""
    # Raw: no echo, no \n to \r\n.
    mode = termios.tcgetattr(console)
    mode[0] = mode[1] = mode[3] = 0
    termios.tcsetattr(console, termios.TCSANOW, mode)
    source, sink = os.pipe()
    pid = start(job, os.open("/dev/null", os.O_RDONLY), sink, None)
    os.close(sink)
    ended = os.pidfd_open(pid)
    os.set_blocking(source, False)
    # Not until end of file: what the command left behind may hold the pipe open.
    while True:
        ready, _, _ = select.select([source, ended], [], [])
        chunk = b""
        if source in ready:
            chunk = os.read(source, 65536)
            write_all(console, chunk)
        if not chunk:
            return reap_until(pid)


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def run_on_terminal(job: dict[str, Any], console: int) -> int:
    terminal = os.open("/dev/tty0", os.O_RDWR)
    rows, columns = job["terminal"]
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return reap_until(start(job, terminal, terminal, terminal))


def save_kernel_log(path: Path) -> None:
    kmsg = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    with path.open("wb") as log:
        while True:
            try:
                record = os.read(kmsg, 8192)
            except BlockingIOError:
                return
            except BrokenPipeError:  # records were overwritten before we read them; the next read continues after
                continue
            log.write(record.partition(b";")[2])


def main() -> None:
    enter_overlay()
    mount_system()
    mount("none", "/run/job", "hostfs", os.environ["WARDMESH_JOB"])
    job = json.loads(Path("/run/job/job.json").read_text())
    set_up_machine(bytes.fromhex(job["seed"]))
    for directory in job["shares"]:
        mount("none", directory, "hostfs", directory)
    console = os.open("/dev/console", os.O_RDWR | os.O_NOCTTY)
    write_all(console, job["begin"].encode())
    code = (run_on_terminal if job["terminal"] else run_piped)(job, console)
    termios.tcdrain(console)
    write_all(console, job["end"].encode())
    termios.tcdrain(console)
    save_kernel_log(Path("/run/job/kernel.log"))
    Path("/run/job/exit").write_text(f"{code}\n")


def power_off() -> NoReturn:
    os.sync()
    libc.reboot(RB_POWER_OFF)
    raise SystemExit("the guest refused to power off")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        main()
    except Exception:  # noqa: BLE001 - process 1 must power off whatever happened, and the host shows what it printed
        traceback.print_exc(file=sys.stdout)
    finally:
        power_off()
