"""`env.*` through the real command line, and the settings' errors as a user sees them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.url import DatabaseUrl
from rag_factory.server import EmbeddedServer, find_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import CommandLine

SECRET = "Zq7Xv9"
SETTING_NAMES = [name.upper() for name in DatabaseConfig.model_fields]


def check(cli: CommandLine, /, **environment: Any) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Run env.check --json, hold its answer against the promised shape; its code, checks by name, stderr."""
    done = cli.invoke("env.check", "--json", **environment)
    data = json.loads(done.stdout)
    assert list(data) == ["ok", "checks"]
    for found in data["checks"]:
        assert list(found) == ["check", "ok", "detail", "problems"]
        assert found["ok"] is not bool(found["problems"])
        assert all(list(problem) == ["what", "fix"] for problem in found["problems"])
    assert data["ok"] is all(found["ok"] for found in data["checks"])
    assert done.returncode == (0 if data["ok"] else 3), done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode, {found["check"]: found for found in data["checks"]}, done.stderr


def told(found: dict[str, Any]) -> str:
    return "\n".join(problem["what"] for problem in found["problems"])


def add_revision(root: Path, name: str) -> None:
    """Add a revision beside the last one, so that there are two heads."""
    text = f'"""Second head."""\n\nrevision = "{name}"\ndown_revision = "001"\n'
    (root / "migrations" / "versions" / f"{name}.py").write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def closed_port() -> Iterator[int]:
    """A port that is taken, and where nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture(scope="session")
def url_without_pgvector(public_folder: Path) -> Iterator[DatabaseUrl]:
    """A server whose PostgreSQL is the embedded one, but for pgvector."""
    programs = find_binaries(None).folder
    package = programs.parents[1]
    home = public_folder / "no-pgvector"
    for folder in package.parent.glob(f"{package.name}*"):
        # The folder beside the package has the libraries that the programs look for there.
        if not folder.name.endswith(".dist-info"):
            shutil.copytree(folder, home / folder.name, ignore=shutil.ignore_patterns("vector*"))
    server = EmbeddedServer(
        home / "data",
        bin_folder=home / programs.relative_to(package.parent),
        settings={"fsync": "off"},
    )
    address = server.ensure_running()
    try:
        yield DatabaseUrl(host=address.host, port=address.port, user=address.user)
    finally:
        server.stop()


# --- env.check ---


def test_check_is_ready_once_the_database_is_there(cli: CommandLine) -> None:
    code, checks, _ = check(cli)
    assert (code, told(checks["database"])[:10]) == (3, 'Database "')
    assert checks["database"]["problems"][0]["fix"] == "Create it: invoke db.create"
    assert checks["extensions"]["ok"]
    assert cli.invoke("db.create").returncode == 0
    _, checks, _ = check(cli)
    assert list(checks) == ["settings", "history", "server", "database", "extensions", "test database"]
    assert all(found["ok"] and found["detail"] for found in checks.values())
    done = cli.invoke("env.check")
    assert (done.returncode, done.stderr) == (0, "Ready\n")
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["ok", name.split()[0]] for name in checks
    ]


def test_check_tells_all_that_is_wrong_with_a_server_that_answers(
    cli: CommandLine, url_without_pgvector: DatabaseUrl, closed_port: int
) -> None:
    add_revision(cli.root, "other_head")
    code, checks, stderr = check(
        cli,
        DATABASE_URL=url_without_pgvector.with_database("shop").plain,
        DATABASE_READ_URL=f"postgresql://app:{SECRET}@127.0.0.1:{closed_port}/shop",
        DATABASE_TEST_URL=f"postgres://{url_without_pgvector.user}@/shop?host={url_without_pgvector.host}",
        DB_POOL_SIZE="many",
        RUN_LLM_TESTS="perhaps",
    )
    assert code == 3
    assert "DB_POOL_SIZE (environment) is 'many'" in told(checks["settings"])
    assert "RUN_LLM_TESTS (environment) is 'perhaps'" in told(checks["settings"])
    assert "2 heads: 002, other_head" in told(checks["history"])
    assert checks["server"]["ok"]
    assert 'Database "shop" does not exist' in told(checks["database"])
    assert "pgvector is missing" in told(checks["extensions"])
    assert told(checks["read replica"]) == f"No server answers at 127.0.0.1:{closed_port}."
    assert "TEST_DATABASE_URL (environment, as DATABASE_TEST_URL) leads to the" in told(
        checks["test database"]
    )
    warning, end = stderr.splitlines()
    assert warning.startswith(
        "warning: DATABASE_TEST_URL (environment) is the old name of TEST_DATABASE_URL."
    )
    assert end == "Not ready: 7 problems."


def test_check_tells_all_that_is_wrong_when_no_server_answers(cli: CommandLine, closed_port: int) -> None:
    add_revision(cli.root, "other_head")
    (cli.root / "tests" / ".env.test").write_text(
        f"TEST_DATABASE_URL=postgres://x:{SECRET}@localhost:{closed_port}/shop"
    )
    url = f"postgresql://app:{SECRET}@127.0.0.1:{closed_port}/shop"
    _, checks, _ = check(cli, DATABASE_URL=url, DB_POOL_SIZE="0")
    assert "DB_POOL_SIZE (environment) is '0'" in told(checks["settings"])
    assert "2 heads" in told(checks["history"])
    assert told(checks["server"]) == f"No server answers at 127.0.0.1:{closed_port}."
    assert "leads to the application's database" in told(checks["test database"])
    assert not {"database", "extensions", "read replica"} & checks.keys()
    done = cli.invoke("env.check", DATABASE_URL=url, DB_POOL_SIZE="0")
    assert done.returncode == 3
    assert done.stderr == "Not ready: 4 problems.\n"
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["problem"] * 4
    assert SECRET not in done.stdout


@pytest.mark.parametrize("default_port", [True, False])
def test_check_knows_one_server_by_its_two_names(
    cli: CommandLine, database_url: DatabaseUrl, server_url: DatabaseUrl, default_port: bool
) -> None:
    """A name in TCP and the folder of a socket have no letter in common."""
    with psycopg.connect(server_url.with_database("postgres").plain) as connection:
        folder = connection.execute("SHOW unix_socket_directories").fetchone()
        assert folder is not None
    socket_url = DatabaseUrl(
        host=folder[0].strip('"'),
        port=server_url.port,
        user="app",
        password=server_url.password,
        database=database_url.database if default_port else "another_test",
    )
    _, checks, _ = check(cli, TEST_DATABASE_URL=socket_url.plain)
    assert checks["test database"]["ok"] is not default_port
    assert ("the tests would destroy it" in told(checks["test database"])) is default_port


def test_check_asks_no_server_when_the_settings_name_none(cli: CommandLine) -> None:
    _, checks, _ = check(cli, DATABASE_URL=f"mysql://app:{SECRET}@db/shop", APP_ENV="prod")
    assert list(checks) == ["settings", "history", "test database"]
    assert len(checks["settings"]["problems"]) == 2
    assert checks["test database"]["ok"]
    _, checks, _ = check(cli, DATABASE_URL="", APP_ENV="production")
    assert "the embedded server is for development only" in told(checks["server"])


# --- env.show ---


def test_show_tells_each_setting_masked_and_its_origin(cli: CommandLine) -> None:
    (cli.root / ".env").write_text(f"DB_POOL_SIZE=7\nDATABASE_READ_URL=postgresql://r:{SECRET}@db/shop\n")
    done = cli.invoke("env.show", "--json", DB_DATABASE_URL=f"postgres://app:{SECRET}@db/x", DATABASE_URL="")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: DB_DATABASE_URL (environment) is the old name of DATABASE_URL.")
    rows = json.loads(done.stdout)
    assert all(list(row) == ["name", "value", "origin"] for row in rows)
    assert [row["name"] for row in rows] == SETTING_NAMES
    found = {row["name"]: (row["value"], row["origin"]) for row in rows}
    assert found["DATABASE_URL"] == ("postgresql://app:***@db/x", "environment, as DB_DATABASE_URL")
    assert found["DATABASE_READ_URL"] == ("postgresql://r:***@db/shop", ".env")
    assert found["DB_POOL_SIZE"] == ("7", ".env")
    assert found["APP_ENV"] == ("development", "default")
    shown = cli.invoke("env.show", DATABASE_URL=f"postgres://app:{SECRET}@db/x").stdout.splitlines()
    assert [line.split()[0] for line in shown] == SETTING_NAMES
    assert SECRET not in done.stdout + done.stderr + "".join(shown)


# --- env.init ---


def test_init_writes_private_files_and_never_over_yours(cli: CommandLine) -> None:
    files = [cli.root / ".env", cli.root / "tests" / ".env.test"]
    done = cli.run("sh", "-c", f"umask 000; exec '{sys.executable}' -m invoke env.init")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "wrote .env\nwrote tests/.env.test\n"
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_bytes() == file.with_name(f"{file.name}.example").read_bytes()
    files[0].write_text("mine")
    files[1].unlink()
    files[1].symlink_to("nowhere")
    done = cli.invoke("env.init")
    assert done.returncode == 0
    assert done.stderr == ".env exists; left as it is\ntests/.env.test exists; left as it is\n"
    assert files[0].read_text() == "mine"
    assert not (cli.root / "tests" / "nowhere").exists()


def test_init_does_what_it_can_without_an_example(cli: CommandLine) -> None:
    (cli.root / ".env.example").unlink()
    done = cli.invoke("env.init")
    assert done.stderr == ".env.example is not here; .env not written\nwrote tests/.env.test\n"
    assert done.returncode == 0


def without_privileges() -> list[str]:
    """Make root obey the modes of files, as everybody else does."""
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


def test_init_in_a_read_only_folder_says_so(cli: CommandLine) -> None:
    folders = [cli.root, cli.root / "tests"]
    for folder in folders:
        folder.chmod(0o555)
    try:
        done = cli.run(*without_privileges(), sys.executable, "-B", "-m", "invoke", "env.init")
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert (done.returncode, done.stdout) == (3, "")
    fix = "Give this user the right and the room to write in"
    assert done.stderr.splitlines() == [
        f".env can't be written: Permission denied. {fix} {folders[0]}.",
        f"tests/.env.test can't be written: Permission denied. {fix} {folders[1]}.",
    ]


def test_init_leaves_no_half_of_a_file(cli: CommandLine) -> None:
    done = cli.run("sh", "-c", f"ulimit -f 0; exec '{sys.executable}' -B -m invoke env.init")
    assert done.returncode == 3
    assert done.stderr.count("can't be written: File too large.") == 2
    assert not (cli.root / ".env").exists()
    assert not (cli.root / "tests" / ".env.test").exists()


# --- the settings' errors ---


def test_any_task_tells_all_problems_of_the_settings_at_once(cli: CommandLine) -> None:
    (cli.root / ".env").write_text(f"DB_HOST=${{NOWHERE}}\nDB_PASSWORD={SECRET}\n")
    done = cli.invoke(
        "db.migrate", DATABASE_URL=f"postgresql://app:{SECRET}@db:0/shop", APP_ENV="live", DB_PORT="70000"
    )
    assert (done.returncode, done.stdout) == (3, "")
    lines = done.stderr.splitlines()
    assert [line.split()[0] for line in lines] == [".env", "APP_ENV", "DB_PORT", "DATABASE_URL"]
    assert SECRET not in done.stderr


def test_a_url_and_parts_that_disagree_stop_any_task(cli: CommandLine) -> None:
    done = cli.invoke("db.status", DB_PASSWORD=SECRET, DB_NAME="other")
    assert (done.returncode, done.stdout) == (3, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("DATABASE_URL (environment) and DB_NAME (environment) disagree: test_")
    assert second.startswith("DATABASE_URL (environment) and DB_PASSWORD (environment) disagree. Remove")
    assert SECRET not in done.stderr


def test_a_file_that_can_not_be_read_is_one_message(cli: CommandLine) -> None:
    (cli.root / ".env").write_text("DB_POOL_SIZE=3\n")
    (cli.root / ".env").chmod(0)
    done = cli.run(*without_privileges(), sys.executable, "-m", "invoke", "db.url")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f".env can't be read: Permission denied. Make {cli.root / '.env'} a file that this user can read.\n"
    )


def test_an_old_name_is_warned_of_once(cli: CommandLine, database_url: DatabaseUrl) -> None:
    done = cli.invoke("db.migrate", DATABASE_URL="", DB_DATABASE_URL=database_url.plain)
    assert done.returncode == 0
    assert done.stderr.count("warning: ") == 1
    assert done.stderr.startswith(
        "warning: DB_DATABASE_URL (environment) is the old name of DATABASE_URL. Rename it: "
    )


# --- a password never appears ---

GOOD = f"postgresql://app:{SECRET}@127.0.0.1:{{port}}/shop?sslpassword={SECRET}"
LEAKS = [
    (("env.show",), GOOD),
    (("env.show", "--json", "--debug"), GOOD),
    (("env.check",), GOOD),
    (("env.check", "--json", "--debug"), GOOD),
    (("-d", "db.url"), GOOD),
    (("--debug", "db.status", "--debug"), GOOD),
    (("db.migrate", "--debug"), GOOD),
    (("db.shell", "--command", "select 1"), GOOD),
    (("db.status", "--debug"), f"postgresql://app:{SECRET}@db:{SECRET}/shop"),
    (("db.status", "--debug"), f"postgresql://app:{SECRET}%ff@db/shop"),
    (("env.check", "--debug"), f"mysql://app:{SECRET}@db"),
]


@pytest.mark.parametrize(("arguments", "url"), LEAKS)
def test_no_output_shows_a_password(
    cli: CommandLine, closed_port: int, arguments: tuple[str, ...], url: str
) -> None:
    done = cli.invoke(
        *arguments,
        DATABASE_URL=url.replace("{port}", str(closed_port)),
        TEST_DATABASE_URL=f"postgresql://app:{SECRET}@127.0.0.1:{closed_port}/shop_test",
        INVOKE_DEBUG="1",
    )
    output = done.stdout + done.stderr
    assert "argv given to Program.run" in output
    assert str(closed_port) in output or "malformed" in output
    assert "This should not happen" not in output
    assert SECRET not in output


def test_no_process_list_shows_a_password(cli: CommandLine, server_url: DatabaseUrl) -> None:
    role = f"role_{os.getpid()}"
    url = replace(server_url.with_database("postgres"), user=role, password=f"{SECRET}/@:")
    environment = {
        name: text
        for name, text in os.environ.items()
        if name not in SETTING_NAMES and not name.startswith("PG")
    }
    with psycopg.connect(server_url.with_database("postgres").plain, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{url.password}'".encode())
        try:
            shell = subprocess.Popen(
                [sys.executable, "-m", "invoke", "db.shell", "-c", "select pg_sleep(60)"],
                cwd=cli.root,
                env=environment | {"DATABASE_URL": url.plain},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            with shell:
                query = "SELECT pid FROM pg_stat_activity WHERE usename = %s AND query LIKE '%%pg_sleep%%'"
                deadline = time.monotonic() + 30
                while not (found := connection.execute(query, [role]).fetchone()):
                    assert shell.poll() is None, shell.stderr and shell.stderr.read()
                    assert time.monotonic() < deadline, "psql did not run its statement"
                listed = []
                for process in Path("/proc").glob("[0-9]*/cmdline"):
                    with suppress(OSError):
                        listed.append(process.read_bytes())
                connection.execute("SELECT pg_terminate_backend(%s)", [found[0]])
        finally:
            connection.execute(f"DROP ROLE {role}".encode())
    assert any(b"psql" in line and role.encode() in line for line in listed)
    assert not any(SECRET.encode() in line for line in listed)
