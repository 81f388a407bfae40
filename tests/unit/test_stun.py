"""STUN messages as the RFCs have them, whatever bytes come, and what the server does with them."""

import asyncio
import hashlib
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.settings import Listen, SettingsError
from controller.stun import RateLimit, StunServer, answer, listen
from controller.wire.stun import LARGEST, Binding, StunError, decode, encode, is_authentic


def octets(text: str) -> bytes:
    return bytes.fromhex(text.replace("\n", " "))


# RFC 5769 section 2.1
SAMPLE_REQUEST = octets("""
    00010058 2112a442 b7e7a701 bc34d686 fa87dfae 80220010 5354554e 20746573 7420636c 69656e74 00240004 6e0001ff
    80290008 932ff9b1 51263b36 00060009 6576746a 3a683676 59202020 00080014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249
    c1b571a2 80280004 e57a3bcf
""")
# Section 2.2, and 2.3
SAMPLE_ANSWER4 = octets("""
    0101003c 2112a442 b7e7a701 bc34d686 fa87dfae 8022000b 74657374 20766563 746f7220 00200008 0001a147 e112a643
    00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7 80280004 c07d4c96
""")
SAMPLE_ANSWER6 = octets("""
    01010048 2112a442 b7e7a701 bc34d686 fa87dfae 8022000b 74657374 20766563 746f7220 00200014 0002a147 0113a9fa
    a5d3f179 bc25f4b5 bed2b9d9 00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41 80280004 c8fb0b4c
""")
# RFC 8489 appendix B.1, as erratum 6268 corrects it
SAMPLE_SHA256 = octets("""
    00010090 2112a442 78ad3433 c6ad72c0 29da412e 001e0020 4a3cf38f ef6992bd a952c678 0417da0f 24819415 569e60b2
    05c46e41 407f1704 00150029 6f624d61 744a6f73 32414141 43662f2f 3439396b 39353464 364f4c33 346f4c39 46535476
    79363473 41000000 0014000b 6578616d 706c652e 6f726700 001d0004 00020000 001c0020 b5c7bf00 5b6c52a2 1c51c5e8
    92f81924 136296cb 927c4314 9309278c c6518e65
""")
TRANSACTION = octets("b7e7a701 bc34d686 fa87dfae")


def test_the_sample_request_is_read() -> None:
    message = decode(SAMPLE_REQUEST)
    assert message == Binding("request", TRANSACTION, username=b"evtj:h6vY", software=b"STUN test client")


@pytest.mark.parametrize(
    ("data", "mapped"),
    [(SAMPLE_ANSWER4, "192.0.2.1:32853"), (SAMPLE_ANSWER6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853")],
)
def test_the_mapped_address_of_the_sample_answers_is_read(data: bytes, mapped: str) -> None:
    assert decode(data) == Binding("answer", TRANSACTION, mapped=mapped, software=b"test vector")


def test_the_sample_with_sha_256_is_authentic_for_its_password_and_no_other() -> None:
    message = decode(SAMPLE_SHA256)
    key = hashlib.sha256("マトリックス:example.org:TheMatrIX".encode()).digest()
    assert is_authentic(SAMPLE_SHA256, message, key)
    assert not is_authentic(SAMPLE_SHA256, message, hashlib.sha256(b"another").digest())


endpoints = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(1, 65535)).map(lambda pair: f"{pair[0]}:{pair[1]}"),
    st.tuples(st.ip_addresses(v=6), st.integers(1, 65535)).map(lambda pair: f"[{pair[0]}]:{pair[1]}"),
)
messages = st.builds(
    Binding,
    st.sampled_from(["request", "answer"]),
    st.binary(min_size=12, max_size=12),
    st.none() | st.binary(max_size=60),
    st.none() | endpoints,
    st.none() | st.binary(max_size=60),
)


@given(messages, st.binary(min_size=1, max_size=64))
def test_what_is_written_is_read_again_and_is_authentic(message: Binding, key: bytes) -> None:
    assert decode(encode(message)) == message
    data = encode(message, key)
    found = decode(data)
    assert is_authentic(data, found, key)
    assert not is_authentic(data, found, key + b"x")


@given(messages, st.data())
def test_a_changed_bit_is_noticed(message: Binding, data: st.DataObject) -> None:
    sent = bytearray(encode(message, b"key"))
    bit = data.draw(st.integers(0, len(sent) * 8 - 1))
    sent[bit // 8] ^= 1 << bit % 8
    try:
        found = decode(bytes(sent))
    except StunError:
        return
    assert not is_authentic(bytes(sent), found, b"key")


@given(st.integers(0, 3000), st.none() | st.binary(min_size=1, max_size=40))
def test_a_padded_message_has_its_size_and_is_read_and_authentic(size: int, key: bytes | None) -> None:
    asked = Binding("request", bytes(12), username=b"who")
    data, plain = encode(asked, key, size=size), encode(asked, key)
    # A padding of nothing still has its header.
    assert len(data) == (size + -size % 4 if size > len(plain) + 4 else len(plain))
    assert decode(data, largest=3000).username == b"who"
    assert key is None or is_authentic(data, decode(data, largest=3000), key)


def test_a_message_larger_than_what_every_path_carries_is_read_only_by_who_expects_it() -> None:
    data = encode(Binding("request", bytes(12)), size=LARGEST + 4)
    with pytest.raises(StunError, match="552 bytes"):
        decode(data)
    assert decode(data, largest=LARGEST + 4).kind == "request"


@given(st.binary(max_size=LARGEST + 10) | st.binary(max_size=200).map(lambda rest: SAMPLE_REQUEST[:20] + rest))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    try:
        found = decode(data)
    except StunError:
        return
    assert len(found.transaction) == 12


def test_what_is_not_signed_is_not_authentic() -> None:
    data = encode(Binding("request", TRANSACTION))
    assert not is_authentic(data, decode(data), b"key")


def test_an_attribute_that_must_be_understood_and_is_not_makes_it_no_message() -> None:
    with pytest.raises(StunError, match="0x0033"):
        decode(octets("00010004 2112a442") + TRANSACTION + octets("00330000"))


# --- the server -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
def test_a_request_is_answered_with_where_it_came_from(address: str) -> None:
    reply = answer(encode(Binding("request", TRANSACTION)), address, 4000)
    assert reply is not None
    assert reply[1] == 4000
    shown = f"[{address}]:4000" if ":" in address else f"{address}:4000"
    assert decode(reply[0]) == Binding("answer", TRANSACTION, mapped=shown)


def test_an_answer_goes_to_another_port_of_who_asked_for_that_and_is_never_longer_than_the_question() -> None:
    asked = Binding("request", TRANSACTION, software=bytes(20), response_port=4001)
    reply = answer(encode(asked), "192.0.2.7", 4000)
    assert reply is not None
    assert reply[1] == 4001
    assert decode(reply[0]).mapped == "192.0.2.7:4000"
    assert len(reply[0]) <= len(encode(asked))
    assert answer(encode(Binding("request", TRANSACTION, response_port=4001)), "2001:db8::7", 4000) is None


@pytest.mark.parametrize("value", ["0000 0000", "0fa1"], ids=["zero", "short"])
def test_a_response_port_that_is_none_makes_it_no_message(value: str) -> None:
    raw = octets(value)
    attribute = octets("0027") + len(raw).to_bytes(2, "big") + raw + bytes(-len(raw) % 4)
    with pytest.raises(StunError, match="RESPONSE-PORT"):
        decode(octets(f"0001 {len(attribute):04x} 2112a442") + TRANSACTION + attribute)


@given(st.binary(max_size=200))
def test_what_is_no_request_is_not_answered(data: bytes) -> None:
    assert answer(data, "192.0.2.7", 4000) is None
    assert answer(SAMPLE_ANSWER4, "192.0.2.7", 4000) is None


def test_a_source_has_its_burst_and_then_its_rate() -> None:
    limit = RateLimit(rate=2, burst=3)
    assert [limit.allows("192.0.2.7", 10.0) for _ in range(5)] == [True, True, True, False, False]
    assert [limit.allows("192.0.2.7", 10.5) for _ in range(2)] == [True, False]
    assert limit.allows("192.0.2.8", 10.5)


def test_an_ipv6_host_is_one_source_whatever_its_address_in_its_network() -> None:
    limit = RateLimit(rate=1, burst=1)
    assert limit.allows("2001:db8::1", 0)
    assert not limit.allows("2001:db8::ffff", 0)
    assert limit.allows("2001:db8:0:1::1", 0)


def test_the_memory_of_sources_is_bounded_and_forgets_the_oldest() -> None:
    limit = RateLimit(rate=0, burst=1, sources=2)
    assert [limit.allows(f"192.0.2.{n}", 0) for n in (1, 2, 3, 3, 1)] == [True, True, True, False, True]


async def test_both_ports_answer_and_junk_does_not_stop_them() -> None:
    servers = listen(Listen("127.0.0.1", 0))
    loop = asyncio.get_running_loop()
    try:
        for server in servers:
            server.start()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.setblocking(False)
                asking.bind(("127.0.0.1", 0))
                await loop.sock_sendto(asking, b"\1\0\0\0 no STUN", ("127.0.0.1", server.port))
                transaction = os.urandom(12)
                request = encode(Binding("request", transaction))
                await loop.sock_sendto(asking, request, ("127.0.0.1", server.port))
                async with asyncio.timeout(10):
                    reply = await loop.sock_recv(asking, 2048)
                own = f"127.0.0.1:{asking.getsockname()[1]}"
                assert decode(reply) == Binding("answer", transaction, mapped=own)
    finally:
        for server in servers:
            server.close()


async def test_a_socket_of_both_families_tells_ipv4_hosts_an_ipv4_address() -> None:
    servers = listen(Listen("::", 0))
    loop = asyncio.get_running_loop()
    try:
        servers[0].start()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setblocking(False)
            asking.bind(("127.0.0.1", 0))
            await loop.sock_sendto(asking, encode(Binding("request", TRANSACTION)), ("127.0.0.1", servers[0].port))
            async with asyncio.timeout(10):
                reply = decode(await loop.sock_recv(asking, 2048))
            assert reply.mapped == f"127.0.0.1:{asking.getsockname()[1]}"
    finally:
        for server in servers:
            server.close()


def test_a_port_that_is_taken_is_an_error_that_names_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port}.*another program.*--stun-listen"):
            listen(Listen("127.0.0.1", port))


def test_a_server_has_the_port_that_its_socket_has() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        assert StunServer(one).port == one.getsockname()[1]
