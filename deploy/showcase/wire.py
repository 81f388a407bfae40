"""Looking at packets and at what nftables dropped: evidence from the kernel, not from our own programs."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.lab import Host, Process, Switch

__all__ = ["Capture", "dropped_packets"]

_PCAP_MAGIC = 0xA1B2C3D4


@dataclass(frozen=True)
class Capture:
    """A running tcpdump. It is ready when the constructor functions return."""

    process: Process
    file: Path

    @classmethod
    def on_host(cls, host: Host, link: str) -> Self:
        """What the host itself sends and receives on one link."""
        file = host.directory / f"{link}.pcap"
        return cls._ready(host.start(*_tcpdump(link, file)), file)

    @classmethod
    def on_switch(cls, switch: Switch, directory: Path) -> Self:
        """Everything that crosses the switch: what anybody on the path can see."""
        file = directory / f"{switch.name}.pcap"
        command = ["ip", "netns", "exec", switch.namespace.name, *_tcpdump("bridge", file)]
        return cls._ready(Process(command), file)

    @classmethod
    def _ready(cls, process: Process, file: Path) -> Self:
        process.wait_for_line("listening on")
        return cls(process, file)

    def packets(self) -> list[bytes]:
        """Every packet captured so far; a record that tcpdump is still writing is left out."""
        return list(_records(self.file.read_bytes()))

    def stop(self) -> list[bytes]:
        """End the capture; every packet of it."""
        self.process.stop()
        return self.packets()


def _tcpdump(link: str, file: Path) -> list[str]:
    # -U: each packet is in the file at once. -Z root: the directory is root's alone.
    return ["tcpdump", "-n", "-U", "-Z", "root", "-i", link, "-w", str(file)]


def _records(content: bytes) -> Iterator[bytes]:
    """The packets of a pcap file in this machine's byte order (pcap-savefile(5))."""
    if len(content) < 24 or struct.unpack_from("=I", content)[0] != _PCAP_MAGIC:
        return
    position = 24
    while position + 16 <= len(content):
        length = struct.unpack_from("=8xI4x", content, position)[0]
        position += 16
        if position + length > len(content):
            return
        yield content[position : position + length]
        position += length


def dropped_packets(host: Host, table: str = "wardmesh") -> dict[str, int]:
    """The counters of the rules that drop in the host's nftables table: packets by name."""
    listed = json.loads(host.run("nft", "-j", "list", "table", "inet", table).stdout)["nftables"]
    rules: list[list[dict[str, Any]]] = [item["rule"]["expr"] for item in listed if "rule" in item]
    dropping = {
        part["counter"] for rule in rules if any("drop" in p for p in rule) for part in rule if "counter" in part
    }
    counters = [item["counter"] for item in listed if "counter" in item]
    return {counter["name"]: counter["packets"] for counter in counters if counter["name"] in dropping}
