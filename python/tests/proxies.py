"""A TCP proxy before PostgreSQL that cuts a connection at a chosen byte."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy

_FIELDS = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
_UNSUPPORTED = b"E" + struct.pack("!i", 4 + len(_FIELDS)) + _FIELDS

# What a message begins with that tells a server process's number; its secret key comes after it.
_NUMBER = b"K" + struct.pack("!i", 12)


@dataclass
class Cut:
    """Where to cut, once, from the first request that holds the marker on."""

    marker: bytes
    reply: int | None = None  # after so many bytes of what the server answers
    request: int | None = None  # after so many bytes of the request itself
    # The server's end stays open, and gets what was held back when it is told to go on.
    deliver: threading.Event | None = None


class Proxy:
    """Listens on a port of its own; `url` leads through it."""

    def __init__(self, url: str) -> None:
        parsed = sqlalchemy.make_url(url)
        self._server = parsed.host, parsed.port or 5432
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = parsed.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        self._cut: Cut | None = None
        self.refusing = False
        self.without_options = False  # like a pooler that passes none on
        # Like a pooler, tells new connections this number in place of their server process's.
        self.number: int | None = None
        self.accepted = 0
        self.cuts = 0
        self.answered = 0  # bytes, on the connection of the last marker and since it was seen
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, cut: Cut) -> None:
        self._cut = cut

    def sever(self) -> None:
        """Cuts every connection that is open."""
        for sock in list(self._open):
            _reset(sock)

    def close(self) -> None:
        self._listener.close()
        self.sever()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                _reset(client)
                continue
            self.accepted += 1
            _Session(self, client, socket.create_connection(self._server)).start()


class _Session:
    """One connection, with a thread for each direction."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._marked = False  # whether it has had the marker
        self._left: int | None = None  # bytes of the answer that still pass
        self._told = False  # whether it was told a number in place of its own
        proxy._open |= {client, server}

    def start(self) -> None:
        for target in (self._requests, self._answers):
            threading.Thread(target=target, daemon=True).start()

    def _requests(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._client.recv(1 << 20):
                if self._proxy.without_options and b"\0options\0" in data:
                    self._client.sendall(_UNSUPPORTED)
                    break
                cut = self._proxy._cut
                if cut is not None and cut.marker in data:
                    self._proxy._cut, self._proxy.answered = None, 0
                    self._marked = True
                    if cut.request is not None:
                        self._server.sendall(data[: cut.request])
                        self._hold_back(data[cut.request :], cut)
                        return
                    self._left = cut.reply
                self._server.sendall(data)
        _reset(self._server)

    def _hold_back(self, rest: bytes, cut: Cut) -> None:
        self._proxy.cuts += 1
        _reset(self._client)
        if cut.deliver is not None:
            cut.deliver.wait(30)
            self._server.sendall(rest)
            return  # its end stays open until the server closes it
        _reset(self._server)

    def _answers(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._server.recv(1 << 16):
                if self._marked:
                    self._proxy.answered += len(data)
                if self._proxy.number is not None:
                    data = self._renumbered(data, self._proxy.number)
                if self._left is not None and len(data) >= self._left:
                    self._client.sendall(data[: self._left])
                    self._proxy.cuts += 1
                    _reset(self._server)
                    break
                if self._left is not None:
                    self._left -= len(data)
                self._client.sendall(data)
        _reset(self._client)

    def _renumbered(self, data: bytes, number: int) -> bytes:
        """Puts the number into the message that tells it, once a connection."""
        before, told, after = data.partition(_NUMBER)
        if self._told or not told:
            return data
        self._told = True
        return before + told + struct.pack("!i", number) + after[4:]


def _reset(sock: socket.socket) -> None:
    """Closes it for both ends, also for a thread that reads from it."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


@contextlib.contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    proxy = Proxy(url)
    try:
        yield proxy
    finally:
        proxy.close()
