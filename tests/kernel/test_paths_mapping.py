"""A port that the router maps (miniupnpd's, by PCP) makes hosts direct that could not be without."""

from tests.kernel.finders import introduce, place
from tests.kernel.routers import INTERNET, mapped_ports, offer_ports
from tests.lab import Lab, eventually


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
            assert "51820" not in mapped_ports(router)


def test_paths_behind_a_nat_that_maps_no_ports_are_found_as_before() -> None:
    with Lab() as lab:
        internet = lab.switch("internet", INTERNET)
        hosts = [place(lab, internet, "port", name) for name in ("left", "right")]
        with introduce(lab, internet, *hosts) as (left, right):
            left.meet(right)
            right.meet(left)
            eventually(lambda: left.works_directly(right), 60, what="a path")
            assert left.prober.mapping.endpoint is None
