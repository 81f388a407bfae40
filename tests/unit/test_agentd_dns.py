"""Answers to questions about the mesh's names, byte by byte, and to what is no question."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.dns import Rcode, Zone, respond

ZONE = Zone(
    "mesh.internal",
    {"github.mesh.internal": ("100.80.1.1", "fd00::1:1"), "db.mesh.internal": ("100.80.0.2",)},
    revision=7,
)
A, NS, SOA, AAAA, ANY = 1, 2, 6, 28, 255


def wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def ask(
    name: str, kind: int = A, *, cls: int = 1, flags: int = 0x0100, more: bytes = b"", additionals: int = 0
) -> bytes:
    return (
        struct.pack("!HHHHHH", 0xBEEF, flags, 1, 0, 0, additionals) + wire(name) + struct.pack("!HH", kind, cls) + more
    )


def opt(size: int = 4096, version: int = 0) -> bytes:
    return b"\0" + struct.pack("!HHIH", 41, size, version << 16, 0)


class Reply:
    """What `respond` said, taken apart as far as these tests ask."""

    def __init__(self, message: bytes | None) -> None:
        assert message is not None
        self.raw = message
        self.id, self.flags, self.questions, self.answers, self.authorities, self.additionals = struct.unpack_from(
            "!HHHHHH", message
        )
        self.rcode = self.flags & 0xF

    def addresses(self) -> list[str]:
        """Those in the answer section, which are last but for EDNS."""
        found, offset = [], self.raw.index(b"\xc0\x0c")
        for _ in range(self.answers):
            kind, cls, ttl, length = struct.unpack_from("!HHIH", self.raw, offset + 2)
            assert (cls, ttl) == (1, 5)
            assert kind == (A if length == 4 else AAAA)
            found.append(str(ipaddress.ip_address(self.raw[offset + 12 : offset + 12 + length])))
            offset += 12 + length
        return found


@pytest.mark.parametrize(
    ("kind", "addresses"), [(A, ["100.80.1.1"]), (AAAA, ["fd00::1:1"]), (ANY, ["100.80.1.1", "fd00::1:1"])]
)
def test_a_name_has_its_addresses_by_family(kind: int, addresses: list[str]) -> None:
    reply = Reply(respond(ask("github.mesh.internal", kind), ZONE))
    assert (reply.id, reply.flags, reply.authorities) == (0xBEEF, 0x8500, 0)  # an answer, authoritative, RD as asked
    assert reply.addresses() == addresses


def test_the_question_comes_back_in_the_case_in_which_it_was_asked() -> None:
    """Resolvers vary it, so that answers that somebody made up show (draft-vixie-dnsext-dns0x20)."""
    reply = Reply(respond(ask("GitHub.MESH.Internal"), ZONE))
    assert reply.addresses() == ["100.80.1.1"]
    assert wire("GitHub.MESH.Internal") in reply.raw


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        ("db.mesh.internal", AAAA, Rcode.NOERROR),
        ("db.mesh.internal", NS, Rcode.NOERROR),
        ("mesh.internal", A, Rcode.NOERROR),
        ("nobody.mesh.internal", A, Rcode.NXDOMAIN),
        ("a.github.mesh.internal", A, Rcode.NXDOMAIN),
    ],
)
def test_what_is_not_there_is_said_with_how_long_to_remember_it(name: str, kind: int, rcode: Rcode) -> None:
    reply = Reply(respond(ask(name, kind), ZONE))
    assert (reply.rcode, reply.answers, reply.authorities) == (rcode, 0, 1)
    assert reply.flags & 0x0400
    assert reply.raw.endswith(struct.pack("!IIIII", 7, 3600, 600, 86400, 5))


@pytest.mark.parametrize("name", ["example.com", "internal", "xmesh.internal", "mesh.internal.example.com"])
def test_other_domains_are_refused_so_that_somebody_else_is_asked(name: str) -> None:
    reply = Reply(respond(ask(name), ZONE))
    assert (reply.rcode, reply.answers, reply.authorities) == (Rcode.REFUSED, 0, 0)


def test_another_class_is_refused() -> None:
    assert Reply(respond(ask("db.mesh.internal", cls=3), ZONE)).rcode == Rcode.REFUSED


def test_a_dot_within_a_label_is_no_separator() -> None:
    raw = ask("db.mesh.internal").replace(wire("db.mesh.internal"), b"\x07db.mesh\x08internal\0")
    assert Reply(respond(raw, ZONE)).rcode == Rcode.REFUSED


@pytest.mark.parametrize("size", [0, 512, 4096])
def test_edns_is_answered_with_edns(size: int) -> None:
    reply = Reply(respond(ask("db.mesh.internal", more=opt(size), additionals=1), ZONE))
    assert (reply.rcode, reply.additionals) == (0, 1)
    assert reply.raw.endswith(opt(1232))


def test_a_later_version_of_edns_is_told_which_we_know() -> None:
    reply = Reply(respond(ask("db.mesh.internal", more=opt(version=1), additionals=1), ZONE))
    assert reply.raw.endswith(b"\0" + struct.pack("!HHIH", 41, 1232, 1 << 24, 0))
    assert (reply.rcode, reply.answers) == (0, 0)


def test_what_does_not_fit_is_asked_again_over_tcp() -> None:
    many = Zone("mesh.internal", {"m.mesh.internal": tuple(f"100.80.0.{number}" for number in range(40))})
    short = Reply(respond(ask("m.mesh.internal"), many))
    assert (short.flags & 0x0200, short.answers) == (0x0200, 0)
    assert len(Reply(respond(ask("m.mesh.internal"), many, tcp=True)).addresses()) == 40
    assert len(Reply(respond(ask("m.mesh.internal", more=opt(), additionals=1), many)).addresses()) == 40


@pytest.mark.parametrize(
    ("message", "rcode"),
    [
        (ask("db.mesh.internal", flags=0x2000), Rcode.NOTIMP),
        (ask("db.mesh.internal")[:-1], Rcode.FORMERR),
        (ask("db.mesh.internal")[:12], Rcode.FORMERR),
        (struct.pack("!HHHHHH", 1, 0, 0, 0, 0, 0), Rcode.FORMERR),
        (struct.pack("!HHHHHH", 1, 0, 2, 0, 0, 0) + ask("a")[12:] * 2, Rcode.FORMERR),
        (struct.pack("!HHHHHH", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", Rcode.FORMERR),
        (ask(".".join(["a" * 63] * 4)), Rcode.FORMERR),
        (ask("db.mesh.internal", more=opt() * 2, additionals=2), Rcode.FORMERR),
        (ask("db.mesh.internal", more=opt()[:-2] + b"\xff\xff", additionals=1), Rcode.FORMERR),
        (ask("db.mesh.internal", additionals=1), Rcode.FORMERR),
    ],
)
def test_what_cannot_be_read_is_answered_with_a_header_alone(message: bytes, rcode: Rcode) -> None:
    reply = respond(message, ZONE)
    assert reply is not None
    assert (len(reply), Reply(reply).rcode) == (12, rcode)


@pytest.mark.parametrize("message", [b"", b"x" * 11, ask("db.mesh.internal", flags=0x8000)])
def test_an_answer_and_a_fragment_are_not_answered(message: bytes) -> None:
    assert respond(message, ZONE) is None


@given(
    st.binary(max_size=80)
    | st.tuples(st.integers(0, 60), st.binary(max_size=20)).map(
        lambda cut: (
            (whole := ask("github.mesh.internal", more=opt(), additionals=1))[: cut[0]] + cut[1] + whole[cut[0] :]
        )
    ),
    st.booleans(),
)
def test_no_bytes_get_more_than_a_small_answer(message: bytes, tcp: bool) -> None:
    reply = respond(message, ZONE, tcp=tcp)
    if reply is not None:
        assert len(message) >= 12
        assert reply[:2] == message[:2]
        assert struct.unpack_from("!H", reply, 2)[0] & 0x8000
        assert len(reply) <= 512
