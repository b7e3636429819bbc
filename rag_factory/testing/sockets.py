"""Close the network to the tests of a run without databases."""

from __future__ import annotations

import importlib.util
import socket
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    import pytest


class ClosedSocketError(RuntimeError):
    """A test connects somewhere, in a run that has no databases."""


def close_sockets(patch: pytest.MonkeyPatch, reason: str) -> None:
    """Let no test connect anywhere: without a database to test on, it could only be somebody else's."""

    def refuse(*given: Any, **_: Any) -> NoReturn:
        if given and isinstance(given[0], socket.socket):
            given[0].close()  # who expects an OSError leaves it open after any other
        raise ClosedSocketError(f"This test opens a connection, and {reason}.")

    def close_driver(driver: Any) -> None:
        for owner in (driver, driver.Connection, driver.AsyncConnection):
            patch.setattr(owner, "connect", refuse)

    patch.setattr(socket.socket, "connect", refuse)
    patch.setattr(socket.socket, "connect_ex", refuse)
    patch.setattr(socket.socket, "sendto", refuse)
    # psycopg's sockets are libpq's, not Python's. Importing it only to close it would cost each start 0.1 s.
    if "psycopg" in sys.modules:
        close_driver(sys.modules["psycopg"])
    else:
        patch.setattr(sys, "meta_path", [_AfterImport("psycopg", close_driver), *sys.meta_path])


class _AfterImport:
    """A finder that calls a function with a module as soon as it is imported."""

    def __init__(self, name: str, then: Any) -> None:
        self._name = name
        self._then = then

    def find_spec(self, name: str, _path: Any = None, _target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec.loader if spec else None
        if loader is not None:
            run = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                self._then(module)

            loader.exec_module = exec_module
        return spec
