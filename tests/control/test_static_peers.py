"""Static peers over REST: made from a public key or with one that is generated, and the file that they are given."""

import io
from typing import Any

import httpx
from wireguard_tools import WireguardConfig

from controller.server import Running

from .hosts import new_node, wireguard_key
from .support import Client
from .test_nodes import patch, report


class TestStaticPeers:
    async def create(self, admin: Client, **changes: Any) -> httpx.Response:
        return await admin.post("/static-peers", json={"name": "phone", "public_key": wireguard_key(), **changes})

    async def test_is_a_node(self, admin: Client) -> None:
        created = await self.create(admin, tags=["tag:people"], addresses=["100.88.3.3"])
        assert created.status_code == 201
        node = await admin.get(created.headers["location"].removeprefix("/api/v1"))
        assert node.json() == created.json()
        assert (node.json()["kind"], node.json()["state"]) == ("static", "active")
        assert node.json()["addresses"][0] == "100.88.3.3"

    async def test_its_file_has_the_peers_that_policy_allows(
        self, admin: Client, anyone: Client, controller: Running
    ) -> None:
        tool = await new_node(admin, anyone, "tool", tags=["tag:tools"])
        await new_node(admin, anyone, "other")
        policy = 'grants:\n  - {from: phone, to: tag:tools, ip: ["tcp:443"]}\n'
        created = (await self.create(admin)).json()
        assert (await admin.put("/policy", json={"text": policy}, headers={"if-match": "*"})).status_code == 200
        await controller.context.nodes.report(tool.enrolled.node_id, report(tool, "[2001:db8::7]:51820"), "2001:db8::7")
        text = (await admin.get(f"/static-peers/{created['id']}/config")).json()["wg_quick"]
        parsed = WireguardConfig.from_wgconfig(io.StringIO(text))
        [peer] = parsed.peers.values()
        assert [str(address) for address in parsed.addresses] == [
            f"{created['addresses'][0]}/32",
            f"{created['addresses'][1]}/128",
        ]
        assert str(peer.public_key) == tool.public_key
        assert {str(address.ip) for address in peer.allowed_ips} == set(tool.enrolled.addresses)
        assert "Endpoint = [2001:db8::7]:51820\n" in text
        assert f"# PrivateKey = the private key of {created['public_key']}" in text
        assert parsed.private_key is None

    async def test_endpoints_can_be_edited(self, admin: Client) -> None:
        created = (await self.create(admin)).json()
        response = await patch(admin, created["id"], {"endpoints": ["192.0.2.9:1234"]})
        assert response.json()["endpoints"] == ["192.0.2.9:1234"]
        text = (await admin.get(f"/static-peers/{created['id']}/config")).json()["wg_quick"]
        assert "ListenPort = 1234\n" in text

    async def test_an_agent_has_no_file(self, admin: Client, anyone: Client) -> None:
        host = await new_node(admin, anyone, "web")
        response = await admin.get(f"/static-peers/{host.enrolled.node_id}/config")
        assert (response.status_code, response.json()["type"]) == (409, "urn:wardmesh:problem:not-a-static-peer")

    async def test_a_disabled_peer_has_no_file(self, admin: Client) -> None:
        created = (await self.create(admin)).json()
        await patch(admin, created["id"], {"state": "disabled"})
        assert (await admin.get(f"/static-peers/{created['id']}/config")).status_code == 403

    async def test_bad_ones_are_refused(self, admin: Client) -> None:
        key = (await self.create(admin)).json()["public_key"]
        assert (await self.create(admin)).status_code == 409
        assert (await self.create(admin, name="other", public_key=key)).status_code == 409
        assert (await self.create(admin, name="other", public_key="A" * 43 + "=")).status_code == 422
        assert (await self.create(admin, name="UPPER")).status_code == 422
