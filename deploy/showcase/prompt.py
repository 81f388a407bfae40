"""After the story the mesh stays up: a prompt to try things on, until Ctrl-C, Ctrl-D, `quit` or a signal."""

import signal
import subprocess
import sys
from pathlib import Path

from .screen import Screen
from .service import URL
from .world import World

__all__ = ["stay"]


def stay(screen: Screen, world: World) -> None:
    """Returns when the person is done; raises KeyboardInterrupt for Ctrl-C."""
    explain(screen, world)
    if not sys.stdin.isatty():
        screen.say("There is no terminal to type on; Ctrl-C or SIGTERM ends it.", "dim")
        while True:
            signal.pause()
    while True:
        try:
            line = input("demo> ").strip()
        except EOFError:
            return
        if line in {"quit", "exit"}:
            return
        if line == "help":
            explain(screen, world)
        elif line:
            run(screen, world, line)


def explain(screen: Screen, world: World) -> None:
    screen.heading("The mesh stays up. Things to try here:")
    call = f"python -m deploy.showcase.mcp_client {URL}"
    for meaning, lines in (
        ("the hosts as the controller sees them, and who changed what", ["wardmesh node list", "wardmesh audit list"]),
        ("a host's own view: assistant, warehouse or visitor, then a colon", ["assistant: agentd status"]),
        ("what WireGuard and nftables themselves say", ["warehouse: wg show", "visitor: nft list table inet wardmesh"]),
        (
            "call tools: allowed, with a denied argument, and denied",
            [
                f"assistant: {call} {words}"
                for words in ("pack parcel=hello", "ship parcel=hello to=Atlantis", "discard")
            ],
        ),
        ("who called what, and what the gateway decided", ["wardmesh audit calls", "wardmesh service list"]),
        (
            "revoke a host, and call again; `node enable` brings it back within half a minute",
            ["wardmesh node disable assistant"],
        ),
        ("end everything; Ctrl-C does, too", ["quit"]),
    ):
        screen.say(f"  # {meaning}", "dim")
        for line in lines:
            screen.say(f"  {line}", "cyan")


def run(screen: Screen, world: World, line: str) -> None:
    """`HOST: COMMAND` on that host; without a host, on the controller's machine. By the shell."""
    name, colon, rest = line.partition(":")
    hosts = {"controller": world.admin, **world.hosts}
    host, command = (hosts[name], rest) if colon and name in hosts else (world.admin, line)
    env, prelude = world.shell(host)
    script = f"{prelude}\n{command}"
    # Ctrl-C is for the command; the demo ends at the prompt only. A handler, because the command would inherit SIG_IGN.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        here = Path.cwd()
        process = host.call(lambda: subprocess.Popen(["bash", "-c", script], env=env, cwd=here))
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    if code:
        screen.say(f"exit code {code}", "dim")
