from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rag_factory.errors import ServerError
from rag_factory.server import EmbeddedServer
from rag_factory.server.location import locate
from rag_factory.server.process import is_alive

if TYPE_CHECKING:
    from tests.engine.server.conftest import Servers


@pytest.mark.parametrize(
    "name", ['it\'s, a "quoted" $HOME `x` 100%; back\\slash #1', "žluťoučký 数据 🐘", "long" * 50]
)
def test_server_runs_in_a_folder_with_any_name(servers: Servers, name: str) -> None:
    home = servers.folder() / name
    address = servers.make(home).ensure_running()
    assert servers.query(address, "SHOW data_directory") == [(str(home / "postgresql-18"),)]
    attached = EmbeddedServer(home)
    assert attached.ensure_running() == address
    assert attached.stop()
    assert not Path(address.host).exists()


def test_server_refuses_a_line_break_in_its_folder(servers: Servers) -> None:
    with pytest.raises(ServerError, match="line break"):
        EmbeddedServer(servers.folder() / "a\nb").ensure_running()


def test_server_refuses_a_socket_folder_that_is_not_private(servers: Servers) -> None:
    server, _ = servers.make_started(servers.folder() / ("long" * 50))
    server.stop()
    folder = locate(server.status().data_folder.parent, "postgresql-18").socket_folder(5432)
    assert folder.parent == Path("/tmp")
    folder.mkdir()
    folder.chmod(0o755)
    try:
        with pytest.raises(ServerError, match="isn't a private folder"):
            server.ensure_running()
    finally:
        folder.rmdir()


def test_servers_side_by_side_are_two(servers: Servers) -> None:
    folder = servers.folder()
    _, first = servers.make_started(folder / "one")
    _, second = servers.make_started(folder / "two")
    third = servers.make(folder / "one", name="test").ensure_running()
    for address in (first, second, third):
        # Fails on a server that has it already.
        servers.query(address, "CREATE DATABASE app")
    assert len({first.host, second.host, third.host}) == 3


def test_server_of_a_copied_folder_is_another_one(servers: Servers) -> None:
    folder = servers.folder()
    original, address = servers.make_started(folder / "original")
    subprocess.run(["cp", "-a", folder / "original", folder / "copy"], check=True)
    copied = servers.make(folder / "copy").ensure_running()
    assert copied.host != address.host
    assert servers.query(copied, "SHOW data_directory") == [(str(folder / "copy" / "postgresql-18"),)]
    assert original.status().state == "running"


def test_server_follows_a_moved_folder(servers: Servers) -> None:
    folder = servers.folder()
    _, before = servers.make_started(folder / "before")
    servers.query(before, "CREATE TABLE kept AS SELECT 1 AS n")
    (folder / "before").rename(folder / "after")
    address = servers.make(folder / "after").ensure_running()
    assert Path(address.host).parent == folder / "after"
    assert servers.query(address, "SELECT n FROM kept") == [(1,)]


def test_server_starts_afresh_after_its_folder_was_deleted(servers: Servers) -> None:
    # A long name: the socket is outside, and the old server still has it.
    server, _ = servers.make_started(servers.folder() / ("long" * 50))
    old = server.status().pid
    assert old is not None
    shutil.rmtree(server.status().data_folder.parent)
    address = server.ensure_running()
    assert server.status().pid != old
    assert not is_alive(old)
    assert servers.query(address, "SELECT 1") == [(1,)]
