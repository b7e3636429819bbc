from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rag_factory.errors import ServerError
from rag_factory.server import process
from rag_factory.server.launcher import _explained
from rag_factory.server.location import Location

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.server.conftest import Interpreter, Servers

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts a disk or uses two accounts")
ENSURE = """
import sys
from pathlib import Path
from rag_factory.errors import ServerError
from rag_factory.server import EmbeddedServer
try:
    EmbeddedServer(Path(sys.argv[1])).ensure_running()
except ServerError as error:
    print(error)
"""


def test_server_leaves_data_of_another_major_version_alone(servers: Servers) -> None:
    home = servers.folder()
    data_folder = home / "postgresql-18"
    data_folder.mkdir()
    (data_folder / "PG_VERSION").write_text("15\n")
    os.chown(data_folder, *_server_owner(servers))
    with pytest.raises(
        ServerError, match=r"holds data of PostgreSQL 15.*untouched.*POSTGRES_BIN_FOLDER.*fresh"
    ):
        servers.make(home).ensure_running()
    assert [path.name for path in data_folder.iterdir()] == ["PG_VERSION"]


def test_server_leaves_files_that_are_no_cluster_alone(servers: Servers) -> None:
    home = servers.folder()
    (home / "postgresql-18").mkdir()
    (home / "postgresql-18" / "thesis.txt").write_text("years of work")
    os.chown(home / "postgresql-18", *_server_owner(servers))
    with pytest.raises(ServerError, match=r"is no PostgreSQL cluster.*EMBEDDED_DATA_FOLDER"):
        servers.make(home).ensure_running()
    assert (home / "postgresql-18" / "thesis.txt").read_text() == "years of work"


def test_server_uses_an_empty_data_folder(servers: Servers) -> None:
    home = servers.folder()
    (home / "postgresql-18").mkdir()
    os.chown(home / "postgresql-18", *_server_owner(servers))
    assert servers.query(servers.make(home).ensure_running(), "SELECT 1") == [(1,)]


def test_server_refuses_a_home_that_is_a_file(servers: Servers) -> None:
    home = servers.folder() / "file"
    home.touch()
    with pytest.raises(ServerError, match=r"can't be \w+.*EMBEDDED_DATA_FOLDER"):
        servers.make(home).ensure_running()


def test_server_refuses_a_folder_that_cannot_be_written(servers: Servers, ordinary_user: Interpreter) -> None:
    folder = servers.folder()
    os.chown(folder, ordinary_user.uid, -1)
    folder.chmod(0o555)
    said = ordinary_user.run(ENSURE, folder / "server")
    assert f"{folder / 'server'} can't be used: Permission denied" in said
    folder.chmod(0o755)


def test_server_that_fails_to_start_shows_why(servers: Servers) -> None:
    server, _ = servers.make_started()
    server.stop()
    server = servers.make(server.status().data_folder.parent, settings={"shared_buffers": "plenty"})
    with pytest.raises(
        ServerError, match=r"(?s)invalid value for parameter \"shared_buffers\".*The whole log: "
    ) as caught:
        server.ensure_running()
    assert str(server.status().log) in str(caught.value)
    assert server.status().state == "stopped"


def test_server_refuses_a_port_in_use(servers: Servers) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        settings = {"fsync": "off", "listen_addresses": "127.0.0.1", "port": port}
        with pytest.raises(ServerError, match=r"another server listens.*(?s:.)*another port"):
            servers.make_started(settings=settings)


@as_root
def test_server_refuses_a_disk_that_is_too_small(servers: Servers) -> None:
    with (
        _mounted(servers.folder(), size_mb=16) as disk,
        pytest.raises(ServerError, match=r"1\d MB free.*100 MB"),
    ):
        servers.make(disk / "server").ensure_running()


@as_root
def test_server_says_when_the_disk_is_full(servers: Servers) -> None:
    with _mounted(servers.folder(), size_mb=110) as disk:
        server, _ = servers.make_started(disk / "server")
        server.stop()
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(b"x" * 4096)
        with pytest.raises(ServerError, match=r"no space left on the disk.*(?s:.)*EMBEDDED_DATA_FOLDER"):
            server.ensure_running()
        (disk / "filler").unlink()
        assert servers.query(server.ensure_running(), "SELECT 1") == [(1,)]
        server.stop()


@as_root
def test_server_names_the_owner_of_a_foreign_folder(servers: Servers, ordinary_user: Interpreter) -> None:
    made_by_root, _ = servers.make_started()
    made_by_root.stop()
    owner = made_by_root.status().account
    home = made_by_root.status().data_folder.parent
    said = ordinary_user.run(ENSURE, home)
    assert f"{home / 'postgresql-18'} belongs to {owner}; PostgreSQL would run as nobody" in said
    assert "chown" in said
    assert "belongs to root" in ordinary_user.run(ENSURE, servers.folder())


@as_root
def test_server_names_a_user_without_an_entry(servers: Servers, ordinary_user: Interpreter) -> None:
    import dataclasses

    folder = servers.folder()
    os.chown(folder, 54321, 54321)
    account = {"user": 54321, "group": 54321, "extra_groups": []}
    stranger = dataclasses.replace(ordinary_user, account=account)
    assert "user id 54321 has no entry in /etc/passwd" in stranger.run(ENSURE, folder / "server")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "/file"), "/file can't be used: Permission denied."),
        (OSError("no more of it"), "/home-of-it can't be used: no more of it."),
    ],
)
def test_server_says_what_the_system_said(error: OSError, said: str) -> None:
    location = Location(Path("/home-of-it"), Path("/home-of-it/postgresql-18"), None, None)
    with pytest.raises(ServerError, match=said), _explained(location):
        raise error


def test_server_is_recognised_by_a_ps_that_cuts_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on macOS without a terminal.
    folder = Path("/a") / ("long" * 30) / "postgresql-18"
    line = f"Ss   /somewhere/bin/postgres -D {folder}"
    ps = tmp_path / "ps"
    ps.write_text(f'#!/bin/sh\n[ "$1" = -ww ] && echo "{line}" || echo "{line[:79]}"\n')
    ps.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(process, "PROC", tmp_path / "no proc here")
    assert process.is_server(1, folder)
    assert not process.is_server(1, folder.with_name("postgresql-17"))


def _server_owner(servers: Servers) -> tuple[int, int]:
    """Return the account that a server of this process runs as."""
    from rag_factory.server.account import choose_account

    account = choose_account(servers.folder())
    return (os.geteuid(), os.getegid()) if account is None else (account.uid, account.gid)


@contextlib.contextmanager
def _mounted(folder: Path, *, size_mb: int) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=755", "rag-factory-test", disk],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"mounting isn't permitted here: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
