"""The saved map: what was written is what is read, and anything else is refused and set aside."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.netmap import DamagedMapError, SavedMap, decode, denied, encode, live_rules, load, next_expiry, save, whois
from agentd.state import NETMAP, WIREGUARD_KEY, StateDir
from controller.wire.netmap import AddressSet, Mesh, Netmap, Peer, Rule, SelfNode


def rule(name: str, expires: int | None) -> Rule:
    return Rule(
        id=name, grant="g1", direction="in", protocol="tcp", ports=((443, 443),), peers=("tag:a",), expires=expires
    )


NETMAP_VALUE = Netmap(
    revision=7,
    mesh=Mesh(id="m1", name="lab", prefix4="100.80.0.0/16", prefix6="fd00:1234::/48"),
    node=SelfNode(id="n1", name="db-1", addresses=("100.80.0.1", "fd00:1234::1")),
    peers={
        "n2": Peer(
            id="n2",
            name="agent-1",
            public_key="YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=",
            addresses=("100.80.0.2", "fd00:1234::2"),
        )
    },
    sets={"tag:a": AddressSet(name="tag:a", addresses=frozenset({"100.80.0.2"}))},
    rules={"r1": rule("r1", None), "r2": rule("r2", 1000), "r3": rule("r3", 2000)},
)
SAVED = encode(SavedMap(NETMAP_VALUE))


@pytest.mark.parametrize("resume", [True, False])
def test_what_is_encoded_is_decoded(resume: bool) -> None:
    saved = SavedMap(NETMAP_VALUE, resume=resume)
    assert decode(encode(saved)) == saved


def test_the_file_is_json_that_other_tools_can_read() -> None:
    assert json.loads(SAVED)["netmap"]["node"]["name"] == "db-1"


@given(st.integers(0, len(SAVED) - 1))
def test_a_file_that_was_cut_short_is_refused(length: int) -> None:
    with pytest.raises(DamagedMapError):
        decode(SAVED[:length])


@given(st.integers(0, len(SAVED) - 1), st.integers(1, 255))
def test_a_file_with_one_byte_changed_is_refused_or_means_the_same(position: int, change: int) -> None:
    damaged = bytearray(SAVED)
    damaged[position] ^= change
    try:
        found = decode(bytes(damaged))
    except DamagedMapError:
        return
    assert found.netmap == NETMAP_VALUE


def test_a_newer_format_is_refused_by_name() -> None:
    with pytest.raises(DamagedMapError, match="its format is 2, this agentd reads 1"):
        decode(SAVED.replace(b'"format":1', b'"format":2'))


def test_no_file_means_no_map(tmp_path: Path) -> None:
    assert load(StateDir(tmp_path)) == (None, None)


def test_a_saved_map_is_loaded(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    save(state, SavedMap(NETMAP_VALUE))
    assert load(state) == (SavedMap(NETMAP_VALUE), None)


def test_a_damaged_map_is_set_aside_and_the_keys_stay(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.write(WIREGUARD_KEY, b"key")
    state.write(NETMAP, SAVED[:-10])
    found, notice = load(state)
    assert found is None
    assert notice is not None
    assert "cut short" in notice
    assert str(tmp_path / "netmap.json.damaged-") in notice
    assert state.read(WIREGUARD_KEY) == b"key"
    assert load(state) == (None, None)


def test_a_denied_host_keeps_its_addresses_and_nothing_else() -> None:
    empty = denied(NETMAP_VALUE)
    assert empty.node == NETMAP_VALUE.node
    assert (empty.peers, empty.sets, empty.rules) == ({}, {}, {})


@pytest.mark.parametrize(("now", "following"), [(999.9, 1000), (1000, 2000), (2000, None)])
def test_the_next_rule_to_end_is_known(now: float, following: int | None) -> None:
    assert next_expiry(NETMAP_VALUE, now) == following


def test_whois_names_who_holds_a_services_address() -> None:
    held = NETMAP_VALUE.node.model_copy(update={"held": ("100.80.9.1",)})
    peers = {key: peer.model_copy(update={"held": ("fd00:1234::9:2",)}) for key, peer in NETMAP_VALUE.peers.items()}
    wanted = NETMAP_VALUE.model_copy(update={"node": held, "peers": peers})
    own, peer = (whois(wanted, address) for address in ("100.80.9.1", "fd00:1234:0::9:2"))
    assert (own and own.name, peer and peer.name) == ("db-1", "agent-1")


def test_whois_knows_peers_and_itself_in_any_spelling() -> None:
    peer, own, nobody = (whois(NETMAP_VALUE, address) for address in ("fd00:1234:0::2", "100.80.0.1", "100.80.0.3"))
    assert (peer and peer.name, own and own.name, nobody) == ("agent-1", "db-1", None)


@pytest.mark.parametrize(("now", "live"), [(999, ["r1", "r2", "r3"]), (1000, ["r1", "r3"]), (2000.5, ["r1"])])
def test_a_rule_is_in_force_until_the_moment_it_ends(now: float, live: list[str]) -> None:
    assert [rule.id for rule in live_rules(NETMAP_VALUE, now)] == live
