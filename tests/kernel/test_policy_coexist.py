"""The mesh beside others' rulesets: it works where they let it, leaves them alone, and names the one that hides it.

What is said of a ruleset is compared with what real packets meet.
"""

import json
import shlex
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from agentd.hidden import notice, shown
from agentd.kernel.hiding import hiding
from agentd.kernel.readback import Readback
from agentd.model import Hiding
from controller.wire.netmap import Netmap
from tests.kernel.guarded import LINK, SENDER, Guarded, family, pairs
from tests.kernel.maps import allow, netmap
from tests.kernel.nodes import listening

pytestmark = pytest.mark.host_kernel

RULESETS: Final = Path(__file__).parent / "rulesets"
PORT: Final = 8000
SERVICE: Final = f"tcp:{PORT} over wardmesh0, opened by peers"
Load = Callable[[Guarded], None]


def from_file(name: str, allowing: str = "") -> Load:
    """Load a ruleset with this rule where it has its comment ALLOW."""

    def load(guarded: Guarded) -> None:
        guarded.host.nft((RULESETS / f"{name}.nft").read_text().replace("# ALLOW", allowing))

    return load


def ufw(*commands: str) -> Load:
    """Start the real ufw, on a copy of its configuration, with these commands."""

    def load(guarded: Guarded) -> None:
        if shutil.which("ufw", path="/usr/sbin:/sbin") is None:
            pytest.fail("ufw is not installed: run tests/setup kernel")
        tried = guarded.host.run("iptables-nft", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW", check=False)
        if tried.returncode != 0:
            pytest.skip(f"this kernel takes no rules from iptables-nft (CONFIG_NFT_COMPAT): {tried.stderr.strip()}")
        guarded.host.run("iptables-nft", "-F", "INPUT")
        copy = guarded.host.directory / "ufw"
        shutil.copytree("/etc/ufw", copy)
        configuration = copy / "ufw.conf"
        configuration.write_text(configuration.read_text().replace("ENABLED=no", "ENABLED=yes"))
        script = f"mount --bind {shlex.quote(str(copy))} /etc/ufw && /lib/ufw/ufw-init start && {' && '.join(commands)}"
        guarded.host.run("unshare", "--mount", "bash", "-c", f"PATH=$PATH:/usr/sbin:/sbin; {script}")

    return load


def wanted(guarded: Guarded) -> Netmap:
    """A host that serves one port to the sender, and may open another there."""
    return netmap(guarded.member, SENDER, rules=[allow("in", "tcp", PORT), allow("out", "tcp", 9000)])


def hidden_by(guarded: Guarded, desired: Netmap | None = None) -> tuple[Hiding, ...]:
    async def look() -> tuple[Hiding, ...]:
        readback = Readback()
        try:
            return hiding(await readback.listing(), readback, desired or wanted(guarded), LINK, 0)
        finally:
            readback.close()

    return guarded.call(look)


def chains(found: tuple[Hiding, ...]) -> set[tuple[str, str, str]]:
    return {(one.family, one.table, one.chain) for one in found}


def passes(guarded: Guarded, own: str, theirs: str) -> bool:
    """May the sender open a connection to the service?"""
    with listening(guarded.host, own, PORT), guarded.sender.socket(family(own), socket.SOCK_STREAM) as client:
        client.bind((theirs, 0))
        client.settimeout(1)
        try:
            client.connect((own, PORT))
        except OSError:
            return False
        return True


def others(guarded: Guarded) -> Any:
    """All tables but ours, without counts."""
    listed = json.loads(guarded.host.run("nft", "-js", "list", "ruleset").stdout)["nftables"]
    return [
        item
        for item in listed
        for value in item.values()
        if value.get("table", value.get("name")) != LINK.table and "metainfo" not in item
    ]


LETS_PASS: Final = {
    "nftables": from_file("nftables", 'iifname "wardmesh0" accept'),
    "firewalld": from_file("firewalld", 'iifname "wardmesh0" goto filter_IN_trusted'),
    "docker": from_file("docker", f"tcp dport {PORT + 80} dnat to 172.17.0.2:80"),
    "ufw": ufw("ufw allow in on wardmesh0", "ufw allow 51820/udp"),
}


@pytest.mark.parametrize("load", LETS_PASS.values(), ids=LETS_PASS)
def test_the_mesh_works_beside_a_ruleset_that_lets_it_and_nothing_is_said(guarded: Guarded, load: Load) -> None:
    load(guarded)
    guarded.apply(wanted(guarded))
    assert [notice(shown(one)) for one in hidden_by(guarded)] == []
    assert all(passes(guarded, own, theirs) for theirs, own in pairs(guarded))


HIDES: Final = {
    "nftables": (from_file("nftables"), {("inet", "filter", "input")}),
    "firewalld": (from_file("firewalld"), {("inet", "firewalld", "filter_INPUT")}),
    "docker": (from_file("docker", f"tcp dport {PORT} dnat to 172.17.0.2:80"), {("ip", "nat", "DOCKER")}),
    "ufw": (ufw("ufw allow 51820/udp"), {("ip", "filter", "INPUT"), ("ip6", "filter", "INPUT")}),
    "a set of addresses": (
        lambda guarded: guarded.host.nft(
            "table ip blocked { set them { type ipv4_addr ; flags interval ; elements = { 100.64.0.0/24 } ; }\n"
            "chain early { type filter hook prerouting priority -150 ; ip saddr @them counter drop ; } ; }"
        ),
        {("ip", "blocked", "early")},
    ),
}


@pytest.mark.parametrize(("load", "culprits"), HIDES.values(), ids=HIDES)
def test_the_ruleset_that_hides_a_service_is_named(
    guarded: Guarded, load: Load, culprits: set[tuple[str, str, str]]
) -> None:
    load(guarded)
    guarded.apply(wanted(guarded))
    found = [one for one in hidden_by(guarded) if SERVICE in one.traffic]
    assert chains(tuple(found)) == culprits
    assert all(one.certain for one in found)
    families = {one.family for one in found}
    for theirs, own in pairs(guarded):
        hidden = "inet" in families or ("ip6" if ":" in own else "ip") in families
        assert passes(guarded, own, theirs) is not hidden


@pytest.mark.parametrize("load", [load for load, _ in HIDES.values()], ids=HIDES)
def test_policy_is_enforced_without_a_change_to_other_tables(guarded: Guarded, load: Load) -> None:
    load(guarded)
    before = others(guarded)
    assert before
    guarded.apply(wanted(guarded))
    hidden_by(guarded)
    guarded.apply(netmap(guarded.member, SENDER, rules=[]))
    assert others(guarded) == before
    guarded.call(guarded.firewall.remove)
    assert others(guarded) == before


def test_no_other_ruleset_hides_nothing(guarded: Guarded) -> None:
    guarded.apply(wanted(guarded))
    assert hidden_by(guarded) == ()


def test_what_cannot_be_read_is_said_to_be_possible(guarded: Guarded) -> None:
    guarded.host.nft(
        "table inet odd { chain in { type filter hook input priority 0 ;\n"
        "numgen random mod 2 0 tcp dport 8000 drop ; } ; }"
    )
    guarded.apply(wanted(guarded))
    (found,) = hidden_by(guarded)
    assert (found.chain, found.certain, found.traffic) == ("in", False, (SERVICE,))
    assert "table inet odd, chain in may drop tcp:8000 over wardmesh0" in notice(shown(found))


def test_a_drop_of_other_traffic_is_not_mentioned(guarded: Guarded) -> None:
    guarded.host.nft(
        "table inet strict { chain in { type filter hook input priority 0 ; tcp dport 8001-9000 drop ;\n"
        'iifname "eth1" udp dport 51820 drop ; ip saddr 100.64.0.77 drop ; limit rate over 500/second drop ; } ; }'
    )
    guarded.apply(wanted(guarded))
    assert hidden_by(guarded) == ()
    assert passes(guarded, guarded.member.address, SENDER.address)


def test_a_host_that_refuses_wireguard_from_outside_is_told(guarded: Guarded) -> None:
    guarded.host.nft(
        "table inet closed { chain in { type filter hook input priority 0 ; policy drop ; iif lo accept ;\n"
        'iifname "wardmesh0" accept ; ct state established,related accept ; } ; }'
    )
    guarded.apply(wanted(guarded))
    (found,) = hidden_by(guarded)
    assert (found.chain, found.by_policy, found.certain) == ("in", True, True)
    assert found.traffic == ("WireGuard's udp:51820, begun by peers",)


def test_answers_that_are_dropped_are_told(guarded: Guarded) -> None:
    guarded.host.nft(
        "table inet oneway { chain in { type filter hook input priority 0 ; tcp sport 9000 counter drop ; } ; }"
    )
    guarded.apply(wanted(guarded))
    (found,) = hidden_by(guarded)
    assert found.traffic == ("answers to tcp:9000 over wardmesh0, opened from here",)
    assert found.packets == 0
