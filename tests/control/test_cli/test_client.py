"""The typed client itself: repetition after broken connections, pages, edits that others overtake."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from controller.client.errors import RefusedError, UnreachableError
from controller.client.rest import RestClient
from controller.client.session import Session
from controller.client.trust import PinnedCa
from controller.client.wgquick import KeyPair
from controller.wire.rest import EnrolmentKeyCreate, Node, NodePatch, PolicyWrite, StaticPeerCreate

from .bench import Controller, free_port


class Relay:
    """TCP to the controller. The first connection's answer is held until `cut` breaks the connection."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._cut = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        self._cut.set()

    def close(self) -> None:
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                server = socket.create_connection(("127.0.0.1", self._target))
                asked = threading.Event() if self.connections == 1 else None
                for direction in (self._to_server, self._to_client):
                    thread = threading.Thread(target=direction, args=(client, server, asked))
                    self._threads.append(thread)
                    thread.start()

    def _to_server(self, client: socket.socket, server: socket.socket, asked: threading.Event | None) -> None:
        flights = 0
        with suppress(OSError):
            while data := client.recv(65536):
                flights += 1
                # TLS 1.3: the first flight is the ClientHello; after it come Finished and the request.
                if asked and flights > 1:
                    asked.set()
                server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _to_client(self, client: socket.socket, server: socket.socket, asked: threading.Event | None) -> None:
        with client, server, suppress(OSError):
            while data := server.recv(65536):
                if asked and asked.is_set():
                    self._cut.wait()
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay_to(controller: Controller) -> Iterator[Relay]:
    relay = Relay(controller.port)
    try:
        yield relay
    finally:
        relay.close()


def connect(controller: Controller, port: int | None = None) -> RestClient:
    ca = PinnedCa.from_pem((controller.state_dir / "ca.pem").read_text(), source="ca.pem")
    return RestClient(f"https://127.0.0.1:{port or controller.port}", controller.token, ca.context())


@pytest.fixture
def client(controller: Controller) -> Iterator[RestClient]:
    with connect(controller) as opened:
        yield opened


@pytest.fixture
def node(client: RestClient) -> Iterator[Node]:
    made = client.create_peer(StaticPeerCreate(name="edited", public_key=KeyPair.generate().public))
    yield made
    client.delete_node(made.id)


def until(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.02)


def test_a_post_whose_answer_was_lost_is_repeated_and_done_once(controller: Controller, client: RestClient) -> None:
    def made() -> list[str]:
        return [key.id for key in client.enrolment_keys() if key.note == "once"]

    with relay_to(controller) as relay, connect(controller, relay.port) as far, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(far.create_enrolment_key, EnrolmentKeyCreate(note="once"))
        until(made)  # the controller has done it; the client does not know
        relay.cut()
        created = answer.result(timeout=30)
    assert relay.connections == 2
    assert made() == [created.key.id]


def test_an_edit_whose_answer_was_lost_is_not_repeated(controller: Controller, client: RestClient, node: Node) -> None:
    etag = client.policy().etag
    text = "grants: []\n# lost\n"
    with relay_to(controller) as relay, connect(controller, relay.port) as far, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(far.put_policy, PolicyWrite(text=text), etag)
        until(lambda: client.policy().value.text == text)
        relay.cut()
        with pytest.raises(UnreachableError):
            answer.result(timeout=30)
    assert relay.connections == 1


def test_an_edit_that_somebody_overtakes_is_made_on_the_newer_state(client: RestClient, node: Node) -> None:
    seen: list[tuple[str, ...]] = []

    def add_tag(current: Node) -> NodePatch:
        seen.append(current.tags)
        if len(seen) == 1:  # between our reading and our writing
            client.edit_node(node.id, lambda other: NodePatch(tags=(*other.tags, "tag:theirs")))
        return NodePatch(tags=tuple(sorted({*current.tags, "tag:ours"})))

    assert client.edit_node(node.id, add_tag).tags == ("tag:ours", "tag:theirs")
    assert seen == [(), ("tag:theirs",)]


def test_lists_follow_pages_to_the_end(client: RestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        client.create_enrolment_key(EnrolmentKeyCreate(note=f"page {number}"))
    whole = [key.id for key in client.enrolment_keys()]
    monkeypatch.setattr("controller.client.transport._PAGE", 2)
    assert [key.id for key in client.enrolment_keys()] == whole
    assert len(set(whole)) == len(whole) >= 5


def test_a_problem_keeps_type_title_detail_and_errors(client: RestClient) -> None:
    with pytest.raises(RefusedError) as caught:
        client.enrolment_key("nosuchkey")
    problem = caught.value.problem
    assert problem.status == 404
    assert problem.type.startswith("urn:wardmesh:problem:")
    assert problem.detail in str(caught.value)


def test_nobody_there_is_said_soon(controller: Controller) -> None:
    begin = time.monotonic()
    with connect(controller, free_port()) as client, pytest.raises(UnreachableError, match="refused"):
        client.status()
    assert time.monotonic() - begin < 5


def test_a_session_never_shows_its_token(controller: Controller) -> None:
    assert controller.token not in repr(Session(url=controller.url, token=controller.token, ca=None))
