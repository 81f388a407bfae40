"""What monitoring sees: counts by route, the mesh as it is, and probes that need no token."""

from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
from httpx import URL
from prometheus_client.parser import text_string_to_metric_families

from controller.server import Running, running
from controller.settings import Listen, Settings

from .databases import Databases
from .hosts import new_node
from .support import Client, MovableClock


async def scrape(admin: Client) -> dict[tuple[str, ...], float]:
    answer = await admin.get(root(admin, "metrics"))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def root(client: Client, path: str) -> URL:
    return client.base_url.copy_with(path=f"/{path}")


async def test_requests_are_counted_by_route_and_never_by_what_the_caller_wrote(admin: Client) -> None:
    for path in ("/nodes/one", "/nodes/two", "/nodes/%00", "/secret-path"):
        await admin.get(path)
    await admin.request("PROPFIND", "/nodes")
    seen = await scrape(admin)
    assert seen["wardmesh_controller_requests_total", "GET", "/nodes/{node_id}", "404"] == 2
    assert ("wardmesh_controller_requests_total", "GET", "none", "404") in seen
    methods = {key[1] for key in seen if key[0] == "wardmesh_controller_requests_total"}
    assert methods == {"GET", "other"}
    assert not any("secret-path" in part for key in seen for part in key)


async def test_the_mesh_is_described(admin: Client) -> None:
    await new_node(admin, admin, "db-1")
    seen = await scrape(admin)
    status = (await admin.get("/status")).json()
    assert seen["wardmesh_nodes", "active"] == status["nodes"] == 1
    assert seen["wardmesh_agents_online",] == seen["wardmesh_agents_behind",] == 0
    assert seen["wardmesh_revision",] == status["revision"]
    assert seen["wardmesh_addresses_total",] == status["addresses_total"]


async def test_metrics_need_a_token_and_probes_do_not(controller: Running) -> None:
    async with Client(controller) as anyone:
        answers = {
            path: (await anyone.get(root(anyone, path))).status_code for path in ("metrics", "healthz", "readyz")
        }
    assert answers == {"metrics": 401, "healthz": 204, "readyz": 204}


async def test_without_its_database_a_controller_is_alive_but_not_ready(
    tmp_path: Path, clock: MovableClock, postgresql: Databases
) -> None:
    async with postgresql() as url:
        server, name = url.partition("?host=")[2], urlsplit(url).path.removeprefix("/")
        settings = Settings(state_dir=tmp_path / "state", listen=Listen("127.0.0.1", 0), database_url=url)
        async with running(settings, clock) as controller, Client(controller) as anyone:
            assert (await anyone.get(root(anyone, "readyz"))).status_code == 204
            database = await asyncpg.connect(host=server, user="wardmesh", database="postgres")
            try:
                await database.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
                await database.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
                )
                assert (await anyone.get(root(anyone, "readyz"))).status_code == 503
                assert (await anyone.get(root(anyone, "healthz"))).status_code == 204
                await database.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
                assert (await anyone.get(root(anyone, "readyz"))).status_code == 204
            finally:
                await database.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
                await database.close()
