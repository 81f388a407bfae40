"""What controllers tell each other of their hosts through PostgreSQL arrives as it was told, and costs little."""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, text

from controller.mesh.elsewhere import Replica, Word
from controller.mesh.presence import Presence
from controller.store.engine import Engines
from controller.store.migrate import migrate
from controller.store.replicas import hear, tell

from .databases import Databases

ONE, TWO = Replica("one", "https://192.0.2.1:8443", 7), Replica("two", "https://192.0.2.2:8443", 8)
OPENED = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
async def engines(postgresql: Databases) -> AsyncIterator[Engines]:
    async with postgresql() as url:
        engines = Engines(url)
        await migrate(engines)
        yield engines
        await engines.dispose()


def word(replica: Replica, opened: datetime = OPENED, error: str | None = None) -> Word:
    presence = Presence(
        online=True,
        in_force=5,
        error=error,
        backend="kernel",
        agent_version="1.2",
        last_seen=opened,
        behind=True,
        behind_since=1_800_000_000.123456,
    )
    return Word(replica.id, opened, presence, {"github": None, "files": "it does not answer: 'quoted', \"both\", {}"})


async def heard(engines: Engines, by: str) -> Mapping[str, Word]:
    return (await hear(engines, by, None)).words


async def test_words_arrive_as_they_were_told_however_many_hosts_there_are(engines: Engines) -> None:
    told = {f"id-{number}": word(ONE, OPENED + timedelta(seconds=number)) for number in range(1201)}
    told["id-0"] = word(ONE, error='nft: line 1: "é", NULL, {a,b}, \\ and\nanother line')
    told["id-1"] = Word(ONE.id, OPENED, Presence())
    await tell(engines, ONE, told)
    assert await heard(engines, TWO.id) == told
    assert await heard(engines, ONE.id) == {}


async def test_a_word_replaces_the_one_before_but_not_that_of_a_stream_which_opened_elsewhere_later(
    engines: Engines,
) -> None:
    later = OPENED + timedelta(seconds=1)
    await tell(engines, ONE, {"id-stays": word(ONE), "id-goes": word(ONE)})
    await tell(engines, TWO, {"id-goes": word(TWO, later)})
    newer = word(ONE, error="new")
    await tell(engines, ONE, {"id-stays": newer, "id-goes": newer})
    assert await heard(engines, "three") == {"id-stays": newer, "id-goes": word(TWO, later)}


async def test_what_a_controller_of_a_later_version_says_besides_is_left_out(engines: Engines) -> None:
    await tell(engines, ONE, {"id-1": word(ONE)})
    async with engines.write.begin() as connection:
        await connection.execute(text("""UPDATE streams SET facts = facts::jsonb || '{"mood": "good"}'"""))
    assert await heard(engines, TWO.id) == {"id-1": word(ONE)}


async def test_any_number_of_hosts_is_told_by_the_same_statement(engines: Engines) -> None:
    """Each other statement would be compiled and planned anew, while hosts wait for their changes."""
    statements: set[str] = set()

    @event.listens_for(engines.write.sync_engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_: object) -> None:
        if "INTO streams" in statement:
            statements.add(statement)

    for hosts in (1, 37, 600):
        await tell(engines, ONE, {f"id-{number}": word(ONE) for number in range(hosts)})
    assert len(statements) == 1
