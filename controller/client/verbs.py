"""The first word after `wardmesh`: what it is for, and the module that is imported when it is called.

A list of the verbs imports none of them, so it has their first sentences from here.
"""

from importlib import import_module
from typing import Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

__all__ = ["VERBS", "Verb", "Verbs"]


class Verb(NamedTuple):
    """`app` of a module among the commands: the whole of it, or the one command of it that has the verb's name."""

    module: str
    help: str
    single: bool = False

    def load(self, name: str) -> Any:
        """The command itself, as typer.core has it."""
        app: typer.Typer = import_module(f".commands.{self.module}", __package__).app
        whole = get_group(app)
        return whole.commands[name] if self.single else whole


VERBS: Final = {
    "login": Verb("login", "Save a controller and an admin token for the other commands.", single=True),
    "logout": Verb("login", "Forget the saved controller and token on this machine.", single=True),
    "status": Verb("status", "Show the mesh as the controller sees it.", single=True),
    "ca": Verb("status", "Print the mesh's CA certificate (PEM), for clients that call services over https.", True),
    "node": Verb("nodes", "Hosts and static peers of the mesh."),
    "key": Verb("keys", "Enrolment keys: what a host needs to join."),
    "peer": Verb("peers", "Static peers: devices with WireGuard but without agentd."),
    "policy": Verb("policy", "Who may reach what. Without a policy, nothing is allowed."),
    "grant": Verb(
        "grants",
        "Access for a while, beside the policy. It ends by itself, also while the controller is away, and live flows "
        "with it. Selectors and `ip` are written as in a policy document.",
    ),
    "service": Verb("services", "Services of the policy that have mesh addresses of their own."),
    "path": Verb("paths", "How hosts reach their peers."),
    "relay": Verb("relays", "Hosts that pass on sealed packets for others."),
    "audit": Verb("audit", "The record of every change, and of what hosts saw."),
    "token": Verb("tokens", "Admin tokens: what people and scripts show the controller."),
}


class Verbs(TyperGroup):
    """The top level. In a list a verb is its name and first sentence; one that is called is imported."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, verb in VERBS.items():
            self.add_command(TyperCommand(name, help=verb.help, rich_markup_mode=self.rich_markup_mode))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The verb that `args` begin with, imported."""
        if args[0] in VERBS:
            self.add_command(VERBS[args[0]].load(args[0]), args[0])
        return super().resolve_command(ctx, args)
