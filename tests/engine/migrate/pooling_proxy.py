"""A pooler in front of a PostgreSQL server, as small as it can be, to see that one is recognised.

It speaks the protocol far enough to hand each transaction of a client to whichever server session is free, as
PgBouncer does in transaction mode; or a session for the whole life of a client, as in session mode.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLAIN = (80877103, 80877104)  # a client asks for TLS or GSS first


class PoolingProxy:
    """Server sessions to `address`, a Unix socket that asks for no password.

    take: which free session a client gets, -1 the last given back, 0 the one free for longest.
    """

    def __init__(self, address: str, user: str, database: str, *, session_mode: bool, take: int) -> None:
        self._address, self._login = address, (user, database)
        self._session_mode, self._take = session_mode, take
        self._free: list[socket.socket] = []
        self._greeting = b""
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = [self._listener]
        first, second = self._connect(), self._connect()
        self._free += [first, second]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for one in self._open:
            one.close()

    def _connect(self) -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._address)
        self._open.append(server)
        user, database = self._login
        body = struct.pack("!i", 196608) + f"user\0{user}\0database\0{database}\0\0".encode()
        server.sendall(struct.pack("!i", len(body) + 4) + body)
        greeting = b""
        while True:
            kind, message = _read(server)
            assert kind != b"E", message
            # A pooler has process numbers of its own: it routes the requests to cancel by them.
            greeting += struct.pack("!cii", b"K", 12, 4711) + b"\0\0\0\1" if kind == b"K" else message
            if kind == b"Z":
                self._greeting = greeting
                return server

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        try:
            while True:
                length, code = struct.unpack("!ii", _exactly(client, 8))
                _exactly(client, length - 8)
                if code not in _PLAIN:
                    break
                client.sendall(b"N")
            client.sendall(self._greeting)
            while True:
                kind, message = _read(client)
                if kind == b"X":
                    return
                server = server or self._take_one()
                server.sendall(message)
                if kind in {b"Q", b"S"} and self._answer(client, server) and not self._session_mode:
                    self._give_back(server)
                    server = None
        except OSError:
            return  # the client has gone
        finally:
            if server is not None:
                self._give_back(server)
            client.close()

    def _answer(self, client: socket.socket, server: socket.socket) -> bool:
        """Pass on what the server says; True when it is outside of a transaction then."""
        while True:
            kind, message = _read(server)
            client.sendall(message)
            if kind == b"Z":
                return message[-1:] == b"I"

    def _take_one(self) -> socket.socket:
        with self._lock:
            if self._free:
                return self._free.pop(self._take)
        return self._connect()

    def _give_back(self, server: socket.socket) -> None:
        with self._lock:
            self._free.append(server)


@contextmanager
def pooling_proxy(
    address: str, user: str, database: str, *, session_mode: bool = False, take: int = -1
) -> Iterator[PoolingProxy]:
    proxy = PoolingProxy(address, user, database, session_mode=session_mode, take=take)
    try:
        yield proxy
    finally:
        proxy.close()


def _read(peer: socket.socket) -> tuple[bytes, bytes]:
    """The kind of the next message, and all of it."""
    head = _exactly(peer, 5)
    return head[:1], head + _exactly(peer, struct.unpack("!i", head[1:])[0] - 4)


def _exactly(peer: socket.socket, number: int) -> bytes:
    data = b""
    while len(data) < number:
        part = peer.recv(number - len(data))
        if not part:
            raise ConnectionResetError
        data += part
    return data
