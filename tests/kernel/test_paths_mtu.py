"""A path that drops large packets without a word carries large answers all the same, and small ones in one piece."""

from contextlib import ExitStack
from functools import partial

import pytest

from tests.kernel.finders import Finder, Stun
from tests.lab import Lab, eventually

LARGEST = 1300  # bytes of a packet that the path carries
MEGABYTE = 1 << 20
# Drops and says nothing; what comes in pieces is dropped too, as by many NATs.
BLACK_HOLE = f"""
table inet narrow {{
  chain forward {{
    type filter hook forward priority filter; policy accept;
    meta length > {LARGEST} drop
    ip frag-off & 0x3fff != 0 drop
    exthdr frag exists drop
  }}
}}
"""


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_paths_that_drop_large_packets_silently_carry_a_megabyte_over_both_families(six: bool) -> None:
    with Lab() as lab, ExitStack() as ending:
        near, far = lab.switch("near"), lab.switch("far")
        hosts = [lab.host("left", near), lab.host("right", far)]
        lab.router("narrow", near, far).nft(BLACK_HOLE)
        stun = Stun(lab.host("stun", near))
        ending.callback(stun.end)
        found = []
        for number, host in enumerate(hosts, 1):
            finder = Finder(host, number, stun.host.address, 3478)
            ending.callback(finder.end)
            finder.begin_table()
            place = f"[{host.address6}]:51820" if six else f"{host.address}:51820"
            finder.be_at(place)
            found.append(finder)
        left, right = found
        left.meet(right)
        right.meet(left)
        (hosts[1].directory / "result").write_bytes(b"x" * MEGABYTE)
        room = LARGEST - (40 if six else 20) - 8 - 32
        for one, other in ((left, right), (right, left)):
            eventually(partial(one.mtu, other), 60, what="the size to be known")
            assert room - 20 < (one.mtu(other) or 0) <= room
        for address in (right.member.address, right.member.address6):
            bound = hosts[1].start("python3", "-m", "http.server", "8000", "--bind", address, cwd=hosts[1].directory)
            url = f"http://[{address}]:8000/result" if ":" in address else f"http://{address}:8000/result"
            get = ("curl", "-sS", "--retry", "20", "--retry-connrefused", "--max-time", "40", "-o", "/dev/null", "-w")
            assert hosts[0].run(*get, "%{size_download}", url, timeout=60).stdout == str(MEGABYTE)
            bound.kill()
