"""A port that the router maps (miniupnpd's, by NAT-PMP) makes hosts direct that could not be without."""

from tests.kernel.finders import FORWARDED, introduce, place
from tests.lab import Host, Lab, Switch, eventually

# miniupnpd gives nobody a port of an address that it knows to be nobody's, as those for documentation are.
INTERNET = "11.0.0.0/26"
TABLE = """
table inet upnp {
  chain prerouting { type nat hook prerouting priority dstnat; jump mapped; }
  chain postrouting { type nat hook postrouting priority srcnat - 1; jump mapped_out; }
  chain forward { type filter hook forward priority filter - 1; jump allowed; }
  chain mapped { }
  chain mapped_out { }
  chain allowed { }
}
"""
SETTINGS = """
ext_ifname={outside}
listening_ip={inside}
port=0
enable_natpmp=yes
enable_upnp=no
secure_mode=yes
min_lifetime=60
max_lifetime=86400
upnp_table_name=upnp
upnp_nat_table_name=upnp
upnp_forward_chain=allowed
upnp_nat_chain=mapped
upnp_nat_postrouting_chain=mapped_out
uuid=8b6c0b5e-3f0f-4d2c-9c1a-2f1f0e6d7a11
allow 1024-65535 0.0.0.0/0 1024-65535
"""


def offer_ports(router: Host, inside: Switch, outside: Switch) -> None:
    """Run miniupnpd on a NAT router."""
    router.nft(TABLE + FORWARDED)
    settings = router.directory / "miniupnpd.conf"
    settings.write_text(SETTINGS.format(outside=router.port(outside).link, inside=router.port(inside).link))
    router.start("miniupnpd", "-d", "-f", settings, "-P", router.directory / "miniupnpd.pid")
    eventually(lambda: ":5351 " in router.run("ss", "-lun").stdout, 20, what="miniupnpd to listen")


def test_paths_between_hosts_whose_nats_map_each_destination_anew_are_direct_by_a_port_that_one_router_maps() -> None:
    with Lab() as lab:
        internet = lab.switch("internet", INTERNET)
        hosts = [place(lab, internet, kind, name) for kind, name in (("symmetric", "left"), ("symmetric", "right"))]
        router = lab.hosts["nat-left"]
        offer_ports(router, hosts[0].port().switch, internet)
        with introduce(lab, internet, *hosts) as (left, right):
            assert left.prober.nat == "endpoint-dependent"
            outside = f"{router.port(internet).address}:51820"
            eventually(lambda: left.prober.mapping.endpoint == outside, 30, what="the mapped port")
            assert outside in left.prober.reflexive
            left.describe()
            left.meet(right)
            right.meet(left)
            eventually(lambda: right.works_directly(left), 60, what="the path by the mapped port")
            eventually(lambda: left.reaches(right), 30, what="an answer through the tunnel")
            assert left.call(left.prober.mapping.end) == [f"gave the router's port {outside} back"]
            assert "51820" not in router.run("nft", "list", "chain", "inet", "upnp", "mapped").stdout


def test_paths_behind_a_nat_that_maps_no_ports_are_found_as_before() -> None:
    with Lab() as lab:
        internet = lab.switch("internet", INTERNET)
        hosts = [place(lab, internet, "port", name) for name in ("left", "right")]
        with introduce(lab, internet, *hosts) as (left, right):
            left.meet(right)
            right.meet(left)
            eventually(lambda: left.works_directly(right), 60, what="a path")
            assert left.prober.mapping.endpoint is None
