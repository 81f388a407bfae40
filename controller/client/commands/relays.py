"""relay: list, show. Relays are named in the policy; here is who uses them and what they pass on."""

from typing import Annotated

import typer
from rich.text import Text

from controller.client.output import detail, milliseconds, note, plain, print_json, table
from controller.client.session import connect
from controller.wire.relay_use import RelayDetail

from .help import examples, group
from .options import JsonFlag

__all__ = ["app"]

app = group(
    "Hosts that pass on sealed packets for others.",
    "wardmesh relay list",
    "wardmesh relay show relay-eu",
)
_MEGABYTE = 1_000_000


@app.command("list", epilog=examples("wardmesh relay list", "wardmesh relay list --json"))
def list_relays(json: JsonFlag = False) -> None:
    """List the relays of the policy in force, and how many hosts use each, by what the hosts say."""
    with connect() as controller:
        found = list(controller.relays())
    if json:
        print_json(found)
        return
    table(
        ("NAME", "REGION", "ONLINE", "HOME OF", "SPARE OF"),
        ((one.name, one.region, _yes(one.online), str(one.homes), str(one.spares)) for one in found),
        empty="No relays. They are declared under `relays:` in the policy, and are active hosts with an agentd.",
    )


@app.command("show", epilog=examples("wardmesh relay show relay-eu", "wardmesh relay show relay-eu --json"))
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The relay's name or id.")], json: JsonFlag = False
) -> None:
    """Show one relay: the hosts that use it, its limits, and what its kernel passed on, by pair of hosts."""
    with connect() as controller:
        found = controller.relay(name)
    if json:
        print_json(found)
        return
    detail(
        (
            ("name", found.name),
            ("region", found.region),
            ("online", _yes(found.online)),
            ("limit", _limit(found)),
            ("dropped", _dropped(found)),
            *((("problem", Text(plain(found.problem), style="red")),) if found.problem else ()),
            *(
                ((f"{'spare' if user.spare else 'home'} of", f"{user.name}, {milliseconds(user.rtt)} away"))
                for user in found.users
            ),
        )
    )
    if not found.answered:
        note("Its agentd gave no answer, so what it passed on is not known.")
        return
    print()
    table(
        ("FROM", "TO", "PACKETS", "MEGABYTES"),
        (
            (plain(pair.source), plain(pair.destination), str(pair.packets), f"{pair.bytes / _MEGABYTE:.3f}")
            for pair in found.pairs
        ),
        empty="It passed on nothing in the last hour.",
    )
    if found.pair_count > len(found.pairs):
        note(f"These are the {len(found.pairs)} of {found.pair_count} pairs with the most bytes.")


def _limit(found: RelayDetail) -> str:
    if found.rate is None:
        return "-"
    return f"{found.rate} megabytes a second from each host" if found.rate else "none"


def _dropped(found: RelayDetail) -> str:
    if found.limited is None or found.refused is None:
        return "-"
    return f"{found.limited} packets over the limit, {found.refused} that it must not pass on"


def _yes(value: bool) -> Text:
    return Text("yes", style="green") if value else Text("no", style="red")
