"""Denied packets: read from bytes however they are cut, kept by flow and minute in bounded memory."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from agentd.denied import DeniedFlow, DeniedLog, Flow
from agentd.denied_report import reports
from agentd.kernel.denials import flow_of
from controller.wire.denials import MOST_DENIALS
from tests.kernel import packets

FOUR, OTHER4 = "100.64.0.1", "100.64.0.2"
SIX, OTHER6 = "fd77::1", "fd77::2"
FLOW = Flow("in", FOUR, OTHER4, "tcp", 443)


def numbered(number: int) -> Flow:
    return Flow("in", f"100.64.{number // 256}.{number % 256}", OTHER4, "udp", 53)


# --- from bytes ---


def test_ports_are_the_destinations() -> None:
    data = packets.udp(FOUR, OTHER4, 4000, 53, b"")
    assert flow_of("in", packets.ip(FOUR, OTHER4, 17, data)) == Flow("in", FOUR, OTHER4, "udp", 53)
    data = packets.tcp_syn(SIX, OTHER6, 4000, 22, 1)
    assert flow_of("out", packets.ip(SIX, OTHER6, 6, data)) == Flow("out", SIX, OTHER6, "tcp", 22)


def test_what_has_no_ports_has_none() -> None:
    data = packets.echo(FOUR, OTHER4, 7)
    assert flow_of("in", packets.ip(FOUR, OTHER4, 1, data)) == Flow("in", FOUR, OTHER4, "icmp", None)
    assert flow_of("in", packets.ip(FOUR, OTHER4, 47, data)) == Flow("in", FOUR, OTHER4, "47", None)


def test_a_later_fragment_has_no_port_whatever_its_bytes() -> None:
    data = packets.udp(FOUR, OTHER4, 4000, 53, b"")
    assert flow_of("in", packets.ip(FOUR, OTHER4, 17, data, fragment=100)) == Flow("in", FOUR, OTHER4, "udp", None)
    fragment = struct.pack(">BBHI", 17, 0, 100 << 3, 1)
    assert flow_of("in", packets.ip(SIX, OTHER6, 44, fragment + data)) == Flow("in", SIX, OTHER6, "udp", None)


def test_ports_are_found_behind_extension_headers() -> None:
    data = packets.udp(SIX, OTHER6, 4000, 53, b"")
    chain = packets.extension(60) + packets.extension(17)
    assert flow_of("in", packets.ip(SIX, OTHER6, 0, chain + data)) == Flow("in", SIX, OTHER6, "udp", 53)


@given(st.binary(max_size=128), st.sampled_from([b"", b"\x45", b"\x4f", b"\x60"]))
def test_no_bytes_are_too_strange(data: bytes, first: bytes) -> None:
    flow = flow_of("in", first + data)
    assert flow is None or flow.direction == "in"


# --- kept ---


def test_packets_are_counted_by_flow_and_minute() -> None:
    log = DeniedLog()
    for moment in (60, 61, 119.9, 120):
        log.add(FLOW, moment)
    assert list(log.listed()) == [DeniedFlow(60, FLOW, 3), DeniedFlow(120, FLOW, 1)]
    assert list(log.listed(since=120)) == [DeniedFlow(120, FLOW, 1)]
    assert list(log.listed(before=120)) == [DeniedFlow(60, FLOW, 3)]


def test_a_flood_from_thousands_of_sources_is_bounded_and_no_packet_is_forgotten() -> None:
    log = DeniedLog(minutes=5, flows=100)
    for minute in range(20):
        for source in range(5000):
            log.add(numbered(source), minute * 60)
    listed = list(log.listed())
    assert len(listed) == 5 * 101
    assert {found.minute for found in listed} == {minute * 60 for minute in range(15, 20)}
    assert sum(found.packets for found in listed) == 5 * 5000
    assert [found.packets for found in listed if found.flow is None] == [4900] * 5


def test_a_flow_that_was_there_before_the_flood_is_still_counted() -> None:
    log = DeniedLog(flows=2)
    for flow in (FLOW, numbered(1), numbered(2), FLOW):
        log.add(flow, 0)
    assert DeniedFlow(0, FLOW, 2) in log.listed()


# --- told ---


def test_each_minute_is_a_frame_from_the_one_that_was_told_last() -> None:
    log = DeniedLog()
    for moment in (0, 60, 61, 120):
        log.add(FLOW, moment)
    frames = list(reports(log, 60, 125))
    assert [(minute, frame.denials[0].packets) for minute, frame in frames] == [(60, 2), (120, 1)]
    assert [frame.minute.timestamp() for _minute, frame in frames] == [60, 120]


def test_a_flood_fits_into_a_frame_and_what_is_old_is_not_told() -> None:
    log = DeniedLog()
    for moment in (0, 3000):
        for source in range(5000):
            log.add(numbered(source), moment)
    ((minute, frame),) = reports(log, 0, 3000)
    assert (minute, len(frame.denials)) == (3000, MOST_DENIALS)
    assert sum(denial.packets for denial in frame.denials) == 5000
