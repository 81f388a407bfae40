"""Two probers on one machine: they find each other, and answer nobody else."""

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack

import pytest

from agentd.facts import OwnAddresses
from agentd.mapping import PortMapping
from agentd.netcheck import netcheck_report
from agentd.paths.pair import pair
from agentd.probe_socket import ProbeSocket
from agentd.probing import Prober
from controller.settings import Listen
from controller.stun import listen
from controller.wire.netcheck import MOST_CANDIDATES
from controller.wire.stun import Binding, encode
from tests.kernel.maps import MESH, Member, netmap

pytestmark = pytest.mark.host_kernel


class Probing:
    """A prober on the loopback, where no table rewrites its port."""

    def __init__(self, stack: ExitStack, number: int, stun: int | None = None) -> None:
        own, self.socket = stack.enter_context(OwnAddresses()), stack.enter_context(ProbeSocket(51820))
        self.member = Member(number, endpoints=(f"127.0.0.1:{self.socket.port}",))
        self.moved = self.seen = 0
        where = None if stun is None else ("127.0.0.1", stun)
        mapping = PortMapping(51820, bytes(12), allowed=False)
        self.prober = Prober(
            self.socket, own, MESH, stun=where, candidates=lambda: self.member.endpoints, mapping=mapping
        )
        self.prober.connect(private_key=lambda: self.member.private_key, changed=self._changed, seen=self._seen)

    def _changed(self) -> None:
        self.moved += 1

    def _seen(self) -> None:
        self.seen += 1

    def meet(self, *others: "Probing | Member") -> None:
        self.prober.adopt(netmap(self.member, *(o.member if isinstance(o, Probing) else o for o in others)))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def running(stack: AsyncExitStack, *probing: Probing) -> None:
    for each in probing:
        task = asyncio.create_task(each.prober.run())
        stack.push_async_callback(asyncio.wait, [task])
        stack.callback(task.cancel)


async def test_paths_are_found_by_both_and_told_once() -> None:
    with ExitStack() as sockets:
        async with AsyncExitStack() as stack:
            left, right = Probing(sockets, 1), Probing(sockets, 2)
            await running(stack, left, right)
            left.meet(right)
            right.meet(left)
            await until(lambda: left.prober.paths("n2") and left.prober.paths("n2")[0].chosen)
            await until(lambda: right.prober.paths("n1") and right.prober.paths("n1")[0].chosen)
            chosen = left.prober.choose(netmap(left.member, right.member).peers["n2"])
            assert chosen == right.member.endpoints[0]


async def test_paths_are_no_peers_that_have_another_key() -> None:
    with ExitStack() as sockets:
        async with AsyncExitStack() as stack:
            left, right, third = (Probing(sockets, number) for number in (1, 2, 3))
            await running(stack, left, right, third)
            # Left takes right's place for that of a member whose key right does not have.
            left.meet(Member(2, endpoints=right.member.endpoints), third)
            right.meet(left)
            third.meet(left)
            await until(lambda: any(view.chosen for view in left.prober.paths("n3")))
            assert not any(view.chosen for view in left.prober.paths("n2"))
            assert not any(view.chosen for view in right.prober.paths("n1"))


async def test_paths_questions_without_a_key_get_no_answer() -> None:
    with ExitStack() as sockets:
        async with AsyncExitStack() as stack:
            left, right = Probing(sockets, 1), Probing(sockets, 2)
            stranger = sockets.enter_context(ProbeSocket(51820))
            await running(stack, left, right)
            left.meet(right)
            right.meet(left)
            await until(lambda: left.prober.paths("n2") and left.prober.paths("n2")[0].chosen)
            name = pair(right.member.private_key, left.member.public_key).ours  # what an eavesdropper knows
            for key in (None, b"a guess"):
                stranger.send(encode(Binding("request", os.urandom(12), username=name), key), left.member.endpoints[0])
            # What is asked later is answered: the ones before were read, and were not.
            views = left.prober.paths("n2")
            right.prober.moved()
            await until(lambda: right.prober.paths("n1")[0].state == "working")
            assert [view.endpoint for view in left.prober.paths("n2")] == [view.endpoint for view in views]
            assert list(stranger.received()) == []


async def test_paths_are_measured_by_a_question_that_only_the_peer_there_answers() -> None:
    with ExitStack() as sockets:
        async with AsyncExitStack() as stack:
            left, right, third = (Probing(sockets, number) for number in (1, 2, 3))
            await running(stack, left, right, third)
            left.meet(right, third)
            right.meet(left)
            third.meet(left)
            there = right.member.endpoints[0]
            await until(lambda: all(any(v.chosen for v in left.prober.paths(name)) for name in ("n2", "n3")))
            rtt = await left.prober.ask("n2", there, patience=20)
            assert rtt is not None
            assert 0 < rtt < 20
            assert await left.prober.ask("n3", there, patience=0.5) is None
            assert await left.prober.ask("n9", there, patience=20) is None


async def test_paths_begin_with_where_the_controller_sees_this_host() -> None:
    servers = listen(Listen("127.0.0.1", 0))
    with ExitStack() as sockets:
        async with AsyncExitStack() as stack:
            for server in servers:
                server.start()
                stack.callback(server.close)
            one = Probing(sockets, 1, stun=servers[0].port)
            one.member = Member(1, endpoints=("127.0.0.1:51820",))
            await running(stack, one)
            one.meet()
            await until(lambda: one.prober.reflexive)
            assert one.prober.reflexive == (f"127.0.0.1:{one.socket.port}",)
            assert one.seen == 1


async def test_a_report_names_where_the_host_is_seen_and_a_bounded_number_of_its_own_endpoints() -> None:
    with ExitStack() as sockets:
        async with AsyncExitStack() as stack:
            probing = Probing(sockets, 1)
            await running(stack, probing)
            many = tuple(f"192.0.2.{number}:51820" for number in range(1, 2 * MOST_CANDIDATES))
            report = netcheck_report(probing.prober, many)
            assert [each.endpoint for each in report.candidates] == list(many[:MOST_CANDIDATES])
            assert {each.kind for each in report.candidates} == {"host"}
            assert (report.nat, report.udp, report.mapping.state) == ("unknown", "not asked", "off")
