from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from rag_factory.errors import ServerError
from rag_factory.server import EmbeddedServer
from rag_factory.server.lock import FileLock
from rag_factory.server.logfile import LIMIT_BYTES

if TYPE_CHECKING:
    from tests.engine.server.conftest import Interpreter, Servers

SYSTEM_BIN = Path("/usr/lib/postgresql/15/bin")
LIFE = """
import sys
from pathlib import Path
from rag_factory.server import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]), settings={"fsync": "off"})
seen = [server.status().state]
first = server.ensure_running()
seen += [server.status().state, first == server.ensure_running(), server.status().account, server.stop()]
print(*seen, server.status().state, server.stop())
"""


def test_server_goes_through_its_states(servers: Servers) -> None:
    server = servers.make()
    assert server.status().state == "absent"
    assert not server.stop()
    address = server.ensure_running()
    running = server.status()
    assert (running.state, running.address, running.version) == ("running", address, "18.6")
    servers.query(address, "CREATE TABLE kept AS SELECT 1 AS n")
    assert server.stop()
    stopped = server.status()
    assert (stopped.state, stopped.pid, stopped.address) == ("stopped", None, None)
    assert not server.stop()
    assert servers.query(server.ensure_running(), "SELECT n FROM kept") == [(1,)]


def test_server_works_for_an_ordinary_user(servers: Servers, ordinary_user: Interpreter) -> None:
    folder = servers.folder()
    os.chown(folder, ordinary_user.uid, -1)
    said = ordinary_user.run(LIFE, folder / "server")
    assert said == "absent running True None True stopped False"
    assert {path.stat().st_uid for path in folder.rglob("*")} == {ordinary_user.uid}


def test_server_has_unicode_pgvector_and_durable_defaults(running: EmbeddedServer, servers: Servers) -> None:
    address = running.ensure_running()
    servers.query(address, "CREATE EXTENSION vector; CREATE EXTENSION pg_trgm")
    assert servers.query(address, "SELECT '[1,2,3]'::vector <=> '[1,2,3]'") == [(0.0,)]
    # Both go by the character classes of the locale.
    assert servers.query(address, "SELECT show_trgm('č') <> '{}', to_tsvector('simple', 'Čaj') @@ 'čaj'") == [
        (True, True)
    ]
    names = ("server_encoding", "fsync", "synchronous_commit", "listen_addresses", "unix_socket_permissions")
    shown = [servers.query(address, f"SHOW {name}")[0][0] for name in names]
    assert shown == ["UTF8", "on", "on", "", "0700"]


def test_server_is_closed_to_others(running: EmbeddedServer, servers: Servers) -> None:
    address = running.ensure_running()
    assert stat.S_IMODE(Path(address.host).stat().st_mode) == 0o700
    assert stat.S_IMODE(running.status().data_folder.stat().st_mode) == 0o700
    rules = servers.query(address, "SELECT DISTINCT type, auth_method FROM pg_hba_file_rules ORDER BY 1")
    assert rules == [("host", "scram-sha-256"), ("local", "trust")]


def test_server_outlives_the_terminal_of_its_starter(running: EmbeddedServer) -> None:
    running.ensure_running()
    pid = running.status().pid
    assert pid is not None
    assert os.getsid(pid) != os.getsid(0)
    # Nobody's child either: it would stay behind as a zombie of a starter that lives on.
    assert int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) != os.getpid()


def test_server_attaches_while_another_process_holds_the_lock(running: EmbeddedServer) -> None:
    address = running.ensure_running()
    folder = running.status().data_folder
    with FileLock(folder.with_name(f"{folder.name}.lock"), None) as lock:
        assert lock.try_acquire()
        assert EmbeddedServer(folder.parent).ensure_running() == address


def test_server_ignores_and_hides_the_environment(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("DATABASE_URL", "postgresql://app:secret@localhost/app")
    server, address = servers.make_started()
    assert address.port == 5432
    assert servers.query(address, "SHOW port") == [("5432",)]
    inherited = Path(f"/proc/{server.status().pid}/environ").read_bytes()
    assert b"secret" not in inherited
    assert b"PGPORT" not in inherited


def test_server_asks_tcp_connections_for_a_password(servers: Servers) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _, address = servers.make_started(
        settings={"fsync": "off", "listen_addresses": "127.0.0.1", "port": str(port)}
    )
    assert address.port == port
    url = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(url)
    servers.query(address, "ALTER ROLE postgres PASSWORD 'opened'")
    with psycopg.connect(f"{url} password=opened") as connection:
        assert connection.info.port == port


@pytest.mark.parametrize("name", ["unix_socket_directories", "no such = 'x'\nname"])
def test_server_refuses_settings_of_its_own(servers: Servers, name: str) -> None:
    with pytest.raises(ServerError, match="can't be given the setting"):
        servers.make(settings={name: "x"}).ensure_running()


@pytest.mark.skipif(not SYSTEM_BIN.is_dir(), reason=f"there is no PostgreSQL in {SYSTEM_BIN}")
def test_server_runs_the_binaries_of_another_folder(servers: Servers) -> None:
    home = servers.folder() / "server"
    older = servers.make(home, bin_folder=SYSTEM_BIN)
    newer = servers.make(home)
    assert servers.query(older.ensure_running(), "SHOW server_encoding") == [("UTF8",)]
    assert older.status().data_folder.name == "postgresql-15"
    assert older.status().version.startswith("15.")
    for call in (newer.ensure_running, newer.status):
        with pytest.raises(ServerError, match=r"postgresql-15 holds data of PostgreSQL 15.*untouched"):
            call()
    assert not older.status().data_folder.with_name("postgresql-18").exists()


def test_server_log_stays_short(servers: Servers) -> None:
    server, address = servers.make_started()
    log = server.status().log
    with log.open("ab") as file:
        file.write(b"talk\n" * (LIMIT_BYTES // 5 + 1))
    server.ensure_running()
    assert log.stat().st_size < 1000
    assert log.with_name(f"{log.name}.1").stat().st_size == 1_000_000
    with pytest.raises(psycopg.Error):
        servers.query(address, "SELECT written_after_the_cut")
    assert "written_after_the_cut" in log.read_text()
