"""The mesh's names in the hosts file: what is in the block, and that nothing else of the file ever changes."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.config import Config
from agentd.names import HostsFile, NamesError, entries, few, merged, parse_entries, written, zone
from agentd.naming import LEFT, Naming, remove_names, write_left
from controller.wire.netmap import Mesh, Netmap, Peer, SelfNode

KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
MESH = Mesh(id="m1", name="test", domain="mesh.internal", prefix4="100.80.0.0/16", prefix6="fd00::/64")
LISTED = (("100.80.1.1", "github.mesh.internal"), ("fd00::1:1", "github.mesh.internal"))
FILE = "127.0.0.1\tlocalhost\n# mine\n192.0.2.1 db  # with a remark"


def netmap(*peers: str, names: dict[str, tuple[str, ...]] | None = None) -> Netmap:
    node = SelfNode(id="n0", name="here", addresses=("100.80.0.1", "fd00::1"))
    listed = {
        name: Peer(id=name, name=name, public_key=KEY, addresses=(f"100.80.0.{number}",))
        for number, name in enumerate(peers, 2)
    }
    return Netmap(revision=1, mesh=MESH, node=node, peers=listed, names=names or {})


def test_services_this_node_and_its_peers_have_names() -> None:
    found = entries(netmap("db", "app", names={"github": ("100.80.1.1", "fd00::1:1")}))
    assert found == (
        *LISTED,
        ("100.80.0.1", "here.mesh.internal"),
        ("fd00::1", "here.mesh.internal"),
        ("100.80.0.3", "app.mesh.internal"),
        ("100.80.0.2", "db.mesh.internal"),
    )


def test_the_responder_has_the_same_names_with_all_their_addresses() -> None:
    found = zone(netmap("db", names={"github": ("100.80.1.1", "fd00::1:1")}))
    assert found.domain == "mesh.internal"
    assert found.names == {
        "github.mesh.internal": ("100.80.1.1", "fd00::1:1"),
        "here.mesh.internal": ("100.80.0.1", "fd00::1"),
        "db.mesh.internal": ("100.80.0.2",),
    }


def test_a_name_that_is_a_services_is_not_a_peers_too() -> None:
    found = entries(netmap("github", names={"github": ("100.80.1.1",)}))
    assert [address for address, name in found if name == "github.mesh.internal"] == ["100.80.1.1"]


def test_a_large_mesh_does_not_make_every_lookup_slow() -> None:
    large = netmap(*(f"p{number}" for number in range(200)), names={f"s{n}": ("100.80.1.1",) for n in range(3000)})
    assert len(zone(large).names) == 3201
    found = few(entries(large))
    assert len(found) == 2000
    assert all(name.startswith("s") for _, name in found)


@given(st.text(alphabet="ab#: \t\n127.localhost"), st.booleans())
def test_other_lines_stay_byte_for_byte(text: str, twice: bool) -> None:
    once = merged(text, "wardmesh0", LISTED)
    again = merged(once, "wardmesh0", LISTED[:1]) if twice else once
    assert merged(again, "wardmesh0", ()) in {text, f"{text}\n"}
    assert again.startswith(text)


def test_what_is_right_is_not_written_again() -> None:
    once = merged(FILE, "wardmesh0", LISTED)
    assert merged(once, "wardmesh0", LISTED) == once


def test_two_meshes_have_a_block_each() -> None:
    both = merged(merged(FILE, "wardmesh0", LISTED[:1]), "mesh1", LISTED[1:])
    assert merged(both, "wardmesh0", ()) == merged(FILE, "mesh1", LISTED[1:])


@pytest.mark.parametrize(
    "damaged", ["# BEGIN wardmesh w\n1 a\n", "# END wardmesh w\n", "# END wardmesh w\n# BEGIN wardmesh w: x\n"]
)
def test_a_damaged_block_is_refused(damaged: str) -> None:
    with pytest.raises(NamesError, match="do not match: remove"):
        merged(damaged, "w", LISTED)


def test_the_file_keeps_its_mode_and_what_links_to_it(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "hosts"
    real.write_bytes(b"192.0.2.1 caf\xe9\n")
    real.chmod(0o640)
    link.symlink_to(real)
    assert HostsFile(link, "w").put(LISTED)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert real.read_bytes().startswith(b"192.0.2.1 caf\xe9\n# BEGIN wardmesh w")
    assert HostsFile(link, "w").put(())
    assert real.read_bytes() == b"192.0.2.1 caf\xe9\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hosts", "real"]


def test_a_file_that_is_not_there_is_made_readable_for_all(tmp_path: Path) -> None:
    file = HostsFile(tmp_path / "hosts", "w")
    assert not file.put(())
    assert file.put(LISTED)
    assert (tmp_path / "hosts").stat().st_mode & 0o777 == 0o644


def test_a_file_that_cannot_be_written_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(NamesError, match=r"wardmesh-names\.path"):
        HostsFile(tmp_path / "no-directory" / "hosts", "w").put(LISTED)


async def test_names_that_agentd_may_not_write_are_left_for_who_may(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    hosts = tmp_path / "etc" / "hosts"
    config = Config(hosts_file=hosts, socket=tmp_path / "run" / "agentd.sock")
    naming = Naming(config)
    naming._put(HostsFile(hosts, config.link), LISTED)
    assert naming.problem is not None
    hosts.parent.mkdir()
    hosts.write_text(FILE)
    assert write_left(config)
    assert hosts.read_text() == merged(FILE, config.link, LISTED)
    naming._put(HostsFile(hosts, config.link), LISTED)
    assert naming.problem is None
    assert remove_names(config) == [f"remove the mesh's names from {hosts}"]
    assert not write_left(config)
    assert hosts.read_text() == f"{FILE}\n"


def test_the_file_that_is_left_is_not_followed_elsewhere(tmp_path: Path) -> None:
    config = Config(hosts_file=tmp_path / "hosts", socket=tmp_path / "agentd.sock")
    (tmp_path / LEFT).symlink_to("/etc/passwd")
    with pytest.raises(NamesError, match=os.strerror(40)):
        write_left(config)


@pytest.mark.parametrize(
    "line", ["127.0.0.1 localhost", "x mesh.internal", "100.80.0.1 a.b c.d", "# a.b", "100.80.0.1 a.b # c", ""]
)
def test_no_other_line_gets_into_the_hosts_file(line: str) -> None:
    with pytest.raises(NamesError, match="is not an address and a full name"):
        parse_entries(f"{line}\n")
    assert parse_entries(written(LISTED)) == LISTED
