"""deploy/demo after its set-up: chooses the kernel, shuts itself off from the host, tells the story."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from tests.lab import Lab
from tests.lab.kernel import has_wireguard
from tests.runner.isolation import isolated

from .prompt import stay
from .screen import Screen
from .story import tell

REPOSITORY: Final = Path(__file__).resolve().parent.parent.parent
# Set for the process inside: it is shut off already.
INSIDE: Final = "WARDMESH_DEMO_INSIDE"


def main() -> int:
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
    try:
        if os.environ.get(INSIDE):
            # Process 1 of the guest ignores SIGINT, and that is inherited.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return show(once=options.once)
        if options.kernel == "uml":
            return in_guest(sys.argv[1:])
        if options.kernel == "host" and not has_wireguard():
            print("deploy/demo: this kernel has no WireGuard; use --kernel uml, or leave --kernel out", file=sys.stderr)
            return 1
        return in_namespaces(sys.argv[1:])
    except KeyboardInterrupt:
        return 130


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="deploy/demo",
        description="Show a mesh on this machine: three hosts enrolled, an MCP tool called, a third host denied.",
        epilog="Needs root, for network namespaces. Leaves nothing behind.",
    )
    parser.add_argument(
        "--once", action="store_true", help="end after the story: exit 0 if all of it came true, else 1"
    )
    parser.add_argument(
        "--kernel",
        choices=("auto", "host", "uml"),
        default="auto",
        help="host: this kernel's WireGuard or nothing; uml: a User-Mode Linux guest with WireGuard; "
        "auto: this kernel's if it has WireGuard, else wireguard-go (default)",
    )
    return parser.parse_args(arguments)


def show(*, once: bool) -> int:
    """The story, on a machine that is ours alone."""
    screen = Screen()
    try:
        with Lab() as lab:
            try:
                world = tell(screen, lab)
                summarise(screen)
                if not once:
                    stay(screen, world)
            except KeyboardInterrupt:
                # Not through the lab, which would print what every process had said.
                screen.say("\nEnded; nothing is left behind.", "dim")
                return 130
    except AssertionError as error:
        screen.say(f"\nThe demo failed: {error}", "bold red")
        return 1
    return 0


def summarise(screen: Screen) -> None:
    screen.heading(f"All of it came true, in {screen.elapsed():.0f} s:")
    for title in screen.shown:
        screen.say(f"  ✓ {title}", "green")


def in_namespaces(arguments: Sequence[str]) -> int:
    """In process, network and mount namespaces that end with this process, however it ends."""
    temporary = Path(tempfile.mkdtemp(prefix="wardmesh-demo-"))
    command = [sys.executable, "-m", "deploy.showcase", *arguments]
    process = subprocess.Popen(isolated(command, temporary), env={**os.environ, INSIDE: "1"}, cwd=REPOSITORY)
    try:
        return wait(process)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def in_guest(arguments: Sequence[str]) -> int:
    """In a User-Mode Linux guest, which is a machine of its own."""
    interactive = ["-i"] if sys.stdin.isatty() and sys.stdout.isatty() else []
    guest = [str(REPOSITORY / "tests" / "uml" / "run"), *interactive, "--timeout", "86400", "--"]
    command = [*guest, "env", f"{INSIDE}=1", sys.executable, "-m", "deploy.showcase", *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    try:
        return wait(process)
    finally:
        process.terminate()
        process.wait()


def wait(process: "subprocess.Popen[bytes]") -> int:
    """Its exit code. Ctrl-C reaches it directly, so that it can say goodbye; a second one ends it here."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        return process.wait()


def end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
