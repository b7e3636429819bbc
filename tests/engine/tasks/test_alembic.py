"""Plain Alembic works in the project too."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine
    from tests.engine.conftest import Tasks


def test_alembic_upgrades_looks_and_downgrades(
    cli: CommandLine,
    tasks: Tasks,
    database_url: DatabaseUrl,
    dump: Callable[[DatabaseUrl], str],
    query: Callable[..., list[tuple[Any, ...]]],
) -> None:
    tasks.succeed("db.create")
    done = _alembic(cli, "upgrade", "head")
    assert done.returncode == 0, done.stderr
    assert "INFO  [alembic.runtime.migration] Running upgrade 001 -> 002, hierarchy" in done.stderr
    schema = dump(database_url)
    assert _alembic(cli, "current").stdout == "002 (head)\n"
    assert _alembic(cli, "history").stdout.startswith("001 -> 002 (head), hierarchy\n")
    assert _alembic(cli, "check").stdout == "No new upgrade operations detected.\n"
    assert _alembic(cli, "downgrade", "base").returncode == 0
    assert query("SELECT count(*) FROM alembic_version") == [(0,)]
    tasks.succeed("db.migrate")
    assert dump(database_url) == schema
    offline = _alembic(cli, "upgrade", "head", "--sql", DATABASE_URL="")
    assert offline.returncode == 0, offline.stderr
    assert "CREATE TABLE documents" in offline.stdout
    assert not (cli.root / ".rag_factory").exists()


def test_callers_url_wins_over_the_settings(
    cli: CommandLine, tasks: Tasks, database_url: DatabaseUrl
) -> None:
    tasks.succeed("db.create")
    ini = cli.root / "alembic.ini"
    url = database_url.sqlalchemy.replace("%", "%%")
    ini.write_text(ini.read_text().replace("[alembic]\n", f"[alembic]\nsqlalchemy.url = {url}\n", 1))
    done = _alembic(cli, "upgrade", "001", DATABASE_URL="postgresql://nobody@127.0.0.1:1/nowhere")
    assert done.returncode == 0, done.stderr
    assert tasks.status()["revision"] == ["001"]


def test_alembic_tells_our_errors_in_one_line(cli: CommandLine, database_url: DatabaseUrl) -> None:
    wrong = database_url.plain.replace(":a%3A", ":b%3A")
    for url, says in (
        (database_url.plain, 'Database "test_'),
        (wrong, "refused the login of app"),
        ("postgresql://app@127.0.0.1:1/app", "No server answers at 127.0.0.1:1."),
        ("nonsense", "DATABASE_URL (environment) is malformed"),
    ):
        done = _alembic(cli, "upgrade", "head", DATABASE_URL=url)
        assert done.returncode != 0
        assert done.stdout.startswith("FAILED: ")
        assert says in done.stdout
        assert len(done.stdout.splitlines()) == 1
        assert "Traceback" not in done.stderr


def _alembic(cli: CommandLine, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = replace(cli, environment=cli.environment | environment)
    return given.run(sys.executable, "-m", "alembic", *arguments)
