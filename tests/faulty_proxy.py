"""A proxy before a server that misbehaves on order."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Hands requests on to the server, but first does what `faults` order, one for each request.

    A whole reply as bytes is sent in place of the server's; "close" ends the connection before the reply, "cut" in the
    middle of it, "last" after it, "hang" answers nothing.
    """

    def __init__(self, target: str, listener: socket.socket) -> None:
        self.faults: list[bytes | str] = []
        self.requests = 0
        self.connections = 0
        self._target = target
        self.listener = listener
        self._open: list[socket.socket] = []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._stopped.set()
        for held in (self.listener, *self._open):
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for held in (self.listener, *self._open):
            held.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(OSError):  # a handshake that fails, or the end
                caller = self.listener.accept()[0]
                self.connections += 1
                self._open.append(caller)
                self._threads.append(threading.Thread(target=self._serve, args=(caller,)))
                self._threads[-1].start()

    def _serve(self, caller: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while request := _message(caller):
                self.requests += 1
                if not self._answer(caller, request):
                    break
        with contextlib.suppress(OSError):
            caller.shutdown(socket.SHUT_RDWR)

    def _answer(self, caller: socket.socket, request: bytes) -> bool:
        """Whether the connection goes on."""
        fault = self.faults.pop(0) if self.faults else ""
        if isinstance(fault, bytes):
            caller.sendall(fault)
            return True
        if fault == "hang":
            self._stopped.wait(20)
        if fault in ("hang", "close"):
            return False
        host, port = self._target.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as server:
            server.sendall(request)
            reply = _message(server)
        caller.sendall(reply[: len(reply) // 2] if fault == "cut" else reply)
        return fault not in ("cut", "last")


def _message(peer: socket.socket) -> bytes:
    """One request or reply with a content-length, nothing when the peer has closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = peer.recv(65_536)
        if not part:
            return b""
        data += part
    head = data.partition(b"\r\n\r\n")[0]
    lines = [line.split(b":", 1) for line in head.lower().split(b"\r\n")[1:]]
    size = next((int(line[1]) for line in lines if line[0] == b"content-length"), 0)
    while len(data) < len(head) + 4 + size:
        data += peer.recv(65_536)
    return data
