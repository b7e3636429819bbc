"""db.backup, db.backups, db.restore and db.rehearse as users run them.

A command line costs most of a second: what doesn't show there is tested in the functions.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from rag_factory.errors import UsageError
from rag_factory.migrate.backup.dump import back_up
from rag_factory.migrate.backup.folder import find_backup
from rag_factory.migrate.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import psycopg

    from rag_factory.database.url import DatabaseUrl
    from rag_factory.migrate.backup.manifest import Backup
    from rag_factory.migrate.target import Target
    from tests.conftest import CommandLine
    from tests.engine.conftest import Tasks

    Query = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def backup(target: Target, project: Path, query: Query) -> Backup:
    """A backup of two rows, which were deleted since."""
    query("CREATE TABLE mine (id int); INSERT INTO mine VALUES (1), (2)")
    made = back_up(target, Project(project))
    query("DELETE FROM mine")
    return made


def test_backup_keeps_as_many_as_it_is_told(tasks: Tasks, query: Query, target: Target) -> None:
    query("CREATE TABLE mine (id int); INSERT INTO mine VALUES (1)")
    done = tasks.succeed(
        *("db.backup", "--keep", "1", "db.backup", "--jobs", "2", "--keep", "1", "db.backups", "--verify")
    )
    first, second, head, row = done.stdout.splitlines()
    name = target.url.database
    told = done.stderr.splitlines()[0]
    assert re.fullmatch(rf"backed up {name} on .*: 1 row in 1 table, \d+\.\d kB, \d+\.\d s", told)
    assert f"wrote backups/{second}\nremoved {first}\n" in done.stderr
    assert head.split() == ["backup", "revision", "age", "size", "rows", "state"]
    assert re.fullmatch(rf"{re.escape(second)}  base +\d+ s +\d+\.\d kB  1     verified", row)


def test_restore_is_confirmed_and_says_where_the_former_database_is(
    tasks: Tasks, query: Query, backup: Backup, database_url: DatabaseUrl
) -> None:
    name = database_url.database
    says = (
        rf"^This replaces the database .*\(1 table, .*\) by the backup {backup.name}\. Nothing was changed.*"
    )
    tasks.fail(4, "db.restore", says=f"{says}add: --yes$")
    typed = f"APP_ENV is production.*--yes --database {name}$"
    tasks.fail(4, "db.restore", "--yes", says=typed, APP_ENV="production")
    assert query("SELECT count(*) FROM mine") == [(0,)]
    done = tasks.succeed("db.restore", "--yes", "--database", name, APP_ENV="production")
    assert query("SELECT count(*) FROM mine") == [(2,)]
    assert "restored 2 rows in 1 table, as its manifest says, in " in done.stderr
    kept_as = re.search(r'kept as (\S+); drop it: DROP DATABASE "\1"$', done.stderr, re.MULTILINE)
    assert kept_as, done.stderr
    query(f'DROP DATABASE "{kept_as[1]}"')


def test_restore_into_another_database(tasks: Tasks, query: Query, backup: Backup) -> None:
    copy = f"{backup.manifest.database}_copy"
    into = ("db.restore", "--backup", backup.name, "--into", copy)
    # Nothing is there that could be destroyed: no question, wherever it is.
    done = tasks.succeed(*into, APP_ENV="production")
    assert re.search(rf"{copy} on .* is at base$", done.stderr.strip())
    tasks.fail(4, *into, "--yes", says=f"add: --yes --database {copy}$", APP_ENV="production")
    tasks.fail(2, "db.restore", "--into", "x" * 64, says="must be a name of 1 to 63 bytes")
    assert query("SELECT count(*) FROM mine") == [(0,)]


def test_the_newest_backup_is_never_of_a_database_with_a_like_name(
    query: Query, backup: Backup, target: Target
) -> None:
    # A file's name takes both alike.
    ours, like = f"{target.url.database} ä", f"{target.url.database} ö"
    query(f'CREATE DATABASE "{ours}"')
    query(f'CREATE DATABASE "{like}"')
    project = Project(target.config.root)
    made = [back_up(replace(target, url=target.url.with_database(name)), project) for name in (ours, like)]
    folder = backup.path.parent
    assert made[0].manifest.database == ours
    assert find_backup(folder, None, ours) == made[0]
    with pytest.raises(UsageError, match=r"There is no backup of .* ü in "):
        find_backup(folder, None, f"{target.url.database} ü")


def test_damage_is_told_and_refused(tasks: Tasks, query: Query, backup: Backup) -> None:
    content = bytearray(backup.dump.read_bytes())
    content[-9] ^= 1
    backup.dump.write_bytes(content)
    says = f"The backup {backup.name} is damaged: the SHA-256 of database.dump is"
    tasks.fail(1, "db.restore", "--yes", says=says)
    done = tasks.run("db.backups", "db.backups", "--verify", "--json")
    assert (done.returncode, done.stderr.splitlines()[-1][:21]) == (1, "1 backup is damaged. ")
    assert "complete" in done.stdout.splitlines()[1]
    (told,) = json.loads(done.stdout.partition("\n[")[2].join(("[", "")))
    assert (told["name"], told["problem"][: len(says)]) == (backup.name, says)
    assert query("SELECT count(*) FROM mine") == [(0,)]


@pytest.mark.usefixtures("backup")
def test_a_wrong_password_changes_nothing(tasks: Tasks, query: Query, database_url: DatabaseUrl) -> None:
    wrong = database_url.plain.replace("a%3Ab", "sesame")
    assert wrong != database_url.plain
    for way in ((), ("--into", "another")):
        done = tasks.run("db.restore", *way, "--yes", DATABASE_URL=wrong)
        assert (done.returncode, done.stdout) == (3, ""), done.stderr
        assert "wrong user or password" in done.stderr
        assert "sesame" not in done.stderr
    assert query("SELECT count(*) FROM mine") == [(0,)]
    half_made = "FROM pg_database WHERE datname ~ '^(another|rag_factory_scratch)'"
    assert query(f"SELECT datname {half_made}") == []


def test_a_file_that_can_not_grow_fails_the_backup(
    cli: CommandLine, target: Target, query: Query, project: Path
) -> None:
    query("CREATE TABLE mine AS SELECT gen_random_uuid() FROM generate_series(1, 20000)")
    # A limit that an ordinary user can set: 100 blocks of 512 bytes a file.
    limited = 'ulimit -f 100 && exec "$@"'
    done = cli.run("sh", "-c", limited, "sh", sys.executable, "-m", "invoke", "db.backup")
    assert (done.returncode, done.stdout) == (9, ""), done.stderr
    assert f"The backup of {target.place} failed, and nothing is left of it: pg_dump failed: " in done.stderr
    assert "it was ended by SIGXFSZ. Make room there" in done.stderr
    assert list((project / "backups").iterdir()) == []


def test_rehearsal_times_each_way_and_finds_what_a_downgrade_leaves(
    tasks: Tasks, write_revision: Callable[..., Path], server: psycopg.Connection[Any], query: Query
) -> None:
    write_revision("003", "002", "CREATE TABLE extra (id int)", "DROP TABLE extra")
    done = tasks.succeed("db.migrate", "--to", "002", "db.backup", "db.rehearse")
    _, head, row = done.stdout.splitlines()
    assert head.split() == ["revision", "up", "down", "up", "again"]
    assert re.fullmatch(r"003 +revision 003 +\d+ ms +\d+ ms +\d+ ms", row)
    assert done.stderr.endswith("are the same after going down, and after going up again\n")
    kept = "CREATE TABLE IF NOT EXISTS left_over AS SELECT 1 AS one; INSERT INTO left_over VALUES (2)"
    write_revision("004", "003", kept)
    done = tasks.run("db.rehearse", "--json")
    assert done.returncode == 6
    told = json.loads(done.stdout)
    assert [revision["id"] for revision in told["revisions"]] == ["003", "004"]
    assert all(one[way] > 0 for one in told["revisions"] for way in ("up_ms", "down_ms", "up_again_ms"))
    assert told["differences"][0].startswith("after going down: +column public.left_over.one integer")
    assert told["differences"][-1] == "after going up again: public.left_over has 3 instead of 2"
    assert "\n".join(told["differences"]) in done.stderr
    write_revision("005", "004", "op.execute('SELECT nonsense')")
    tasks.fail(1, "db.rehearse", says="Applying 005 .* failed: ")
    assert query("SELECT version_num FROM alembic_version") == [("002",)]
    scratch = "SELECT FROM pg_database WHERE datname LIKE 'rag_factory_scratch%'"
    assert server.execute(scratch).fetchall() == []
