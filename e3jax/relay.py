"""Carries what JAX's client says to process 0, so that the client does not see process 0 die.

Process 0 serves the others. When it dies, the client of JAX 0.10 aborts its own process within milliseconds, from C++:
no Python runs any more, and a person reads a stack of XLA's. The callback that jaxlib has for this moment ends in
std::bad_cast. So the client talks to a port of its own process, from where threads pass every byte on to process 0.
When process 0's side breaks they leave the client's open, note it, and e3jax/runtime.py ends the process in words.

    relay = Relay("10.0.0.1:8476")
    jax.distributed.initialize(relay.address, …)
    relay.lost.is_set()                # process 0 has closed a connection, or its host has
    relay.unanswered()                 # process 0 was asked something, and has not answered since the last call
    relay.over.set()                   # an orderly end: from here on the client sees what process 0 does
"""

import contextlib
import socket
import threading
from collections.abc import Iterator

ROOM = 1 << 16  # bytes passed on at once
CONNECT_S = 10  # for one try to reach process 0; the client tries again until its own time is over


class Relay:
    """A port on this machine whose connections go on to an address, host:port."""

    def __init__(self, address: str):
        host, _, port = address.rpartition(":")
        self.to = host.strip("[]"), int(port)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"
        self.lost, self.over = threading.Event(), threading.Event()
        self.asked, self.answers, self.seen = False, 0, 0
        threading.Thread(target=self.accept, daemon=True).start()

    def unanswered(self) -> bool:
        """Return whether something was asked of process 0, and no answer has come since the last call."""
        quiet = self.asked and self.answers == self.seen
        self.seen = self.answers
        return quiet

    def accept(self) -> None:
        """Connect whoever comes to the address; close what cannot be connected, as if nobody listened here."""
        while True:
            client, _ = self.server.accept()
            try:
                served = socket.create_connection(self.to, CONNECT_S)
            except OSError:
                client.close()
                continue
            served.settimeout(None)
            for end in (client, served):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            left = threading.Event()  # the client closed this connection, so its end is no loss
            for passing in (self.ask, self.answer):
                threading.Thread(target=passing, args=(client, served, left), daemon=True).start()

    def ask(self, client: socket.socket, served: socket.socket, left: threading.Event) -> None:
        """Pass on what the client says."""
        for data in heard(client):
            self.asked = True
            if not told(served, data):  # `answer` sees that too
                return
        left.set()
        with contextlib.suppress(OSError):
            served.shutdown(socket.SHUT_WR)

    def answer(self, client: socket.socket, served: socket.socket, left: threading.Event) -> None:
        """Pass on what process 0 says, but not its end, unless that is orderly."""
        for data in heard(served):
            self.asked, self.answers = False, self.answers + 1
            if not told(client, data):
                left.set()
                break
        if not left.is_set():
            self.lost.set()
            self.over.wait()
        for end in (client, served):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # close() alone waits for the thread that reads from it
            end.close()


def heard(end: socket.socket) -> Iterator[bytes]:
    """Yield what arrives at this end of a connection until that is over or broken."""
    with contextlib.suppress(OSError):
        while data := end.recv(ROOM):
            yield data


def told(end: socket.socket, data: bytes) -> bool:
    """Send data from this end of a connection; return whether that was possible."""
    try:
        end.sendall(data)
    except OSError:
        return False
    return True
