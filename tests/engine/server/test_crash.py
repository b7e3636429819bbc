from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rag_factory.errors import LockedError
from rag_factory.server import EmbeddedServer, find_binaries
from rag_factory.server.process import find_processes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engine.server.conftest import Interpreter, Servers

ENSURE = """
import sys
from pathlib import Path
from rag_factory.server import EmbeddedServer
address = EmbeddedServer(Path(sys.argv[1]), settings={"fsync": "off"}).ensure_running()
print(address.host)
"""
LOOP = "DO $$ BEGIN LOOP END LOOP; END $$"


def test_server_comes_back_after_its_postmaster_was_killed(servers: Servers) -> None:
    server, address = servers.make_started()
    servers.query(address, "CREATE TABLE kept AS SELECT 1 AS n")
    # A backend that is busy doesn't notice the death, and keeps the shared memory.
    target = f"host={address.host} port={address.port} user={address.user} dbname=postgres"
    psql = [str(server.binary("psql")), "-c", LOOP, target]
    with subprocess.Popen(psql, stderr=subprocess.DEVNULL) as client:
        looping = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'DO%' AND state = 'active'"
        servers.wait_until(lambda: servers.query(address, looping), "the loop")
        pid = server.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        servers.wait_until(lambda: server.status().state == "stopped", "the postmaster's end")
        assert list(find_processes(server.status().data_folder)), "the backend should still be there"
        assert servers.query(server.ensure_running(), "SELECT n FROM kept") == [(1,)]
        client.wait(30)


def test_server_is_not_fooled_by_a_stale_pid_file(servers: Servers) -> None:
    server, address = servers.make_started()
    data_folder = server.status().data_folder
    other, _ = servers.make_started()
    text = (data_folder / "postmaster.pid").read_text()
    with subprocess.Popen(
        [find_binaries().folder / "postgres", "--version"], stdout=subprocess.DEVNULL
    ) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        for stale in (os.getpid(), other.status().pid, zombie.pid, 2**22 + 1):
            server.stop()
            (data_folder / "postmaster.pid").write_text(f"{stale}\n{text.partition(chr(10))[2]}")
            assert server.status().state == "stopped", stale
            assert not server.stop()
            assert server.ensure_running() == address
            assert servers.query(address, "SELECT 1") == [(1,)]
    assert other.status().state == "running"


@pytest.mark.parametrize(
    "moment", ["initdb begins", "initdb works", "the cluster is there", "the server starts"]
)
def test_server_starts_after_its_starter_was_killed(
    servers: Servers, same_user: Interpreter, moment: str
) -> None:
    server = servers.make()
    data_folder = server.status().data_folder
    home = data_folder.parent
    reached: dict[str, Callable[[], object]] = {
        "initdb begins": lambda: list(home.glob(".postgresql-18.initdb-*")),
        "initdb works": lambda: list(home.glob(".postgresql-18.initdb-*/base/1/*")),
        "the cluster is there": data_folder.exists,
        "the server starts": (data_folder / "postmaster.pid").exists,
    }
    with same_user.start(ENSURE, home) as starter:
        servers.wait_until(lambda: reached[moment]() or starter.poll() is not None, moment)
        assert starter.poll() is None, starter.communicate()
        starter.kill()
    assert servers.query(server.ensure_running(), "SELECT 1") == [(1,)]
    assert not list(home.glob(".postgresql-18.initdb-*"))


def test_server_is_made_once_for_eight_starters(servers: Servers, same_user: Interpreter) -> None:
    server = servers.make()
    status = server.status()
    starters = [same_user.start(ENSURE, status.data_folder.parent) for _ in range(8)]
    answers = [starter.communicate(timeout=60) for starter in starters]
    assert [starter.returncode for starter in starters] == [0] * 8, answers
    assert {output.strip() for output, _ in answers} == {server.ensure_running().host}
    assert status.log.read_text().count("The files belonging to this database system") == 1
    assert status.log.read_text().count("starting PostgreSQL") == 1


def test_server_that_recovers_is_waited_for(servers: Servers, same_user: Interpreter) -> None:
    server, _ = servers.make_started()
    data_folder = server.status().data_folder
    server.stop()
    # Recovery asks this command for a file, and goes on when it fails: after the gate is open.
    gate = data_folder.with_name("gate")
    gate.touch()
    (data_folder / "recovery.signal").touch()
    with (data_folder / "postgresql.conf").open("a") as conf:
        conf.write(f"restore_command = 'while test -e {gate}; do sleep 0.01; done; false'\n")
    with same_user.start(ENSURE, data_folder.parent) as starter:
        try:
            servers.wait_until(lambda: server.status().state == "starting", "recovery")
            impatient = EmbeddedServer(data_folder.parent, timeout_seconds=0.1)
            with pytest.raises(LockedError, match=f"Process {starter.pid} has been busy"):
                impatient.ensure_running()
            assert starter.poll() is None
        finally:
            gate.unlink()
        output, errors = starter.communicate(timeout=60)
    assert starter.returncode == 0, errors
    assert output.strip() == server.ensure_running().host


def test_server_is_restarted_when_its_socket_is_gone(servers: Servers) -> None:
    server, address = servers.make_started()
    for path in Path(address.host).iterdir():
        path.unlink()
    assert servers.query(server.ensure_running(), "SELECT 1") == [(1,)]
