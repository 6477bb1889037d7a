"""A line between a client and a server, byte by byte, which can be cut, and change what it carries."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Wire:
    """Listens on a free port of 127.0.0.1 and passes everything on to another one."""

    def __init__(self, port: int, at: int = 0) -> None:
        """`at`: the port it listens on; any that is free by default."""
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", at))
        self.port: int = self._listener.getsockname()[1]
        self.change: Callable[[bytes], bytes] = lambda data: data
        """Of what the server says."""
        self.change_asked: Callable[[bytes], bytes] = lambda data: data
        """Of what the clients say."""
        self.deaf = False
        """Does nothing come through any more, in either direction?"""
        self.seen = bytearray()
        """What the clients said."""
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """As when a cable is pulled and both ends notice it."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # else it listens until the next one comes
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            self._pairs.append((client, server))
            for source, target, is_client in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=(source, target, is_client), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, is_client: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self.deaf:
                    continue
                if is_client:
                    self.seen += data
                target.sendall(self.change_asked(data) if is_client else self.change(data))
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@contextmanager
def wire_to(port: int) -> Iterator[Wire]:
    wire = Wire(port)
    try:
        yield wire
    finally:
        wire.close()
